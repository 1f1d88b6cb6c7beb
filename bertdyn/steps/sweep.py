"""A sweep: an Optuna study whose trials are child runs, by several processes, on one machine or many.

    run and study → workers (`sweep_worker`) → what the trials found → the winner, trained in full, beside its control

A second command with the same storage and study joins: its workers' trials are children of the first one's run. Once
nobody leads a study, the next command goes on with it, and with its run.
"""

import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from mlflow.entities import Run
from optuna import Study
from optuna.trial import TrialState
from tqdm.auto import tqdm

from bertdyn.errors import InputError
from bertdyn.steps.sources import with_source_data
from bertdyn.steps.sweep_config import SweepPruningConfig
from bertdyn.steps.sweep_worker import PROCESS, Config, Parent, Sweep, open_storage_of, work
from bertdyn.sweeping import studies
from bertdyn.sweeping.samplers import is_exhausted, make_sampler
from bertdyn.sweeping.space import Space
from bertdyn.sweeping.storage import check_not_same, has_heartbeat, without_password
from bertdyn.sweeping.studies import is_alive
from bertdyn.sweeping.workers import WorkersFailed, supervise
from bertdyn.tracking.runs import end_abandoned, end_abandoned_children
from bertdyn.tracking.store import tracking_uri
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

NOT_SHARED = (
    "n_trials", "workers", "study_name", "storage", "sampler", "pruner", "space", "space_overrides", "enqueue",
    "seeds", "controls", "run_name", "register_as", "budget", "num_train_epochs", "recover", "resume_run_id",
    "latency_shapes", "latency_rounds", "export_onnx", "keep_checkpoints", "checkpoint_dtype",
    "log_spaced_checkpoints", "store_features", "store_attention", "data_dir",
)  # fmt: skip
"""Options that no trial's values depend on: commands that work on one study may differ in them. All others are fixed
when a study is begun."""


class SweepResult(NamedTuple):
    """What a sweep found."""

    study_name: str
    summary: str
    """The report, Markdown; of a process that joined, one line."""


def find(kind: Sweep, config: Config, space: Space) -> Study | None:
    """The study to work on: one that is there, or a new one of this name; None where the run is to name it.

    Raises
    ------
    InputError
        If the sampler cannot sample the space; the storage cannot be used or is MLflow's own; or the study is about
        something else, or has all of its trials.
    """
    make_sampler(config.sampler, space, config.seed)  # a grid needs steps
    check_not_same(config.storage, tracking_uri())
    storage = open_storage_of(config)
    if not config.study_name:
        return None
    study = studies.find_study(storage, config.study_name)
    if study is None:
        study = studies.begin_study(storage, config.study_name, kind.directions(config), _setup(kind, config, space))
    study = study or studies.find_study(storage, config.study_name)
    assert study is not None  # another command has begun it
    studies.wait_until_begun(study)
    studies.check_same(study, _setup(kind, config, space))
    done = studies.finished(study)
    if config.n_trials <= min(done, studies.concluded(study)) and studies.led_by_another(study) is None:
        raise InputError(
            f"--study_name {study.study_name!r}: that study has its {done} trials and its report; give a larger "
            "--n_trials to go on"
        )
    return study


def lead(kind: Sweep, config: Config, space: Space, tracker: Tracker, study: Study | None = None) -> SweepResult:
    """Begin a study, or go on with one; run it to its end and report.

    Parameters
    ----------
    tracker
        Of the run that holds all trials.
    study
        One that nobody else leads; `join` is for the others.

    Raises
    ------
    InputError
        If another process leads the study; whatever a worker finds wrong with the input.
    WorkersFailed
        If trials fail again and again.
    """
    if study and (leader := studies.led_by_another(study)):
        raise InputError(
            f"--study_name {study.study_name!r}: process {leader} leads that study; join it by the command"
        )
    if study is None:
        name = config.study_name or f"{kind.stage}-{(tracker.run_id or Path(tracker.folder).name)[:8]}"
        study = studies.begin_study(open_storage_of(config), name, kind.directions(config), _setup(kind, config, space))
        if study is None:
            raise InputError(f"--study_name {name!r}: there is such a study; give it to go on with it")
    with studies.beating(study, leads=True):
        study.set_user_attr(studies.PARENT, tracker.run_id)
        tracker.log_config(_shown(config, study.study_name))
        tracker.set_tags({"optuna.study": study.study_name})
        logger.info("study %s in %s: --study_name goes on with it", study.study_name, without_password(config.storage))
        if not study.user_attrs.get(studies.READY):
            get_ready(kind, config, space, study)
        parent = Parent(tracker.run_id, str(tracker.folder))
        _end_abandoned(study, parent, leads=True)
        _run(kind, config, space, study, parent, leads=True)
        done = studies.finished(study)  # what the report is about; others may add trials meanwhile
        summary = kind.conclude(config, space, study, tracker)
        studies.conclude(study, done)
    return SweepResult(study.study_name, summary)


def get_ready(kind: Sweep, config: Config, space: Space, study: Study) -> None:
    """Queue the first trials and measure what is measured once; who joins waits for it."""
    kind.prepare(config, study)
    if config.enqueue and config.sampler != "grid":
        for origin, params in kind.first_trials(config, space).items():
            study.enqueue_trial(params, user_attrs={studies.ORIGIN: origin}, skip_if_exists=True)
    study.set_user_attr(studies.READY, True)


def join(kind: Sweep, config: Config, space: Space, study: Study) -> SweepResult:
    """Work on a study that another process leads, until it has its trials; the report is that process's.

    Raises
    ------
    InputError
        If that process ends before it has begun.
    """
    if not studies.wait_until_ready(study):
        raise InputError(f"study {study.study_name!r}: the command that began it is gone; start this one again to lead")
    run_id = study.user_attrs[studies.PARENT]
    with studies.beating(study, leads=False):
        _run(kind, config, space, study, Parent(run_id, ""), leads=False)
    done = studies.finished(study)
    return SweepResult(study.study_name, f"joined study {study.study_name}: it has {done} trials now, in run {run_id}")


def _run(kind: Sweep, config: Config, space: Space, study: Study, parent: Parent, *, leads: bool) -> None:
    """Workers until the study has its trials; trials of the dead are ended and queued anew."""
    watch, heartbeat = studies.Watch(), has_heartbeat(config.storage)
    bar = tqdm(total=config.n_trials, initial=studies.finished(study), desc="trials", unit="trial", dynamic_ncols=True)

    def tick() -> None:
        studies.bury(study, end_abandoned, watch, has_heartbeat=heartbeat)
        bar.update(studies.finished(study) - bar.n)

    bars = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: their bars would run through this one
    # Only the first processes of a study are the same each time: later ones must not draw what they drew.
    fresh = leads and not studies.begun(study)
    arguments = (kind, config, space, study.study_name, parent, fresh)
    tick()
    try:
        while studies.finished(study) < config.n_trials and not is_exhausted(study, config.sampler, space):
            before = studies.finished(study)
            try:
                supervise(work, arguments, config.workers, tick)
            except WorkersFailed:
                if studies.finished(study) < config.n_trials:
                    raise
            while leads and studies.count(study, TrialState.RUNNING):  # those of other machines
                time.sleep(1)
                if heartbeat:
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
        _end_abandoned(study, parent, leads=leads)


def _end_abandoned(study: Study, parent: Parent, *, leads: bool) -> None:
    """End what nobody writes any more, though it is RUNNING, under the study's run: trials' runs of processes that were
    stopped or killed; and, as nobody else leads the study, trainings of a winner."""

    def is_abandoned(run: Run) -> bool:
        process = run.data.tags.get(PROCESS)
        if process is None:
            return leads
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ids = [trial.user_attrs.get(studies.RUN) for trial in running]
        alive = is_alive(process)
        if alive is None:  # on another machine, where a trial's run may have just been opened
            return leads and run.info.run_id not in ids and None not in ids
        return not alive

    if parent.run_id:
        end_abandoned_children(parent.run_id, is_abandoned)


def _setup(kind: Sweep, config: Config, space: Space) -> dict[str, Any]:
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_SHARED}
    options["trial_epochs"] = config.num_train_epochs if config.trial_epochs is None else config.trial_epochs
    options["limit"] = config.limit if config.objective == "constrained" else None  # else it only picks the winner
    return {"kind": kind.stage} | options | {"space": space.to_dict()}


def _shown(config: Config, study_name: str) -> dict[str, Any]:
    if isinstance(config, SweepPruningConfig):
        config = with_source_data(config)
    return dataclasses.asdict(config) | {"study_name": study_name, "storage": without_password(config.storage)}
