"""Pruning as a function, without MLflow, for every family and both tasks."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.errors import InputError
from bertdyn.models.loading import load_model
from bertdyn.pruning.plan import load_plan
from bertdyn.pruning.shape import shape_of
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.steps.pruning import PruneResult, prune
from bertdyn.tracking.tracker import Tracker
from tests.families import FAMILIES
from tests.squad_files import write_squad

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SMALL = {
    "max_train_samples": 64,
    "max_validation_samples": 20,
    "max_probe_samples": 12,
    "max_test_samples": 20,
    "per_device_train_batch_size": 16,
    "calibration_examples": 32,
    "num_train_epochs": 1,
}
QUICK = {"latency_shapes": "none", "export_onnx": False}


def with_head(folder: Path, target: Path, auto_class=AutoModelForSequenceClassification) -> Path:
    """A checkpoint with a head, weights large enough that units differ."""
    torch.manual_seed(0)
    model = auto_class.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def run(folder: Path, model: Path, **options) -> PruneResult:
    return prune(PruneConfig(model_name_or_path=str(model), **SMALL | QUICK | options), Tracker(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pruned_recovered_and_reloads(checkpoints, family, tmp_path):
    dense = with_head(checkpoints[family], tmp_path / "dense")
    result = run(tmp_path / "run", dense, budget=0.6, controls="random")
    run_folder = tmp_path / "run"
    plan = load_plan(run_folder / "plan.json")
    manifest = json.loads((run_folder / "checkpoints/manifest.json").read_text())
    assert manifest["states"] == {"pretrained": "epoch_000", "last": "epoch_001", "best": "epoch_001"}
    for epoch in (0, 1):
        model = load_model(str(run_folder / f"checkpoints/epoch_{epoch:03d}"), "classification")
        assert model.config.model_type == f"pruned_{family}"
        assert shape_of(model) == plan.result
    costs = pd.read_parquet(run_folder / "costs.parquet").set_index("model")
    assert costs.at["pruned", "encoder_flops"] <= 0.6 * costs.at["dense", "encoder_flops"]
    assert costs.at["pruned", "parameters"] == sum(p.numel() for p in model.parameters())
    assert "largest difference of outputs 0.0e+00" in result.summary  # a fresh process without bertdyn
    scores = result.scores
    assert set(zip(scores["model"], scores["stage"], strict=True)) == {
        (model, stage) for model in ("pruned", "random") for stage in ("surgery", "recovery")
    } | {("dense", "surgery")}
    same = scores[(scores["model"] == "dense") & (scores["stage"] == "surgery")]
    assert (same["kl"] == 0).all()
    assert (same["agreement"] == 1).all()


def test_a_budget_of_one_without_recovery_is_the_model_itself(checkpoints, tmp_path):
    dense = with_head(checkpoints["bert"], tmp_path / "dense")
    result = run(tmp_path / "run", dense, budget=1.0, recover=False, controls="none")
    assert result.plan.result == result.plan.shape
    before = AutoModelForSequenceClassification.from_pretrained(dense).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/checkpoints/epoch_000").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (result.scores["kl"] == 0).all()
    states = json.loads((tmp_path / "run/checkpoints/manifest.json").read_text())["states"]
    assert set(states.values()) == {"epoch_000"}


def test_thresholds_of_system_4_and_a_plan_used_again(checkpoints, tmp_path):
    dense = with_head(checkpoints["bert"], tmp_path / "dense")
    options = {"recover": False, "controls": "none", "compensation": "mean"}
    thresholds = {"attention_thresholds": "0,0.3,0.7", "ffn_thresholds": "0,0.5,0.8"}
    first = run(tmp_path / "a", dense, criterion="activation_change", **thresholds, **options)
    assert first.plan.result.heads == (4, 3, 1)
    assert first.plan.result.neurons == (64, 32, 13)
    again = run(tmp_path / "b", dense, plan=str(tmp_path / "a/plan.json"), **options)
    assert again.plan == first.plan
    weights = [(tmp_path / name / "checkpoints/epoch_000/model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    other = with_head(checkpoints["bert"], tmp_path / "other")
    model = AutoModelForSequenceClassification.from_pretrained(other)
    with torch.no_grad():
        model.classifier.bias.add_(1)
    model.save_pretrained(other)
    with pytest.raises(InputError, match="same shape with other weights"):
        run(tmp_path / "c", other, plan=str(tmp_path / "a/plan.json"), **options)


def test_questions(checkpoints, tmp_path):
    write_squad(tmp_path / "data")
    dense = with_head(checkpoints["distilbert"], tmp_path / "dense", AutoModelForQuestionAnswering)
    data = {"dataset": "squad_v2", "data_dir": str(tmp_path / "data"), "max_length": 64, "doc_stride": 16}
    result = run(tmp_path / "run", dense, budget=0.7, controls="dense", hidden_distillation=1.0, **data)
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run/checkpoints/epoch_001")
    assert shape_of(model) == result.plan.result
    assert {"f1", "f1_low", "f1_high", "exact", "kl"} <= set(result.scores)
    # The threshold between an answer and none is never chosen on the test part.
    for _, rows in result.scores.groupby(["model", "stage"]):
        assert rows["null_threshold"].nunique() == 1
    differences = pd.read_parquet(tmp_path / "run/differences.parquet")
    assert set(differences["other"]) == {"dense"}
    assert (differences["difference_low"] <= differences["difference"]).all()


def test_half_precision_is_judged_alike(checkpoints, tmp_path):
    """Of the saved and of the trained model, the same is computed: with nothing pruned, both are the dense control."""
    dense = with_head(checkpoints["bert"], tmp_path / "dense")
    scores = run(tmp_path / "run", dense, budget=1.0, controls="dense", mixed_precision="bf16", distillation=0.0).scores
    after = scores[(scores["stage"] == "recovery") & (scores["part"] == "test")].set_index("model")
    assert after.at["pruned", "kl"] == after.at["dense", "kl"] > 0
    assert after.at["pruned", "loss"] == after.at["dense", "loss"]


def test_code_that_came_with_the_source_is_not_run(checkpoints, tmp_path):
    dense = with_head(checkpoints["bert"], tmp_path / "dense")
    ran = tmp_path / "ran"
    (dense / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: ...\n")
    config = json.loads((dense / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Evil"}
    (dense / "config.json").write_text(json.dumps(config))
    run(tmp_path / "run", dense, recover=False, controls="none")
    assert not ran.exists()


def test_auto_latency_rounds_and_onnx(checkpoints, tmp_path):
    dense = with_head(checkpoints["bert"], tmp_path / "dense")
    shown = {"latency_shapes": "1x8,4x16", "latency_rounds": 3, "export_onnx": True}
    options = {"criterion": "auto", "budget_of": "latency", "cost_length": 16, "pruning_rounds": 2, "recover": False}
    run(tmp_path / "run", dense, budget=0.95, controls="none", **shown, **options)
    tried = pd.read_parquet(tmp_path / "run/criteria.parquet")
    assert set(tried["criterion"]) == {"fisher", "taylor", "fluctuation", "wanda", "magnitude", "activation_change"}
    assert tried["kl"].is_monotonic_increasing
    latency = pd.read_parquet(tmp_path / "run/latency.parquet")
    assert len(latency) == 2 * 2 * 2
    assert set(latency["backend"]) == {"torch", "onnxruntime"}
    assert (tmp_path / "run/onnx/model.onnx").exists()
    assert {path.name for path in (tmp_path / "run/figures").iterdir()} == {
        f"{name}.png" for name in ("architecture", "scores", "head_scores", "neuron_scores", "latency")
    }


def test_the_same_seed_gives_the_same_model(checkpoints, tmp_path):
    dense = with_head(checkpoints["bert"], tmp_path / "dense")

    def weights(name: str, seed: int) -> bytes:
        run(tmp_path / name, dense, budget=0.5, controls="none", seed=seed)
        return (tmp_path / name / "checkpoints/epoch_001/model.safetensors").read_bytes()

    assert weights("a", 0) == weights("b", 0) != weights("c", 1)


BAD = {
    "more thresholds than layers": (
        {"attention_thresholds": "0,0,0,0", "ffn_thresholds": "0"},
        "--attention_thresholds has 4 numbers: accepted are 3 .* or one for all",
    ),
    "nothing left": (
        {"attention_thresholds": "1e9", "ffn_thresholds": "1e9", "threshold_kind": "absolute"},
        "these thresholds remove everything: accepted are some below the highest score",
    ),
    "a budget out of reach": ({"budget": 0.01}, r"--budget 0.01: out of reach; accepted are 0\.\d+ to 1"),
    "no calibration text that long": (
        {"calibration_min_length": 120},
        "--calibration_min_length 120: 0 training texts are that long",
    ),
    "batches to time that are too long": (
        {"latency_shapes": "1x600"},
        "--latency_shapes: this model has no positions for 600 tokens; accepted are at most 512",
    ),
    "no plan": ({"plan": "/nowhere/plan.json"}, "--plan '/nowhere/plan.json' is no pruning plan"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(checkpoints, tmp_path, options, message):
    dense = with_head(checkpoints["bert"], tmp_path / "dense")
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path / "run", dense, **options)
    assert "\n" not in str(caught.value)


def test_shared_layers_have_one_threshold(checkpoints, tmp_path):
    dense = with_head(checkpoints["albert"], tmp_path / "dense")
    with pytest.raises(InputError, match="3 layers share their weights: what one loses, all lose"):
        run(tmp_path / "run", dense, attention_thresholds="0,0.3,0.7", ffn_thresholds="0,0.3,0.7")
    with pytest.raises(InputError, match="--allow_empty true: .* accepted is false"):
        run(tmp_path / "run", dense, allow_empty=True, budget=0.5)


def test_an_encoder_without_a_head_is_refused(checkpoints, tmp_path):
    with pytest.raises(InputError, match="has no head for classification: give a fine-tuned model"):
        run(tmp_path / "run", checkpoints["bert"])


def test_a_model_that_was_pruned_by_hand_is_refused(checkpoints, tmp_path):
    """Stock classes with other widths than their configuration says: transformers would make new weights."""
    dense = with_head(checkpoints["bert"], tmp_path / "dense")
    model = AutoModelForSequenceClassification.from_pretrained(dense)
    layer = model.bert.encoder.layer[0]
    layer.intermediate.dense = torch.nn.Linear(32, 40)
    layer.output.dense = torch.nn.Linear(40, 32)
    model.save_pretrained(dense)
    with pytest.raises(InputError, match="cannot be loaded"):
        run(tmp_path / "run", dense)
