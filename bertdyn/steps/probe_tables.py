"""From judged probes to tables: scores with intervals, paired tests, stages of training, what goes with accuracy."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bertdyn.geometry.intervals import bootstrap_ratio
from bertdyn.probing.association import associations
from bertdyn.probing.paired import paired_table
from bertdyn.probing.stages import MIN_STATES, Stages, find_stages
from bertdyn.steps.probe_cells import Cell, Judged, Task
from bertdyn.steps.probing_grid import Grid
from bertdyn.steps.random_twin import RANDOM_INIT

MAIN_METRIC = {True: "accuracy", False: "r2"}
"""Of classes, of numbers."""

Scores = dict[tuple[str, int], np.ndarray]
"""(state, layer) → [texts]"""
TFIDF = ("tfidf", -1)
"""In the place of state and layer."""


class Probe(NamedTuple):
    """A kind of probe of one target."""

    target: str
    rows: str
    name: str
    classes: bool
    """Whether it is judged by accuracy; else by squared errors."""


def probe_table(grid: Grid, tasks: Sequence[Task], seed: int) -> pd.DataFrame:
    """The results, tidy: layer, state, rows, target, probe, baseline, metric, value, low, high, n, fold_std, num_folds.

    `low` and `high` bound the 95 % bootstrap interval over texts; all cells of a metric see the same resamples.
    """
    rows: list[dict] = []
    for task in tasks:
        mine = {cell: judged for cell, judged in grid.judged.items() if cell.target == task.target.name}
        for metric in dict.fromkeys(itertools.chain.from_iterable(judged.sums for judged in mine.values())):
            rows += _metric_rows(metric, {c: j for c, j in mine.items() if metric in j.sums}, task, seed)
        for cell, judged in mine.items():
            if len(judged.fitted) and cell.baseline in ("none", "shuffled", "control"):
                metric = f"{MAIN_METRIC[bool(task.num_classes)]}_fitted"
                at = cell._asdict() | {"num_folds": len(judged.fitted), "n": len(task.folds)}
                rows.append(
                    at | {"metric": metric, "value": judged.fitted.mean(), "fold_std": judged.fitted.std(ddof=1)}
                )
                if len(judged.penalties):
                    rows.append(at | {"metric": "inverse_penalty", "value": np.median(judged.penalties)})
        rows += _code_rows(grid, task, seed)
        rows += _selectivity_rows(mine, task, seed)
    table = pd.DataFrame(rows)
    at_layer_0 = table[(table["layer"] == 0) & (table["baseline"] == "none")].assign(baseline="layer_0")
    table = pd.concat([table, at_layer_0], ignore_index=True)
    of_twin = (table["state"] == RANDOM_INIT) & (table["baseline"] == "none")
    table = table[(table["state"] != RANDOM_INIT) | of_twin]
    table.loc[of_twin, "baseline"] = RANDOM_INIT
    table["layer"] = table["layer"].where(table["layer"] >= 0).astype("Int64")
    for name in ("state", "rows"):
        table[name] = table[name].where(table[name] != "")
    columns = ["layer", "state", "rows", "target", "probe", "baseline", "metric", "value", "low", "high", "n"]
    return table[[*columns, "fold_std", "num_folds"]].reset_index(drop=True)


def _metric_rows(metric: str, judged: dict[Cell, Judged], task: Task, seed: int) -> Iterator[dict]:
    """Value and interval of one metric, of all cells whose texts have as many rows together."""
    by_rows: dict[str, list[Cell]] = {}
    for cell in judged:
        by_rows.setdefault(cell.rows + ("" if metric != "r2" else cell.baseline), []).append(cell)
    for cells in by_rows.values():
        counts = judged[cells[0]].counts[metric]
        sums = np.stack([judged[cell].sums[metric] for cell in cells], axis=1)
        lows, highs = bootstrap_ratio(sums, counts, seed=seed)
        values = sums.sum(axis=0) / counts.sum()
        folds = np.arange(task.folds.max() + 1)
        per_fold = np.stack([sums[task.folds == f].sum(axis=0) / counts[task.folds == f].sum() for f in folds])
        if metric == "r2":
            values, lows, highs, per_fold = 1 - values, 1 - highs, 1 - lows, 1 - per_fold
        for number, cell in enumerate(cells):
            yield cell._asdict() | {
                "metric": metric,
                "value": values[number],
                "low": lows[number],
                "high": highs[number],
                "n": int((counts > 0).sum()),
                "fold_std": per_fold[:, number].std(ddof=1),
                "num_folds": len(folds),
            }


def _code_rows(grid: Grid, task: Task, seed: int) -> Iterator[dict]:
    for cell, code in grid.code_lengths.items():
        if cell.target != task.target.name:
            continue
        low, high = (len(code.bits) * bound + code.penalty_bits
                     for bound in bootstrap_ratio(code.bits, np.ones(len(code.bits)), seed=seed))  # fmt: skip
        at = cell._asdict() | {"n": len(code.bits), "num_folds": 0}
        yield at | {"metric": "code_length_bits", "value": code.total, "low": low, "high": high}
        ends = {"low": code.uniform_bits / high, "high": code.uniform_bits / low}
        yield at | {"metric": "compression", "value": code.compression} | ends


def _selectivity_rows(judged: dict[Cell, Judged], task: Task, seed: int) -> Iterator[dict]:
    """How much better a probe is at its target than at labels that mean nothing.

    Of tokens these are fixed by the word (Hewitt & Liang 2019). Of texts, each of which occurs once, a label fixed at
    random by the text is nothing but a shuffled one.
    """
    if not task.num_classes:
        return
    for cell, found in judged.items():
        against = judged.get(cell._replace(baseline="control" if cell.rows == "content" else "shuffled"))
        if cell.baseline != "none" or against is None:
            continue
        counts = found.counts["accuracy"]
        sums = found.sums["accuracy"] - against.sums["accuracy"]
        low, high = map(float, bootstrap_ratio(sums, counts, seed=seed))
        yield cell._asdict() | {
            "metric": "selectivity",
            "value": sums.sum() / counts.sum(),
            "low": low,
            "high": high,
            "n": int((counts > 0).sum()),
            "num_folds": int(task.folds.max()) + 1,
        }


def scores_of_texts(grid: Grid, tasks: Sequence[Task]) -> dict[Probe, Scores]:
    """Share of a text's rows that each probe gets right, or its squared error; NaN where a text has no rows."""
    classes = {task.target.name: bool(task.num_classes) for task in tasks}
    found: dict[Probe, Scores] = {}
    tfidf: dict[str, np.ndarray] = {}
    for cell, judged in grid.judged.items():
        of_classes = classes[cell.target]
        with np.errstate(invalid="ignore"):
            scores = judged.sums[MAIN_METRIC[of_classes]] / judged.counts["accuracy" if of_classes else "mae"]
        if cell.baseline == "none":
            found.setdefault(Probe(cell.target, cell.rows, cell.probe, of_classes), {})[cell.state, cell.layer] = scores
        elif cell.baseline == "tfidf":
            tfidf[cell.target] = scores
    for probe, of_probe in found.items():
        of_probe[TFIDF] = tfidf[probe.target]
    return found


def paired_tests(
    of_probes: Mapping[Probe, Scores], states: Sequence[str], layers: Sequence[int], seed: int
) -> pd.DataFrame:
    """Every state against the first; every layer against the one before, the best one, random weights and TF-IDF.

    Scores of texts count alike, however many of their tokens were probed. False discovery rates are over the pairs of
    one kind, of one probe.
    """
    kinds: dict[str, list[tuple[tuple[str, int], tuple[str, int]]]] = {
        "states": [((states[0], layer), (state, layer)) for state in states[1:] for layer in layers],
        "layers": [((state, a), (state, b)) for state in states for a, b in itertools.pairwise(layers)],
        RANDOM_INIT: [((RANDOM_INIT, layer), (state, layer)) for state in states for layer in layers],
        "tfidf": [(TFIDF, (state, layer)) for state in states for layer in layers],
    }
    tables = []
    for probe, scores in of_probes.items():
        sign = 1 if probe.classes else -1
        means = {s: [sign * np.nanmean(scores[s, layer]) for layer in layers] for s in states}
        best = {s: layers[int(np.argmax(of_layers))] for s, of_layers in means.items()}
        kinds["best"] = [((s, layer), (s, best[s])) for s in states for layer in layers if layer != best[s]]
        for kind, every in kinds.items():
            pairs = [pair for pair in every if pair[0] in scores]
            if pairs:
                metric = "accuracy" if probe.classes else "squared_error"
                at = {"target": probe.target, "rows": probe.rows, "probe": probe.name, "kind": kind, "metric": metric}
                tables.append(paired_table(scores, pairs, seed=seed).assign(**at))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def stages_of(
    of_probes: Mapping[Probe, Scores], states: Sequence[str], layers: Sequence[int], seed: int
) -> dict[Probe, Stages]:
    """Change points of training: of the first probe of each target with classes and kind of rows."""
    found: dict[Probe, Stages] = {}
    if len(states) < MIN_STATES:
        return found
    for probe, scores in of_probes.items():
        if probe.classes and (probe.target, probe.rows) not in [(other.target, other.rows) for other in found]:
            correct = np.array([[scores[state, layer] for layer in layers] for state in states])
            known = ~np.isnan(correct[0, 0])
            found[probe] = find_stages(correct[:, :, known], seed=seed)
    return found


def association_table(probes: pd.DataFrame, measures: pd.DataFrame | None) -> pd.DataFrame:
    """How measures of geometry and the scores of probes go together over layers and states."""
    if measures is None:
        return pd.DataFrame()
    tables = []
    own = probes[(probes["baseline"] == "none") & probes["metric"].isin(MAIN_METRIC.values())]
    for (target, rows, name), scores in own.groupby(["target", "rows", "probe"], sort=False):
        accuracy = scores[["layer", "state", "value"]].astype({"layer": "int64"})
        tables.append(associations(accuracy, measures).assign(target=target, rows=rows, probe=name))
    return pd.concat(tables, ignore_index=True)
