"""Questions a second of span probes on stored features, against system 3's loop over single examples.

    MLFLOW_TRACKING_URI=… python -m benchmarks.span_probe --run_id <extract run on squad_v2, with rows tokens>

One pass over the training questions, and the answers to those of the probe part, by a start and an end probe for each
layer of one state. No kind runs the encoder: all read their rows from the same store, by the same loader. One thread,
one process; the kinds take turns, their order is reversed from round to round, and a first round is not counted, after
which the store is in the kernel's cache. The clocks run from the opened store to trained probes or merged answers: that
on the wall, and the processor's for this process, which others on the same core disturb less. The loop has the first
questions only, bertdyn all.

Training, an AdamW step after each 8 windows:

    system3             two `Linear(width, 1)` a layer, dropout 0.1, cross-entropy over all positions; one window at a
                        time through every head; the losses added up, gradients clipped to norm 1 head by head
    without_dropout     the same without dropout, which bertdyn does not have
    reading             the batches of bertdyn, and nothing more
    bertdyn             `train` on `SpanProbes` with one learning rate: as many probes as system3
    three_rates         the same with three: three times as many probes
    run                 `fit_span_probes` as a probe run calls it: three learning rates, 32 windows a step, 5 epochs, of
                        which each is a pass; with mean and scale of the features, and validation after every epoch

Prediction, by the same directions:

    system3             logits of one window and layer at a time; a Python loop over start positions, for each the best
                        end within reach; the best window of a question
    bertdyn             `predict_spans` as a probe run calls it, with losses and texts

System 3 is written anew here from its description, where that leaves a choice the quicker way: no padding (it had 384
positions in every window), one dropout for both heads, one backward pass and one optimiser for all heads, Python lists
instead of tensors in the search. The benchmark fails unless both train the same directions where they mean the same (no
dropout, no clipping, from zero, all positions; float64), and find the same score of the best span in every layer.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from transformers import get_constant_schedule

from bertdyn.data.batching import Batch, EpochShuffle
from bertdyn.probing.spans import SpanProbes, fit_span_probes, predict_spans, span_losses
from bertdyn.probing.window_rows import StoredWindows, WindowRows, mean_and_scale, stored_windows
from bertdyn.steps.extract_runs import ExtractRun, load_run_texts, open_extract_run
from bertdyn.steps.lists import numbers
from bertdyn.steps.probe_config import ProbeConfig
from bertdyn.tasks.question_answering import Answers, QuestionAnswering
from bertdyn.training.loop import train

BATCH_SIZE = 8
LEARNING_RATE = 1e-3
DROPOUT, MAX_NORM, INITIAL_STD = 0.1, 1.0, 0.02
SEED = 0
EPOCH = 1
"""`train` shuffles its first epoch by this number."""
CHECKED_WINDOWS = 80
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
LARGEST_DIFFERENCE = {"directions": 1e-8, "span_scores": 1e-4}

Heads = list[tuple[nn.Linear, nn.Linear]]
"""Start and end of each layer."""


class Way(NamedTuple):
    """One kind of doing it."""

    rows: WindowRows
    """What it goes over."""
    once: Callable[[], Any]
    passes: int = 1
    """How often `once` goes over them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_id", required=True, help="extract run on squad_v2: parts train, validation, probe")
    parser.add_argument("--state", default="best")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--windows", type=int, default=400, help="of system 3, less those of a question cut in two")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/span_probe.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    accelerator = Accelerator(cpu=True)
    rows = load_rows(open_extract_run(options.run_id, options.state), options.windows)
    directions = fit_as_run(accelerator, rows).directions
    found = {
        "training": measure(training_ways(accelerator, rows), options.rounds),
        "prediction": measure(prediction_ways(accelerator, rows, directions), options.rounds),
        "largest_difference": {
            "directions": difference_of_training(accelerator, rows["few train"]),
            "span_scores": difference_of_scores(accelerator, rows["few probe"], directions),
        },
    }
    result = found | {
        "layers": list(rows["train"].layers),
        "width": directions.shape[-1],
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {name: metadata.version(name) for name in ("torch", "accelerate", "transformers", "numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result, indent=1))
    for name, most in LARGEST_DIFFERENCE.items():
        if not found["largest_difference"][name] <= most:
            raise SystemExit(f"the {name} of bertdyn and of system 3 differ by more than {most}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


def load_rows(run: ExtractRun, few: int) -> dict[str, WindowRows]:
    """Part → its windows; "few train" and "few probe" → those of its first whole questions, at most `few` windows."""
    texts, store = load_run_texts(run), run.store

    def rows_of(part: str, most: int | None = None) -> WindowRows:
        stored = stored_windows(store, part, texts.data.parts[part], texts.tokens[part], most)
        return WindowRows(store, run.states[0], store.layers("tokens"), stored)

    rows = {part: rows_of(part) for part in ("train", "validation", "probe")}
    for part in ("train", "probe"):
        examples = rows[part].windows.windows["example"][:]
        rows[f"few {part}"] = rows_of(part, examples[few] if few < len(examples) else None)
    return rows


def measure(ways: dict[str, Way], rounds: int) -> dict[str, Any]:
    """Rates of each way, and ratios of rates of one round to that of system 3."""
    rates: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in ways} for clock in CLOCKS}
    for turn in range(-1, rounds):
        for name in list(ways) if turn % 2 else list(reversed(ways)):
            started = [clock() for clock in CLOCKS.values()]
            ways[name].once()
            seconds = [clock() - start for clock, start in zip(CLOCKS.values(), started, strict=True)]
            for clock, passed in zip(CLOCKS, seconds, strict=True):
                if turn >= 0:
                    rates[clock][name].append(ways[name].passes * len(ways[name].rows.windows.frame) / passed)
    return {"material": {name: material(ways[name].rows) for name in ("system3", "bertdyn")}} | {
        clock: {
            "questions_per_second": {name: spread(values, 1) for name, values in found.items()},
            "times_system3": {
                name: spread([ours / theirs for ours, theirs in zip(values, found["system3"], strict=True)], 2)
                for name, values in found.items()
                if name != "system3"
            },
        }
        for clock, found in rates.items()
    }


def material(rows: WindowRows) -> dict[str, float]:
    """How much a pass goes over."""
    tokens = round(float(rows.lengths.mean()), 1)
    return {"questions": len(rows.windows.frame), "windows": len(rows), "tokens_a_window": tokens}


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Their median and their range."""
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def training_ways(accelerator: Accelerator, rows: dict[str, WindowRows]) -> dict[str, Way]:
    all_rows, few = rows["train"], rows["few train"]
    mean, scale = mean_and_scale(all_rows)

    def one_by_one(**options: Any) -> None:
        train_one_by_one(few, new_heads(*scale.shape), **options)

    def together(rates: Sequence[float]) -> None:
        train_together(accelerator, SpanProbes(len(rates), mean, scale), rates, all_rows)

    return {
        "system3": Way(few, one_by_one),
        "without_dropout": Way(few, partial(one_by_one, dropout=0.0)),
        "reading": Way(all_rows, lambda: [None for _ in shuffled(all_rows)]),
        "bertdyn": Way(all_rows, partial(together, [LEARNING_RATE])),
        "three_rates": Way(all_rows, partial(together, default_rates())),
        "run": Way(all_rows, partial(fit_as_run, accelerator, rows), passes=ProbeConfig.num_train_epochs),
    }


def prediction_ways(accelerator: Accelerator, rows: dict[str, WindowRows], directions: Tensor) -> dict[str, Way]:
    all_rows, few = rows["probe"], rows["few probe"]
    return {
        "system3": Way(few, partial(predict_one_by_one, few, heads_of(directions))),
        "bertdyn": Way(all_rows, partial(predict_together, accelerator, all_rows, directions)),
    }


def shuffled(rows: WindowRows) -> DataLoader:
    """The batches of the first epoch."""
    order = EpochShuffle(len(rows), SEED)
    order.set_epoch(EPOCH)
    return rows.batches(BATCH_SIZE, order)


def default_rates() -> list[float]:
    return numbers(ProbeConfig.learning_rates, "learning_rates")


def fit_as_run(accelerator: Accelerator, rows: dict[str, WindowRows]) -> Any:
    """What a probe run trains."""
    return fit_span_probes(
        accelerator,
        rows["train"],
        rows["validation"],
        learning_rates=default_rates(),
        num_epochs=ProbeConfig.num_train_epochs,
        batch_size=ProbeConfig.per_device_train_batch_size,
        seed=SEED,
    )


def train_together(accelerator: Accelerator, probes: SpanProbes, rates: Sequence[float], rows: WindowRows) -> None:
    """An epoch of `fit_span_probes`, without what it does before and after."""
    groups = [{"params": [weights], "lr": rate} for weights, rate in zip(probes.weights, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    train(
        accelerator,
        probes,
        shuffled(rows),
        lambda model, batch: span_losses(model(batch), batch).sum(),
        optimizer,
        get_constant_schedule(optimizer),
        num_epochs=EPOCH,
        seed=SEED,
    )


def predict_together(accelerator: Accelerator, rows: WindowRows, directions: Tensor) -> list[Answers]:
    """What a probe run does with the directions of a state."""
    stored: StoredWindows = rows.windows
    task = QuestionAnswering({"probe": stored.frame}, {"probe": stored.windows}, ProbeConfig.max_answer_length)
    size = ProbeConfig.per_device_train_batch_size
    return predict_spans(accelerator, directions, rows, task, "probe", size)


def new_heads(layers: int, width: int) -> Heads:
    """As system 3 draws them."""
    return heads_of(torch.randn(layers, 2, width) * INITIAL_STD)


def heads_of(directions: Tensor) -> Heads:
    """Heads with these directions [layers, 2, width], without bias at first."""
    heads = [(nn.Linear(directions.shape[2], 1), nn.Linear(directions.shape[2], 1)) for _ in directions]
    for pair, of_layer in zip(heads, directions, strict=True):
        for head, direction in zip(pair, of_layer, strict=True):
            head.weight.data = direction[None].clone()
            nn.init.zeros_(head.bias)
    return heads


def single_windows(batch: Batch, rows: WindowRows) -> Iterator[tuple[int, Tensor]]:
    """Place in the batch, and the features [layers, tokens, width], of each window."""
    lengths = rows.lengths[batch["index"].numpy()].tolist()
    yield from enumerate(batch["features"].to(torch.get_default_dtype()).split(lengths, dim=1))


def train_one_by_one(
    rows: WindowRows, heads: Heads, *, dropout: float = DROPOUT, max_norm: float = MAX_NORM
) -> list[float]:
    """An epoch of system 3; the mean loss of each step."""
    parameters = [parameter for pair in heads for head in pair for parameter in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    record = []
    for batch in shuffled(rows):
        losses = []
        for place, window in single_windows(batch, rows):
            start, end = (batch[name][place : place + 1] for name in ("start_positions", "end_positions"))
            for states, (start_head, end_head) in zip(window, heads, strict=True):
                dropped = F.dropout(states[None], dropout) if dropout else states[None]
                start_loss = F.cross_entropy(start_head(dropped).squeeze(2), start)
                losses.append((start_loss + F.cross_entropy(end_head(dropped).squeeze(2), end)) / 2)
        # Each layer's mean over the batch, summed: every head has the gradient that it would have alone.
        loss = torch.stack(losses).sum() / len(batch["index"])
        loss.backward()
        for pair in heads:
            for head in pair:
                clip_grad_norm_(head.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        record.append(float(loss.detach()) / len(heads))
    return record


@torch.inference_mode()
def predict_one_by_one(rows: WindowRows, heads: Heads) -> list[dict[int, tuple[float, int, int, float]]]:
    """For each layer, question → score, first and last token of its best span, and the null score beside it."""
    examples = rows.windows.windows["example"][:]
    found: list[dict[int, tuple[float, int, int, float]]] = [{} for _ in heads]
    for batch in rows.batches(BATCH_SIZE):
        for place, window in single_windows(batch, rows):
            low, high = int(batch["context_start"][place]), int(batch["context_end"][place])
            example = examples[int(batch["index"][place])]
            for answers, states, pair in zip(found, window, heads, strict=True):
                start, end = (head(states[None]).flatten().tolist() for head in pair)
                span = search(start, end, low, high, ProbeConfig.max_answer_length)
                if example not in answers or span[0] > answers[example][0]:
                    answers[example] = (*span, start[0] + end[0])
    return found


def search(start: list[float], end: list[float], low: int, high: int, max_length: int) -> tuple[float, int, int]:
    """Score, first and last token of the best span in [low, high)."""
    best = (-math.inf, 0, 0)
    for first in range(low, high):
        stop = min(first + max_length, high)
        top = max(end[first:stop])
        if start[first] + top > best[0]:
            best = start[first] + top, first, end.index(top, first, stop)
    return best


def difference_of_training(accelerator: Accelerator, rows: WindowRows) -> float:
    """The largest one of any weight where both have the same loss over some steps, relative to the largest weight."""
    windows: StoredWindows = rows.windows
    count = int(windows.windows["example"][:][min(CHECKED_WINDOWS, len(rows) - 1)])
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        some = stored_windows(rows.store, "train", windows.frame, windows.windows, count)
        rows = WindowRows(rows.store, rows.state, rows.layers, some)
        # The whole window is the context: bertdyn's softmax, too, is over all positions.
        rows.numbers["context_start"] = torch.zeros(len(rows), dtype=torch.long)
        rows.numbers["context_end"] = torch.from_numpy(rows.lengths)
        shape = len(rows.layers), rows.arrays[0].shape[1]
        probes = SpanProbes(1, torch.zeros(shape), torch.ones(shape))
        train_together(accelerator, probes, [LEARNING_RATE], rows)
        heads = heads_of(torch.zeros(shape[0], 2, shape[1]))
        train_one_by_one(rows, heads, dropout=0.0, max_norm=math.inf)
        theirs = torch.stack([torch.cat([head.weight for head in pair]) for pair in heads])
        return float(((probes.directions()[0] - theirs).abs().max() / theirs.abs().max()).detach())
    finally:
        torch.set_default_dtype(usual)


def difference_of_scores(accelerator: Accelerator, rows: WindowRows, directions: Tensor) -> float:
    """The largest one of the best span's score, of any question in any layer."""
    theirs = predict_one_by_one(rows, heads_of(directions))
    ours = predict_together(accelerator, rows, directions)
    differences = [
        answers.table["span_score"].to_numpy() - [found[number][0] for number in range(len(found))]
        for answers, found in zip(ours, theirs, strict=True)
    ]
    return float(np.abs(differences).max())


if __name__ == "__main__":
    main()
