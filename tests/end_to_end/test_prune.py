"""Pruning by command, of a run that was fine-tuned by command; what follows on it; bad input."""

import json
from dataclasses import dataclass

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.entities import Run
from transformers import AutoModelForSequenceClassification

from bertdyn.features.store import FeatureStore
from bertdyn.models.loading import load_model
from bertdyn.pruning.plan import load_plan
from bertdyn.pruning.shape import shape_of
from bertdyn.tracking.locations import resolve_model
from entrypoints import prune
from tests.end_to_end.conftest import TINY, Workplace, artifacts, make_workplace

FEW = ("--calibration_examples", "40", "--num_train_epochs", "1", "--latency_shapes", "1x8", "--latency_rounds", "3")


@dataclass
class Source:
    """A fine-tuned encoder."""

    workplace: Workplace
    tuned: Run

    @property
    def option(self) -> tuple[str, str]:
        return "--source_run_id", self.tuned.info.run_id

    def newest(self, stage: str = "prune") -> Run:
        return self.workplace.runs(filter_string=f"tags.bertdyn.stage = '{stage}'")[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        workplace = make_workplace(tmp_path_factory.mktemp("prune"))
        workplace.run(*TINY, "--num_train_epochs", "2")
        [tuned] = workplace.runs()
        yield Source(workplace, tuned)


@pytest.fixture
def command(source, run_here):
    return lambda *argv: run_here(source.workplace, prune, *argv)


@pytest.fixture(scope="module")
def pruned(source) -> tuple[Run, str]:
    """By `python -m`, half the FLOPs, beside all controls."""
    options = ("--budget", "0.5", "--register_as", "small@best")
    out = source.workplace.run(*source.option, *FEW, *options, module="entrypoints.prune")
    return source.newest(), out


def test_the_run_in_mlflow(source, pruned):
    run, out = pruned
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "prune-synthetic-minilm-scratch-s0"
    assert f"run id   {run.info.run_id}" in out
    assert f"-e extract --env-manager local -P source_run_id={run.info.run_id}" in out
    tags = run.data.tags
    assert tags["bertdyn.stage"] == "prune"
    assert tags["bertdyn.source_run_id"] == source.tuned.info.run_id
    assert tags["bertdyn.dataset"] == "synthetic"
    assert tags["mlflow.note.content"].startswith("## Pruned: synthetic-minilm-scratch-s0, criterion fisher")
    files = {str(path.relative_to(artifacts(run))) for path in artifacts(run).rglob("*") if path.is_file()}
    tables = ("scores", "differences", "plan", "unit_scores", "compensation", "costs", "latency")
    assert {f"{name}.parquet" for name in tables} <= files
    assert {"plan.json", "config.json", "data.json", "summary.md", "onnx/model.onnx"} <= files
    assert {"checkpoints/manifest.json", "checkpoints/epoch_001/model.safetensors"} <= files
    metrics = run.data.metrics
    assert 0.4 < metrics["prune/encoder_flops_ratio"] <= 0.5
    assert {"prune/surgery_kl", "prune/latency_ratio_torch_1x8", "test/accuracy", "test/kl", "eval/accuracy"} <= set(
        metrics
    )
    assert len([key for key in metrics if not key.startswith("system/")]) < 100
    [model] = source.workplace.client().search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    assert model.status == "READY"


def test_controls_are_child_runs(source, pruned):
    run, _ = pruned
    children = source.workplace.runs(filter_string=f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    assert {child.data.tags["bertdyn.control"] for child in children} == {"dense", "random", "magnitude"}
    assert {child.info.status for child in children} == {"FINISHED"}
    assert all({"eval/accuracy", "test/accuracy", "test/kl"} <= set(child.data.metrics) for child in children)


def test_scores_are_those_of_the_saved_model(pruned):
    run, _ = pruned
    folder = artifacts(run)
    scores = pd.read_parquet(folder / "scores.parquet")
    final = scores[(scores["model"] == "pruned") & (scores["stage"] == "recovery") & (scores["part"] == "test")].iloc[0]
    assert run.data.metrics["test/accuracy"] == final["accuracy"]
    plan = load_plan(folder / "plan.json")
    best = json.loads((folder / "checkpoints/manifest.json").read_text())["states"]["best"]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "checkpoints" / best)
    assert shape_of(model) == plan.result


def test_the_registry_gives_it_to_whoever_asks(source, pruned, monkeypatch):
    run, _ = pruned
    for name, value in source.workplace.environment.items():
        if name.startswith(("MLFLOW_", "BERTDYN_CACHE")):
            monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(source.workplace.uri)
    model = load_model(resolve_model("models:/small@best"), "classification")
    best = json.loads((artifacts(run) / "checkpoints/manifest.json").read_text())["states"]["best"]
    expected = AutoModelForSequenceClassification.from_pretrained(artifacts(run) / "checkpoints" / best)
    assert type(model) is type(expected)
    pairs = zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_follows_works_on_a_pruned_run(source, pruned):
    run, _ = pruned
    place = source.workplace
    place.run(
        "--source_run_id", run.info.run_id, "--activations", "hidden,ffn_post,context", "--rows", "first,mean,tokens",
        module="entrypoints.extract",
    )  # fmt: skip
    extracted = source.newest("extract")
    assert extracted.info.run_name == "extract-synthetic-minilm-scratch-s0-pruned"
    store = FeatureStore.open(artifacts(extracted) / "features")
    assert store.states == ["pretrained", "best"]
    plan = load_plan(artifacts(run) / "plan.json")
    widths = store.manifest.arrays["ffn_post_tokens"].widths
    assert tuple(widths) == plan.result.neurons
    place.run("--source_run_id", extracted.info.run_id, "--num_folds", "3", module="entrypoints.probe")
    place.run(
        "--source_run_id", extracted.info.run_id, "--layers", "2", "--width", "24", "--k", "3", "--page_latents", "4",
        "--num_train_epochs", "1", "--seeds", "0,1", "--random_init", "false", module="entrypoints.sae",
    )  # fmt: skip
    assert {source.newest(stage).info.status for stage in ("probe", "sae")} == {"FINISHED"}
    # and it is pruned again
    place.run(
        "--source_run_id", run.info.run_id, *FEW, "--recover", "false", "--controls", "none", "--budget", "0.8",
        "--export_onnx", "false", module="entrypoints.prune",
    )  # fmt: skip
    twice = source.newest()
    assert twice.info.run_name == "prune-synthetic-minilm-scratch-s0-pruned"
    again = load_plan(artifacts(twice) / "plan.json")
    assert again.shape == plan.result
    loaded = load_model(str(artifacts(twice) / "checkpoints/epoch_000"), "classification")
    assert shape_of(loaded) == again.result


def test_seeds_are_child_runs_with_paired_differences(source):
    out = source.workplace.run(
        *source.option, *FEW, "--seeds", "0,1", "--controls", "random", "--latency_shapes", "none", "--export_onnx",
        "false", module="entrypoints.prune",
    )  # fmt: skip
    parent = source.workplace.runs(filter_string="tags.mlflow.runName = 'prune-synthetic-minilm-scratch-s0'")[0]
    assert "paired seeds, 95 % interval" in out
    differences = pd.read_parquet(artifacts(parent) / "paired_differences.parquet")
    assert set(differences["other"]) == {"random", "dense_before"}
    assert (differences["num_seeds"] == 2).all()
    children = source.workplace.runs(filter_string=f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == {
        f"prune-synthetic-minilm-scratch-s0-s{seed}" for seed in (0, 1)
    }


BAD = {
    "no source": ((), "give --source_run_id <fine-tune run> or --model_name_or_path <model>, one of the two"),
    "no such run": (("--source_run_id", "0" * 32), "0" * 32),
    "another stage": (
        ("--source_run_id", "{extracted}"),
        "is of stage extract; accepted are runs of fine-tune or prune",
    ),
    "no such state": (("{source}", "--state", "epoch_009"), "has no state 'epoch_009'"),
    "no such reference": (
        ("{source}", "--criterion", "state_change", "--reference_state", "epoch_009"),
        "--reference_state 'epoch_009'",
    ),
    "more texts than the source": (("{source}", "--max_train_samples", "500"), "had 240; accepted are at most so many"),
    "thresholds": (("{source}", "--attention_thresholds", "0,0,0", "--ffn_thresholds", "0"), "accepted are 2"),
    "one kind of threshold": (("{source}", "--ffn_thresholds", "0.5"), "--ffn_thresholds needs --attention_thresholds"),
    "budget": (("{source}", "--budget", "0.001"), "out of reach; accepted are 0."),
    "criterion": (("{source}", "--criterion", "hope"), "--criterion 'hope': accepted are auto, fisher"),
}


@pytest.mark.parametrize(("argv", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_leaves_nothing_running(source, command, argv, message):
    if "{extracted}" in argv:
        place = source.workplace
        place.run(*source.option, "--rows", "first", "--parts", "probe", module="entrypoints.extract")
        argv = ("--source_run_id", source.newest("extract").info.run_id)
    argv = [part for word in argv for part in (source.option if word == "{source}" else (word,))]
    status, err = command(*argv, *FEW)
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err
    assert not source.workplace.runs(filter_string="attributes.status = 'RUNNING'")
