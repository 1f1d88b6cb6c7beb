"""One run of the command, looked at from all sides."""

import json
import re
import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from bertdyn.features.store import FeatureStore
from tests.end_to_end.conftest import ROOT, TINY, artifacts, make_workplace

TIMED = re.compile(r"train/(examples|tokens)_per_second|train/(step_time_ms|epoch_seconds)|memory/")


def _deterministic(points):
    return {key: values for key, values in points.items() if not TIMED.match(key[0])}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run by `python -m`."""
    workplace = make_workplace(tmp_path_factory.mktemp("fine-tune"))
    out = workplace.run(*TINY, "--num_train_epochs", "2", "--store_attention", "true", "--register_as", "tiny@champion",
                        "--log_spaced_checkpoints", "true")  # fmt: skip
    [run] = workplace.runs()
    return workplace, run, out


def test_the_run_in_mlflow(finished):
    workplace, run, out = finished
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "synthetic-minilm-scratch-s0"
    assert run.info.run_id in out
    tags = run.data.tags
    assert tags["bertdyn.stage"] == "fine-tune"
    assert tags["bertdyn.dataset"] == "synthetic"
    assert tags["mlflow.note.content"].startswith("## Fine-tuning `minilm` (from scratch)")
    assert run.data.params["learning_rate"] == "0.001"
    points = workplace.points(run.info.run_id)
    assert all(len(values) == 1 for values in points.values())
    assert {step for key, step in points if key == "eval/accuracy"} == {0, 1, 2}
    assert {step for key, step in points if key == "train/loss"} == {1, 2}
    keys = {key for key, _ in points}
    assert {"norm/layer_02", "grad/head", "update/embeddings", "best/accuracy", "test/accuracy"} <= keys
    assert len(keys) <= 100
    assert sorted(i.dataset.name for i in run.inputs.dataset_inputs) == [
        "synthetic-probe", "synthetic-test", "synthetic-train", "synthetic-validation",
    ]  # fmt: skip


def test_its_artifacts(finished):
    _, run, _ = finished
    folder = artifacts(run)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "environment.json", "summary.md", "data.json", "dynamics.parquet", "scores.parquet"} <= names
    assert {f"checkpoints/epoch_00{e}/model.safetensors" for e in range(3)} <= names
    assert {"checkpoints/step_000001/config.json", "checkpoints/step_000016/config.json"} <= names
    figures = {"training_curves", "dynamics_by_layer", "dynamics_by_component", "confusion_matrix", "features_pca"}
    assert {f"figures/{name}.png" for name in figures} <= names
    assert {f"figures/features_pca_by_epoch/00{epoch}.png" for epoch in range(3)} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    config = json.loads((folder / "config.json").read_text())
    assert config["learning_rate"] == 1e-3
    dynamics = pd.read_parquet(folder / "dynamics.parquet")
    weights = [load_file(folder / f"checkpoints/epoch_00{epoch}/model.safetensors") for epoch in range(3)]
    for (epoch, name), row in dynamics.set_index(["epoch", "parameter"]).iterrows():
        assert row["norm"] == pytest.approx(weights[epoch][name].double().norm().item(), rel=1e-9)
        moved = (weights[epoch][name] - weights[0][name]).double().norm().item()
        assert row["distance_from_init"] == pytest.approx(moved, rel=1e-6, abs=1e-9)


def test_scores_are_those_of_the_predictions(finished):
    _, run, _ = finished
    folder = artifacts(run)
    scores = pd.read_parquet(folder / "scores.parquet").set_index(["part", "state", "baseline"])
    predictions = pd.read_parquet(folder / "predictions.parquet")
    test = predictions[predictions["part"] == "test"]
    assert len(test) == 80
    assert scores.at[("test", "best", "none"), "accuracy"] == pytest.approx((test["label"] == test["predicted"]).mean())
    assert run.data.metrics["test/accuracy"] == pytest.approx(scores.at[("test", "best", "none"), "accuracy"])
    manifest = json.loads((folder / "checkpoints/manifest.json").read_text())
    accuracy = [epoch["eval/accuracy"] for epoch in manifest["history"]]
    best = int(manifest["states"]["best"][-3:])
    assert best == 1 + int(np.argmax(accuracy[1:]))
    assert scores.at[("validation", "best", "none"), "accuracy"] == pytest.approx(accuracy[best])
    majority = test["label"].mean()
    assert scores.at[("test", "none", "majority"), "accuracy"] in (pytest.approx(majority), pytest.approx(1 - majority))


def test_features_of_every_epoch(finished):
    _, run, _ = finished
    store = FeatureStore.open(artifacts(run) / "features")
    assert store.states == ["epoch_000", "epoch_001", "epoch_002"]
    assert store.layers("first") == [0, 1, 2]
    examples = store.examples()
    assert len(examples) == 40
    assert examples["n_rows"].sum() == len(store.tokens()) == len(store.array("attention", "epoch_001", 2))
    assert not np.array_equal(store.array("first", "epoch_000", 2), store.array("first", "epoch_002", 2))


def test_the_registered_model_deploys(finished):
    workplace, run, _ = finished
    mlflow.set_tracking_uri(workplace.uri)
    pipeline = mlflow.transformers.load_model("models:/tiny@champion")
    predictions = pd.read_parquet(artifacts(run) / "predictions.parquet").query("part == 'test'").head(5)
    data = json.loads((artifacts(run) / "data.json").read_text())
    from bertdyn.data.config import DataConfig
    from bertdyn.data.loading import load_data

    texts = load_data(DataConfig(max_train_samples=240, max_test_samples=80)).parts["test"].set_index("example_id")
    assert data["source"]
    said = pipeline(texts.loc[predictions["example_id"], "text"].tolist())
    assert [s["label"] for s in said] == [("negative", "positive")[p] for p in predictions["predicted"]]
    np.testing.assert_allclose([s["score"] for s in said], predictions["probability"], atol=1e-4)


def test_going_on_from_its_best_state_and_from_the_registry(finished):
    workplace, run, _ = finished
    for name in (f"runs:/{run.info.run_id}/checkpoints/best", "models:/tiny@champion"):
        small = ["--max_train_samples", "32", "--num_train_epochs", "1", "--max_probe_samples", "10"]
        workplace.run("--model_name_or_path", name, *small, "--max_test_samples", "80")
        newest = workplace.runs()[0]
        scores = pd.read_parquet(artifacts(newest) / "scores.parquet").set_index(["part", "state", "baseline"])
        # before training, it is the model that it starts from
        start = scores.at[("test", "pretrained", "none"), "accuracy"]
        assert start == pytest.approx(run.data.metrics["test/accuracy"])


def test_mlflow_run_gives_the_same_run(finished, workplace):
    """Same metrics, same params in the UI, parent environment untouched."""
    by_module, first, _ = finished
    command = ["mlflow", "run", ".", "-e", "fine-tune", "--env-manager", "local"]
    options = [*TINY, "--num_train_epochs", "2", "--store_attention", "true", "--log_spaced_checkpoints", "true"]
    for name, value in zip(options[::2], options[1::2], strict=True):
        command += ["-P", f"{name[2:]}={value}"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=workplace.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    [run] = workplace.runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == first.info.run_name
    points = _deterministic(workplace.points(run.info.run_id))
    assert points == _deterministic(by_module.points(first.info.run_id))
    declared = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["fine-tune"]["parameters"]
    for name in declared:
        mine, theirs = run.data.params[name].strip("'"), first.data.params.get(name, "")
        # MLflow itself writes an option that was left out as '', and no later value replaces that; what such an
        # option came to be (max_length depends on the dataset) stands in config.json, which is compared whole.
        assert mine == theirs or name in ("register_as", "learning_rate", "max_length"), name
    assert run.data.params["max_length"].strip("'") == ""
    mine, theirs = (json.loads((artifacts(r) / "config.json").read_text()) for r in (run, first))
    assert mine["max_length"] == 128
    assert mine | {"register_as": "tiny@champion"} == theirs
    assert float(run.data.params["learning_rate"]) == float(first.data.params["learning_rate"])


def test_seeds_are_children_with_a_mean(workplace):
    workplace.run(*TINY, "--num_train_epochs", "1", "--seeds", "3,5")
    runs = {run.info.run_name: run for run in workplace.runs()}
    assert set(runs) == {
        "synthetic-minilm-scratch-2-seeds",
        "synthetic-minilm-scratch-s3",
        "synthetic-minilm-scratch-s5",
    }
    parent = runs.pop("synthetic-minilm-scratch-2-seeds")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    accuracies = [run.data.metrics["test/accuracy"] for run in runs.values()]
    assert parent.data.metrics["test/accuracy"] == pytest.approx(np.mean(accuracies))
    assert parent.data.metrics["test/accuracy_low"] <= min(accuracies)
    # the same texts for both seeds, another order and other weights
    data = [json.loads((artifacts(run) / "data.json").read_text())["fingerprint"] for run in runs.values()]
    assert data[0] == data[1]
    losses = [run.data.metrics["train/loss"] for run in runs.values()]
    assert losses[0] != losses[1]
    assert all(run.info.run_id in parent.data.tags["mlflow.note.content"] for run in runs.values())
    assert all((artifacts(run) / "environment.json").exists() for run in runs.values())
    assert {run.data.tags["bertdyn.dataset"] for run in runs.values()} == {"synthetic"}


def _torchrun(workplace, *options: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "entrypoints.fine_tune", *options],
        cwd=ROOT,
        env=workplace.environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_with_frozen_layers(workplace):
    """torchrun: one run, the same data, layers that join later are synchronised."""
    _torchrun(
        workplace,
        *TINY,
        "--num_train_epochs", "2", "--freeze_layers", "1", "--freeze_embeddings", "true", "--freeze_epochs", "1",
        "--per_device_train_batch_size", "8",
    )  # fmt: skip
    [run] = workplace.runs()
    assert run.info.status == "FINISHED"
    assert all(len(values) == 1 for values in workplace.points(run.info.run_id).values())
    dynamics = pd.read_parquet(artifacts(run) / "dynamics.parquet")
    frozen = dynamics[(dynamics["layer"] == 1) | dynamics["component"].str.contains("embeddings")]
    assert (frozen[frozen["epoch"] == 1]["update_norm"] == 0).all()
    assert (frozen[(frozen["epoch"] == 2) & (frozen["component"] == "query")]["update_norm"] > 0).all()
    assert run.data.metrics["train/examples_per_second"] > 0


def test_two_processes_are_one(workplace):
    """Without dropout and with equal global batches, two processes train as one does."""
    still = ("--config_overrides", f"{TINY[3]},hidden_dropout_prob=0.0,attention_probs_dropout_prob=0.0")
    workplace.run(*TINY, *still, "--num_train_epochs", "2")
    _torchrun(workplace, *TINY, *still, "--num_train_epochs", "2", "--per_device_train_batch_size", "8")
    two, one = workplace.runs()
    points = [_deterministic(workplace.points(run.info.run_id)) for run in (one, two)]
    assert points[0].keys() == points[1].keys()
    for key in points[0]:
        assert points[1][key] == pytest.approx(points[0][key], rel=2e-3, abs=1e-5), key
    stores = [FeatureStore.open(artifacts(run) / "features") for run in (one, two)]
    for state in stores[0].states:
        one_rows, two_rows = (store.array("mean", state, 2) for store in stores)
        np.testing.assert_allclose(two_rows, one_rows, atol=2e-3)
