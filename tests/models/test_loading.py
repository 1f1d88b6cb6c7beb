import shutil

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from bertdyn.errors import InputError
from bertdyn.models.loading import check_max_length, load_config, load_model, load_tokenizer
from tests.families import FAMILIES

LABELS = ["negative", "positive"]


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_keeps_weights_and_labels(checkpoints, family, tmp_path):
    torch.manual_seed(0)
    model = load_model(str(checkpoints[family]), "classification", label_names=LABELS)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), "classification", label_names=LABELS)
    assert again.config.id2label == {0: "negative", 1: "positive"}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_minilm_keeps_every_pretrained_weight():
    model = load_model("minilm", "classification", label_names=LABELS)
    fresh = load_model("minilm", "classification", label_names=LABELS, from_scratch=True)
    assert model.config.num_hidden_layers == 6
    assert model.num_parameters() == fresh.num_parameters()
    # a real embedding table is not the N(0, 0.02) of a new one
    assert model.bert.embeddings.word_embeddings.weight.std() > 2 * fresh.bert.embeddings.word_embeddings.weight.std()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_from_scratch_depends_on_the_seed_only():
    def fresh(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = load_model(
            "minilm",
            "classification",
            label_names=LABELS,
            from_scratch=True,
            config_overrides="num_hidden_layers=2, hidden_size=64, num_attention_heads=4",
        )
        assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 64)
        return model.bert.encoder.layer[1].output.dense.weight

    assert torch.equal(fresh(1), fresh(1))
    assert not torch.equal(fresh(1), fresh(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "no/such-model"}, "neither a model folder"),
        ({"config_overrides": "num_hidden_layers", "from_scratch": True}, "accepted is name=value"),
        ({"config_overrides": "no_such_field=3", "from_scratch": True}, "a field of BertConfig"),
        ({"config_overrides": "num_hidden_layers=two", "from_scratch": True}, "config_overrides"),
        ({"config_overrides": "num_hidden_layers=0", "from_scratch": True}, "config_overrides.*at least 1"),
        ({"config_overrides": "hidden_act=foo", "from_scratch": True}, "config_overrides.*foo"),
        ({"config_overrides": "num_attention_heads=5", "from_scratch": True}, "config_overrides"),
    ],
)
def test_wrong_names_are_told_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        load_model(**({"name": "minilm", "task": "classification", "label_names": LABELS} | arguments))
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_task_or_other_classes(checkpoints, tmp_path):
    AutoModelForQuestionAnswering.from_pretrained(checkpoints["bert"]).save_pretrained(tmp_path / "qa")
    with pytest.raises(InputError, match="is a question-answering checkpoint"):
        load_model(str(tmp_path / "qa"), "classification", label_names=LABELS)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"], num_labels=5)
    model.save_pretrained(tmp_path / "five")
    with pytest.raises(InputError, match=r"head for 5 classes \(LABEL_0.*, the data has 2 \(negative"):
        load_model(str(tmp_path / "five"), "classification", label_names=LABELS)

    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoints["bert"], id2label={0: "positive", 1: "negative"}, label2id={"positive": 0, "negative": 1}
    )
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"\(positive, negative\), the data has 2 \(negative, positive\)"):
        load_model(str(tmp_path / "other"), "classification", label_names=LABELS)


def test_damaged_weights_are_told(checkpoints, tmp_path):
    shutil.copytree(checkpoints["bert"], tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(str(tmp_path / "cut"), "classification", label_names=LABELS)


def test_family_and_length_are_checked(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="'gpt2' is not supported"):
        load_config(str(tmp_path))
    with pytest.raises(InputError, match="at most 512"):
        check_max_length(load_config("minilm"), 513)
    with pytest.raises(InputError, match="at most 64"):
        check_max_length(load_config("minilm", "max_position_embeddings=64"), 128)
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(str(tmp_path / "absent"))
