"""Where studies are kept: a journal file, a database, or a gRPC proxy before either."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy
from optuna import Study
from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from bertdyn.errors import InputError

HEARTBEAT = 60
GRACE = 180
"""Seconds between signs of life of a trial in a database, and after how many without one it is given up. A process that
is only slow must not be."""
_SECONDS_TO_ANSWER = 5
_WHY_NOT_SHARED = (
    "both keep the version of their tables in one called alembic_version, so that neither could read it; give Optuna a "
    "database of its own"
)

OnStale = Callable[[Study, FrozenTrial], None]


def open_storage(name: str, on_stale: OnStale | None = None, *, heartbeat: int = HEARTBEAT) -> BaseStorage:
    """The storage that `--storage` names, after it has answered.

    Parameters
    ----------
    name
        A path, a database's URL, or `grpc://host:port`.
    on_stale
        What is done with a trial whose process gives no sign of life any more (databases only).
    heartbeat
        Seconds between signs of life; without one for three times as long, a trial is given up.

    Raises
    ------
    InputError
        If it cannot be reached or written, or MLflow keeps its runs there.
    """
    if name.startswith("grpc://"):
        return _proxy(name)
    if "://" in name:
        check_not_mlflows(name)
        try:
            return RDBStorage(
                name,
                engine_kwargs={"pool_pre_ping": True} | _connect_quickly(name),
                heartbeat_interval=heartbeat,
                grace_period=GRACE * heartbeat // HEARTBEAT,
                heartbeat_stale_trial_callback=on_stale,
            )
        except (sqlalchemy.exc.SQLAlchemyError, OptunaError, RuntimeError, ValueError) as error:
            raise InputError(f"--storage {without_password(name)} cannot be used: {_first_line(error)}") from error
    path = Path(name).expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_journal(path)
        storage = JournalStorage(JournalFileBackend(str(path)))
        storage.get_all_studies()
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"--storage {name!r} is no journal of Optuna that can be written: {error}") from error
    return storage


def check_journal(path: Path) -> None:
    """Raise `ValueError` if there is a file that is no journal: Optuna would write behind what is there."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        if first and "op_code" not in json.loads(first):
            raise ValueError("its first line is no operation on a study")


def has_heartbeat(name: str) -> bool:
    """Whether trials there give signs of life, which a journal and a proxy do not keep."""
    return "://" in name and not name.startswith("grpc://")


def check_not_mlflows(url: str) -> None:
    """Raise `InputError` if the database does not answer, or holds the tables of MLflow."""
    shown = without_password(url)
    try:
        engine = sqlalchemy.create_engine(url, **_connect_quickly(url))
        try:
            tables = sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        raise InputError(
            f"--storage {shown} does not answer: {_first_line(error)}; accepted are a path, a database's URL such as "
            "postgresql+psycopg2://user@host/database, or grpc://host:port"
        ) from error
    if "experiments" in tables and "studies" not in tables:
        raise InputError(f"--storage {shown} is MLflow's database: {_WHY_NOT_SHARED}")


def check_not_same(storage: str, tracking_uri: str) -> None:
    """Raise `InputError` if Optuna and MLflow shall share one database, which would be the end of both."""
    if (
        "://" not in storage
        or "://" not in tracking_uri
        or storage.startswith("grpc")
        or tracking_uri.startswith("http")
    ):
        return
    try:
        ours, theirs = (sqlalchemy.make_url(url) for url in (storage, tracking_uri))
    except (sqlalchemy.exc.SQLAlchemyError, ValueError):
        return  # whichever it is, it will be told when it is opened
    same = [getattr(ours, part) == getattr(theirs, part) for part in ("host", "port", "database")]
    if all(same) and ours.get_backend_name() == theirs.get_backend_name():
        raise InputError(
            f"--storage {without_password(storage)} is the database of MLFLOW_TRACKING_URI: {_WHY_NOT_SHARED}"
        )


def without_password(url: str) -> str:
    """A storage's name that can be shown."""
    if "://" not in url or url.startswith("grpc://"):
        return url
    try:
        parts = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.SQLAlchemyError, ValueError):
        return url.partition("://")[0] + "://…"
    if "password" in parts.query:
        parts = parts.update_query_dict({"password": "***"})
    return parts.render_as_string(hide_password=True)


def _proxy(name: str) -> BaseStorage:
    import grpc

    try:
        parts = urlsplit(name)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise InputError(f"--storage {name!r}: accepted is grpc://host:port")
    channel = grpc.insecure_channel(f"{host}:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=_SECONDS_TO_ANSWER)
    except grpc.FutureTimeoutError as error:
        raise InputError(f"--storage {name} does not answer: start optuna's gRPC proxy server there") from error
    finally:
        channel.close()
    return GrpcStorageProxy(host=host, port=port)


def _connect_quickly(url: str) -> dict[str, Any]:
    server = url.startswith(("postgresql", "mysql"))
    return {"connect_args": {"connect_timeout": _SECONDS_TO_ANSWER}} if server else {}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
