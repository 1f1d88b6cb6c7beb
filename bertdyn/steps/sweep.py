"""A sweep: an Optuna study whose trials are child runs, by several processes, on one machine or many.

    driver: run and study → workers → what the trials found → the winner, trained in full, beside its control
    worker: model, data and statistics once; then trial after trial until the study has all of them

A second command with the same storage and study joins: its workers' trials are children of the first one's run. Once
nobody leads a study, the next command goes on with it, and with its run.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlflow
import numpy as np
import optuna
from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from tqdm.auto import tqdm

from bertdyn.errors import InputError
from bertdyn.steps.sweep_config import SweepFreezingConfig, SweepPruningConfig
from bertdyn.sweeping import studies
from bertdyn.sweeping.samplers import is_exhausted, make_pruner, make_sampler
from bertdyn.sweeping.space import Space
from bertdyn.sweeping.storage import check_not_same, has_heartbeat, open_storage, without_password
from bertdyn.sweeping.workers import WorkersFailed, is_orphan, prepare_worker, quiet, supervise
from bertdyn.tracking.endings import SigtermRaises
from bertdyn.tracking.runs import children_opener, end_abandoned
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

Config = SweepPruningConfig | SweepFreezingConfig
NOT_SHARED = (
    "n_trials", "workers", "study_name", "storage", "sampler", "pruner", "space", "space_overrides", "enqueue",
    "seeds", "controls", "run_name", "register_as", "budget", "num_train_epochs", "recover", "resume_run_id",
    "latency_shapes", "latency_rounds", "export_onnx", "keep_checkpoints", "checkpoint_dtype",
    "log_spaced_checkpoints", "store_features", "store_attention", "data_dir",
)  # fmt: skip
"""Options that no trial's values depend on: commands that work on one study may differ in them. All others are fixed
when a study is begun."""
FAILURES_IN_A_ROW = 3
"""After so many failed trials one after the other, a worker gives up."""


class Objective(Protocol):
    """What a worker keeps from trial to trial, and does in each."""

    def __call__(self, trial: Trial, tracker: Tracker) -> float | tuple[float, ...]:
        """The values of one trial, whose run is `tracker`."""


@dataclass(frozen=True)
class Sweep:
    """What makes one kind of sweep; functions of a module each, so that worker processes find them."""

    stage: str
    name: Callable[[Any], str]
    """From the options: what to call the run."""
    tags: Callable[[Any], dict[str, str]]
    space: Callable[[Any], Space]
    directions: Callable[[Any], list[studies.Direction]]
    """From the options: `minimize` or `maximize` for each value of a trial."""
    first_trials: Callable[[Any, Space], dict[str, dict[str, Any]]]
    """From options and space: name → params of the trials to begin with."""
    prepare: Callable[[Any, Study], None]
    """What is measured once, before the first trial."""
    objective: Callable[[Any, Space, Study], Objective]
    conclude: Callable[[Any, Space, Study, Tracker], str]
    """The winner and the report; returns the report."""


class SweepResult(NamedTuple):
    """What a sweep found."""

    study_name: str
    summary: str
    """The report, Markdown; of a process that joined, one line."""


class _Parent(NamedTuple):
    """Where trials are recorded: in MLflow under a run, or in a folder."""

    run_id: str | None
    folder: str


def find(kind: Sweep, config: Config, space: Space) -> Study | None:
    """The study to go on with or to join, if there is one.

    Raises
    ------
    InputError
        If the sampler cannot sample the space; the storage cannot be used or is MLflow's own; or the study is about
        something else.
    """
    make_sampler(config.sampler, space, config.seed)  # a grid needs steps
    check_not_same(config.storage, mlflow.get_tracking_uri())
    storage = _open(config)
    study = studies.find_study(storage, config.study_name) if config.study_name else None
    if study is not None:
        studies.wait_until_begun(study)
        studies.check_same(study, _setup(kind, config, space))
        enough = studies.finished(study) >= config.n_trials
        if enough and studies.led_by_another(study) is None and config.n_trials <= studies.concluded(study):
            raise InputError(
                f"--study_name {study.study_name!r}: that study has its {studies.finished(study)} trials and its "
                "report; give a larger --n_trials to go on"
            )
    return study


def lead(kind: Sweep, config: Config, space: Space, tracker: Tracker, study: Study | None = None) -> SweepResult:
    """Begin a study, or go on with one; run it to its end and report.

    Parameters
    ----------
    tracker
        Of the run that holds all trials.
    study
        One that nobody leads any more.

    Raises
    ------
    InputError
        Whatever a worker finds wrong with the input.
    WorkersFailed
        If trials fail again and again.
    """
    if study is None:
        storage = _open(config)
        name = config.study_name or f"{kind.stage}-{(tracker.run_id or Path(tracker.folder).name)[:8]}"
        study = studies.begin_study(storage, name, kind.directions(config), _setup(kind, config, space), tracker.run_id)
        if config.enqueue and config.sampler != "grid":
            for origin, params in kind.first_trials(config, space).items():
                study.enqueue_trial(params, user_attrs={studies.ORIGIN: origin}, skip_if_exists=True)
    with studies.beating(study, leads=True):
        tracker.log_config(_shown(config, study.study_name))
        tracker.set_tags({"optuna.study": study.study_name})
        kind.prepare(config, study)
        _run(kind, config, space, study, _Parent(tracker.run_id, str(tracker.folder)), leads=True)
        summary = kind.conclude(config, space, study, tracker)
        studies.conclude(study)
    return SweepResult(study.study_name, summary)


def join(kind: Sweep, config: Config, space: Space, study: Study) -> SweepResult:
    """Work on a study that another process leads, until it has its trials; the report is that process's."""
    run_id = study.user_attrs[studies.PARENT]
    with studies.beating(study, leads=False):
        _run(kind, config, space, study, _Parent(run_id, ""), leads=False)
    done = studies.finished(study)
    return SweepResult(study.study_name, f"joined study {study.study_name}: it has {done} trials now, in run {run_id}")


def _run(kind: Sweep, config: Config, space: Space, study: Study, parent: _Parent, *, leads: bool) -> None:
    """Workers until the study has its trials; trials of the dead are ended and queued anew."""
    wanted, machines = config.n_trials, studies.Machines()
    bar = tqdm(total=wanted, initial=studies.finished(study), desc="trials", unit="trial", dynamic_ncols=True)

    def tick() -> None:
        studies.bury(study, end_abandoned, machines.silent(study))
        bar.update(studies.finished(study) - bar.n)

    bars = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: their bars would run through this one
    arguments = (kind, config, space, study.study_name, parent)
    tick()
    study.sampler = make_sampler(config.sampler, space, config.seed)
    try:
        while studies.finished(study) < wanted and not is_exhausted(study):
            before = studies.finished(study)
            try:
                supervise(work, arguments, config.workers, tick)
            except WorkersFailed:
                if studies.finished(study) < wanted:
                    raise
            while leads and studies.count(study, TrialState.RUNNING):  # those of other machines
                time.sleep(1)
                if has_heartbeat(config.storage):
                    optuna.storages.fail_stale_trials(study)
                tick()
            if not leads:
                return
            if studies.finished(study) == before:
                raise WorkersFailed(f"study {study.study_name}: no trial of this round came to an end")
    finally:
        del os.environ["TQDM_DISABLE"]
        if bars is not None:
            os.environ["TQDM_DISABLE"] = bars
        bar.close()


def work(kind: Sweep, config: Config, space: Space, study_name: str, parent: _Parent, index: int, refused: Any) -> None:
    """One worker process: everything that trials share once, then trial after trial."""
    SigtermRaises().install()
    prepare_worker(config.workers)
    try:
        storage = _open(config)
        study = optuna.load_study(study_name=study_name, storage=storage, pruner=make_pruner(config.pruner))
        begun = sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))
        study.sampler = make_sampler(config.sampler, space, config.seed + begun + index)
        objective = kind.objective(config, space, study)
        open_child = children_opener(parent.run_id) if parent.run_id else partial(_folder, parent.folder)
    except InputError as error:
        refused.put(str(error))
        return
    run_trials(study, config.n_trials, partial(run_trial, kind.stage, objective, open_child))


def run_trials(study: Study, wanted: int, trial_function: Callable[[Trial], Any]) -> None:
    """Trial after trial, until the study has as many as are wanted, or is being run by others.

    Raises
    ------
    RuntimeError
        If several fail in a row.
    """
    failures, number = 0, 0

    def counted(trial: Trial) -> Any:
        nonlocal failures, number
        failures, number = failures + 1, trial.number
        try:
            values = trial_function(trial)
        except optuna.TrialPruned:
            failures = 0
            raise
        if np.isnan(values).any():
            raise ValueError(f"trial {trial.number}: a value is no number: {values}")
        failures = 0
        return values

    while studies.taken(study) < wanted and not is_exhausted(study) and not is_orphan():
        try:
            study.optimize(counted, n_trials=1, catch=(Exception,))
        except (ValueError, AssertionError, UpdateFinishedTrialError):
            # Optuna has a different error for each moment at which it finds out.
            if not studies.is_finished(study, number):
                raise
            logger.warning("trial %d was given up for lost while it ran: it gave no sign of life", number)
        if failures >= FAILURES_IN_A_ROW:
            raise RuntimeError(f"{failures} trials failed in a row: this worker gives up")


def run_trial(
    stage: str,
    objective: Objective,
    open_child: Callable[[str, Mapping[str, str]], Tracker],
    trial: Trial,
) -> float | tuple[float, ...]:
    """One trial, in a run of its own that ends as the trial ends: FINISHED, KILLED where it was stopped, or FAILED."""
    trial.set_user_attr(studies.WORKER, studies.this_process())
    origin = trial.user_attrs.get(studies.ORIGIN)
    tags = {
        "bertdyn.stage": f"{stage}-trial",
        "optuna.study": trial.study.study_name,
        "optuna.trial_number": str(trial.number),
    } | ({"optuna.origin": origin} if origin else {})
    with open_child(f"trial-{trial.number:04d}", tags) as tracker:
        trial.set_user_attr(studies.RUN, tracker.run_id)
        values = objective(trial, tracker)
        if studies.is_finished(trial.study, trial.number):
            raise RuntimeError("given up for lost while it ran: another trial has taken its place")
        return values


def _open(config: Config) -> BaseStorage:
    """The storage; trials of a database whose processes give no sign of life are queued anew."""
    quiet()
    return open_storage(config.storage, partial(studies.retry, end_abandoned))


def _folder(parent: str, name: str, tags: Mapping[str, str]) -> Tracker:
    tracker = Tracker(Path(parent) / "children" / name)
    tracker.set_tags(tags)
    return tracker


def _setup(kind: Sweep, config: Config, space: Space) -> dict[str, Any]:
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_SHARED}
    options["trial_epochs"] = config.num_train_epochs if config.trial_epochs is None else config.trial_epochs
    options["limit"] = config.limit if config.objective == "constrained" else None  # else it only picks the winner
    return {"kind": kind.stage} | options | {"space": space.to_dict()}


def _shown(config: Config, study_name: str) -> dict[str, Any]:
    return dataclasses.asdict(config) | {"study_name": study_name, "storage": without_password(config.storage)}
