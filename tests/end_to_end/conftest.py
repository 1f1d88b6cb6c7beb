"""Drive the real commands: a tiny model with random weights, a real store, real processes."""

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mlflow
import pytest

from entrypoints.command import run as run_command

ROOT = Path(__file__).parents[2]
TINY = (
    "--from_scratch", "True",
    "--config_overrides", "num_hidden_layers=2,hidden_size=64,num_attention_heads=4,intermediate_size=128",
    "--max_train_samples", "240", "--max_validation_samples", "60", "--max_probe_samples", "40",
    "--max_test_samples", "80", "--per_device_train_batch_size", "16", "--learning_rate", "1e-3",
)  # fmt: skip


@dataclass
class Workplace:
    """A folder with its own store and cache."""

    folder: Path
    uri: str

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "BERTDYN_CACHE"))}
        return kept | {
            "MLFLOW_TRACKING_URI": self.uri,
            "BERTDYN_CACHE": str(self.folder / "cache"),
            "MLFLOW_EXPERIMENT_NAME": "bertdyn",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def start(self, *arguments: str, module: str = "entrypoints.fine_tune") -> subprocess.Popen:
        """Start a command and return at once."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Under a shell's `&`, Ctrl-C is ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str, status: int = 0, module: str = "entrypoints.fine_tune") -> str:
        """Run a command to its end; return what it printed."""
        process = self.start(*arguments, module=module)
        out, err = process.communicate(timeout=500)
        assert process.returncode == status, f"{out}\n{err}"
        return out + err

    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.uri)

    def runs(self, **filters):
        """All runs of the experiment, the newest first."""
        experiment = self.client().get_experiment_by_name("bertdyn")
        return self.client().search_runs([experiment.experiment_id], **filters) if experiment else []

    def points(self, run_id: str) -> dict[tuple[str, int], list[float]]:
        """(key, step) → every value that the server has, resource readings aside."""
        client, found = self.client(), {}
        for key in client.get_run(run_id).data.metrics:
            if not key.startswith("system/"):
                for metric in client.get_metric_history(run_id, key):
                    found.setdefault((key, metric.step), []).append(metric.value)
        return found


@cache
def _empty_store() -> bytes:
    """A new SQLite store as a file: MLflow takes seconds to make one, and there is one a test."""
    with tempfile.TemporaryDirectory() as folder:
        mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def make_workplace(folder: Path) -> Workplace:
    """A new store whose artifacts lie in `folder`, too (by default they would go to the current folder)."""
    (folder / "mlflow.db").write_bytes(_empty_store())
    workplace = Workplace(folder, f"sqlite:///{folder}/mlflow.db")
    workplace.client().create_experiment("bertdyn", artifact_location=f"file://{folder}/artifacts")
    return workplace


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run a command (an entry point's module) in this process; return (exit status, what stood on the error stream)."""

    def run(workplace: Workplace, module, *argv: str) -> tuple[int, str]:
        for name, value in workplace.environment.items():
            if name.startswith(("MLFLOW_", "BERTDYN_CACHE")):
                monkeypatch.setenv(name, value)
        mlflow.set_tracking_uri(workplace.uri)
        monkeypatch.setattr(sys, "argv", ["command", *argv])
        capsys.readouterr()
        status = 0
        try:
            run_command(module.main)
        except SystemExit as ended:
            status = ended.code
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def workplace(tmp_path) -> Workplace:
    return make_workplace(tmp_path)


def artifacts(run) -> Path:
    """The folder of a run in a local store."""
    return Path(run.info.artifact_uri.removeprefix("file://"))


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
