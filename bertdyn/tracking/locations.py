"""From names in the tracking store to folders and settings on this machine.

`runs:/<id>/checkpoints/best` and `models:/name@alias` become folders that Hugging Face's
`from_pretrained` reads; a run id becomes the configuration and the stage of the run that a step
takes as its source. Everything downloaded is kept in `$BERTDYN_CACHE`.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertdyn.errors import InputError
from bertdyn.files import cache_folder, new_folder

# MLflow takes seconds to import, and most model names need none of it.
if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_MANIFEST = "checkpoints/manifest.json"


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes: a folder for `runs:/…` and `models:/…`, else the name as it is.

    Args:
        name: a hub id or folder; `runs:/<id>/checkpoints/<state>` with a state such as `best`,
            `last`, `pretrained`, `epoch_003`; another directory of a run; `models:/name@alias`,
            `models:/name/3`, `models:/m-<id>`.

    Raises:
        InputError: when the store, run, state, model, version or alias does not exist.
    """
    if name.startswith("runs:/"):
        run_id, _, path = name.removeprefix("runs:/").strip("/").partition("/")
        return str(_run_model(run_id, path))
    if name.startswith("models:/"):
        return str(_registered_model(name))
    return name


def artifact(run_id: str, path: str) -> Path:
    """The local path of a file or directory of a run, downloaded once where the store is elsewhere.

    Raises:
        InputError: when the run or the artifact does not exist.
    """
    return _artifact(_run(run_id), path)


def load_run_config(run_id: str) -> dict[str, Any]:
    """The exact resolved configuration of a run.

    Raises:
        InputError: when the run does not exist or has none.
    """
    return _fresh_json(_run(run_id), "config.json")


def run_stage(run_id: str) -> str:
    """The stage of a run, such as `fine-tune`.

    Raises:
        InputError: when the run does not exist or was not made by bertdyn.
    """
    return _stage(_run(run_id))


def require_source(run_id: str, stages: Sequence[str]) -> None:
    """Checks that a step can take this run as its source.

    Args:
        run_id: the run.
        stages: the stages that the step accepts.

    Raises:
        InputError: when the run does not exist, is of another stage, or only holds runs of several seeds.
    """
    from mlflow.exceptions import MlflowException

    from bertdyn.tracking.store import children, connect, find_run, first_line

    client = connect()
    run = find_run(client, run_id)
    stage = _stage(run)
    if stage not in stages:
        raise InputError(f"source_run_id: run {run_id} is a {stage} run; give a {' or '.join(stages)} run")
    try:
        same = [child for child in children(client, run) if child.data.tags.get("bertdyn.stage") == stage]
    except MlflowException as error:
        raise InputError(f"source_run_id: the children of {run_id} cannot be read: {first_line(error)}") from error
    if same or "bertdyn.children" in run.data.tags:
        named = ", ".join(f"{child.info.run_id} ({child.info.run_name})" for child in same)
        named = named or run.data.tags["bertdyn.children"]
        raise InputError(f"source_run_id: run {run_id} holds several runs; give one of its children: {named}")


def check_unfinished(run_id: str) -> None:
    """Checks that there is something left to resume.

    Raises:
        InputError: when the run does not exist or has ended well.
    """
    if _run(run_id).info.status == "FINISHED":
        raise InputError(f"resume_run_id: run {run_id} has already finished; start a new one")


def _run(run_id: str) -> "Run":
    from bertdyn.tracking.store import connect, find_run

    return find_run(connect(), run_id)


def _stage(run: "Run") -> str:
    stage = run.data.tags.get("bertdyn.stage")
    if not stage:
        raise InputError(f"run {run.info.run_id} was not made by bertdyn: it has no tag bertdyn.stage")
    return stage


def _artifact(run: "Run", path: str) -> Path:
    from bertdyn.tracking.artifacts import artifact_folder, download_once

    folder = artifact_folder(run)
    if folder is not None and (folder / path).exists():
        return folder / path
    try:
        return download_once(run, path, cache_folder("runs", run.info.run_id))
    except FileNotFoundError as error:
        raise InputError(str(error)) from error


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
                raise InputError(str(error)) from error
            text = local.read_text(encoding="utf-8")
    return json.loads(text)


def _run_model(run_id: str, path: str) -> Path:
    first, _, state = path.partition("/")
    if not run_id or not path or (first == "checkpoints" and not state):
        raise InputError(f"model_name_or_path: 'runs:/{run_id}/{path}': give runs:/<run id>/checkpoints/<state>")
    run = _run(run_id)
    if first == "checkpoints" and "/" not in state:
        states = _fresh_json(run, _MANIFEST)["states"]
        if state not in states and state not in states.values():
            known = ", ".join(sorted({*states, *states.values()}))
            raise InputError(f"model_name_or_path: run {run_id} has no state {state!r}; it has: {known}")
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
            f"model_name_or_path: {uri} is not in {shown(client.tracking_uri)}: {first_line(error)}"
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
            raise InputError(f"model_name_or_path: {uri!r}: give models:/name@alias, models:/name/3 or models:/m-<id>")
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
            raise InputError(f"model_name_or_path: {uri} is no Hugging Face model: it has no config.json")
        parts = [model]
    for part in filter(Path.is_dir, parts):
        shutil.copytree(part, target, dirs_exist_ok=True)
