"""The files of a run: where the store keeps them, and how they come to this machine."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

import requests
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from bertdyn.files import cache_folder
from bertdyn.tracking.store import first_line, long_requests

logger = logging.getLogger(__name__)


def artifact_folder(run: Run) -> Path | None:
    """Where the run's artifacts are in this machine's file system; None when they are elsewhere."""
    uri = run.info.artifact_uri
    return Path(local_file_uri_to_path(uri)) if is_local_uri(uri) else None


def download(run: Run, path: str, folder: Path) -> Path:
    """Downloads one artifact, file or directory, to `folder/path`.

    Raises:
        FileNotFoundError: when the run has no such artifact.
    """
    with long_requests():
        try:
            local = get_artifact_repository(run.info.artifact_uri).download_artifacts(path, dst_path=str(folder))
        except (MlflowException, requests.RequestException, OSError) as error:
            raise FileNotFoundError(f"run {run.info.run_id} has no artifact {path!r}: {first_line(error)}") from error
    # A missing directory "downloads" as an empty one from stores that only know files.
    if Path(local).is_dir() and not any(Path(local).iterdir()):
        raise FileNotFoundError(f"run {run.info.run_id} has no artifact {path!r}")
    return Path(local)


def download_once(run: Run, path: str, folder: Path) -> Path:
    """The artifact as `folder/path`, which appears when it is complete.

    Raises:
        FileNotFoundError: when the run has no such artifact.
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
    except (FileNotFoundError, OSError):
        logger.info("run %s has no metrics.jsonl yet; its metrics are compared with the server's", run.info.run_id)
