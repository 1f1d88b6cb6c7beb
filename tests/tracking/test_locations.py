"""Models and sources by name: what a step gets for `runs:/…`, `models:/…` and a source run id."""

import json
from typing import Any

import pytest
import torch

from bertdyn.errors import InputError
from bertdyn.tracking import locations
from bertdyn.tracking.logged_models import check_register_as
from bertdyn.tracking.runs import open_run


def _logits(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer("this film is good", return_tensors="pt")).logits


def _loaded(folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    return AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_models_round_trip_through_the_registry(client, tiny_model, tmp_path):
    with open_run("fine-tune") as tracker:
        tracker.log_config({"seed": 3})
        tracker.log_metrics({"eval/accuracy": 0.5}, step=1)
        tracker.log_metrics({"eval/accuracy": 0.75}, step=2)
        metrics = {"eval/accuracy": 0.75, "best/accuracy": 0.75}
        model, tokenizer = tiny_model
        uri = tracker.log_model(model, tokenizer, "text-classification", metrics, "tiny@champion")
        second = tracker.log_model(model, tokenizer, "text-classification", {}, "tiny")
    assert uri is not None
    assert second is not None
    logged = client.get_logged_model(uri.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in logged.metrics} == metrics
    assert logged.params == {"seed": "3"}
    assert len(client.get_metric_history(tracker.run_id, "eval/accuracy")) == 2
    assert client.get_model_version_by_alias("tiny", "champion").version == 1
    expected = _logits(*tiny_model)
    for name in (uri, "models:/tiny@champion", "models:/tiny/2"):
        torch.testing.assert_close(_logits(*_loaded(locations.resolve_model(name))), expected, rtol=1e-5, atol=1e-7)
    assert locations.resolve_model(uri) == locations.resolve_model("models:/tiny@champion")
    assert not list((tmp_path / "cache" / "models").glob(".*"))
    import mlflow

    assert mlflow.transformers.load_model(uri)("this film is good")[0]["label"].startswith("LABEL_")


@pytest.mark.parametrize("task", ["question-answering", "feature-extraction", "no-such-task"])
def test_a_model_of_any_task_comes_back(store, tiny_model, task):
    from transformers import AutoModel, BertForQuestionAnswering

    model: Any = BertForQuestionAnswering(tiny_model[0].config) if task == "question-answering" else tiny_model[0].bert
    with open_run("fine-tune") as tracker:
        uri = tracker.log_model(model, tiny_model[1], task, {})
    assert uri is not None
    loaded = AutoModel.from_pretrained(locations.resolve_model(uri))
    expected = getattr(model, "bert", model).embeddings.word_embeddings.weight
    assert torch.equal(loaded.embeddings.word_embeddings.weight, expected)


@pytest.mark.parametrize("where", ["store", "elsewhere"])
def test_states_of_a_run(where, request, tiny_model):
    request.getfixturevalue(where)
    with open_run("fine-tune") as tracker:
        for epoch in ("epoch_000", "epoch_001", "step_000004", "epoch_002"):
            tiny_model[0].save_pretrained(tracker.folder / "checkpoints" / epoch)
            tiny_model[1].save_pretrained(tracker.folder / "checkpoints" / epoch)
            tracker.publish(f"checkpoints/{epoch}")
        manifest = {
            "states": {"pretrained": "epoch_000", "best": "epoch_002", "last": "epoch_002"},
            "checkpoints": ["epoch_000", "epoch_001", "epoch_002", "step_000004"],
        }
        (tracker.folder / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))
        tracker.publish("checkpoints/manifest.json")
        tracker.log_config({"seed": 5})
    if where == "elsewhere":  # another machine: nothing is cached
        import shutil

        shutil.rmtree(tracker.folder)
    folder = locations.resolve_model(f"runs:/{tracker.run_id}/checkpoints/best")
    assert folder.endswith("checkpoints/epoch_002")
    assert folder == locations.resolve_model(f"runs:/{tracker.run_id}/checkpoints/epoch_002")
    torch.testing.assert_close(_logits(*_loaded(folder)), _logits(*tiny_model), rtol=1e-5, atol=1e-7)
    for name in ("epoch_001", "step_000004"):
        assert locations.resolve_model(f"runs:/{tracker.run_id}/checkpoints/{name}").endswith(f"checkpoints/{name}")
    known = "best, epoch_000, epoch_001, epoch_002, last, pretrained, step_000004"
    with pytest.raises(InputError, match=f"--model_name_or_path: run .* has no state 'epoch_003'; it has: {known}$"):
        locations.resolve_model(f"runs:/{tracker.run_id}/checkpoints/epoch_003")
    assert locations.load_run_config(tracker.run_id) == {"seed": 5}
    with pytest.raises(InputError, match=r"no artifact 'nothing'"):
        locations.resolve_model(f"runs:/{tracker.run_id}/nothing")


def test_names_that_lead_nowhere(store):
    assert locations.resolve_model("google/bert_uncased_L-2_H-128_A-2") == "google/bert_uncased_L-2_H-128_A-2"
    with pytest.raises(InputError, match="does not exist"):
        locations.resolve_model("runs:/0123456789abcdef0123456789abcdef/checkpoints/best")
    with pytest.raises(InputError, match="give runs:/"):
        locations.resolve_model("runs:/0123456789abcdef0123456789abcdef/checkpoints")
    for name in ("models:/nobody@champion", "models:/nobody/1", "models:/m-0123456789abcdef0123456789abcdef"):
        with pytest.raises(InputError, match=f"^--model_name_or_path {name} is not in"):
            locations.resolve_model(name)
    with pytest.raises(InputError, match="give models:/"):
        locations.resolve_model("models:/nobody")


def test_sources_are_checked(client):
    with open_run("fine-tune") as parent:
        children = []
        for seed in range(2):
            with parent.child(f"seed-{seed}") as child:
                children.append(child.run_id)
    locations.require_source(children[0], ("fine-tune",))
    with pytest.raises(
        InputError, match="^--source_run_id: run .* is of stage fine-tune; accepted are runs of extract or sae$"
    ):
        locations.require_source(children[0], ("extract", "sae"))
    with pytest.raises(InputError, match=f"one of its children: {children[0]} .seed-0., {children[1]} .seed-1."):
        locations.require_source(parent.run_id, ("fine-tune",))
    with pytest.raises(InputError, match="^--resume_run_id: run .* holds several runs"):
        locations.require_source(parent.run_id, ("fine-tune",), flag="resume_run_id")
    with pytest.raises(InputError, match="^--resume_run_id: run .* has already finished"):
        locations.check_unfinished(children[0])
    foreign = client.create_run("0").info.run_id
    with pytest.raises(InputError, match="^--source_run_id: run .* was not made by bertdyn"):
        locations.require_source(foreign, ("fine-tune",))


def test_register_as():
    assert check_register_as("name") == ("name", None)
    assert check_register_as("my name@champion") == ("my name", "champion")
    for wrong in ("", "@a", "a/b", "a:b", "a@", "a@b@c", "a@latest", "a@v12", "a@x y", " a"):
        with pytest.raises(InputError, match="^--register_as"):
            check_register_as(wrong)
