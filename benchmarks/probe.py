"""Seconds of a grid of probes: layers × states × folds × penalties, against a loop over scikit-learn.

    python -m benchmarks.probe --store <features/ of an extract run with rows first, parts train, validation, probe>

Softmax regressions of the label on first-token features, standardised inside the fold, 5 stratified folds, 5 values of
C, every layer and state of the store; of the probe part, and of train and validation together. One thread, one core;
both take turns, every measurement in this process after a first one that is not counted. The clock runs from features
in memory to fitted probes.

    scikit-learn    make_pipeline(StandardScaler(), LogisticRegression(C, max_iter=1000)) for each fold and C
    bertdyn         `fit_logistic`: the same fits, those of one layer and state together
    nested          `cross_validate`, which fits 75 probes a layer and state where the grid has 25: with the inner folds
                    that choose C, and a shuffled copy of the labels as a second target: 150

Both must find the same: the largest difference of the objective, relative to scikit-learn's at a tolerance of 1e-9,
and the share of rows on which both predict the same class. (Standard settings: scikit-learn stops at a gradient of
1e-4, bertdyn at 3e-5.)
"""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bertdyn.features.store import FeatureStore
from bertdyn.probing.cross_validation import cross_validate, make_folds
from bertdyn.probing.linear import Fits, LinearProbes
from bertdyn.probing.logistic import fit_logistic

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 5
PARTS = {"probe": ("probe",), "train and validation": ("train", "validation")}


class Cell(NamedTuple):
    """One layer of one state."""

    features: np.ndarray
    """[rows, width], float32"""
    classes: np.ndarray
    folds: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument(
        "--checked", type=int, default=6, help="layers of states, drawn at random, whose optimum is compared"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/probe.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    store = FeatureStore.open(options.store)
    found = {}
    for name, parts in PARTS.items():
        cells = cells_of(store, parts)
        chosen = np.random.default_rng(0).choice(len(cells), min(options.checked, len(cells)), replace=False)
        found[name] = measure(cells, options.rounds) | check([cells[number] for number in chosen])
        print(name, json.dumps(found[name], indent=1), flush=True)
    result = {
        "states": store.states,
        "layers": store.layers("first"),
        "fits": len(store.states) * len(store.layers("first")) * FOLDS * len(PENALTIES),
        "grids": found,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {name: metadata.version(name) for name in ("torch", "scikit-learn", "numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


def cells_of(store: FeatureStore, parts: tuple[str, ...]) -> list[Cell]:
    """Every layer and state of some parts."""
    examples = store.examples()
    rows = np.flatnonzero(examples["part"].isin(parts))
    classes = examples["label"].to_numpy()[rows]
    folds = make_folds(classes, FOLDS, seed=0)
    return [
        Cell(store.array("first", state, layer)[rows].astype(np.float32), classes, folds)
        for state in store.states
        for layer in store.layers("first")
    ]


def measure(cells: list[Cell], rounds: int) -> dict[str, Any]:
    """Median seconds of each way, and ratios of measurements of one round."""
    ways = {"scikit-learn": by_scikit_learn, "bertdyn": together, "nested": nested}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            for cell in cells if turn >= 0 else cells[:1]:
                way(cell)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    ratios = [theirs / ours for theirs, ours in zip(seconds["scikit-learn"], seconds["bertdyn"], strict=True)]
    # 150 fits where the grid has 25
    nested_ratios = [6 * theirs / ours for theirs, ours in zip(seconds["scikit-learn"], seconds["nested"], strict=True)]
    return {
        "rows": len(cells[0].classes),
        "seconds": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "bertdyn_times": spread(ratios),
        "nested_times_a_fit": spread(nested_ratios),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Their median and their range."""
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, 2) for name, value in found.items()}


def by_scikit_learn(cell: Cell, **options: Any) -> list[Any]:
    """Fitted pipelines, fold by fold."""
    options = {"max_iter": 1000} | options
    return [
        make_pipeline(StandardScaler(), LogisticRegression(C=penalty, **options)).fit(
            cell.features[cell.folds != fold], cell.classes[cell.folds != fold]
        )
        for fold in range(FOLDS)
        for penalty in PENALTIES
    ]


def together(cell: Cell) -> LinearProbes:
    """The same probes, fitted at once."""
    training = torch.from_numpy(cell.folds[:, None] != np.arange(FOLDS))
    sets = torch.arange(FOLDS).repeat_interleave(len(PENALTIES))
    fits = Fits(torch.zeros_like(sets), sets, torch.tensor(PENALTIES, dtype=torch.float64).repeat(FOLDS))
    return fit_logistic(torch.from_numpy(cell.features), torch.from_numpy(cell.classes)[:, None], training, fits, 2)


def nested(cell: Cell) -> None:
    """What a probe run does with one layer of one state."""
    shuffled = np.random.default_rng(0).permutation(cell.classes)
    targets = torch.from_numpy(np.stack([cell.classes, shuffled], axis=1))
    features, folds = torch.from_numpy(cell.features), torch.from_numpy(cell.folds)
    cross_validate(
        lambda x, y, training, fits: fit_logistic(x, y, training, fits, 2), features, targets, folds, PENALTIES
    )


def check(cells: list[Cell]) -> dict[str, float]:
    """How near both optima are, over the probes of some cells."""
    worst, equal = 0.0, []
    for cell in cells:
        probes = together(cell)
        x = cell.features.astype(np.float64)
        scores = LinearProbes(*(part.double() for part in probes)).scores(torch.from_numpy(x)).numpy()
        own_scores = scores[:, :, 1] - scores[:, :, 0]
        exact = by_scikit_learn(cell._replace(features=x), tol=1e-9, max_iter=50_000)
        for number, model in enumerate(exact):
            seen, penalty = cell.folds != number // len(PENALTIES), PENALTIES[number % len(PENALTIES)]
            weights = probes.weights[number, :, 1].double().numpy() * model[0].scale_
            theirs = objective(model.decision_function(x)[seen], model[-1].coef_[0], cell.classes[seen], penalty)
            ours = objective(own_scores[seen, number], weights, cell.classes[seen], penalty)
            worst = max(worst, ours / theirs - 1)
            equal.append(np.mean((own_scores[:, number] > 0) == (model.decision_function(x) > 0)))
    return {"largest_excess_of_the_objective": float(worst), "equal_predictions": float(np.mean(equal))}


def objective(scores: np.ndarray, weights: np.ndarray, classes: np.ndarray, penalty: float) -> float:
    """Mean loss a row with its share of the penalty."""
    losses = np.logaddexp(0, -(2 * classes - 1) * scores)
    return float(losses.mean() + weights @ weights / (2 * penalty * len(classes)))


if __name__ == "__main__":
    main()
