"""The files of a run: where the store keeps them, and how they come to this machine."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from bertdyn.errors import InputError
from bertdyn.files import cache_folder
from bertdyn.tracking.store import first_line, long_requests, shown

logger = logging.getLogger(__name__)


class ArtifactUnreadable(InputError):
    """The artifact store does not say whether there is such an artifact, or does not hand it over now."""


def artifact_folder(run: Run) -> Path | None:
    """Where the run's artifacts are in this machine's file system; None when they are elsewhere."""
    uri = run.info.artifact_uri
    return Path(local_file_uri_to_path(uri)) if is_local_uri(uri) else None


def download(run: Run, path: str, folder: Path) -> Path:
    """Downloads one artifact, file or directory, to `folder/path`.

    Raises
    ------
    FileNotFoundError
        If the run has no such artifact.
    ArtifactUnreadable
        If it cannot be read now, which says nothing about whether it is there.
    """
    repository = get_artifact_repository(run.info.artifact_uri)
    with long_requests():
        try:
            local = repository.download_artifacts(path, dst_path=str(folder))
        except Exception as error:  # each store's driver has its own exceptions
            if _is_absent(repository, path):
                raise FileNotFoundError(f"run {run.info.run_id} has no artifact {path!r}") from error
            raise ArtifactUnreadable(
                f"artifact {path!r} of run {run.info.run_id} cannot be read from {shown(run.info.artifact_uri)} "
                f"({first_line(error)}); try again when that answers"
            ) from error
    # A missing directory "downloads" as an empty one from stores that only know files.
    if Path(local).is_dir() and not any(Path(local).iterdir()):
        raise FileNotFoundError(f"run {run.info.run_id} has no artifact {path!r}")
    return Path(local)


def download_once(run: Run, path: str, folder: Path) -> Path:
    """The artifact as `folder/path`, which appears when it is complete.

    Raises
    ------
    FileNotFoundError
        If the run has no such artifact.
    ArtifactUnreadable
        If it cannot be read now, which says nothing about whether it is there.
    """
    target = folder / path
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming = Path(tempfile.mkdtemp(prefix=".incoming.", dir=folder))
        try:
            downloaded = download(run, path, incoming)
            if not target.exists():
                os.rename(downloaded, target)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    return target


def run_folder(run: Run) -> tuple[Path, bool]:
    """The run's folder, and whether it is the very place where MLflow looks for artifacts."""
    folder = artifact_folder(run)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            pass  # the path is another machine's
        else:
            return folder, True
    return cache_folder("runs", run.info.run_id), False


def fetch_points(run: Run, folder: Path) -> None:
    """Brings the metrics that another machine wrote; without them the server's history prevents repeats."""
    try:
        download_once(run, "metrics.jsonl", folder)
    except FileNotFoundError:
        logger.info("run %s has no metrics.jsonl yet; its metrics are compared with the server's", run.info.run_id)


def _is_absent(repository: ArtifactRepository, path: str) -> bool:
    """Whether the store answers, and what it answers is that it has no such artifact."""
    parent = str(Path(path).parent)
    try:
        listed = repository.list_artifacts(None if parent == "." else parent)
    except Exception:  # each store's driver has its own exceptions
        return False
    return str(Path(path)) not in [file.path for file in listed]
