"""A real MLflow server is killed in mid-training and started again: nothing is lost or there twice."""

import threading
import time

import pytest

from tests.servers import POSTGRES_BIN, mlflow_server

pytestmark = pytest.mark.slow

EPOCHS, KEYS = 8, 30
TRAINING = """
import sys, time
from pathlib import Path
from bertdyn.tracking.runs import open_run

signals = Path(sys.argv[1])
with open_run("fine-tune", patience=120) as tracker:
    tracker.log_config({"epochs": 8})
    print(tracker.run_id, flush=True)
    for epoch in range(1, 9):
        tracker.log_metrics({f"norm/layer_{k:02d}": epoch + k / 100 for k in range(30)}, step=epoch)
        checkpoint = tracker.folder / "checkpoints" / f"epoch_{epoch:03d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights.bin").write_bytes(bytes([epoch]) * 1000)
        tracker.publish(f"checkpoints/epoch_{epoch:03d}")
        print("epoch", epoch, flush=True)
        deadline = time.monotonic() + 90
        while (signals / f"hold_{epoch}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    tracker.note("# done")
"""


# `during`: the server is back before the training ends; `after`: only while the end of the run waits for it.
@pytest.mark.parametrize(("backend", "back"), [("sqlite", "during"), ("postgresql", "after")])
@pytest.mark.timeout(240)
def test_training_survives_a_server_that_is_killed(backend, back, store, process, tmp_path, monkeypatch):
    if backend == "postgresql" and POSTGRES_BIN is None:
        pytest.skip("PostgreSQL is not installed")
    from mlflow import MlflowClient

    folder = tmp_path / "server"
    folder.mkdir()
    (tmp_path / "hold_3").touch()
    if back == "during":
        (tmp_path / "hold_6").touch()
    with mlflow_server(folder, backend) as server:
        training = process(TRAINING, str(tmp_path), MLFLOW_TRACKING_URI=server.uri)
        run_id = training.stdout.readline().strip()
        assert run_id, training.stderr.read()
        _read_until(training, "epoch 3")
        server.kill()
        (tmp_path / "hold_3").unlink()
        started = time.monotonic()
        _read_until(training, "epoch 6" if back == "during" else "epoch 8")
        assert time.monotonic() - started < 30, "epochs must not wait for a dead server"
        assert training.poll() is None
        server.start()
        if back == "during":
            (tmp_path / "hold_6").unlink()
        _, errors = training.communicate(timeout=150)
        assert training.returncode == 0, errors
        assert errors.count("the run goes on") == 1, errors
        assert "MLflow answers again" in errors

        client = MlflowClient(server.uri)
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params == {"epochs": "8"}
        assert run.data.tags["mlflow.note.content"] == "# done"
        for key in range(KEYS):
            history = client.get_metric_history(run_id, f"norm/layer_{key:02d}")
            expected = [(epoch, epoch + key / 100) for epoch in range(1, EPOCHS + 1)]
            assert sorted((metric.step, metric.value) for metric in history) == expected
        stored = tmp_path / "downloaded"
        stored.mkdir()
        client.download_artifacts(run_id, "checkpoints", str(stored))
        for epoch in range(1, EPOCHS + 1):
            weights = stored / "checkpoints" / f"epoch_{epoch:03d}" / "weights.bin"
            assert weights.read_bytes() == bytes([epoch]) * 1000
        assert {"config.json", "summary.md", "metrics.jsonl"} <= {a.path for a in client.list_artifacts(run_id)}


def _read_until(training, line: str, seconds: float = 100) -> None:
    """Reads the output of the training up to a line; a training that hangs is killed."""
    watchdog = threading.Timer(seconds, training.kill)
    watchdog.start()
    try:
        for got in training.stdout:
            if got.strip() == line:
                return
        pytest.fail(f"the training ended before {line!r}: {training.stderr.read()}")
    finally:
        watchdog.cancel()
