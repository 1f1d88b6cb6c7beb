"""From names in the tracking store to folders and settings on this machine.

`runs:/<id>/checkpoints/best` and `models:/name@alias` become folders that Hugging Face's
`from_pretrained` reads; a run id becomes the configuration and the stage of the run that a step
takes as its source. Everything downloaded is kept in `$BERTDYN_CACHE`. Where a run id is wanted,
the folder of a `Tracker` will do: steps can be used without MLflow.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertdyn.errors import InputError, NoArtifact
from bertdyn.files import cache_folder, new_folder

# MLflow takes seconds to import, and most model names need none of it.
if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CHECKPOINTS = "checkpoints/manifest.json"
NOT_RESUMED = ("prune", "compare")
"""Stages, of those that a step can start from, whose interrupted runs cannot be gone on with."""


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes: a folder for `runs:/…` and `models:/…`, else the name as it is.

    Parameters
    ----------
    name
        A hub id or folder; `runs:/<id>/checkpoints/<state>` with a state such as `best`,
        `last`, `pretrained`, or a checkpoint such as `epoch_003`, `step_000004`; another directory
        of a run; `models:/name@alias`, `models:/name/3`, `models:/m-<id>`.

    Raises
    ------
    InputError
        If the store, run, state, model, version or alias does not exist.
    """
    if name.startswith("runs:/"):
        run_id, _, path = name.removeprefix("runs:/").strip("/").partition("/")
        return str(_run_model(run_id, path))
    if name.startswith("models:/"):
        return str(_registered_model(name))
    return name


_STAGE_MARKS = {
    CHECKPOINTS: ("fine-tune", "prune"),
    "similarity.parquet": ("compare",),
    "features/manifest.json": ("extract",),
}
"""What only the folder of a run of such a stage has; the first that is there counts."""


def load_run_config(run_id: str) -> dict[str, Any]:
    """The exact resolved configuration of a run.

    Raises
    ------
    InputError
        If the run does not exist or has none, or it cannot be read now.
    """
    return load_run_json(run_id, "config.json")


def load_run_json(run_id: str, path: str) -> dict[str, Any]:
    """A small JSON artifact of a run.

    Raises
    ------
    InputError
        If the run does not exist or has no such artifact, or it cannot be read now.
    """
    if _is_folder(run_id):
        return json.loads(run_folder(run_id, path).read_text(encoding="utf-8"))
    return _fresh_json(_run(run_id), path)


def run_folder(run_id: str, path: str) -> Path:
    """An artifact of a run, a folder or a file, on this machine; downloaded where it is on another.

    Raises
    ------
    NoArtifact
        If the run has no such artifact.
    InputError
        If the run does not exist, or cannot be read now.
    """
    if _is_folder(run_id):
        found = Path(run_id).resolve() / path
        if not found.exists():
            raise NoArtifact(f"{path} is not in {run_id}")
        return found
    return _artifact(_run(run_id), path)


def require_source(run_id: str, stages: Sequence[str], *, flag: str = "source_run_id", complete: bool = False) -> None:
    """Checks that a step can take this run as its source: one of the right stage, that is not going on.

    Parameters
    ----------
    run_id
        The run.
    stages
        The stages that the step accepts.
    flag
        The option that named the run, for the messages.
    complete
        Whether a run that failed or was killed is no source.

    Raises
    ------
    InputError
        If the run does not exist, is of another stage, still going or incomplete, or only holds runs of several seeds.
    """
    if _is_folder(run_id):
        _require_folder(run_id, stages, flag, complete)
        return
    from mlflow.exceptions import MlflowException

    from bertdyn.tracking.store import children, connect, find_run, first_line

    client = connect()
    run = find_run(client, run_id)
    stage = run.data.tags.get("bertdyn.stage")
    if not stage:
        raise InputError(f"--{flag}: run {run_id} was not made by bertdyn: it has no tag bertdyn.stage")
    if stage not in stages:
        raise InputError(f"--{flag}: run {run_id} is of stage {stage}; accepted are runs of {' or '.join(stages)}")
    how = "start it anew" if stage in NOT_RESUMED else f"finish it with --resume_run_id {run_id}"
    if run.info.status in ("RUNNING", "SCHEDULED"):
        raise InputError(f"--{flag}: run {run_id} is still going (or was killed: then {how})")
    if complete and run.info.status != "FINISHED":
        raise InputError(f"--{flag}: run {run_id} ended {run.info.status}; {how}")
    try:
        same = [child for child in children(client, run) if child.data.tags.get("bertdyn.stage") == stage]
    except MlflowException as error:
        raise InputError(f"--{flag}: the children of {run_id} cannot be read: {first_line(error)}") from error
    if same:
        named = ", ".join(f"{child.info.run_id} ({child.info.run_name})" for child in same)
        raise InputError(f"--{flag}: run {run_id} holds several runs; give one of its children: {named}")


def check_unfinished(run_id: str) -> None:
    """Checks that there is something left to resume.

    Raises
    ------
    InputError
        If the run does not exist, or has ended well and all of it is in the store.
    """
    from bertdyn.tracking.delivery import outbox

    if _run(run_id).info.status == "FINISHED" and not outbox(run_id).exists():
        raise InputError(f"--resume_run_id: run {run_id} has already finished; start a new one")


def _is_folder(run_id: str) -> bool:
    return Path(run_id).is_dir()


def _require_folder(folder: str, stages: Sequence[str], flag: str, complete: bool) -> None:
    found = next((stages for mark, stages in _STAGE_MARKS.items() if (Path(folder) / mark).exists()), ())
    if not set(found) & set(stages):
        what = f"of a {' or '.join(found)} run" if found else "of no run that a step can start from"
        raise InputError(f"--{flag}: {folder} is the folder {what}; give that of a {' or '.join(stages)} run")
    if complete and not (Path(folder) / "summary.md").exists():  # the last thing that a run writes
        raise InputError(f"--{flag}: the run in {folder} did not come to its end")


def _run(run_id: str) -> "Run":
    from bertdyn.tracking.store import connect, find_run

    return find_run(connect(), run_id)


def _artifact(run: "Run", path: str) -> Path:
    from bertdyn.tracking.artifacts import artifact_folder, download_once

    folder = artifact_folder(run)
    if folder is not None and (folder / path).exists():
        return folder / path
    try:
        return download_once(run, path, cache_folder("runs", run.info.run_id))
    except FileNotFoundError as error:
        raise NoArtifact(str(error)) from error


def _fresh_json(run: "Run", path: str) -> dict[str, Any]:
    """A small file that a running or resumed run may rewrite: never from the cache if the store has it."""
    from bertdyn.tracking.artifacts import artifact_folder, download

    folder = artifact_folder(run)
    if folder is not None and (folder / path).exists():
        return json.loads((folder / path).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as incoming:
        try:
            text = download(run, path, Path(incoming)).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            local = cache_folder("runs", run.info.run_id) / path
            if not local.exists():
                raise NoArtifact(str(error)) from error
            text = local.read_text(encoding="utf-8")
    return json.loads(text)


def _run_model(run_id: str, path: str) -> Path:
    first, _, state = path.partition("/")
    if not run_id or not path or (first == "checkpoints" and not state):
        raise InputError(f"--model_name_or_path 'runs:/{run_id}/{path}': give runs:/<run id>/checkpoints/<state>")
    run = _run(run_id)
    if first == "checkpoints" and "/" not in state:
        manifest = _fresh_json(run, CHECKPOINTS)
        states = manifest["states"]
        known = {*states, *states.values(), *manifest.get("checkpoints", ())}
        if state not in known:
            raise InputError(
                f"--model_name_or_path: run {run_id} has no state {state!r}; it has: {', '.join(sorted(known))}"
            )
        path = f"checkpoints/{states.get(state, state)}"
    return _artifact(run, path)


def _registered_model(uri: str) -> Path:
    import requests
    from mlflow.exceptions import MlflowException

    from bertdyn.tracking.store import connect, first_line, long_requests, shown

    client = connect()
    try:
        key, source = _model_source(client, uri)
        folder = cache_folder("models") / key
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache_folder("models")) as incoming, long_requests():
                from mlflow.artifacts import download_artifacts

                downloaded = download_artifacts(artifact_uri=source, dst_path=incoming)
                with new_folder(folder) as assembled:
                    _assemble(Path(downloaded), assembled, uri)
    except (MlflowException, requests.RequestException, OSError) as error:
        raise InputError(
            f"--model_name_or_path {uri} is not in {shown(client.tracking_uri)}: {first_line(error)}"
        ) from error
    return folder


def _model_source(client: "MlflowClient", uri: str) -> tuple[str, str]:
    """A name for the cache that never stands for another model, and where the model is."""
    name = uri.removeprefix("models:/").strip("/")
    if name.startswith("m-") and "/" not in name and "@" not in name:
        return name, f"models:/{name}"
    if "@" in name:
        name, _, alias = name.partition("@")
        version = client.get_model_version_by_alias(name, alias)
    else:
        name, _, number = name.partition("/")
        if not number.isdigit():
            raise InputError(f"--model_name_or_path {uri!r}: give models:/name@alias, models:/name/3 or models:/m-<id>")
        version = client.get_model_version(name, number)
    source = version.source or ""
    if source.startswith("models:/m-"):
        return source.removeprefix("models:/"), source
    # A deleted and remade name can have the same version again, so the time is part of the key.
    return f"{name}-{version.version}-{version.creation_timestamp}", f"models:/{name}/{version.version}"


def _assemble(model: Path, target: Path, uri: str) -> None:
    """Puts the parts of an MLflow transformers model together as `save_pretrained` writes them."""
    parts = [model / "components" / "tokenizer", model / "model"]
    if not (model / "model" / "config.json").exists():
        if not (model / "config.json").exists():
            raise InputError(f"--model_name_or_path {uri} is no Hugging Face model: it has no config.json")
        parts = [model]
    for part in filter(Path.is_dir, parts):
        shutil.copytree(part, target, dirs_exist_ok=True)
