"""How long models take for a batch, side by side, in torch and in ONNX runtime.

A machine's speed drifts by more than what pruning saves: frequency, caches, neighbours. So all models take the same
batch within one round, in an order drawn anew every round, and what is reported against the first of them, the
reference, is the ratio of medians over rounds, with an interval that draws whole rounds. One thread, since on a
machine that does anything else the second one makes medians nonsense. What the interval cannot know is where in memory
a model happened to be put: two copies of one model come out 1 to 2 % apart.

A batch has the padding of real ones: texts of half the length up to the full one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from bertdyn.models.anatomy import max_length
from bertdyn.models.modes import evaluating
from bertdyn.pruning.export import open_session, session_inputs

WARMUP = 3
"""Calls of each model before the clock runs: kernels are chosen and memory is taken in the first ones."""
BAR_AFTER_SECONDS = 5
RESAMPLES = 2_000


def torch_latency(
    models: Mapping[str, PreTrainedModel], shapes: Sequence[tuple[int, int]], *, rounds: int = 60, seed: int = 0
) -> pd.DataFrame:
    """The latency of `models` where they are, on the CPU or on a GPU, each with its own attention implementation.

    Models keep their mode, and torch its number of threads.

    Parameters
    ----------
    models
        Name → model, with the same vocabulary; the first is the reference.
    shapes
        (batch_size, sequence_length) of the batches.
    seed
        Of the batches, the orders and the intervals.

    Returns
    -------
    DataFrame
        A row for every shape and model: backend, model, batch_size, sequence_length, `latency_ms` (median) and
        `latency_ms_min` of a whole batch, rounds, threads, device, `ratio` to the reference's median, and its 95 %
        interval `ratio_low` to `ratio_high`.

    Raises
    ------
    ValueError
        If there is no model, they are not all on one device, or a sequence is longer than their positions.
    """
    devices = {model.device for model in models.values()}
    if len(devices) != 1:
        raise ValueError(f"models on {sorted(map(str, devices))}: accepted is at least one model, all on one device")
    device = devices.pop()
    batches = random_batches(next(iter(models.values())).config, shapes, seed=seed)
    with ExitStack() as stack, torch.inference_mode(), one_thread():
        for model in models.values():
            stack.enter_context(evaluating(model))
        tables = []
        for batch in batches:
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            runners = {name: partial(run_once, model, on_device) for name, model in models.items()}
            tables.append(_side_by_side("torch", str(device), runners, batch, rounds=rounds, seed=seed))
    return pd.concat(tables, ignore_index=True)


def onnx_latency(
    files: Mapping[str, Path],
    config: PretrainedConfig,
    shapes: Sequence[tuple[int, int]],
    *,
    rounds: int = 60,
    seed: int = 0,
) -> pd.DataFrame:
    """The latency of ONNX `files` in ONNX runtime on the CPU: a table as that of `torch_latency`, of the same batches.

    Parameters
    ----------
    files
        Name → file from `export_onnx`; the first is the reference.
    config
        Of the reference: what token ids there are.

    Raises
    ------
    ValueError
        If there is no file, or a sequence is longer than the positions.
    """
    if not files:
        raise ValueError("no files: accepted is at least one")
    sessions = {name: open_session(path) for name, path in files.items()}
    tables = []
    for batch in random_batches(config, shapes, seed=seed):
        runners = {
            name: partial(session.run, None, session_inputs(session, batch)) for name, session in sessions.items()
        }
        tables.append(_side_by_side("onnxruntime", "cpu", runners, batch, rounds=rounds, seed=seed))
    return pd.concat(tables, ignore_index=True)


def random_batches(
    config: PretrainedConfig, shapes: Sequence[tuple[int, int]], *, seed: int
) -> list[dict[str, Tensor]]:
    """A padded batch of random tokens of each shape (batch, sequence): input_ids and attention_mask, int64.

    Lengths are drawn between half the sequence and all of it; the first text is as long as the sequence.
    """
    rng = np.random.default_rng(seed)
    pad = config.pad_token_id or 0
    batches = []
    for batch, sequence in shapes:
        if not 1 <= sequence <= max_length(config):
            raise ValueError(f"a sequence of {sequence} tokens: this model has positions for 1 to {max_length(config)}")
        lengths = rng.integers((sequence + 1) // 2, sequence, size=batch, endpoint=True)
        lengths[0] = sequence
        mask = np.arange(sequence) < lengths[:, None]
        # All ids but that of padding, from which RoBERTa counts positions.
        ids = rng.integers(config.vocab_size - 1, size=(batch, sequence))
        ids = np.where(mask, ids + (ids >= pad), pad)
        batches.append({"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))})
    return batches


def measure(
    runners: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = WARMUP,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> pd.DataFrame:
    """Seconds of each call, [rounds] in a column for every runner.

    Every round calls every runner once, in an order drawn anew: none always follows the same other one, whose
    data would be in the caches.
    """
    rng = np.random.default_rng(seed)
    names = list(runners)
    for name in names * warmup:
        runners[name]()
    seconds = np.empty((rounds, len(names)))
    for times in tqdm(seconds, desc="latency", unit="round", leave=False, delay=BAR_AFTER_SECONDS):
        for i in rng.permutation(len(names)):
            run = runners[names[i]]
            start = clock()
            run()
            times[i] = clock() - start
    return pd.DataFrame(seconds, columns=names)


def ratio_interval(
    seconds: np.ndarray, reference: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of median(seconds) / median(reference), both [rounds].

    Rounds are drawn with both their times, so that what slowed a whole round cancels.
    """
    drawn = np.random.default_rng(seed).integers(len(seconds), size=(resamples, len(seconds)))
    ratios = np.median(seconds[drawn], axis=1) / np.median(reference[drawn], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def _side_by_side(
    backend: str,
    device: str,
    runners: Mapping[str, Callable[[], Any]],
    batch: Mapping[str, Tensor],
    *,
    rounds: int,
    seed: int,
) -> pd.DataFrame:
    """The rows of one batch."""
    seconds = measure(runners, rounds, seed=seed)
    batch_size, sequence_length = batch["input_ids"].shape
    reference = seconds.iloc[:, 0].to_numpy()
    rows = []
    for name in seconds:
        times = seconds[name].to_numpy()
        low, high = ratio_interval(times, reference, seed=seed)
        rows.append(
            {
                "backend": backend,
                "model": name,
                "batch_size": batch_size,
                "sequence_length": sequence_length,
                "latency_ms": 1000 * np.median(times),
                "latency_ms_min": 1000 * times.min(),
                "rounds": rounds,
                "threads": 1,
                "device": device,
                "ratio": np.median(times) / np.median(reference),
                "ratio_low": low,
                "ratio_high": high,
            }
        )
    return pd.DataFrame(rows)


def run_once(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> None:
    """A forward pass that has ended when the call returns."""
    model(**batch)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch inside, as many as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
