"""Extractive question answering with questions that have no answer: loss, spans, null threshold, metrics.

A window's first token stands for "no answer". The best span of a window is searched on the device, exactly and
for the whole batch at once, among its context tokens only; a few numbers a window come back. Windows belong to
their example by number, never by text or by order, and answers are cut from the context by characters.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn

from bertdyn.data.batching import Batch, model_inputs
from bertdyn.tasks.squad_metric import answer_scores, best_threshold

RESAMPLES = 1000


class Answers(NamedTuple):
    """What a model says of one part."""

    table: pd.DataFrame
    """One row a question, in the part's order: example_id; answer, the text of the best span that is not null
    ("" where there is none); char_start, char_end, its half-open range in the context; span_score and
    null_score (sums of the start and end logit); score_difference, null_score - span_score."""
    loss: float
    """Mean over the windows."""


class Spans(NamedTuple):
    """The best span of each window, [batch] each."""

    start: Tensor
    end: Tensor
    """First and last token; both 0 where the score is -inf."""
    score: Tensor
    """Start logit + end logit; -inf where the context is empty."""


@dataclass(frozen=True)
class QuestionAnswering:
    """A span of the context, or no answer."""

    frames: Mapping[str, pd.DataFrame]
    """Part to questions (`TextData.parts`)."""
    windows: Mapping[str, Dataset]
    """Part to windows (`make_windows`)."""
    max_answer_length: int = 30
    """Longest answer in tokens."""

    name = "question-answering"
    selection_metric = "eval/f1"

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Mean over the batch of the cross-entropies of start and end, halved, over what prediction chooses from."""
        return window_losses(*_logits(model, batch), batch).mean()

    def log_probabilities(self, model: Callable[..., Any], batch: Batch) -> list[Tensor]:
        """Of the first and of the last token of the answer: two tensors [batch, seq]."""
        logits = _logits(model, batch)
        closed = _closed(logits[0], batch)
        return [F.log_softmax(x.masked_fill(closed, torch.finfo(x.dtype).min), dim=-1) for x in logits]

    @torch.inference_mode()
    def predict(self, accelerator: Accelerator, model: nn.Module, batches: Iterable[Batch], part: str) -> Answers:
        """The answers to all questions of `part`, whose windows are in `batches`, in whatever order.

        `batches` must have gone through `accelerator.prepare`; every process gets everything. The best span
        of a question is the best of all its windows (the first of equals), its null score the lowest of all:
        that there is no answer must hold in every window.
        """
        was_training = model.training
        model.eval()
        gathered = []
        for batch in batches:
            with accelerator.autocast():
                start, end = _logits(model, batch)
            spans = best_spans(start, end, batch["context_start"], batch["context_end"], self.max_answer_length)
            null = start[:, 0] + end[:, 0]
            gathered.append(
                accelerator.gather_for_metrics((batch["index"], *spans, null, window_losses(start, end, batch)))
            )
        model.train(was_training)
        names = ("index", "start", "end", "span_score", "null_score", "loss")
        columns = [torch.cat(column).cpu().numpy() for column in zip(*gathered, strict=True)]
        return self.merge_windows(pd.DataFrame(dict(zip(names, columns, strict=True))), part)

    def merge_windows(self, found: pd.DataFrame, part: str) -> Answers:
        """The answers to the questions of `part` from what was found in each of its windows.

        Parameters
        ----------
        found
            One row a window, in any order: index, the number of the window; start, end, span_score as in `Spans`;
            null_score; loss.
        """
        windows, frame = self.windows[part], self.frames[part]
        spans = found.sort_values("index", ignore_index=True).assign(example=windows["example"][:])
        # A stable sort: of equal scores the first window stays.
        ranked = spans.sort_values("span_score", ascending=False, kind="stable")
        best = ranked.drop_duplicates("example").sort_values("example")
        null = spans.groupby("example")["null_score"].min().to_numpy()
        char_start = _at(windows, "char_start", best.index.to_numpy(), best["start"].to_numpy())
        char_end = _at(windows, "char_end", best.index.to_numpy(), best["end"].to_numpy())
        rows = []
        for context, low, high in zip(frame["text_pair"], char_start, char_end, strict=True):
            # A first or last token that is white space alone has an empty range, which may stand across a gap.
            text = context[max(low, 0) : max(high, 0)].rstrip()
            rows.append((text, max(low, 0), max(low, 0) + len(text)))
        table = pd.DataFrame(rows, columns=["answer", "char_start", "char_end"])
        table.insert(0, "example_id", frame["example_id"].to_numpy())
        span_score = best["span_score"].to_numpy().astype(np.float64)
        null = null.astype(np.float64)
        table = table.assign(span_score=span_score, null_score=null, score_difference=null - span_score)
        return Answers(table, float(spans["loss"].mean()))

    def metrics(self, answers: Answers, part: str, threshold: float | None = None) -> dict[str, float]:
        """Loss, exact match and F1 (0..1) with the threshold given, or else with the best for F1.

        Parameters
        ----------
        threshold
            A question is answered if and only if its score difference is at most this. None: the one with
            the best F1 on these very answers, which is for validation only.

        Returns
        -------
        metrics
            loss, exact, f1, null_threshold; has_ans_exact and has_ans_f1 over the questions with an answer,
            no_ans_f1 over those without (where exact and F1 are the same), each where there are such.
        """
        scores = self._scores(answers, part)
        if threshold is None:
            threshold = _best_for_f1(answers, scores)
        final = _with_threshold(answers, scores, threshold)
        found = {"loss": answers.loss, "exact": float(final["exact"].mean()), "f1": float(final["f1"].mean())}
        has_answer = scores["has_answer"]
        if has_answer.any():
            found["has_ans_exact"] = float(final["exact"][has_answer].mean())
            found["has_ans_f1"] = float(final["f1"][has_answer].mean())
        if not has_answer.all():
            found["no_ans_f1"] = float(final["f1"][~has_answer].mean())
        return found | {"null_threshold": threshold}

    def threshold_curve(self, answers: Answers, part: str, points: int = 101) -> pd.DataFrame:
        """The scores over the threshold: columns threshold and those of `metrics`, at quantiles and at the best."""
        scores = self._scores(answers, part)
        differences = answers.table["score_difference"].to_numpy()
        finite = differences[np.isfinite(differences)]
        # The best one is seldom a quantile, and where never answering is best, it lies below all of them.
        best = _best_for_f1(answers, scores)
        thresholds = np.unique([best, *(np.quantile(finite, np.linspace(0, 1, points)) if len(finite) else ())])
        answered = differences[:, None] <= thresholds  # [questions, points]
        has_answer = scores["has_answer"].to_numpy()
        groups = {"": np.ones(len(scores), dtype=bool), "has_ans_": has_answer, "no_ans_": ~has_answer}
        curve: dict[str, np.ndarray] = {"threshold": thresholds}
        for metric in ("exact", "f1"):
            values = np.where(answered, scores[[metric]], scores[["null"]])
            curve |= {f"{prefix}{metric}": values[rows].mean(axis=0) for prefix, rows in groups.items() if rows.any()}
        return pd.DataFrame(curve)

    def f1_interval(self, answers: Answers, part: str, threshold: float, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of F1 (0..1) over contexts, whose questions are drawn together."""
        values = self.question_scores(answers, part, threshold)["f1"]
        return cluster_interval(values.to_numpy(), self.frames[part]["text_pair"].to_numpy(), seed)

    def question_scores(self, answers: Answers, part: str, threshold: float) -> pd.DataFrame:
        """exact and f1 (0..1) of each question with this threshold, in the part's order; infinity always answers."""
        return _with_threshold(answers, self._scores(answers, part), threshold)

    def _scores(self, answers: Answers, part: str) -> pd.DataFrame:
        """One row a question: has_answer; exact and f1 of its answer; null, of both if none is given."""
        golds = self.frames[part]["answers"]
        given = [answer_scores(text, gold) for text, gold in zip(answers.table["answer"], golds, strict=True)]
        scores = pd.DataFrame(given, columns=["exact", "f1"])
        none = [answer_scores("", gold)[0] for gold in golds]
        return scores.assign(null=none, has_answer=[len(gold) > 0 for gold in golds])


def _logits(model: Callable[..., Any], batch: Batch) -> tuple[Tensor, Tensor]:
    """Start and end logits [batch, seq], float32."""
    outputs = model(**model_inputs(batch))
    return outputs.start_logits.float(), outputs.end_logits.float()


def window_losses(start: Tensor, end: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each window [batch], mean of start and end, over the context and the first token.

    Question, separators and padding have no probability, since prediction never chooses them. (Hugging Face's
    heads count them in; System 3 trained over them and searched the context only.)

    Parameters
    ----------
    start, end
        Logits [batch, seq].
    batch
        start_positions, end_positions; context_start, context_end, the half-open range of the context [batch].
    """
    start_losses, end_losses = position_losses(start, end, batch)
    return (start_losses + end_losses) / 2


def position_losses(start: Tensor, end: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The two cross-entropies of `window_losses`, [batch] each."""
    closed = _closed(start, batch)
    start, end = start.masked_fill(closed, -torch.inf), end.masked_fill(closed, -torch.inf)
    start_losses = F.cross_entropy(start, batch["start_positions"], reduction="none")
    return start_losses, F.cross_entropy(end, batch["end_positions"], reduction="none")


def _closed(logits: Tensor, batch: Batch) -> Tensor:
    """[batch, seq]: positions that prediction never chooses, all but the context and the first token."""
    position = torch.arange(logits.shape[1], device=logits.device)
    closed = (position < batch["context_start"][:, None]) | (position >= batch["context_end"][:, None])
    closed[:, 0] = False
    return closed


def best_spans(start: Tensor, end: Tensor, context_start: Tensor, context_end: Tensor, max_length: int) -> Spans:
    """The exact best span of each window, for all windows at once and without a [seq, seq] matrix.

    Parameters
    ----------
    start, end
        Logits [batch, seq].
    context_start, context_end
        Half-open range of the context's tokens [batch].
    max_length
        Longest span in tokens.

    Returns
    -------
    spans
        Of equal scores the shortest span, of these the first.
    """
    batch, seq = start.shape
    position = torch.arange(seq, device=start.device)
    outside = (position < context_start[:, None]) | (position >= context_end[:, None])
    start, end = start.masked_fill(outside, -torch.inf), end.masked_fill(outside, -torch.inf)
    best = start.new_full((batch,), -torch.inf)
    first, last = torch.zeros_like(context_start), torch.zeros_like(context_start)
    for further in range(min(max_length, seq)):
        score, place = (start[:, : seq - further] + end[:, further:]).max(dim=1)
        better = score > best
        best = torch.where(better, score, best)
        first = torch.where(better, place, first)
        last = torch.where(better, place + further, last)
    return Spans(first, last, best)


def official_predictions(answers: Answers, threshold: float) -> dict[str, str]:
    """Question id to answer, "" for none: what the official evaluation script reads as JSON."""
    table = answers.table
    texts = table["answer"].where(table["score_difference"] <= threshold, "")
    return dict(zip(table["example_id"], texts, strict=True))


def baselines(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Baseline → the scores of `metrics` (0..1) without any encoder: `always_null` never answers."""
    unanswerable = float((frame["label"] == 0).mean())
    scores = {"exact": unanswerable, "f1": unanswerable}
    if unanswerable < 1:
        scores |= {"has_ans_exact": 0.0, "has_ans_f1": 0.0}
    if unanswerable > 0:
        scores["no_ans_f1"] = 1.0
    return {"always_null": scores}


def cluster_interval(values: np.ndarray, clusters: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean when whole clusters are drawn with replacement.

    Parameters
    ----------
    values
        [rows]
    clusters
        [rows]; rows with the same entry are drawn together.
    """
    by_cluster = pd.DataFrame({"value": values, "cluster": clusters}).groupby("cluster")["value"]
    sums, sizes = by_cluster.sum().to_numpy(), by_cluster.size().to_numpy()
    # How often each cluster is drawn: [resamples, clusters]
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    low, high = np.percentile((draws @ sums) / (draws @ sizes), [2.5, 97.5])
    return float(low), float(high)


def _best_for_f1(answers: Answers, scores: pd.DataFrame) -> float:
    differences = answers.table["score_difference"].to_numpy()
    return best_threshold(differences, scores["f1"].to_numpy(), scores["null"].to_numpy()).threshold


def _with_threshold(answers: Answers, scores: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """exact and f1 of each question with the answers that the threshold lets through."""
    answered = answers.table["score_difference"] <= threshold
    return scores[["exact", "f1"]].where(answered, scores["null"], axis=0)


def _at(windows: Dataset, column: str, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`column[rows[i]][places[i]]` of a list column, without making lists of the others."""
    lists = windows.with_format("arrow")[:][column].combine_chunks()
    starts = pc.cast(lists.offsets, "int64").to_numpy()[:-1]
    return lists.values.to_numpy(zero_copy_only=False)[starts[rows] + places]
