"""Which MLflow run a command writes to.

A new one; the one that `mlflow run` made for us (`MLFLOW_RUN_ID`); or an earlier one that is
resumed. When `mlflow run` resumes an earlier run, the launcher's run points to it and ends with it.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from bertdyn.errors import InputError
from bertdyn.files import write_json, write_text
from bertdyn.tracking.endings import run_status, signals_held
from bertdyn.tracking.mlflow_tracker import PATIENCE, MLflowTracker, patiently
from bertdyn.tracking.provenance import GitState, environment, git_state, source_folder
from bertdyn.tracking.store import children, connect, find_experiment, find_run, first_line, run_link, shown

logger = logging.getLogger(__name__)

EXPERIMENT = "bertdyn"
_PARENT = "mlflow.parentRunId"
_RANDOM_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # as MLflow makes them: valuable-perch-591


def open_run(
    stage: str,
    *,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    resume_run_id: str | None = None,
    patience: float | None = None,
) -> MLflowTracker:
    """Opens the run of this command; use it at once in a `with` block, which ends it.

    Parameters
    ----------
    stage
        `fine-tune`, `extract`, …: the tag `bertdyn.stage`.
    run_name
        Of a new run, and of one that `mlflow run` made with a random name.
    tags
        Further tags.
    resume_run_id
        The run to continue; empty for none.
    patience
        Seconds that the end waits for a server that is away (default: `mlflow_tracker.PATIENCE`).

    Raises
    ------
    InputError
        If MLflow does not answer, its artifact store takes nothing, or the run to resume does not
        exist, is of another stage, or is being written by another process.
    """
    client = connect()
    # Taken out, so that processes started by the step do not write into this run.
    launched = os.environ.pop("MLFLOW_RUN_ID", None)
    git = git_state(source_folder())
    tags = {"bertdyn.stage": stage, **(tags or {}), **_git_tags(git)}
    ours = [launched] if launched else []  # the runs that must not stay RUNNING if this goes wrong
    try:
        attempt = 0
        resumes_another = bool(resume_run_id) and resume_run_id != launched
        if resumes_another:
            run = find_run(client, resume_run_id or "")
            _check_stage(run, stage)
            attempt = _attempt(run)
        elif launched:
            run = find_run(client, launched)
            if run_name and _RANDOM_NAME.fullmatch(run.info.run_name or ""):
                client.update_run(launched, name=run_name)
        else:
            with signals_held():
                run = _create(client, find_experiment(client, EXPERIMENT), run_name, tags)
                ours.append(run.info.run_id)
        tracker = MLflowTracker(
            client,
            run,
            stage=stage,
            resumed=bool(resume_run_id) or bool(launched and run.data.metrics),
            launcher=launched if resumes_another else None,
            open_child=partial(_open_child, git),
            resources=os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0"),
            patience=patience,
        )
        if resume_run_id or launched:
            client.update_run(run.info.run_id, status="RUNNING")
            ours.append(run.info.run_id)
        if launched and resumes_another:
            _point_launcher(client, launched, run, stage)
        _record_origin(tracker, tags, git, attempt, tracker.publish_now)
    except BaseException as error:  # Ctrl-C and SIGTERM, too
        for run_id in ours:
            _end_quietly(client, run_id, run_status(error))
        if isinstance(error, MlflowException):
            uri = shown(client.tracking_uri)
            raise InputError(f"MLflow at {uri} cannot begin a run: {first_line(error)}") from error
        raise
    return tracker


def _record_origin(
    tracker: MLflowTracker,
    tags: Mapping[str, str],
    git: GitState | None,
    attempt: int,
    publish: Callable[[str], None],
) -> None:
    """Tags, environment and uncommitted code; a resumed run keeps its first record beside the new one."""
    suffix = f"_resume_{attempt}" if attempt else ""
    tracker.set_tags({**tags, "bertdyn.resumed_times": str(attempt)} if attempt else tags)
    try:
        write_json(tracker.folder / f"environment{suffix}.json", environment(git))
        publish(f"environment{suffix}.json")
        if git is not None and git.dirty:
            write_text(tracker.folder / "code" / f"diff{suffix}.patch", git.diff)
            tracker.publish(f"code/diff{suffix}.patch")
    except OSError as error:
        raise InputError(f"run {tracker.run_id} cannot be written to {tracker.folder}: {first_line(error)}") from error


def _create(client: MlflowClient, experiment_id: str, run_name: str | None, tags: Mapping[str, str]) -> Run:
    # resolve_tags adds MLflow's own: user, source file, git commit.
    return client.create_run(experiment_id, tags=resolve_tags(dict(tags)), run_name=run_name)


def children_opener(run_id: str) -> Callable[[str, Mapping[str, str]], MLflowTracker]:
    """What opens new runs inside a run that another process writes, from name and tags.

    Raises
    ------
    InputError
        If MLflow does not answer, or has no such run.
    """
    client = connect()
    parent, git = find_run(client, run_id), git_state(source_folder())

    def open_one(run_name: str, tags: Mapping[str, str]) -> MLflowTracker:
        # Hundreds of short runs: the environment is the parent's, and is not written once more for each.
        return patiently(
            lambda: _new_child(git, client, parent, run_name, tags, PATIENCE, record=False), run_name, PATIENCE
        )

    return open_one


def end_abandoned(run_id: str) -> None:
    """End the run of a process that died, as FAILED, if it is still RUNNING; as well as MLflow lets us."""
    try:
        client = connect()
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_tag(run_id, "bertdyn.ended_by", "another process: the one that wrote this run died")
            client.set_terminated(run_id, "FAILED")
    except (MlflowException, InputError) as error:
        logger.warning("run %s of a process that died cannot be ended: %s", run_id, first_line(error))


def end_abandoned_children(run_id: str, is_abandoned: Callable[[Run], bool]) -> None:
    """End the runs inside a run that are RUNNING though nobody writes them, and all that are inside those; as well as
    MLflow lets us.

    Parameters
    ----------
    is_abandoned
        Whether nobody writes a run that is RUNNING.
    """
    try:
        client = connect()
        for child in children(client, find_run(client, run_id)):
            if child.info.status == "RUNNING" and is_abandoned(child):
                end_abandoned_children(child.info.run_id, lambda _: True)
                end_abandoned(child.info.run_id)
    except (MlflowException, InputError) as error:
        logger.warning("runs inside %s that nobody writes cannot be ended: %s", run_id, first_line(error))


def point_launcher(run_id: str, stage: str) -> None:
    """Let the run that `mlflow run` made for this command, if it did, lead to `run_id`, to which all went."""
    launched = os.environ.pop("MLFLOW_RUN_ID", None)
    if launched:
        client = connect()
        _point_launcher(client, launched, find_run(client, run_id), stage, "This run joined")


@contextmanager
def launcher_ends(stage: str) -> Iterator[None]:
    """Let the run that `mlflow run` made for a command that records nothing, if it did, end as this block ends.

    Raises
    ------
    InputError
        If MLflow does not answer, or has no such run.
    """
    launched = os.environ.pop("MLFLOW_RUN_ID", None)
    if launched is None:
        yield
        return
    client = connect()
    find_run(client, launched)
    error: BaseException | None = None
    try:
        client.set_tag(launched, "bertdyn.stage", stage)
        yield
    except BaseException as raised:  # Ctrl-C and SIGTERM, too
        error = raised
        raise
    finally:
        with signals_held():  # `mlflow run` sends a SIGTERM after a Ctrl-C
            _end_quietly(client, launched, run_status(error))


def _open_child(git: GitState | None, parent: MLflowTracker, run_name: str, tags: Mapping[str, str]) -> MLflowTracker:
    tags = {"bertdyn.stage": parent.stage, **tags}
    earlier = [run for run in children(parent.client, parent.run) if run.info.run_name == run_name]
    if not (parent.resumed and earlier):
        return _new_child(git, parent.client, parent.run, run_name, tags, parent.patience)
    run = earlier[-1]
    parent.client.update_run(run.info.run_id, status="RUNNING")
    tags |= _child_tags(git, parent.run)
    return _child_tracker(git, parent.client, run, tags, _attempt(run), parent.patience)


def _new_child(
    git: GitState | None,
    client: MlflowClient,
    parent: Run,
    run_name: str,
    tags: Mapping[str, str],
    patience: float,
    *,
    record: bool = True,
) -> MLflowTracker:
    tags = {**tags, **_child_tags(git, parent)}
    run = _create(client, parent.info.experiment_id, run_name, tags)
    return _child_tracker(git, client, run, tags, 0, patience, record=record)


def _child_tags(git: GitState | None, parent: Run) -> dict[str, str]:
    return {_PARENT: parent.info.run_id, **_git_tags(git)}


def _child_tracker(
    git: GitState | None,
    client: MlflowClient,
    run: Run,
    tags: Mapping[str, str],
    attempt: int,
    patience: float,
    *,
    record: bool = True,
) -> MLflowTracker:
    try:
        child = MLflowTracker(
            client,
            run,
            stage=tags["bertdyn.stage"],
            resumed=bool(attempt),
            open_child=partial(_open_child, git),
            resources=False,  # the same machine's: the parent records them
            patience=patience,
        )
        if record:
            _record_origin(child, tags, git, attempt, child.publish)
    except BaseException as error:
        _end_quietly(client, run.info.run_id, run_status(error))
        raise
    return child


def _attempt(run: Run) -> int:
    """How often the run is resumed, this time included."""
    return int(run.data.tags.get("bertdyn.resumed_times", "0")) + 1


def _git_tags(git: GitState | None) -> dict[str, str]:
    return {} if git is None else {"git.dirty": str(git.dirty).lower()}


def _check_stage(run: Run, stage: str) -> None:
    begun_as = run.data.tags.get("bertdyn.stage", "")
    if begun_as != stage:
        raise InputError(
            f"--resume_run_id: run {run.info.run_id} is a {begun_as or 'foreign'} run; "
            f"{stage} resumes only {stage} runs"
        )


def _point_launcher(client: MlflowClient, launcher: str, run: Run, stage: str, what: str = "This run resumed") -> None:
    link = run_link(run.info.run_id, run.info.experiment_id)
    client.set_tag(launcher, "bertdyn.resumed_run_id", run.info.run_id)
    client.set_tag(launcher, "bertdyn.stage", f"{stage}-launcher")
    client.set_tag(launcher, "mlflow.note.content", f"{what} {link}; the results are there.")


def _end_quietly(client: MlflowClient, run_id: str, status: str) -> None:
    """Ends a run that never got under way; the error that led here is what matters."""
    with suppress(MlflowException):
        client.set_terminated(run_id, status)
