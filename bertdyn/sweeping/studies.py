"""A study that several processes and machines work on: begun, joined, gone on with, and cleaned up after the dead.

Which processes are alive is known of those of this machine (process id and start time); of another machine's, only a
database's heartbeat tells.
"""

import copy
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import optuna
import psutil
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from bertdyn.errors import InputError

logger = logging.getLogger(__name__)

MAX_RETRIES = 2
"""How often a trial whose process died is begun anew: one that kills every process that tries it is given up."""
SETUP, PARENT, LEADER, CONCLUDED = "bertdyn.setup", "mlflow_run_id", "bertdyn.leader", "bertdyn.concluded"
WORKER, RUN, ORIGIN = "worker", "mlflow_run_id", "origin"
"""Attributes of a study, and of a trial."""
BEAT_SECONDS, DEAD_AFTER = 20, 90
"""How often who leads a study says so, and after how many seconds without it is dead."""
_NAMELESS_SECONDS = 60

Direction = Literal["minimize", "maximize"]
Abandon = Callable[[str], None]
"""Ends the MLflow run of a trial whose process is gone, by its id."""


def find_study(storage: BaseStorage, name: str) -> optuna.Study | None:
    """The study of this name, if there is one."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def begin_study(
    storage: BaseStorage, name: str, directions: Sequence[Direction], setup: dict[str, Any], parent: str | None
) -> optuna.Study:
    """A new study, with what all of its trials share and the MLflow run that they belong to."""
    study = optuna.create_study(study_name=name, storage=storage, directions=list(directions))
    study.set_user_attr(SETUP, setup)
    study.set_user_attr(PARENT, parent)
    return study


def check_same(study: optuna.Study, setup: dict[str, Any]) -> None:
    """Raise `InputError` if a study is about something else than this command."""
    there = study.user_attrs.get(SETUP)
    if there is None:
        raise InputError(f"--study_name {study.study_name!r}: that study was not made by bertdyn; give another name")
    for name in sorted({*there, *setup}):
        if there.get(name) != setup.get(name):
            raise InputError(
                f"--study_name {study.study_name!r}: that study has {name} {there.get(name)!r}, this command "
                f"{setup.get(name)!r}; give the same, or another name"
            )


def lead(study: optuna.Study) -> None:
    """Say that this process leads the study, and is alive."""
    study.set_user_attr(LEADER, {"process": this_process(), "beat": time.time()})


def led_by_another(study: optuna.Study) -> str | None:
    """The process that leads the study now, if it is alive and not this one."""
    leader = study.user_attrs.get(LEADER)
    if not leader or leader["process"] == this_process():
        return None
    alive = is_alive(leader["process"])
    if alive is None:  # on another machine
        alive = time.time() - leader["beat"] < DEAD_AFTER
    return leader["process"] if alive else None


def resign(study: optuna.Study) -> None:
    """Say that nobody leads the study any more."""
    study.set_user_attr(LEADER, None)


def concluded(study: optuna.Study) -> int:
    """How many trials the study's report is about; 0 without one."""
    return int(study.user_attrs.get(CONCLUDED, 0))


def conclude(study: optuna.Study) -> None:
    """Say that the report is about the trials that have an outcome now."""
    study.set_user_attr(CONCLUDED, finished(study))


def this_process() -> str:
    """A name for this process that no later one will have."""
    return process_name(os.getpid())


def process_name(pid: int) -> str:
    """machine:process id:start time"""
    return f"{socket.gethostname()}:{pid}:{psutil.Process(pid).create_time():.2f}"


def is_alive(process: str) -> bool | None:
    """Whether a process is; None if it is one of another machine."""
    host, pid, _ = process.rsplit(":", 2)
    if host != socket.gethostname():
        return None
    try:
        return process_name(int(pid)) == process and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def count(study: optuna.Study, *states: TrialState) -> int:
    """How many trials are in one of these states."""
    return sum(trial.state in states for trial in study.get_trials(deepcopy=False))


def taken(study: optuna.Study) -> int:
    """Trials that have an outcome, or that somebody works on."""
    return count(study, TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


def finished(study: optuna.Study) -> int:
    """Trials that have an outcome; those that were stopped early, too."""
    return count(study, TrialState.COMPLETE, TrialState.PRUNED)


def bury(study: optuna.Study, abandon: Abandon) -> list[int]:
    """End the trials whose processes of this machine are gone, and queue them anew; their numbers."""
    buried = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        if worker is None:  # it died before it could say who it was, or another is just about to
            started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            dead = time.time() - started > _NAMELESS_SECONDS
        else:
            dead = is_alive(worker) is False
        if dead:
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, UpdateFinishedTrialError):
                continue  # another process has just told
            retry(abandon, study, trial)
            buried.append(trial.number)
    return buried


def retry(abandon: Abandon, study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial whose process is gone anew, with its parameters, and end its MLflow run."""
    run_id = trial.user_attrs.get(RUN)
    if run_id:
        abandon(run_id)
    again = copy.copy(trial)
    # Else the new one would pass for the dead process's until it says whose it is.
    again.user_attrs = {name: value for name, value in trial.user_attrs.items() if name not in (WORKER, RUN)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)(study, again)
    logger.warning("trial %d lost its process; it is tried again", trial.number)


def retried(trial: FrozenTrial) -> list[int]:
    """The numbers of the trials whose processes died and whose place this one takes, the oldest first."""
    return list(trial.system_attrs.get("retry_history", []))
