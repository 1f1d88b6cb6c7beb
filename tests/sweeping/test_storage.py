"""Where studies are kept: what one process writes, another reads; what cannot be used is refused at once."""

import socket
import sqlite3
import time

import optuna
import pytest
import sqlalchemy
from mlflow.store.db.utils import _get_latest_schema_revision
from mlflow.store.tracking.dbmodels.initial_models import Base as MLflowTables
from optuna.storages import GrpcStorageProxy
from optuna.storages._grpc.server import make_server
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import TrialState

from bertdyn.errors import InputError
from bertdyn.sweeping import storage, studies
from bertdyn.sweeping.storage import check_not_same, has_heartbeat, open_storage, without_password
from tests.servers import free_port

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore:Heartbeat of storage")


def filled(opened):
    """A study with one trial of each state, as some process leaves it."""
    study = studies.begin_study(opened, "thresholds", ["minimize", "maximize"], {"dataset": "sst2"})
    study.enqueue_trial({"x": 0.25}, user_attrs={studies.ORIGIN: "a guess"})
    first = study.ask()
    first.set_constraint("cost", first.suggest_float("x", 0, 1) - 0.5)
    study.tell(first, [1.5, 2.5])
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask().suggest_categorical("word", ["a", "b"])
    study.enqueue_trial({"x": 0.75})
    return study


def seen(study):
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.user_attrs, t.constraints)
        for t in study.get_trials()
    ]


def test_a_journal_is_there_for_the_next_process(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "optuna.journal"
    written = filled(open_storage(str(path)))
    assert path.is_file()
    again = studies.find_study(open_storage(str(path)), "thresholds")
    assert seen(again) == seen(written)
    assert [trial.state.name for trial in again.trials] == ["COMPLETE", "FAIL", "RUNNING", "WAITING"]
    assert again.trials[0].params == {"x": 0.25}
    assert again.trials[0].constraints == {"cost": -0.25}
    assert [d.name for d in again.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert again.user_attrs == written.user_attrs
    assert again.user_attrs.items() >= {studies.SETUP: {"dataset": "sst2"}}.items()
    # Both write, both see.
    written.tell(2, [0.0, 0.0])
    again.set_user_attr("beat", 1)
    assert seen(again) == seen(written)
    assert written.user_attrs == again.user_attrs
    # The same file by another name: from its folder, and from home.
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("HOME", str(path.parent))
    for name in ("optuna.journal", "~/optuna.journal", "../folder/optuna.journal"):
        assert seen(studies.find_study(open_storage(name), "thresholds")) == seen(written)


def test_a_database_and_a_proxy_before_it(tmp_path):
    """Of the same study, all three say the same."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    written = filled(open_storage(url))
    again = studies.find_study(open_storage(url), "thresholds")  # one that is there is no reason to refuse
    port = free_port()
    server = make_server(open_storage(url), "localhost", port)
    server.start()
    try:
        remote = studies.find_study(open_storage(f"grpc://localhost:{port}"), "thresholds")
        assert seen(remote) == seen(again) == seen(written)
        remote.tell(2, [0.0, 0.0])
        assert seen(remote) == seen(again) == seen(written)
        assert again.trials[2].state == TrialState.COMPLETE
    finally:
        server.stop(0)


def test_a_trial_in_a_database_without_a_sign_of_life_is_given_up(tmp_path):
    assert (storage.HEARTBEAT, storage.GRACE) == (60, 180)
    told = []
    opened = open_storage(
        f"sqlite:///{tmp_path}/optuna.db",
        lambda study, trial: told.append((study.study_name, trial.number)),
        heartbeat=1,
    )
    assert opened.get_heartbeat_interval() == 1
    study = studies.begin_study(opened, "thresholds", ["minimize"], {})
    dead, slow = study.ask(), study.ask()
    for trial in (dead, slow):
        opened.record_heartbeat(trial._trial_id)
    deadline = time.monotonic() + 20
    while not told and time.monotonic() < deadline:
        time.sleep(0.5)  # later than a heartbeat, earlier than the third that fails to come
        opened.record_heartbeat(slow._trial_id)
        optuna.storages.fail_stale_trials(study)
    assert told == [("thresholds", dead.number)]
    assert [trial.state.name for trial in study.trials] == ["FAIL", "RUNNING"]


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_database_with_the_tables_of_mlflow_is_refused(tmp_path):
    path = tmp_path / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    MLflowTables.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        revision = sqlalchemy.text(f"INSERT INTO alembic_version VALUES ('{_get_latest_schema_revision()}')")
        connection.execute(revision)
    engine.dispose()
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"^--storage sqlite:.* is MLflow's database: both .*alembic_version") as error:
        open_storage(f"sqlite:///{path}")
    assert_one_line(error)
    assert path.read_bytes() == before  # MLflow can still read it
    # That is the reason: Optuna would not say it.
    with pytest.raises(Exception, match="no longer compatible with the table schema"):
        optuna.storages.RDBStorage(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("postgresql+psycopg2://a:secret@db:5432/runs", "postgresql://b@db:5432/runs"),
        ("mysql://db/runs", "mysql+pymysql://me:secret@db/runs"),
    ],
)
def test_the_database_of_mlflow_tracking_is_refused_before_it_is_opened(ours, theirs):
    with pytest.raises(InputError, match=r"is the database of MLFLOW_TRACKING_URI: .*of its own$") as error:
        check_not_same(ours, theirs)
    assert_one_line(error)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("optuna.journal", "sqlite:///mlflow.db"),
        ("sqlite:///optuna.db", "sqlite:///mlflow.db"),
        ("sqlite:///mlflow.db", "http://mlflow:5000"),
        ("sqlite:///mlflow.db", "mlruns"),
        ("grpc://db:5432", "postgresql://db:5432/runs"),
        ("postgresql://db/optuna", "postgresql://db/runs"),
        ("postgresql://db:5433/runs", "postgresql://db:5432/runs"),
        ("postgresql://other/runs", "postgresql://db/runs"),
        ("mysql://db/runs", "postgresql://db/runs"),
    ],
)
def test_other_databases_are_not(ours, theirs):
    check_not_same(ours, theirs)


@pytest.fixture
def silent():
    """A port that takes connections and never answers, as a firewall or a hanging server does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "postgresql+psycopg2://me:secret@127.0.0.1:{silent}/optuna",
            r"^--storage .* does not answer: .*timeout expired",
        ),
        ("grpc://127.0.0.1:{silent}", r"^--storage grpc://.* does not answer: start optuna's gRPC proxy"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:{closed}/optuna", r"does not answer: .*; accepted are a path"),
        ("grpc://localhost:{closed}", r"does not answer: start optuna's gRPC proxy server there$"),
    ],
)
def test_who_does_not_answer_is_not_waited_for(silent, monkeypatch, name, said):
    assert storage._SECONDS_TO_ANSWER <= 10
    monkeypatch.setattr(storage, "_SECONDS_TO_ANSWER", 2 if name.startswith("postgresql") else 1)  # libpq's least is 2
    begun = time.monotonic()
    with pytest.raises(InputError, match=said) as error:
        open_storage(name.format(silent=silent, closed=free_port()))
    assert time.monotonic() - begun < 5
    assert_one_line(error)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sqlite:////no/such/folder/optuna.db", r"does not answer: .*unable to open database file; accepted are"),
        ("redis://localhost/0", r"does not answer: Can't load plugin: sqlalchemy.dialects:redis; accepted are a path"),
        ("grpc://localhost", r"^--storage 'grpc://localhost': accepted is grpc://host:port$"),
        ("grpc://:13000", r"accepted is grpc://host:port$"),
        ("grpc://localhost:99999", r"accepted is grpc://host:port$"),
    ],
)
def test_names_of_nothing(name, said):
    with pytest.raises(InputError, match=said) as error:
        open_storage(name)
    assert_one_line(error)


def test_a_database_of_another_program_or_version(tmp_path):
    path = tmp_path / "theirs.db"
    filled(open_storage(f"sqlite:///{path}"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE version_info SET schema_version = 1")
        connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    connection.close()
    with pytest.raises(InputError, match=r"^--storage sqlite:.* cannot be used: .") as error:
        open_storage(f"sqlite:///{path}")
    assert_one_line(error)


@pytest.mark.parametrize("content", [b"number,value\n1,0.5\n", b"{}\n{}\n", bytes(range(256)) * 3])
def test_files_that_are_no_journal(tmp_path, content):
    path = tmp_path / "results"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^--storage '.*results' is no journal of Optuna") as error:
        open_storage(str(path))
    assert_one_line(error)
    assert path.read_bytes() == content
    for name in (str(tmp_path), str(path / "optuna.journal")):  # a folder, and a file where one should be
        with pytest.raises(InputError, match=r"is no journal of Optuna that can be written: \["):
            open_storage(name)


def assert_one_line(error):
    assert len(str(error.value).splitlines()) == 1


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("optuna.journal", "optuna.journal"),
        ("/data/a:b@c/optuna.journal", "/data/a:b@c/optuna.journal"),
        ("postgresql://me@db/optuna", "postgresql://me@db/optuna"),
        ("postgresql+psycopg2://me:secret@db:5432/optuna", "postgresql+psycopg2://me:***@db:5432/optuna"),
        ("postgresql://me:p%40ss@db/optuna", "postgresql://me:***@db/optuna"),
        ("mysql://optuna:optuna@optuna/optuna", "mysql://optuna:***@optuna/optuna"),
    ],
)
def test_passwords_are_not_shown(name, shown):
    assert without_password(name) == shown


def test_trials_give_signs_of_life_in_databases_alone(tmp_path):
    names = ("postgresql://db/optuna", "mysql+pymysql://db/optuna", f"sqlite:///{tmp_path}/optuna.db")
    assert [has_heartbeat(name) for name in names] == [True] * 3
    names = (str(tmp_path / "optuna.journal"), "grpc://proxy:13000")
    assert [has_heartbeat(name) for name in names] == [False] * 2
    # As Optuna has it.
    assert isinstance(open_storage(f"sqlite:///{tmp_path}/optuna.db"), BaseHeartbeat)
    assert not isinstance(open_storage(str(tmp_path / "optuna.journal")), BaseHeartbeat)
    assert not issubclass(GrpcStorageProxy, BaseHeartbeat)
