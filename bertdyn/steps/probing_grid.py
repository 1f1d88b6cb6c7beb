"""Every probe of every layer and state, with its controls: features in, per-text scores out.

The features of one layer of one state are read at a time (twice for perceptrons, which train all layers together);
a label, its shuffled copy and its control task share every pass over them.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from bertdyn.errors import InputError
from bertdyn.features.aligned import AlignedRows
from bertdyn.features.store import FeatureStore
from bertdyn.probing.closed_form import fit_mean_difference, fit_nearest_centroid, fit_ridge
from bertdyn.probing.code_length import CodeLength, code_length
from bertdyn.probing.cross_validation import CrossValidated, Fitter, cross_validate
from bertdyn.probing.linear import LinearProbes
from bertdyn.probing.logistic import fit_logistic
from bertdyn.probing.mlp import cross_validate_mlp
from bertdyn.probing.targets import Target, control_labels

MAX_TOKENS = 20_000
"""Content tokens that probes are fitted to and judged on; a seeded sample where there are more."""
FOR_CLASSES = {
    "logistic": fit_logistic,
    "nearest_centroid": fit_nearest_centroid,
    "mean_difference": fit_mean_difference,
}
PENALISED = ("logistic", "ridge")
WITH_PROBABILITIES = ("logistic", "mlp")


class Task(NamedTuple):
    """A target with the folds that judge it."""

    target: Target
    folds: np.ndarray
    """[texts]"""

    @property
    def num_classes(self) -> int:
        """0 for numbers."""
        return len(self.target.class_names or ())


class Cell(NamedTuple):
    """One probe of one layer of one state."""

    target: str
    rows: str
    probe: str
    baseline: str
    """"none" for the probe itself; "shuffled" and "control" for the same probe of other labels."""
    state: str
    layer: int


class Judged(NamedTuple):
    """What held-out rows say of a probe."""

    sums: dict[str, np.ndarray]
    """Metric → [texts]: summed over the rows of each text; R² as squared errors."""
    counts: dict[str, np.ndarray]
    """Metric → [texts]: what the sums are divided by."""
    fitted: np.ndarray
    """[folds]: accuracy or R² on the rows that the probe was fitted to; empty if not known."""
    predictions: np.ndarray
    """[rows]: class ids or numbers."""
    confidence: np.ndarray
    """[rows]: probability of the true class; NaN for probes without probabilities."""


@dataclass
class Grid:
    """Everything that was found."""

    judged: dict[Cell, Judged] = field(default_factory=dict)
    code_lengths: dict[Cell, CodeLength] = field(default_factory=dict)
    weights: dict[tuple[str, str, str], dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    """(target, rows, probe) → name in a safetensors file → tensor."""
    transfer: list[dict] = field(default_factory=list)
    """Rows of a table: the probes of one state on the features of another."""


class Sample(NamedTuple):
    """The rows of one kind that are probed: of the same texts in every state."""

    kind: str
    examples: np.ndarray
    """[rows]: number of each row's text."""
    words: np.ndarray | None
    """[rows]: the token of each row; None for rows that are texts."""


class Source(NamedTuple):
    """One state of one store."""

    state: str
    store: FeatureStore
    aligned: AlignedRows


def sample_of(source: Source, kind: str, seed: int) -> Sample:
    """Which rows are probed.

    Raises
    ------
    InputError
        If the store does not have that kind of rows.
    """
    if kind not in source.aligned.kinds:
        there = ", ".join(source.aligned.kinds)
        raise InputError(f"--rows {kind!r}: {source.store.folder} has {there}; extract with --rows tokens for all")
    if kind == "content":
        rows, examples = source.aligned.content_rows(MAX_TOKENS, seed)
        return Sample(kind, examples, source.store.tokens(["token"])["token"].to_numpy()[rows])
    layer = source.aligned.layers[0]
    blocks = [block[kind].examples for block in source.aligned.blocks(layer) if kind in block]
    return Sample(kind, np.concatenate(blocks), None)


def features_of(source: Source, layer: int, samples: Sequence[Sample], seed: int) -> dict[str, np.ndarray]:
    """Kind → [rows, width], float32.

    Raises
    ------
    InputError
        If a value is not finite.
    """
    found: dict[str, np.ndarray] = {}
    pooled = [sample.kind for sample in samples if sample.kind != "content"]
    if pooled:
        parts: dict[str, list[np.ndarray]] = {kind: [] for kind in pooled}
        for block in source.aligned.blocks(layer):
            for kind in set(pooled) & set(block):
                parts[kind].append(block[kind].states[0].astype(np.float32))
        found |= {kind: np.concatenate(blocks) for kind, blocks in parts.items()}
    if "content" in [sample.kind for sample in samples]:
        found["content"] = source.aligned.content_sample(layer, MAX_TOKENS, seed)[0][0].astype(np.float32)
    for sample in samples:
        wrong = np.flatnonzero(~np.isfinite(found[sample.kind]).all(axis=1))
        if len(wrong):
            text = source.aligned.examples["example_id"].iloc[sample.examples[wrong[0]]]
            raise InputError(
                f"{source.store.folder}: features of state {source.state!r}, layer {layer} are not finite in row "
                f"{wrong[0]} of {sample.kind!r} (text {text!r}); extract anew, with --dtype float32"
            )
    return found


def probe_everything(
    accelerator: Accelerator,
    sources: Sequence[Source],
    layers: Sequence[int],
    samples: Sequence[Sample],
    tasks: Sequence[Task],
    *,
    probes: Sequence[str],
    penalties: Sequence[float],
    hidden_size: int,
    seed: int,
    transfer: tuple[str, str] | None,
) -> Grid:
    """Fit and judge all probes.

    Parameters
    ----------
    probes
        Names; a probe is fitted to the targets that it can be fitted to.
    transfer
        Two states whose linear probes are also judged on the features of the other one.
    """
    grid, device = Grid(), accelerator.device
    linear = [name for name in probes if name != "mlp"]
    with tqdm(total=len(layers) * len(sources), desc="probe", unit="layers", disable=not linear) as bar:
        for layer in layers if linear else ():
            kept: dict[str, dict[str, Tensor]] = {}
            found: dict[tuple, CrossValidated] = {}
            for source in sources:
                arrays = features_of(source, layer, samples, seed)
                features = {kind: torch.from_numpy(array).to(device) for kind, array in arrays.items()}
                if transfer and source.state in transfer:
                    kept[source.state] = features
                for sample, task, name in _combinations(samples, tasks, linear):
                    result = _probe_one(grid, source, layer, sample, features[sample.kind], task, name, penalties, seed)
                    found[sample.kind, task.target.name, name, source.state] = result
                bar.update()
            if transfer and len(kept) == 2:
                for sample, task, name in _combinations(samples, tasks, linear):
                    if task.num_classes:
                        of_states = {s: found[sample.kind, task.target.name, name, s] for s in transfer}
                        grid.transfer += _transfer(layer, sample, task, name, of_states, kept)
    if "mlp" in probes:
        for source in tqdm(sources, desc="mlp", unit="states"):
            stacked = [features_of(source, layer, samples, seed) for layer in layers]
            for sample, task in ((sample, task) for sample in samples for task in tasks):
                of_layers = torch.from_numpy(np.stack([arrays[sample.kind] for arrays in stacked])).to(device)
                _perceptrons(grid, accelerator, source, layers, sample, of_layers, task, hidden_size, seed)
    return grid


def fits_target(probe: str, task: Task) -> bool:
    """Whether a probe predicts classes, or numbers, as the target is."""
    return probe == "mlp" or (probe in FOR_CLASSES) == bool(task.num_classes)


def _combinations(
    samples: Sequence[Sample], tasks: Sequence[Task], probes: Sequence[str]
) -> Iterator[tuple[Sample, Task, str]]:
    for sample in samples:
        for task in tasks:
            for name in probes:
                if fits_target(name, task):
                    yield sample, task, name


def _columns(task: Task, sample: Sample, seed: int) -> dict[str, np.ndarray]:
    """Baseline → target of every row: the target itself, a shuffled copy, for tokens a control task."""
    values = task.target.values
    # Shuffled over texts, so that all tokens of a text keep one value.
    shuffled = values[np.random.default_rng([seed, 1]).permutation(len(values))]
    columns = {"none": values[sample.examples], "shuffled": shuffled[sample.examples]}
    if sample.words is not None and task.num_classes:
        shares = np.bincount(columns["none"], minlength=task.num_classes) / len(sample.examples)
        columns["control"] = control_labels(sample.words.tolist(), shares, seed)
    return columns


def _on_device(task: Task, sample: Sample, columns: dict[str, np.ndarray], device: torch.device):
    stacked = np.stack(list(columns.values()), axis=1)
    targets = torch.from_numpy(stacked if task.num_classes else stacked.astype(np.float64)).to(device)
    return targets, torch.from_numpy(task.folds[sample.examples]).to(device)


def _probe_one(
    grid: Grid,
    source: Source,
    layer: int,
    sample: Sample,
    features: Tensor,
    task: Task,
    name: str,
    penalties: Sequence[float],
    seed: int,
) -> CrossValidated:
    """One linear probe of one layer of one state."""
    columns = _columns(task, sample, seed)
    targets, folds = _on_device(task, sample, columns, features.device)
    fit: Fitter = fit_ridge
    if task.num_classes:
        fit = functools.partial(FOR_CLASSES[name], num_classes=task.num_classes)
    chosen_from = penalties if name in PENALISED else [1.0]
    result = cross_validate(fit, features, targets, folds, chosen_from, classes=bool(task.num_classes))
    scores = result.scores.double().cpu().numpy()
    for number, (baseline, values) in enumerate(columns.items()):
        cell = Cell(task.target.name, sample.kind, name, baseline, source.state, layer)
        fitted = result.fitted[:, number].cpu().numpy()
        grid.judged[cell] = judge(scores[:, number], values, sample, task, fitted, name in WITH_PROBABILITIES)
    final = result.final.only(torch.tensor([0], device=features.device))
    file = grid.weights[task.target.name, sample.kind, name]
    for part, tensor in (("weight", final.weights), ("bias", final.bias)):
        file[f"{source.state}/layer_{layer:02d}/{part}"] = tensor[0].float().cpu()
    if name == "logistic" and sample.words is None:
        cell = Cell(task.target.name, sample.kind, name, "none", source.state, layer)
        grid.code_lengths[cell] = code_length(features, targets[:, 0], penalties, task.num_classes)
    return result


def _perceptrons(
    grid: Grid,
    accelerator: Accelerator,
    source: Source,
    layers: Sequence[int],
    sample: Sample,
    features: Tensor,
    task: Task,
    hidden_size: int,
    seed: int,
) -> None:
    columns = _columns(task, sample, seed)
    targets, folds = _on_device(task, sample, columns, features.device)
    scores = cross_validate_mlp(
        accelerator, features, targets, folds, outputs=task.num_classes or 1, hidden_size=hidden_size, seed=seed
    )
    for layer, of_layer in zip(layers, scores.double().cpu().numpy(), strict=True):
        for number, (baseline, values) in enumerate(columns.items()):
            cell = Cell(task.target.name, sample.kind, "mlp", baseline, source.state, layer)
            grid.judged[cell] = judge(of_layer[:, number], values, sample, task, np.array([]), True)


def judge(
    scores: np.ndarray, values: np.ndarray, sample: Sample, task: Task, fitted: np.ndarray, probabilities: bool
) -> Judged:
    """From scores [rows, outputs] of held-out rows to sums over texts."""
    num_texts = len(task.folds)

    def per_text(of_rows: np.ndarray) -> np.ndarray:
        return np.bincount(sample.examples, of_rows, minlength=num_texts)

    rows = per_text(np.ones(len(values)))
    confidence = np.full(len(values), np.nan)
    if not task.num_classes:
        predictions, folds = scores[:, 0], task.folds[sample.examples]
        # What predicting the mean of the other folds leaves: 0 is no better than that.
        means = np.array([values[folds != fold].mean() for fold in range(folds.max() + 1)])
        sums = {"r2": per_text((values - predictions) ** 2), "mae": per_text(np.abs(values - predictions))}
        counts = {"r2": per_text((values - means[folds]) ** 2), "mae": rows}
        return Judged(sums, counts, fitted, predictions, confidence)
    predictions = scores.argmax(axis=1)
    sums = {"accuracy": per_text(predictions == values)}
    if probabilities:
        logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        of_truth = logs[np.arange(len(values)), values]
        confidence = np.exp(of_truth)
        sums["cross_entropy_bits"] = per_text(-of_truth / np.log(2))
    return Judged(sums, dict.fromkeys(sums, rows), fitted, predictions, confidence)


def _transfer(
    layer: int,
    sample: Sample,
    task: Task,
    name: str,
    found: dict[str, CrossValidated],
    features: dict[str, dict[str, Tensor]],
) -> Iterator[dict]:
    """Both states' probes on the features of both, each row by a probe that has not seen it in either state.

    A probe is a direction and a cut. As it is, it also fails where all features of a layer have moved together;
    recentred, the cut moves with their mean (over the rows that the probe was fitted to), and the direction is judged.
    """
    values = task.target.values[sample.examples]
    folds = torch.from_numpy(task.folds[sample.examples])
    means = {
        state: torch.stack([of_state[sample.kind][folds != fold].double().mean(dim=0) for fold in folds.unique()])
        for state, of_state in features.items()
    }  # [folds, width]
    for fitted_on, result in found.items():
        of_target = LinearProbes(*(part[:: result.penalties.shape[1]] for part in result.of_folds))
        for scored_on in found:
            scores = of_target.scores(features[scored_on][sample.kind].double())
            moved = torch.einsum("fw,fwo->fo", means[fitted_on] - means[scored_on], of_target.weights)
            rows = {"target": task.target.name, "rows": sample.kind, "probe": name, "layer": layer}
            yield rows | {
                "fitted_on": fitted_on,
                "scored_on": scored_on,
                "accuracy": _held_out_accuracy(scores, values, folds),
                "accuracy_recentred": _held_out_accuracy(scores + moved, values, folds),
                "cosine": _cosine(found[fitted_on].final, found[scored_on].final, task.num_classes),
                "n": len(np.unique(sample.examples)),
            }


def _held_out_accuracy(scores: Tensor, values: np.ndarray, folds: Tensor) -> float:
    """Of scores [rows, folds, classes], where the probe of fold k judges the rows of fold k."""
    own = scores.cpu()[torch.arange(len(folds)), folds]
    return float((own.argmax(dim=1).numpy() == values).mean())


def _cosine(one: LinearProbes, other: LinearProbes, num_classes: int) -> float:
    """Of the directions of the first target; of several classes their mean."""
    a, b = (probes.weights[0].double().cpu() for probes in (one, other))  # [width, classes]
    if num_classes == 2:
        a, b = (weights[:, 1] - weights[:, 0] for weights in (a, b))
    lengths = a.norm(dim=0) * b.norm(dim=0)  # 0 where features are the same in all rows: no direction
    return float(((a * b).sum(dim=0) / lengths).mean())


def prediction_table(grid: Grid, task: Task, sample: Sample, probe: str, examples: pd.DataFrame) -> pd.DataFrame | None:
    """What a probe said of each held-out text, in every state and layer; None where rows are not texts."""
    if sample.words is not None:
        return None
    frames = []
    truth = task.target.values[sample.examples]
    for cell, judged in grid.judged.items():
        if (cell.target, cell.rows, cell.probe, cell.baseline) == (task.target.name, sample.kind, probe, "none"):
            frames.append(
                pd.DataFrame(
                    {
                        "example_id": examples["example_id"].to_numpy()[sample.examples],
                        "fold": task.folds[sample.examples],
                        "state": cell.state,
                        "layer": cell.layer,
                        "truth": truth,
                        "prediction": judged.predictions,
                        "probability_of_truth": judged.confidence,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True) if frames else None
