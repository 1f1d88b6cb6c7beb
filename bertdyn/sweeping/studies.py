"""A study that several processes and machines work on: begun, joined, gone on with, and cleaned up after the dead.

Which processes are alive is known of those of this machine (process id and start time). Of another machine's, a
database's heartbeat tells, and the sign of life that each command gives.
"""

import copy
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import optuna
import psutil
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from bertdyn.errors import InputError

logger = logging.getLogger(__name__)

MAX_RETRIES = 2
"""How often a trial whose process died is begun anew: one that kills every process that tries it is given up."""
SETUP, DATA, PARENT = "bertdyn.setup", "bertdyn.data", "mlflow_run_id"
LEADER, READY, CONCLUDED = "bertdyn.leader", "bertdyn.ready", "bertdyn.concluded"
WORKER, RUN, ORIGIN, NOTED = "worker", "mlflow_run_id", "origin", "noted"
"""Attributes of a study, and of a trial."""
BEAT = "bertdyn.beat:"
"""Attribute of a study, with the name of a machine behind it: when a command there last gave a sign of life."""
BEAT_SECONDS, DEAD_AFTER = 20, 90
"""How often a command gives a sign of life, and after how many seconds without one it is dead."""
_NAMELESS_SECONDS = 60
_SAME_START = 60
"""Seconds by which a process's start time may differ from what it was: it moves when the clock is set."""

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
    storage: BaseStorage, name: str, directions: Sequence[Direction], setup: dict[str, Any]
) -> optuna.Study | None:
    """A new study, with what all of its trials share, led by this process; None if another was a moment faster."""
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=list(directions))
    except DuplicatedStudyError:
        return None
    study.set_user_attr(LEADER, {"process": this_process(), "beat": time.time()})
    study.set_user_attr(SETUP, setup)
    return study


def wait_until_begun(study: optuna.Study, seconds: float = 5) -> None:
    """Wait until a study that another command is just about to begin says what it is about."""
    deadline = time.monotonic() + seconds
    while SETUP not in study.user_attrs and time.monotonic() < deadline:
        time.sleep(0.2)


def wait_until_ready(study: optuna.Study) -> bool:
    """Wait until the first trials are queued by who leads the study; False if it dies before."""
    while not study.user_attrs.get(READY):
        if led_by_another(study) is None:
            return False
        time.sleep(0.5)
    return True


def check_data(study: optuna.Study, fingerprint: str) -> None:
    """Raise `InputError` if trials elsewhere see other data than those here: paths say nothing of that."""
    there = study.user_attrs.get(DATA)
    if there is None:
        study.set_user_attr(DATA, fingerprint)
    elif there != fingerprint:
        raise InputError(
            f"study {study.study_name!r} works on other data: their fingerprint is {there[:12]}, here it is "
            f"{fingerprint[:12]}; give the same files"
        )


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


def led_by_another(study: optuna.Study) -> str | None:
    """The process that leads the study now, if it is alive and not this one."""
    leader = study.user_attrs.get(LEADER)
    if not leader or leader["process"] == this_process():
        return None
    alive = is_alive(leader["process"])
    if alive is None:  # on another machine
        alive = time.time() - leader["beat"] < DEAD_AFTER
    return leader["process"] if alive else None


def concluded(study: optuna.Study) -> int:
    """How many trials the study's report is about; 0 without one."""
    return int(study.user_attrs.get(CONCLUDED, 0))


def conclude(study: optuna.Study, trials: int) -> None:
    """Say that the report is about so many trials."""
    study.set_user_attr(CONCLUDED, trials)


def note(trial: optuna.Trial, **values: float) -> None:
    """Keep numbers with a trial, beside its values: as one attribute, since each is a commit in a database."""
    trial.set_user_attr(NOTED, noted(trial) | {name: float(value) for name, value in values.items()})


def noted(trial: optuna.Trial | FrozenTrial) -> dict[str, float]:
    """The numbers that are kept with a trial."""
    return dict(trial.user_attrs.get(NOTED, {}))


def this_process() -> str:
    """A name for this process that no later one will have."""
    return process_name(os.getpid())


def process_name(pid: int) -> str:
    """machine:process id:start time"""
    return f"{socket.gethostname()}:{pid}:{psutil.Process(pid).create_time():.2f}"


def is_alive(process: str) -> bool | None:
    """Whether a process is; None if it is one of another machine."""
    host, pid, started = process.rsplit(":", 2)
    if host != socket.gethostname():
        return None
    try:
        there = psutil.Process(int(pid))
        same = abs(there.create_time() - float(started)) < _SAME_START
        return same and there.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_finished(study: optuna.Study, number: int) -> bool:
    """Whether a trial has a state that nobody changes any more."""
    return study.get_trials(deepcopy=False)[number].state.is_finished()


def count(study: optuna.Study, *states: TrialState) -> int:
    """How many trials are in one of these states."""
    return sum(trial.state in states for trial in study.get_trials(deepcopy=False))


def begun(study: optuna.Study) -> int:
    """Trials that are not waiting any more."""
    return sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))


def taken(study: optuna.Study) -> int:
    """Trials that have an outcome, or that somebody works on."""
    return count(study, TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


def finished(study: optuna.Study) -> int:
    """Trials that have an outcome; those that were stopped early, too."""
    return count(study, TrialState.COMPLETE, TrialState.PRUNED)


@contextmanager
def beating(study: optuna.Study, *, leads: bool) -> Iterator[None]:
    """Signs of life of this machine inside, and of who leads the study; afterwards nobody leads it any more."""
    over = threading.Event()

    def beat() -> None:
        study.set_user_attr(f"{BEAT}{socket.gethostname()}", time.time())
        if leads:
            study.set_user_attr(LEADER, {"process": this_process(), "beat": time.time()})

    def keep_beating() -> None:
        while not over.wait(BEAT_SECONDS):
            try:
                beat()
            except Exception as error:  # each storage has its own; the next beat may find it again
                logger.warning("no sign of life could be given: %s", error)

    beat()
    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if leads:
            study.set_user_attr(LEADER, None)


class Watch:
    """Who gave a sign of life, by the clock of this process: those of two machines may differ."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}
        """Machine → what it last said, and when that was first seen here."""
        self._nameless: dict[int, float] = {}
        """Number of a trial that says not whose it is → when that was first seen here."""

    def waited_for_name(self, number: int) -> float:
        """For how many seconds a trial has not said whose it is."""
        return time.monotonic() - self._nameless.setdefault(number, time.monotonic())

    def silent(self, study: optuna.Study) -> set[str]:
        """The machines that have given none for `DEAD_AFTER` seconds."""
        now = time.monotonic()
        for name, said in study.user_attrs.items():
            host = name.removeprefix(BEAT)
            if name.startswith(BEAT) and self._seen.get(host, (None,))[0] != said:
                self._seen[host] = (said, now)
        return {host for host, (_, seen) in self._seen.items() if now - seen > DEAD_AFTER}


def bury(study: optuna.Study, abandon: Abandon, watch: Watch, *, has_heartbeat: bool = False) -> list[int]:
    """End the trials whose processes are gone, and queue them anew; their numbers.

    Parameters
    ----------
    has_heartbeat
        Whether the storage itself notices trials of other machines that give no sign of life; else machines that
        give none are taken for dead.
    """
    silent = set() if has_heartbeat else watch.silent(study)
    buried = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        if worker is None:  # it died before it could say who it was, or another is just about to
            dead = watch.waited_for_name(trial.number) > _NAMELESS_SECONDS
        else:
            alive = is_alive(worker)
            dead = worker.rsplit(":", 2)[0] in silent if alive is None else not alive
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
    again.system_attrs = copy.deepcopy(trial.system_attrs)  # to which the callback appends
    # Else the new one would pass for the dead process's until it says whose it is.
    again.user_attrs = {name: value for name, value in trial.user_attrs.items() if name not in (WORKER, RUN)}
    RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)(study, again)
    what = "is tried again" if len(retried(trial)) < MAX_RETRIES else "has been tried often enough"
    logger.warning("trial %d lost its process; it %s", trial.number, what)


def retried(trial: FrozenTrial) -> list[int]:
    """The numbers of the trials whose processes died and whose place this one takes, the oldest first."""
    return list(trial.system_attrs.get("retry_history", []))
