"""The MLflow tracking store: reaching it, and what it says about runs.

Everything uses `MlflowClient` with explicit run ids. MLflow's fluent API keeps one stack of active
runs per thread, which goes wrong with several runs in one process and under `mlflow run`.
A store that cannot be reached is an input error within seconds: MLflow itself would retry for minutes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from bertdyn.errors import InputError
from bertdyn.tracking.locks import store_lock

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_SECONDS_TO_ANSWER = 5
_DEFAULTS = {
    # MLflow's own defaults (7 retries with growing pauses, 120 s each) stop a training for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.1",
    _TIMEOUT: "10",
    # Commands say at their end where their run is; MLflow would print it for every child run, through progress bars.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND")


def connect() -> MlflowClient:
    """A client of the store that MLflow's environment names, after it has answered once.

    Raises
    ------
    InputError
        If it does not answer, or refuses.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    uri = mlflow.get_tracking_uri()
    _check_answers(uri)
    try:
        with store_lock(uri) if uri.startswith("sqlite") else nullcontext():
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            if uri.startswith("sqlite"):
                client.search_registered_models(max_results=1)  # the registry makes its tables on its own
    except MlflowException as error:
        raise InputError(f"MLflow at {shown(uri)} cannot be used: {first_line(error)}") from error
    return client


def tracking_uri() -> str:
    """Where MLflow's environment says that runs are recorded."""
    return mlflow.get_tracking_uri()


def find_run(client: MlflowClient, run_id: str) -> Run:
    """The run, with its params, tags and artifact location.

    Raises
    ------
    InputError
        If the store has no such run, or it is deleted.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            raise InputError(
                f"run {run_id!r} does not exist in the MLflow store {shown(client.tracking_uri)}"
            ) from error
        raise InputError(f"run {run_id!r} cannot be read: {first_line(error)}") from error
    if run.info.lifecycle_stage == "deleted":
        raise InputError(f"run {run_id!r} in {shown(client.tracking_uri)} is deleted; restore it first")
    return run


def find_experiment(client: MlflowClient, default: str) -> str:
    """The id of the experiment that the environment names, else of the one called `default`, made if needed.

    Raises
    ------
    InputError
        If the experiment is deleted.
    """
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return experiment_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or default
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            # Another process may have made it in between; if not, the error is a real one.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise InputError(f"experiment {name!r} is deleted; restore it or name another in MLFLOW_EXPERIMENT_NAME")
    return experiment.experiment_id


def children(client: MlflowClient, run: Run) -> list[Run]:
    """The runs inside a run, oldest first."""
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    found = client.search_runs([run.info.experiment_id], query, order_by=["attributes.start_time ASC"])
    return list(found)


def run_link(run_id: str, experiment_id: str) -> str:
    """Markdown: a link to the run's page; where the store is no server, one that leads there within the MLflow UI."""
    uri = mlflow.get_tracking_uri()
    server = shown(uri).rstrip("/") + "/" if uri.startswith(("http://", "https://")) else ""
    return f"[{run_id}]({server}#/experiments/{experiment_id}/runs/{run_id})"


@contextmanager
def long_requests() -> Iterator[None]:
    """Lets a transfer of large files wait longer for an answer than a metric may."""
    before = os.environ.get(_TIMEOUT)
    if before != _DEFAULTS[_TIMEOUT]:
        yield  # the user's own setting
        return
    os.environ[_TIMEOUT] = "120"
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = before


def is_refusal(error: Exception) -> bool:
    """Whether asking again is pointless: the store has answered, and it is about what was asked.

    A proxy's "not found" or "forbidden" may be gone when the server is back, so it is none.
    """
    if isinstance(error, requests.RequestException):
        return error.response is not None and error.response.status_code in (400, 413)
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    # Network, file and database errors pass; a TypeError or a ValueError would come again.
    return isinstance(error, (TypeError, ValueError, LookupError, AttributeError, ImportError))


def first_line(error: BaseException) -> str:
    """A message for one line of a log."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def shown(uri: str) -> str:
    """The URI without its password."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    where = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{where}"))


def _check_answers(uri: str) -> None:
    """One short attempt, before MLflow makes its many long ones."""
    try:
        if uri.startswith(("http://", "https://")):
            requests.get(uri.rstrip("/") + "/health", timeout=_SECONDS_TO_ANSWER)
        elif uri.startswith(_DATABASES):
            _connect_to_database(uri)
    except requests.exceptions.SSLError:
        return  # it is there; MLflow has its own settings for certificates
    except ImportError as error:  # SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3
        raise InputError(
            f"MLFLOW_TRACKING_URI: {shown(uri)} needs a database driver that is not installed ({first_line(error)}); "
            "with psycopg2 write postgresql+psycopg2://…"
        ) from error
    except Exception as error:  # each database driver has its own exceptions
        raise InputError(
            f"MLFLOW_TRACKING_URI: {shown(uri)} does not answer; start it or name another ({first_line(error)})"
        ) from error


def _connect_to_database(uri: str) -> None:
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    arguments = {}
    if url.get_backend_name() == "sqlite":
        if url.database and url.database != ":memory:":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    elif url.get_backend_name() in ("postgresql", "mysql"):
        arguments["connect_timeout"] = _SECONDS_TO_ANSWER
    engine = sqlalchemy.create_engine(url, connect_args=arguments)
    try:
        with engine.connect():
            pass
    finally:
        engine.dispose()
