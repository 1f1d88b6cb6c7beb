"""Runs on a SQLite store: which run is opened, what is in it, how it ends."""

import json
import logging
import os
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas
import pytest
from matplotlib.figure import Figure

from bertdyn.errors import InputError
from bertdyn.tracking.endings import Terminated
from bertdyn.tracking.runs import launcher_ends, open_run

RUN = """
import os, sys, time
from bertdyn.tracking.runs import open_run
with open_run("fine-tune", run_name="ends") as tracker:
    print(tracker.run_id, flush=True)
    assert "MLFLOW_RUN_ID" not in os.environ
    tracker.log_metrics({"loss": 1.0}, step=0)
    ENDING
"""
SLEEP = "time.sleep(60)"


@pytest.mark.parametrize(
    ("ending", "sent", "status", "code"),
    [
        ("pass", None, "FINISHED", 0),
        ("raise RuntimeError('x')", None, "FAILED", 1),
        ("sys.exit(0)", None, "FINISHED", 0),
        ("sys.exit(3)", None, "FAILED", 3),
        (SLEEP, signal.SIGTERM, "KILLED", 143),
        (SLEEP, signal.SIGINT, "KILLED", -signal.SIGINT),
        (SLEEP, signal.SIGKILL, "RUNNING", -signal.SIGKILL),
    ],
)
def test_end_states(client, process, ending, sent, status, code):
    running = process(RUN.replace("ENDING", ending))
    run_id = running.stdout.readline().strip()
    assert run_id, running.stderr.read()
    if sent:
        time.sleep(0.5)
        running.send_signal(sent)
    assert running.wait(timeout=60) == code
    run = client.get_run(run_id)
    assert run.info.status == status
    assert run.data.metrics["loss"] == 1.0
    if status == "RUNNING":  # the lock of a killed process is gone, so the run can be resumed
        with open_run("fine-tune", resume_run_id=run_id) as tracker:
            assert tracker.run_id == run_id
        assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_request(client, process, number):
    """Sent from inside a transaction of a SQLite store: it ends first, and the end state can be recorded."""
    lines = [
        "import sqlalchemy",
        "@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, 'before_cursor_execute')",
        "def interrupt(connection, cursor, statement, *_):",
        f"    if statement.startswith('INSERT INTO metrics'): os.kill(os.getpid(), {int(number)})",
        "tracker.log_metrics({'accuracy': 0.5}, 5)",
        SLEEP,
    ]
    script = RUN.replace("ENDING", "\n    ".join(lines))
    running = process(script)
    run_id = running.stdout.readline().strip()
    running.wait(timeout=60)
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.metrics["accuracy"] == 0.5


def test_a_child_is_killed_with_its_parent(client, process):
    script = RUN.replace(
        "ENDING", "with tracker.child('inner') as inner: print(inner.run_id, flush=True); time.sleep(60)"
    )
    running = process(script)
    run_ids = [running.stdout.readline().strip() for _ in range(2)]
    time.sleep(0.3)
    running.terminate()
    running.wait(timeout=60)
    assert [client.get_run(run_id).info.status for run_id in run_ids] == ["KILLED", "KILLED"]


def test_what_a_run_holds(client, tmp_path):
    table = pandas.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    with open_run("fine-tune", run_name="all", tags={"bertdyn.model": "tiny"}) as tracker:
        with pytest.raises(FileNotFoundError, match="nothing"):
            tracker.fetch("nothing")
        tracker.log_config({"lr": 5e-5, "none": None, "layers": [1, 2], "long": "x" * 7000})
        tracker.log_table(table, "norms")
        tracker.log_metrics({"loss": 1.0}, step=0)
        tracker.log_dataset(table, "toy", "runs:/somewhere", "d" * 50, "training", "label")
        tracker.log_dataset(table, "toy2", "synthetic", "abc", "test")
        for step in (0, 2, 2):
            tracker.log_frame(Figure(), "film", step)
        tracker.note("# Report\n" + "x" * 9000)
        with tracker.child("seed-1", {"bertdyn.seed": "1"}) as child:
            child.log_metrics({"acc": float("nan"), "big": float("inf")}, step=2)
    run = client.get_run(tracker.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "bertdyn"
    assert run.info.run_name == "all"
    assert run.data.params["lr"] == "5e-05"
    assert run.data.params["layers"] == "[1, 2]"
    assert len(run.data.params["long"]) == 6000
    assert "none" not in run.data.params
    assert run.data.tags["bertdyn.stage"] == "fine-tune"
    assert run.data.tags["bertdyn.model"] == "tiny"
    assert run.data.tags["mlflow.note.content"].startswith("# Report")
    assert {i.dataset.name for i in run.inputs.dataset_inputs} == {"toy", "toy2"}
    frames = [item.path for item in client.list_artifacts(tracker.run_id, "images") if item.path.endswith(".png")]
    assert sorted(path.partition("+timestamp")[0] for path in frames) == ["images/film+step+0", "images/film+step+2"]
    assert run.data.tags["mlflow.loggedImages"] == "True"
    # The folder is the artifact store itself: no second copy.
    names = {item.path for item in client.list_artifacts(tracker.run_id)}
    assert {"config.json", "environment.json", "norms.parquet", "summary.md", "metrics.jsonl"} <= names
    assert not (tmp_path / "cache" / "runs").exists()
    inner = client.get_run(child.run_id)
    assert inner.data.tags["mlflow.parentRunId"] == tracker.run_id
    assert inner.data.tags["bertdyn.stage"] == "fine-tune"
    assert inner.data.metrics["big"] != inner.data.metrics["big"]
    assert len(client.get_metric_history(child.run_id, "big")) == 1
    assert (inner.info.status, run.info.status) == ("FINISHED", "FINISHED")


def test_a_dirty_tree_is_recorded(client, monkeypatch):
    from bertdyn.tracking import runs
    from bertdyn.tracking.provenance import GitState

    monkeypatch.setattr(runs, "git_state", lambda folder: GitState("c0ffee", True, "-one\n+two\n"))
    with open_run("extract") as tracker, tracker.child("inner", {"bertdyn.seed": "1"}) as child:
        pass
    with open_run("extract", resume_run_id=tracker.run_id) as again, again.child("inner", {"bertdyn.seed": "2"}):
        pass
    for one in (tracker, child):
        tags = client.get_run(one.run_id).data.tags
        assert (tags["git.dirty"], tags["bertdyn.stage"], tags["bertdyn.resumed_times"]) == ("true", "extract", "1")
        for suffix in ("", "_resume_1"):
            assert (one.folder / "code" / f"diff{suffix}.patch").read_text() == "-one\n+two\n"
            environment = json.loads((one.folder / f"environment{suffix}.json").read_text())
            assert environment["git"]["commit"] == "c0ffee"
    assert client.get_run(child.run_id).data.tags["bertdyn.seed"] == "2"


def test_the_run_of_mlflow_run_is_joined_and_its_params_stay(client, monkeypatch):
    experiment = client.create_experiment("other")
    launched = client.create_run(experiment)
    client.log_param(launched.info.run_id, "lr", "5.0e-5")
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    with open_run("fine-tune") as tracker:
        assert "MLFLOW_RUN_ID" not in os.environ
        tracker.log_config({"lr": 5e-5, "seed": 1})
        tracker.log_config({"lr": 7.0, "seed": 2, "epochs": 3})
    assert tracker.run_id == launched.info.run_id
    run = client.get_run(tracker.run_id)
    assert run.data.params == {"lr": "5.0e-5", "seed": "1", "epochs": "3"}
    assert json.loads((tracker.folder / "config.json").read_text())["lr"] == 7.0
    assert client.get_experiment_by_name("bertdyn") is None


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt(), "KILLED"), (Terminated(), "KILLED"), (SystemExit(1), "FAILED")],
)
def test_the_run_of_mlflow_run_ends_as_a_command_that_records_nothing(client, monkeypatch, error, status):
    launched = client.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    with suppress(KeyboardInterrupt, SystemExit), launcher_ends("explore"):
        assert "MLFLOW_RUN_ID" not in os.environ
        if error is not None:
            raise error
    ended = client.get_run(launched.info.run_id)
    assert (ended.info.status, ended.data.tags["bertdyn.stage"]) == (status, "explore")


def test_without_mlflow_run_a_command_that_records_nothing_makes_no_run(client):
    with launcher_ends("explore"):
        pass
    assert client.search_runs(["0"]) == []


@pytest.mark.parametrize(("name", "becomes"), [(None, "ours"), ("the user's", "the user's")])
def test_a_random_name_gives_way_to_one_that_says_something(client, monkeypatch, name, becomes):
    launched = client.create_run("0", run_name=name)
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    with open_run("fine-tune", run_name="ours"):
        pass
    assert client.get_run(launched.info.run_id).info.run_name == becomes


def test_the_environment_names_the_experiment(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with open_run("extract") as tracker:
        pass
    assert client.get_experiment(tracker.run.info.experiment_id).name == "mine"


def test_resume_repeats_no_point_and_the_launcher_ends_alike(client, monkeypatch):
    with suppress(ZeroDivisionError), open_run("fine-tune") as tracker:
        for epoch in range(3):
            tracker.log_metrics({"loss": 1 / (2 - epoch)}, step=epoch)
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    launcher = client.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", launcher.info.run_id)
    with suppress(SystemExit), open_run("fine-tune", resume_run_id=tracker.run_id) as again:
        assert client.get_run(again.run_id).info.status == "RUNNING"
        for epoch in range(4):
            again.log_metrics({"loss": 100.0}, step=epoch)
        raise SystemExit(1)
    history = client.get_metric_history(tracker.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.5), (1, 1.0), (2, 100.0), (3, 100.0)]
    ended = client.get_run(launcher.info.run_id)
    assert ended.info.status == "FAILED"
    assert ended.data.tags["bertdyn.resumed_run_id"] == tracker.run_id
    assert tracker.run_id in ended.data.tags["mlflow.note.content"]
    assert (again.folder / "environment_resume_1.json").exists()


def test_resume_on_a_machine_without_the_folder(client, elsewhere):
    with open_run("fine-tune") as tracker:
        tracker.log_metrics({"loss": 1.0}, step=0)
    (elsewhere / "runs" / tracker.run_id / "metrics.jsonl").unlink()
    client._tracking_client._get_artifact_repo(tracker.run_id).delete_artifacts("metrics.jsonl")
    with open_run("fine-tune", resume_run_id=tracker.run_id) as again:
        again.log_metrics({"loss": 5.0}, step=0)
        again.log_metrics({"loss": 2.0}, step=1)
        assert again.fetch("environment.json").exists()
    history = client.get_metric_history(tracker.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 2.0)]


def test_a_resumed_parent_resumes_its_children(client):
    with open_run("fine-tune") as tracker, tracker.child("seed-0") as child:
        child.log_metrics({"a": 1}, 0)
    with open_run("fine-tune", resume_run_id=tracker.run_id) as again:
        with again.child("seed-0") as same:
            same.log_metrics({"a": 2}, 0)
        with again.child("seed-1") as other:
            pass
    assert same.run_id == child.run_id != other.run_id
    assert len(client.get_metric_history(child.run_id, "a")) == 1


def test_input_errors(client, store):
    with pytest.raises(InputError, match=r"run '0123456789abcdef0123456789abcdef' does not exist .*sqlite"):
        open_run("fine-tune", resume_run_id="0123456789abcdef0123456789abcdef")
    with pytest.raises(InputError, match="does not exist"):
        open_run("fine-tune", resume_run_id="no such/run")
    written = pytest.raises(InputError, match=f"still being written by process {os.getpid()}")
    with open_run("extract") as tracker, written:
        open_run("extract", resume_run_id=tracker.run_id)
    with pytest.raises(InputError, match="^--resume_run_id: run .* is a extract run; fine-tune resumes only"):
        open_run("fine-tune", resume_run_id=tracker.run_id)
    client.delete_run(tracker.run_id)
    with pytest.raises(InputError, match="deleted"):
        open_run("extract", resume_run_id=tracker.run_id)


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:9", "postgresql+psycopg2://user:secret@127.0.0.1:9/mlflow", "sqlite:////proc/none/mlflow.db"],
)
def test_a_store_that_does_not_answer_is_an_input_error_at_once(store, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI: .* does not answer") as caught:
        open_run("fine-tune")
    assert time.monotonic() - started < 10
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_processes_on_a_new_store(store, process, tmp_path):
    script = """
    from bertdyn.tracking.runs import open_run
    with open_run("fine-tune"): pass
    """
    new = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/deep/new.db"}
    running = [process(script, **new) for _ in range(3)]
    errors = [one.communicate(timeout=120)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0, 0], errors


def test_system_metrics(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with open_run("fine-tune") as tracker:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if "system/cpu_utilization_percentage" in client.get_run(tracker.run_id).data.metrics:
                break
            time.sleep(0.3)
        else:
            pytest.fail("no system metrics")


class Flaky:
    """A client whose metrics requests fail, before or after they were carried out."""

    def __init__(self, client):
        self.client, self.mode, self.sent = client, "fine", []

    def __getattr__(self, name):
        found = getattr(self.client, name)
        return partial(self._call, found) if callable(found) else found

    def _call(self, method, *arguments, **named):
        if self.mode == "dead":
            raise ConnectionError("no route")
        return method(*arguments, **named)

    def log_batch(self, run_id, metrics=(), **others):
        self._call(bool)
        self.sent += [(m.key, m.step) for m in metrics]
        self.client.log_batch(run_id, metrics=metrics, **others)
        if self.mode == "deaf" and metrics:
            raise ConnectionError("the answer was lost")


@pytest.fixture
def flaky(client, monkeypatch):
    from bertdyn.tracking import runs

    made = Flaky(client)
    monkeypatch.setattr(runs, "connect", lambda: made)
    return made


def test_no_point_is_sent_again_when_an_answer_was_lost(client, flaky):
    with open_run("fine-tune") as tracker:
        tracker.log_metrics({"a": 1, "b": 1}, step=0)
        flaky.mode = "deaf"
        tracker.log_metrics({"a": 2, "b": 2}, step=1)
        flaky.mode = "dead"
        tracker.log_metrics({"a": 3, "b": 3}, step=2)
        flaky.mode = "fine"
        tracker.log_metrics({"a": 4, "b": 4}, step=3)
    assert sorted(flaky.sent) == [(key, step) for key in "ab" for step in range(4)]
    assert [m.step for m in client.get_metric_history(tracker.run_id, "a")] == [0, 1, 2, 3]


def test_a_run_whose_server_stays_away_is_completed_by_a_resume(client, flaky, elsewhere, caplog):
    caplog.set_level(logging.WARNING)
    with open_run("fine-tune", patience=0.5) as tracker:
        flaky.mode = "dead"
        for epoch in range(3):
            tracker.log_metrics({"a": epoch}, step=epoch)
        tracker.log_config({"seed": 1})
        tracker.note("# note")
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("bertdyn")]
    assert sum("the run goes on" in message for message in messages) == 1
    assert f"--resume_run_id {tracker.run_id} delivers them" in messages[-1]
    assert str(tracker.folder) in messages[-1]
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    flaky.mode = "fine"
    with open_run("fine-tune", resume_run_id=tracker.run_id):
        pass
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1"}
    assert run.data.tags["mlflow.note.content"] == "# note"
    assert [m.step for m in client.get_metric_history(tracker.run_id, "a")] == [0, 1, 2]
    assert {"config.json", "summary.md"} <= {item.path for item in client.list_artifacts(tracker.run_id)}
    assert not list((elsewhere / "outbox").iterdir())


def test_the_first_exception_is_not_hidden_by_a_dead_server(flaky):
    def train():
        with open_run("fine-tune", patience=0):
            flaky.mode = "dead"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()


def test_published_directories_are_uploaded(client, elsewhere):
    with open_run("fine-tune") as tracker:
        checkpoint = tracker.folder / "checkpoints" / "epoch_001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_text("x")
        tracker.publish("checkpoints/epoch_001")
        tracker.publish("checkpoints/gone")
    assert tracker.folder == elsewhere / "runs" / tracker.run_id
    stored = Path(client.download_artifacts(tracker.run_id, "checkpoints/epoch_001"))
    assert (stored / "weights").read_text() == "x"
