"""The project in an environment that MLflow makes itself."""

import shutil
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import ROOT, TINY


@pytest.mark.timeout(900)
def test_uv_makes_the_environment_from_conda_yaml(workplace):
    """`mlflow run --env-manager uv`: every dependency stands in conda.yaml, and nothing else is needed."""
    assert shutil.which("uv", path=workplace.environment["PATH"])
    # uv does not read pip's settings: where pip finds wheels in a folder (torch for the CPU), tell uv, too.
    found = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
    )
    links = {"UV_FIND_LINKS": found.stdout.strip()} if found.stdout.strip() else {}
    options = [*TINY, "--num_train_epochs", "1"]
    command = ["mlflow", "run", ".", "-e", "fine-tune", "--env-manager", "uv"]
    for name, value in zip(options[::2], options[1::2], strict=True):
        command += ["-P", f"{name[2:]}={value}"]
    environment = workplace.environment | links | {"MLFLOW_ENV_ROOT": str(workplace.folder / "envs")}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = workplace.runs()
    assert run.info.status == "FINISHED"
    assert list((workplace.folder / "envs").rglob("site-packages/torch"))  # an environment of its own
    assert "fine-tuned, best epoch" in done.stdout
