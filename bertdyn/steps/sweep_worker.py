"""A worker of a sweep: model, data and statistics once; then trial after trial, until the study has all of them."""

import logging
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import optuna
from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

from bertdyn.errors import InputError
from bertdyn.steps.sweep_config import SweepFreezingConfig, SweepPruningConfig
from bertdyn.sweeping import studies
from bertdyn.sweeping.samplers import is_exhausted, make_pruner, make_sampler
from bertdyn.sweeping.space import Space
from bertdyn.sweeping.storage import open_storage
from bertdyn.sweeping.workers import is_orphan, prepare_worker, quiet
from bertdyn.tracking.endings import SigtermRaises, signals_held
from bertdyn.tracking.runs import children_opener, end_abandoned
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

Config = SweepPruningConfig | SweepFreezingConfig
PROCESS = "bertdyn.process"
"""Tag of a trial's run: the process that writes it, from the moment at which it is there."""
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
    label: Callable[[Any], str]
    """From the options: what to call the model on its data."""
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


class Parent(NamedTuple):
    """Where trials are recorded: in MLflow under a run, or in a folder."""

    run_id: str | None
    folder: str


def work(
    kind: Sweep,
    config: Config,
    space: Space,
    study_name: str,
    parent: Parent,
    fresh: bool,
    index: int,
    refused: Any,
) -> None:
    """One worker process: everything that trials share once, then trial after trial."""
    SigtermRaises().install()
    prepare_worker(config.workers, index)
    try:
        storage = open_storage_of(config)
        study = optuna.load_study(study_name=study_name, storage=storage, pruner=make_pruner(config.pruner))
        own = config.seed + index if fresh else zlib.crc32(studies.this_process().encode())
        study.sampler = make_sampler(config.sampler, space, config.seed if config.sampler == "grid" else own)
        objective = kind.objective(config, space, study)
        open_child = children_opener(parent.run_id) if parent.run_id else partial(_folder, parent.folder)
    except InputError as error:
        refused.put(str(error))
        return

    def enough() -> bool:
        return studies.taken(study) >= config.n_trials or is_exhausted(study, config.sampler, space)

    run_trials(study, enough, partial(run_trial, kind.stage, objective, open_child))


def run_trials(study: Study, enough: Callable[[], bool], trial_function: Callable[[Trial], Any]) -> None:
    """Trial after trial, until there are enough, done or under way, or the driver is gone.

    Raises
    ------
    RuntimeError
        If several fail in a row.
    """
    failures, number = 0, -1

    def counted(trial: Trial) -> Any:
        nonlocal failures, number
        failures, number = failures + 1, trial.number
        trial.set_user_attr(studies.WORKER, studies.this_process())
        held.close()
        try:
            values = trial_function(trial)
        except optuna.TrialPruned:
            failures = 0
            raise
        if not np.isnan(values).any():  # else Optuna takes it for failed
            failures = 0
        return values

    while not enough() and not is_orphan():
        number = -1
        try:
            # Else a trial that is begun when the signal comes would be nobody's, and RUNNING, for a while.
            with ExitStack() as held:
                held.enter_context(signals_held())
                study.optimize(counted, n_trials=1, catch=(Exception,))
        except (ValueError, AssertionError, UpdateFinishedTrialError):
            # Optuna has a different error for each moment at which it finds out.
            if number < 0 or not studies.is_finished(study, number):
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
    origin = trial.user_attrs.get(studies.ORIGIN)
    tags = {
        "bertdyn.stage": f"{stage}-trial",
        "optuna.study": trial.study.study_name,
        "optuna.trial_number": str(trial.number),
        PROCESS: studies.this_process(),
    } | ({"optuna.origin": origin} if origin else {})
    with open_child(f"trial-{trial.number:04d}", tags) as tracker:
        trial.set_user_attr(studies.RUN, tracker.run_id)
        values = objective(trial, tracker)
        if np.isnan(values).any():
            raise ValueError(f"trial {trial.number}: a value is no number: {values}")
        if studies.is_finished(trial.study, trial.number):
            raise RuntimeError("given up for lost while it ran: another trial has taken its place")
        return values


def open_storage_of(config: Config) -> BaseStorage:
    """The storage; trials of a database whose processes give no sign of life are queued anew."""
    quiet()
    return open_storage(config.storage, partial(studies.retry, end_abandoned))


def _folder(parent: str, name: str, tags: Mapping[str, str]) -> Tracker:
    tracker = Tracker(Path(parent) / "children" / name)
    tracker.set_tags(tags)
    return tracker
