"""Every probe of every layer and state, with its controls: features in, per-text scores out.

The features of one layer of one state are read at a time (twice for perceptrons, which train all layers together);
a label, its shuffled copy and its control task share every pass over them.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from bertdyn.geometry.intervals import bootstrap_ratio
from bertdyn.probing.closed_form import fit_mean_difference, fit_nearest_centroid, fit_ridge
from bertdyn.probing.code_length import CodeLength, code_length
from bertdyn.probing.cross_validation import CrossValidated, Fitter, cross_validate
from bertdyn.probing.linear import LinearProbes
from bertdyn.probing.logistic import fit_logistic
from bertdyn.probing.mlp import cross_validate_mlp
from bertdyn.steps.probe_cells import (
    Cell,
    Judged,
    Sample,
    Source,
    Task,
    features_of,
    fits_target,
    judge,
    targets_of_rows,
)

FITTERS = {
    "logistic": fit_logistic,
    "nearest_centroid": fit_nearest_centroid,
    "mean_difference": fit_mean_difference,
}
PENALISED = ("logistic", "ridge")
WITH_PROBABILITIES = ("logistic", "mlp")


@dataclass
class Grid:
    """Everything that was found."""

    judged: dict[Cell, Judged] = field(default_factory=dict)
    code_lengths: dict[Cell, CodeLength] = field(default_factory=dict)
    final: dict[tuple[str, str, str], dict[str, LinearProbes]] = field(default_factory=lambda: defaultdict(dict))
    """(target, rows, probe) → `best/layer_06` → the probe that was fitted to all rows."""
    transfer: list[dict] = field(default_factory=list)
    """Rows of a table: the probes of one state on the features of another."""


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
                        grid.transfer += _transfer(layer, sample, task, name, of_states, kept, seed)
    if "mlp" in probes:
        for source in tqdm(sources, desc="mlp", unit="states"):
            stacked = _of_all_layers(source, layers, samples, seed)
            for sample, task in ((sample, task) for sample in samples for task in tasks):
                of_layers = torch.from_numpy(stacked[sample.kind]).to(device)
                _perceptrons(grid, accelerator, source, layers, sample, of_layers, task, hidden_size, seed)
    return grid


def _of_all_layers(
    source: Source, layers: Sequence[int], samples: Sequence[Sample], seed: int
) -> dict[str, np.ndarray]:
    """Kind → [layers, rows, width], float32."""
    stacked: dict[str, np.ndarray] = {}
    for number, layer in enumerate(layers):
        for kind, array in features_of(source, layer, samples, seed).items():
            if kind not in stacked:
                stacked[kind] = np.empty((len(layers), *array.shape), dtype=np.float32)
            stacked[kind][number] = array
    return stacked


def _combinations(
    samples: Sequence[Sample], tasks: Sequence[Task], probes: Sequence[str]
) -> Iterator[tuple[Sample, Task, str]]:
    for sample in samples:
        for task in tasks:
            for name in probes:
                if fits_target(name, task):
                    yield sample, task, name


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
    columns = targets_of_rows(task, sample, seed)
    targets, folds = _on_device(task, sample, columns, features.device)
    fit: Fitter = fit_ridge
    if task.num_classes:
        fit = functools.partial(FITTERS[name], num_classes=task.num_classes)
    chosen_from = penalties if name in PENALISED else [1.0]
    result = cross_validate(fit, features, targets, folds, chosen_from, classes=bool(task.num_classes))
    scores = result.scores.double().cpu().numpy()
    for number, (baseline, values) in enumerate(columns.items()):
        cell = Cell(task.target.name, sample.kind, name, baseline, source.state, layer)
        fitted = result.fitted[:, number].cpu().numpy()
        judged = judge(scores[:, number], values, sample, task, fitted, name in WITH_PROBABILITIES)
        if name in PENALISED:
            judged = judged._replace(penalties=result.penalties[:, number].cpu().numpy())
        grid.judged[cell] = judged if baseline == "none" else judged.without_rows()
    final = result.final.only(torch.tensor([0], device=features.device))
    grid.final[task.target.name, sample.kind, name][f"{source.state}/layer_{layer:02d}"] = final
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
    columns = targets_of_rows(task, sample, seed)
    targets, folds = _on_device(task, sample, columns, features.device)
    scores = cross_validate_mlp(
        accelerator, features, targets, folds, outputs=task.num_classes or 1, hidden_size=hidden_size, seed=seed
    )
    for layer, of_layer in zip(layers, scores.double().cpu().numpy(), strict=True):
        for number, (baseline, values) in enumerate(columns.items()):
            cell = Cell(task.target.name, sample.kind, "mlp", baseline, source.state, layer)
            judged = judge(of_layer[:, number], values, sample, task, np.array([]), True)
            grid.judged[cell] = judged if baseline == "none" else judged.without_rows()


def _transfer(
    layer: int,
    sample: Sample,
    task: Task,
    name: str,
    found: dict[str, CrossValidated],
    features: dict[str, dict[str, Tensor]],
    seed: int,
) -> Iterator[dict]:
    """Both states' probes on the features of both, each row by a probe that has not seen it in either state.

    A probe is a direction and a cut. As it is, it also fails where all features of a layer have moved together;
    recentred, the cut moves with their mean (over the rows that the probe was fitted to), and the direction is judged.
    Cosines are of directions in standardised features (by the mean variance of both states), as else a dimension that
    hardly varies, and has large weights, would decide. Directions of one state differ by chance, too:
    `cosine_by_chance` is that of two halves of its texts (and lower than that of two samples of all texts would be).
    """
    values = task.target.values[sample.examples]
    folds = torch.from_numpy(task.folds[sample.examples])
    means = {
        state: torch.stack([of_state[sample.kind][folds != fold].double().mean(dim=0) for fold in folds.unique()])
        for state, of_state in features.items()
    }  # [folds, width]
    scales = {state: of_state[sample.kind].double().std(dim=0).cpu() for state, of_state in features.items()}
    texts = np.bincount(sample.examples, minlength=len(task.folds))
    for fitted_on, result in found.items():
        num_targets = result.penalties.shape[1]
        of_target = LinearProbes(*(part[::num_targets] for part in result.of_folds))
        one, other = (result.halves.only(slice(start, start + 1)) for start in (0, num_targets))
        for scored_on in found:
            scores = of_target.scores(features[scored_on][sample.kind].double())
            moved = torch.einsum("fw,fwo->fo", means[fitted_on] - means[scored_on], of_target.weights)
            row = {"target": task.target.name, "rows": sample.kind, "probe": name, "layer": layer}
            row |= {"fitted_on": fitted_on, "scored_on": scored_on}
            for column, of_rows in (("accuracy", scores), ("accuracy_recentred", scores + moved)):
                right = np.bincount(sample.examples, _right(of_rows, values, folds), minlength=len(texts))
                low, high = map(float, bootstrap_ratio(right, texts, seed=seed))
                row |= {column: right.sum() / texts.sum(), f"{column}_low": low, f"{column}_high": high}
            yield row | {
                "cosine": _cosine(
                    result.final,
                    found[scored_on].final,
                    ((scales[fitted_on] ** 2 + scales[scored_on] ** 2) / 2).sqrt(),
                    task.num_classes,
                ),
                "cosine_by_chance": _cosine(one, other, scales[fitted_on], task.num_classes),
                "n": int((texts > 0).sum()),
            }


def _right(scores: Tensor, values: np.ndarray, folds: Tensor) -> np.ndarray:
    """[rows], bool: of scores [rows, folds, classes], where the probe of fold k judges the rows of fold k."""
    own = scores.cpu()[torch.arange(len(folds)), folds]
    return own.argmax(dim=1).numpy() == values


def _cosine(one: LinearProbes, other: LinearProbes, scale: Tensor, num_classes: int) -> float:
    """Of the directions of the first target in features divided by `scale` [width]; of several classes their mean."""
    a, b = (probes.weights[0].double().cpu() * scale[:, None] for probes in (one, other))  # [width, classes]
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
