"""The real command against a real MLflow server that is killed and comes back, on SQLite and on PostgreSQL."""

import shutil
import signal
import time

import pandas as pd
import pytest

from bertdyn.training.checkpoints import TRAINING_STATE, load_progress
from tests.end_to_end.conftest import TINY, Workplace
from tests.end_to_end.test_fine_tune import _deterministic
from tests.servers import POSTGRES_BIN, mlflow_server


def _wait_for_epoch(workplace: Workplace, epoch: int, process) -> str:
    """The run id, once that epoch's training state is in the local folder."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        for state in (workplace.folder / "cache" / "runs").glob(f"*/{TRAINING_STATE}"):
            if load_progress(state).epoch >= epoch:
                return state.parents[1].name
        time.sleep(0.05)
    raise AssertionError(f"epoch {epoch} was not reached: {process.communicate()}")


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_server_that_dies_in_mid_training_loses_nothing(tmp_path, backend):
    if backend == "postgresql" and POSTGRES_BIN is None:
        pytest.skip("PostgreSQL is not installed")
    epochs = 60
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server", backend) as server:
        workplace = Workplace(tmp_path, server.uri)
        process = workplace.start(*TINY, "--num_train_epochs", str(epochs), "--keep_checkpoints", "1")
        run_id = _wait_for_epoch(workplace, 2, process)
        server.kill()
        time.sleep(2)
        assert process.poll() is None
        server.start()
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        assert "the run goes on" in err
        assert "MLflow answers again" in err
        run = workplace.client().get_run(run_id)
        assert run.info.status == "FINISHED"
        points = workplace.points(run_id)
        assert all(len(values) == 1 for values in points.values())
        steps: dict[str, set[int]] = {}
        for key, step in points:
            steps.setdefault(key, set()).add(step)
        everywhere = {"eval/accuracy", "eval/loss", "norm/layer_01", "norm/head"}
        assert all(steps[key] == set(range(epochs + 1)) for key in everywhere)
        trained = {"train/loss", "grad/layer_02", "update/embeddings", "train/tokens_per_second"}
        assert all(steps[key] == set(range(1, epochs + 1)) for key in trained)
        stored = {item.path for item in workplace.client().list_artifacts(run_id)}
        assert {"checkpoints", "features", "figures", "dynamics.parquet", "metrics.jsonl"} <= stored


def test_resumed_on_another_machine(tmp_path):
    """SIGKILL, and the machine is gone: the run goes on from what the server has."""
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server", "sqlite") as server:
        workplace = Workplace(tmp_path, server.uri)
        options = (*TINY, "--num_train_epochs", "4")
        workplace.run(*options)
        [whole] = workplace.runs()
        shutil.rmtree(tmp_path / "cache")

        process = workplace.start(*options)
        run_id = _wait_for_epoch(workplace, 2, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        shutil.rmtree(tmp_path / "cache")
        workplace.run("--resume_run_id", run_id)

        assert workplace.client().get_run(run_id).info.status == "FINISHED"
        points = [workplace.points(identity) for identity in (whole.info.run_id, run_id)]
        assert all(len(values) == 1 for values in points[1].values())
        assert _deterministic(points[0]) == _deterministic(points[1])
        tables = []
        for identity in (whole.info.run_id, run_id):
            local = workplace.client().download_artifacts(identity, "dynamics.parquet", str(tmp_path))
            tables.append(pd.read_parquet(local))
        pd.testing.assert_frame_equal(*tables)
