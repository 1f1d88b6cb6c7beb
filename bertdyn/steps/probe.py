"""Probing: an extract run in; what each layer of each state knows, with baselines, intervals and tests, out.

    store → folds, targets → every probe of every layer and state (probing_grid) → tables → figures and report

Nothing is scored on texts that fitted or selected anything: the part was never seen by the encoder's training, every
text is judged by a probe that has not seen its fold, and the penalties were chosen without that fold.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors.torch import save_file
from scipy.stats import false_discovery_control

from bertdyn.data.reading import read_column
from bertdyn.errors import InputError
from bertdyn.features.aligned import AlignedRows
from bertdyn.files import replacing
from bertdyn.geometry.intervals import bootstrap_ratio
from bertdyn.probing.association import associations
from bertdyn.probing.cross_validation import make_folds
from bertdyn.probing.paired import paired_table
from bertdyn.probing.stages import MIN_STATES, Stages, find_stages
from bertdyn.probing.targets import Target, make_targets
from bertdyn.probing.text_baselines import majority_scores, tfidf_predictions
from bertdyn.steps.config import PROBES, ProbeConfig, choices, numbers
from bertdyn.steps.extract_runs import ExtractRun, chosen_layers, open_extract_run
from bertdyn.steps.preparation import make_accelerator
from bertdyn.steps.probe_report import Probed, write_report
from bertdyn.steps.probing_grid import (
    Cell,
    Grid,
    Judged,
    Sample,
    Source,
    Task,
    fits_target,
    judge,
    prediction_table,
    probe_everything,
    sample_of,
)
from bertdyn.steps.random_twin import RANDOM_INIT, random_twin
from bertdyn.steps.span_probe import probe_spans
from bertdyn.tracking.locations import load_run_config, require_source, run_folder
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

SPAN = "span"
SEEN_IN_TRAINING = ("train", "validation")
MAIN_METRIC = {True: "accuracy", False: "r2"}
"""Of classes, of numbers."""


class ProbeResult(NamedTuple):
    """What was found."""

    probes: pd.DataFrame
    """One row per layer, state, kind of rows, target, probe, baseline and metric."""
    summary: str
    """The run's report, Markdown."""


def probe(config: ProbeConfig, tracker: Tracker, run: ExtractRun | None = None) -> ProbeResult:
    """Fit and judge probes of the layers and states of an extract run.

    Parameters
    ----------
    run
        From `open_extract_run`, where that was called before.

    Raises
    ------
    InputError
        Whatever is wrong with the run, its features, the targets or the options.
    """
    run = run or open_extract_run(str(config.source_run_id), config.states)
    wanted = _wanted_targets(config, run)
    _check_part(config, run)
    tracker.log_config(dataclasses.asdict(config))
    if wanted == [SPAN]:
        return ProbeResult(*probe_spans(config, tracker, run))
    aligned = [AlignedRows([(run.store, state)], config.part, config.max_examples) for state in run.states]
    sources = [Source(state, run.store, rows) for state, rows in zip(run.states, aligned, strict=True)]
    layers = chosen_layers(config.layers, aligned[0].layers)
    samples = [sample_of(sources[0], kind, config.seed) for kind in choices(config.rows, "rows")]
    examples = aligned[0].examples
    tasks = _tasks(config, run, examples, wanted)
    names = choices(config.probes, "probes", PROBES)
    for task in tasks:
        if not any(fits_target(name, task) for name in names):
            what = "classes" if task.num_classes else "numbers"
            accepted = [name for name in PROBES if fits_target(name, task)]
            raise InputError(
                f"--probes {config.probes!r}: none is for {what}, as the target {task.target.name!r} has; "
                f"accepted: {', '.join(accepted)}"
            )
    measures = _measures(config, run)
    if config.random_init:
        sources.append(_random_source(config, run, layers, examples))
    penalties = numbers(config.inverse_penalties, "inverse_penalties")
    grid = probe_everything(
        make_accelerator("no"),
        sources,
        layers,
        samples,
        tasks,
        probes=names,
        penalties=penalties,
        hidden_size=config.hidden_size,
        seed=config.seed,
        transfer=(run.states[0], run.states[-1]) if len(run.states) > 1 else None,
    )
    texts = (examples["text"] + " " + examples["text_pair"] if "text_pair" in examples else examples["text"]).tolist()
    for task in tasks:
        _without_encoder(grid, task, texts, penalties)
    table = probe_table(grid, tasks, config.seed)
    _write_files(tracker, grid, tasks, samples, names, examples)
    probed = Probed(
        label=run.label,
        states=run.states,
        layers=layers,
        num_texts=len(examples),
        part=config.part,
        probes=table,
        paired=_paired(grid, tasks, samples, names, run.states, layers, config),
        transfer=pd.DataFrame(grid.transfer),
        stages=_stages(grid, tasks, samples, names, run.states, layers, config.seed),
        association=_associations(table, measures, samples, run.states),
    )
    return ProbeResult(table, write_report(tracker, probed))


def _wanted_targets(config: ProbeConfig, run: ExtractRun) -> list[str]:
    answers = run.config.task == "question-answering"
    wanted = choices(config.targets or (SPAN if answers else "label"), "targets")
    if SPAN in wanted and not answers:
        raise InputError(
            f"--targets {config.targets!r}: run {run.run_id} is of {run.config.dataset!r}, whose texts have no answers "
            "to point at; accepted: label, a text property or a column, or an extract run of squad_v2"
        )
    if SPAN in wanted and len(wanted) > 1:
        raise InputError(f"--targets {config.targets!r}: 'span' has a run of its own; give the others to another")
    return wanted


def _check_part(config: ProbeConfig, run: ExtractRun) -> None:
    trained = run.config.source_run_id or str(run.config.model_name_or_path).startswith(("runs:/", "models:/"))
    if trained and config.part in SEEN_IN_TRAINING:
        raise InputError(
            f"--part {config.part!r}: these texts trained or selected the encoder of run {run.run_id}, so that its "
            "features of them say more than of others; accepted: probe, test"
        )


def _tasks(config: ProbeConfig, run: ExtractRun, examples: pd.DataFrame, wanted: Sequence[str]) -> list[Task]:
    column = functools.partial(read_column, run.config)
    targets = make_targets(wanted, examples, run.store.manifest.label_names, column, num_folds=config.num_folds)
    strata = [_strata(target, config.num_folds) for target in targets]
    return [
        Task(target, make_folds(of_target, config.num_folds, config.seed))
        for target, of_target in zip(targets, strata, strict=True)
    ]


def _strata(target: Target, num_folds: int) -> np.ndarray:
    """What folds have equal shares of: classes, or tenths of the range of ranks."""
    if target.class_names is not None:
        return target.values
    ranks = target.values.argsort(kind="stable").argsort(kind="stable")
    return ranks * min(10, len(ranks) // num_folds) // len(ranks)


def _random_source(config: ProbeConfig, run: ExtractRun, layers: Sequence[int], examples: pd.DataFrame) -> Source:
    kinds = choices(config.rows, "rows")
    rows = ["tokens"] if "tokens" in run.store.manifest.arrays else [kind for kind in kinds if kind != "content"]
    store = random_twin(run, parts=[config.part], rows=rows, layers=layers, seed=config.seed)
    aligned = AlignedRows([(store, RANDOM_INIT)], config.part, config.max_examples)
    if not aligned.examples["example_id"].equals(examples["example_id"]):
        raise RuntimeError(f"{store.folder} holds other texts than {run.store.folder}")
    return Source(RANDOM_INIT, store, aligned)


def _without_encoder(grid: Grid, task: Task, texts: Sequence[str], penalties: Sequence[float]) -> None:
    """Majority (or mean), and TF-IDF with the same kind of probe, in the same folds."""
    sample = Sample("", np.arange(len(texts)), None)
    probe_name = "logistic" if task.num_classes else "ridge"
    for baseline, found in (
        ("majority", majority_scores(task.target, task.folds)),
        ("tfidf", tfidf_predictions(texts, task.target, task.folds, penalties)),
    ):
        if task.num_classes:
            with np.errstate(divide="ignore"):
                found = np.log(found)
        scores = found.reshape(len(texts), -1)
        cell = Cell(task.target.name, "", probe_name, baseline, "", -1)
        grid.judged[cell] = judge(scores, task.target.values, sample, task, np.array([]), bool(task.num_classes))


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
                at = cell._asdict() | {"metric": metric, "num_folds": len(judged.fitted), "n": len(task.folds)}
                rows.append(at | {"value": judged.fitted.mean(), "fold_std": judged.fitted.std(ddof=1)})
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


def _text_scores(grid: Grid, task: Task, rows: str, name: str) -> dict[tuple[str, int], np.ndarray]:
    """(state, layer) → [texts]: share of a text's rows that are right, or its squared error; NaN where it has none."""
    metric = MAIN_METRIC[bool(task.num_classes)]
    scores = {}
    for cell, judged in grid.judged.items():
        if (cell.target, cell.rows, cell.probe, cell.baseline) == (task.target.name, rows, name, "none"):
            counts = judged.counts["accuracy" if task.num_classes else "mae"]
            with np.errstate(invalid="ignore"):
                scores[cell.state, cell.layer] = judged.sums[metric] / counts
    return scores


def _paired(
    grid: Grid,
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    names: Sequence[str],
    states: Sequence[str],
    layers: Sequence[int],
    config: ProbeConfig,
) -> pd.DataFrame:
    """Every state against the first, every layer against the one before, and against the random encoder."""
    kinds = {
        "states": [((states[0], layer), (state, layer)) for state in states[1:] for layer in layers],
        "layers": [((state, a), (state, b)) for state in states for a, b in itertools.pairwise(layers)],
    }
    if config.random_init:
        kinds["random_init"] = [((RANDOM_INIT, layer), (state, layer)) for state in states for layer in layers]
    tables = []
    for task, sample, name in itertools.product(tasks, samples, names):
        scores = _text_scores(grid, task, sample.kind, name)
        metric = "accuracy" if task.num_classes else "squared_error"
        for kind, pairs in kinds.items() if scores else ():
            if pairs:
                at = {"target": task.target.name, "rows": sample.kind, "probe": name, "kind": kind, "metric": metric}
                tables.append(paired_table(scores, pairs, seed=config.seed).assign(**at))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _stages(
    grid: Grid,
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    names: Sequence[str],
    states: Sequence[str],
    layers: Sequence[int],
    seed: int,
) -> dict[tuple[str, str, str], Stages]:
    """(target, rows, probe) → change points of training, of the first probe of each target with classes."""
    found: dict[tuple[str, str, str], Stages] = {}
    if len(states) < MIN_STATES:
        return found
    for task, sample in itertools.product(tasks, samples):
        fitting = [name for name in names if fits_target(name, task)]
        if task.num_classes:
            scores = _text_scores(grid, task, sample.kind, fitting[0])
            correct = np.array([[scores[state, layer] for layer in layers] for state in states])
            known = ~np.isnan(correct[0, 0])
            found[task.target.name, sample.kind, fitting[0]] = find_stages(correct[:, :, known], seed=seed)
    return found


def _measures(config: ProbeConfig, run: ExtractRun) -> pd.DataFrame | None:
    """The measures of the compare run, as layer, state, measure, value.

    Raises
    ------
    InputError
        If it is no compare run of the same extract run and part.
    """
    if not config.compare_run_id:
        return None
    require_source(config.compare_run_id, ("compare",), flag="compare_run_id", complete=True)
    compared = load_run_config(config.compare_run_id)
    of_runs = compared["run_ids"] or compared["source_run_id"]
    if run.run_id not in choices(of_runs, "run_ids"):
        raise InputError(
            f"--compare_run_id {config.compare_run_id}: it compares {of_runs}, not the extract run {run.run_id}"
        )
    if compared["part"] != config.part:
        raise InputError(
            f"--compare_run_id {config.compare_run_id}: it is of the part {compared['part']!r}, not {config.part!r}"
        )
    tables = []
    for name in ("similarity", "geometry"):
        try:
            table = pd.read_parquet(run_folder(config.compare_run_id, f"{name}.parquet"))
        except InputError:  # one state: nothing was compared
            continue
        tables.append(table[table["run_id"] == run.run_id].rename(columns={"state_b": "state"}))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(measure=table["measure"] + " (" + table["rows"] + ")")[["layer", "state", "measure", "value"]]


def _associations(
    probes: pd.DataFrame, measures: pd.DataFrame | None, samples: Sequence[Sample], states: Sequence[str]
) -> pd.DataFrame:
    """How measures of geometry and the scores of probes go together over layers and states."""
    if measures is None:
        return pd.DataFrame()
    tables = []
    own = probes[(probes["baseline"] == "none") & probes["metric"].isin(MAIN_METRIC.values())]
    for (target, rows, name), scores in own.groupby(["target", "rows", "probe"], sort=False):
        accuracy = scores[["layer", "state", "value"]].astype({"layer": "int64"})
        table = associations(accuracy, measures).assign(target=target, rows=rows, probe=name, q_value=np.nan)
        for _, of_one in table[table["p_value"].notna()].groupby("coefficient"):
            table.loc[of_one.index, "q_value"] = false_discovery_control(of_one["p_value"])
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _write_files(
    tracker: Tracker,
    grid: Grid,
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    names: Sequence[str],
    examples: pd.DataFrame,
) -> None:
    """Predictions and weights."""
    for task, sample, name in itertools.product(tasks, samples, names):
        file = f"{task.target.name.replace(':', '_')}-{name}-{sample.kind}"
        predictions = prediction_table(grid, task, sample, name, examples)
        if predictions is not None:
            tracker.log_table(predictions, f"predictions/{file}")
        weights = grid.weights.get((task.target.name, sample.kind, name))
        if weights:
            path = f"probes/{file}.safetensors"
            with replacing(tracker.folder / path) as temporary:
                save_file({key: tensor.contiguous() for key, tensor in weights.items()}, temporary)
            tracker.publish(path)
