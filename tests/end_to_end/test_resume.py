"""A run that was killed and resumed ends as the uninterrupted one, bit for bit."""

import json
import random
import signal
import time

import pandas as pd
import psutil
import pytest

from bertdyn.training.checkpoints import TRAINING_STATE, load_progress
from tests.end_to_end.conftest import TINY, artifacts
from tests.end_to_end.test_fine_tune import TIMED, _deterministic

OPTIONS = (*TINY, "--num_train_epochs", "4", "--freeze_layers", "2", "--freeze_embeddings", "true", "--freeze_epochs",
           "1", "--gradual_unfreezing", "true", "--keep_checkpoints", "1")  # fmt: skip


def _reached(folder, epoch: int, process) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        state = folder / TRAINING_STATE
        if state.exists() and load_progress(state).epoch >= epoch:
            return True
        time.sleep(0.01)
    return False


def test_killed_and_resumed_is_uninterrupted(workplace):
    """SIGKILL three times, at random moments after the start and after epochs 0 and 2."""
    workplace.run(*OPTIONS)
    [whole] = workplace.runs()
    chance = random.Random(time.time_ns())

    process = workplace.start(*OPTIONS)
    deadline = time.monotonic() + 120
    while len(workplace.runs()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    cut = next(run for run in workplace.runs() if run.info.run_id != whole.info.run_id)
    for epoch in (0, 2):
        assert _reached(artifacts(cut), epoch, process), process.communicate()
        time.sleep(chance.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert workplace.client().get_run(cut.info.run_id).info.status == "RUNNING"  # as MLflow knows it
        process = workplace.start("--resume_run_id", cut.info.run_id)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err

    cut = workplace.client().get_run(cut.info.run_id)
    assert cut.info.status == "FINISHED"
    manifests = [json.loads((artifacts(run) / "checkpoints/manifest.json").read_text()) for run in (whole, cut)]
    for manifest in manifests:
        manifest["history"] = [{k: v for k, v in epoch.items() if not TIMED.match(k)} for epoch in manifest["history"]]
    assert manifests[0] == manifests[1]
    names = sorted(path.name for path in (artifacts(whole) / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (artifacts(cut) / "checkpoints").iterdir())
    for name in names:
        if name.startswith("epoch"):
            ours, theirs = (
                (artifacts(run) / "checkpoints" / name / "model.safetensors").read_bytes() for run in (whole, cut)
            )
            assert ours == theirs, name
    points = workplace.points(cut.info.run_id)
    assert all(len(values) == 1 for values in points.values())
    assert _deterministic(points) == _deterministic(workplace.points(whole.info.run_id))
    tables = [pd.read_parquet(artifacts(run) / "dynamics.parquet") for run in (whole, cut)]
    pd.testing.assert_frame_equal(*tables)
    for layer in range(3):
        path = f"features/epoch_003/mean/layer_{layer:02d}.npy"
        assert (artifacts(whole) / path).read_bytes() == (artifacts(cut) / path).read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_over_seeds_goes_on_with_the_seed_that_was_cut(workplace, processes):
    module, before = "entrypoints.fine_tune", ()
    if processes > 1:
        module = "torch.distributed.run"
        before = ("--standalone", "--nproc_per_node", str(processes), "-m", "entrypoints.fine_tune")
    process = workplace.start(*before, *TINY, "--num_train_epochs", "3", "--seeds", "1,2", module=module)
    deadline = time.monotonic() + 180
    while len(workplace.runs()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    second, first, parent = workplace.runs()  # the newest first
    assert first.info.status == "FINISHED"
    assert _reached(artifacts(second), 1, process), process.communicate()
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.send_signal(signal.SIGKILL)
    process.communicate()
    workplace.run(*before, "--resume_run_id", parent.info.run_id, module=module)
    assert {run.info.run_id: run.info.status for run in workplace.runs()} == dict.fromkeys(
        (run.info.run_id for run in (first, second, parent)), "FINISHED"
    )
    accuracies = [workplace.client().get_run(run.info.run_id).data.metrics["test/accuracy"] for run in (first, second)]
    mean = workplace.client().get_run(parent.info.run_id).data.metrics["test/accuracy"]
    assert mean == pytest.approx(sum(accuracies) / 2)
    assert all(len(values) == 1 for values in workplace.points(second.info.run_id).values())


def test_what_cannot_be_resumed(workplace):
    workplace.run(*TINY, "--num_train_epochs", "1")
    [run] = workplace.runs()
    out = workplace.run("--resume_run_id", "0" * 32, status=2)
    assert "0" * 32 in out
    out = workplace.run("--resume_run_id", run.info.run_id, "--learning_rate", "3e-5", status=2)
    assert f"error: --learning_rate 3e-05: run {run.info.run_id} was started with 0.001" in out
    out = workplace.run("--resume_run_id", run.info.run_id, status=2)
    assert "has already finished" in out
    assert workplace.client().get_run(run.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("number", "status", "code"), [(signal.SIGTERM, "KILLED", 143), (signal.SIGINT, "KILLED", 130)]
)
def test_a_terminated_run_says_so_and_can_be_resumed(workplace, number, status, code):
    process = workplace.start(*TINY, "--num_train_epochs", "3")
    deadline = time.monotonic() + 120
    while not workplace.runs() and time.monotonic() < deadline:
        time.sleep(0.05)
    [run] = workplace.runs()
    assert _reached(artifacts(run), 1, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert workplace.client().get_run(run.info.run_id).info.status == status
    workplace.run("--resume_run_id", run.info.run_id)
    assert workplace.client().get_run(run.info.run_id).info.status == "FINISHED"
