"""Probing: an extract run in; what each layer of each state knows, with baselines, intervals and tests, out.

    store → folds, targets → every probe of every layer and state (probing_grid) → tables → figures and report

Nothing is scored on texts that fitted or selected anything: the part was never seen by the encoder's training, every
text is judged by a probe that has not seen its fold, and the penalties were chosen without that fold.
"""

import dataclasses
import itertools
import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from bertdyn.data.reading import read_column
from bertdyn.errors import InputError, NoArtifact
from bertdyn.features.aligned import AlignedRows
from bertdyn.files import replacing
from bertdyn.probing.code_length import code_length
from bertdyn.probing.cross_validation import make_folds
from bertdyn.probing.linear import save_probes
from bertdyn.probing.targets import Target, make_targets
from bertdyn.probing.text_baselines import majority_scores, tfidf_predictions
from bertdyn.steps.extract_runs import ExtractRun, chosen_layers, in_training_order, load_run_texts, open_extract_run
from bertdyn.steps.lists import choices, numbers
from bertdyn.steps.preparation import make_accelerator
from bertdyn.steps.probe_cells import Cell, Sample, Source, Task, fits_target, judge, sample_of
from bertdyn.steps.probe_config import PROBES, ProbeConfig
from bertdyn.steps.probe_report import file_name, write_report
from bertdyn.steps.probe_tables import association_table, paired_tests, probe_table, scores_of_texts, stages_of
from bertdyn.steps.probe_words import Probed
from bertdyn.steps.probing_grid import Grid, prediction_table, probe_everything
from bertdyn.steps.random_twin import RANDOM_INIT, random_twin
from bertdyn.steps.span_probe import probe_spans
from bertdyn.tracking.locations import load_run_config, require_source, run_folder
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

SPAN = "span"
SEEN_IN_TRAINING = ("train", "validation")
TFIDF_SCALE = 100
"""Of the inverse penalties: TF-IDF vectors have length 1, standardised features a variance of 1 in every dimension."""
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
    _check_probes(names, tasks)
    measures = _measures(config, run)
    dataset, digest = run.config.dataset, run.store.manifest.fingerprints["data"][:8]
    columns = [name for name in ("example_id", "text", "text_pair", "label") if name in examples]
    tracker.log_dataset(examples[columns], f"{dataset}-{config.part}", dataset, digest, config.part, "label")
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
    scores = scores_of_texts(grid, tasks)
    ordered = in_training_order(run)
    probed = Probed(
        label=run.label,
        states=run.states,
        layers=layers,
        num_texts=len(examples),
        part=config.part,
        probes=table,
        paired=paired_tests(scores, run.states, layers, config.seed),
        transfer=pd.DataFrame(grid.transfer),
        stages=stages_of(scores, ordered, layers, config.seed),
        stage_states=ordered,
        association=association_table(table, measures),
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
    def column(name: str) -> pd.Series:
        values = read_column(run.config, name)
        load_run_texts(run)  # says if the data are not those of the features any more
        return values

    targets = make_targets(wanted, examples, run.store.manifest.label_names, column, num_folds=config.num_folds)
    if len(examples) < 2 * config.num_folds:
        raise InputError(
            f"--num_folds {config.num_folds}: {len(examples)} texts; accepted are at most {len(examples) // 2} folds"
        )
    strata = [_strata(target, config.num_folds) for target in targets]
    return [
        Task(target, make_folds(of_target, config.num_folds, config.seed))
        for target, of_target in zip(targets, strata, strict=True)
    ]


def _check_probes(names: Sequence[str], tasks: Sequence[Task]) -> None:
    for task in tasks:
        if not any(fits_target(name, task) for name in names):
            what = "classes" if task.num_classes else "numbers"
            accepted = [name for name in PROBES if fits_target(name, task)]
            raise InputError(
                f"--probes {','.join(names)!r}: none is for {what}, as the target {task.target.name!r} has; "
                f"accepted: {', '.join(accepted)}"
            )


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
    return Source(RANDOM_INIT, store, aligned)


def _without_encoder(grid: Grid, task: Task, texts: Sequence[str], penalties: Sequence[float]) -> None:
    """Majority (or mean), and TF-IDF with the same kind of probe, in the same folds."""
    sample = Sample("", np.arange(len(texts)), None)
    probe_name = "logistic" if task.num_classes else "ridge"
    for baseline, found in (
        ("majority", majority_scores(task.target, task.folds)),
        ("tfidf", tfidf_predictions(texts, task.target, task.folds, [TFIDF_SCALE * each for each in penalties])),
    ):
        if task.num_classes:
            with np.errstate(divide="ignore"):
                found = np.log(found)
        scores = found.reshape(len(texts), -1)
        cell = Cell(task.target.name, "", probe_name, baseline, "", -1)
        grid.judged[cell] = judge(scores, task.target.values, sample, task, np.array([]), bool(task.num_classes))
    if task.num_classes:  # what the sizes of the classes alone compress
        cell = Cell(task.target.name, "", "logistic", "majority", "", -1)
        nothing, classes = torch.zeros(len(texts), 1), torch.tensor(task.target.values)
        grid.code_lengths[cell] = code_length(nothing, classes, [1.0], task.num_classes)


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
        except NoArtifact:  # one state: nothing was compared
            continue
        tables.append(table[table["run_id"] == run.run_id].rename(columns={"state_b": "state"}))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(measure=table["measure"] + " (" + table["rows"] + ")")[["layer", "state", "measure", "value"]]


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
        file = f"{file_name(task.target.name)}-{name}-{sample.kind}"
        predictions = prediction_table(grid, task, sample, name, examples)
        if predictions is not None:
            tracker.log_table(predictions, f"predictions/{file}")
        final = grid.final.get((task.target.name, sample.kind, name))
        if final:
            path = f"probes/{file}.safetensors"
            with replacing(tracker.folder / path) as temporary:
                save_probes(
                    temporary, final, {"target": task.target.name, "classes": json.dumps(task.target.class_names)}
                )
            tracker.publish(path)
