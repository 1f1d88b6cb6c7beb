"""Span probing: an extract run on SQuAD 2.0 in; in which layers the answer can be read off single tokens, out.

    store → a probe a layer, trained on train and chosen on validation → null threshold of validation → EM, F1 of `part`

Every score stands beside that of never answering and those of an encoder with random weights. A threshold that is best
for F1 may say "no answer" to nearly everything, and then hides what a layer knows about where an answer is: so there is
also `best_span_f1`, of the best span of every question that has an answer, whatever the null score.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from accelerate import Accelerator

from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore
from bertdyn.probing.spans import fit_span_probes, predict_spans
from bertdyn.probing.window_rows import StoredWindows, WindowRows, stored_windows
from bertdyn.steps.extract_runs import ExtractRun, chosen_layers, load_run_texts
from bertdyn.steps.lists import numbers
from bertdyn.steps.preparation import make_accelerator
from bertdyn.steps.probe_config import ProbeConfig
from bertdyn.steps.random_twin import RANDOM_INIT, random_twin
from bertdyn.steps.span_probe_report import StateProbes, probe_table, write_report
from bertdyn.tasks.question_answering import Answers, QuestionAnswering
from bertdyn.tracking.tracker import Tracker


class SpanProbeResult(NamedTuple):
    """What span probing found."""

    table: pd.DataFrame
    """One row a layer, state, baseline and metric (`COLUMNS`); shares 0 to 1 with 95 % bootstrap intervals over
    contexts."""
    summary: str
    """The report, Markdown."""


def probe_spans(config: ProbeConfig, tracker: Tracker, run: ExtractRun) -> SpanProbeResult:
    """Train, choose and score span probes of every layer and state of `run`, and of its random twin.

    Raises
    ------
    InputError
        If the run is of no questions, its store lacks token rows, layers or parts, or has features that are no numbers.
    """
    layers = check_source(config, run)
    parts = ("train", "validation", config.part)
    texts = load_run_texts(run)
    accelerator = make_accelerator("no")

    def stored_in(store: FeatureStore) -> dict[str, StoredWindows]:
        most = {config.part: config.max_examples}
        return {
            part: stored_windows(store, part, texts.data.parts[part], texts.tokens[part], most.get(part))
            for part in parts
        }

    stored = stored_in(run.store)
    sources = [(run.store, state, stored) for state in run.states]
    if config.random_init:
        twin = random_twin(run, parts=parts, rows=["tokens"], layers=layers, seed=config.seed)
        sources.append((twin, RANDOM_INIT, stored_in(twin)))
    probed = {
        state: probe_state(
            accelerator, {part: WindowRows(store, state, layers, of_part) for part, of_part in of_parts.items()}, config
        )
        for store, state, of_parts in sources
    }
    frame = stored[config.part].frame
    table = probe_table(probed, frame, len(stored["validation"].frame), config.seed)
    return SpanProbeResult(table, write_report(config, tracker, run, table, probed, frame))


def check_source(config: ProbeConfig, run: ExtractRun) -> list[int]:
    """The layers to probe.

    Raises
    ------
    InputError
        See `probe_spans`.
    """
    if run.config.task != "question-answering":
        raise InputError(
            f"--targets span: run {run.run_id} is of {run.config.dataset!r}, which has no answers to find; accepted "
            "are extract runs on squad_v2"
        )
    if config.part in ("train", "validation"):
        raise InputError(
            f"--part {config.part!r}: span probes are trained on train and chosen on validation; accepted are probe, "
            "test"
        )
    parts = ("train", "validation", config.part)
    again = f"extract with --rows tokens --parts {','.join(parts)}"
    if "tokens" not in run.store.manifest.arrays:
        raise InputError(f"--targets span: run {run.run_id} has no token rows of hidden states; {again}")
    missing = [part for part in parts if part not in set(run.store.examples()["part"])]
    if missing:
        raise InputError(f"--targets span: run {run.run_id} has nothing of the part {missing[0]!r}; {again}")
    return chosen_layers(config.layers, run.store.layers("tokens"))


def probe_state(accelerator: Accelerator, rows: Mapping[str, WindowRows], config: ProbeConfig) -> StateProbes:
    """Fit on train, choose probes and thresholds on validation, answer the questions of `config.part`.

    Parameters
    ----------
    rows
        Part → its rows in this state.
    """
    fitted = fit_span_probes(
        accelerator,
        rows["train"],
        rows["validation"],
        learning_rates=numbers(config.learning_rates, "learning_rates"),
        num_epochs=config.num_train_epochs,
        batch_size=config.per_device_train_batch_size,
        normalize=config.normalize_features,
        weigh_positions=config.position_weights,
        seed=config.seed,
    )
    task = QuestionAnswering(
        {part: of_part.windows.frame for part, of_part in rows.items()},
        {part: of_part.windows.windows for part, of_part in rows.items()},
        config.max_answer_length,
    )
    answers = {
        part: predict_spans(accelerator, fitted.directions, rows[part], task, part, config.per_device_train_batch_size)
        for part in ("validation", config.part)
    }
    tuned = [task.metrics(of_layer, "validation") for of_layer in answers["validation"]]
    thresholds = [metrics["null_threshold"] for metrics in tuned]
    curves = [
        task.threshold_curve(of_layer, part).assign(layer=layer, part=part)
        for part, of_part in answers.items()
        for layer, of_layer in zip(fitted.layers, of_part, strict=True)
    ]
    scores = [
        score_questions(task, of_layer, config.part, threshold)
        for of_layer, threshold in zip(answers[config.part], thresholds, strict=True)
    ]
    return StateProbes(
        fitted,
        thresholds,
        [metrics["f1"] for metrics in tuned],
        answers[config.part],
        scores,
        pd.concat(curves, ignore_index=True),
    )


def score_questions(task: QuestionAnswering, answers: Answers, part: str, threshold: float) -> pd.DataFrame:
    """`SCORES` of each question (0..1); NaN where it has an answer and the score is of those that have none, or the
    other way round."""
    scores = task.question_scores(answers, part, threshold)
    has_answer = task.frames[part]["label"].to_numpy() == 1
    always = task.question_scores(answers, part, math.inf)["f1"]
    return scores.assign(
        has_ans_exact=scores["exact"].where(has_answer),
        has_ans_f1=scores["f1"].where(has_answer),
        no_ans_f1=scores["f1"].where(~has_answer),
        best_span_f1=always.where(has_answer),
    )
