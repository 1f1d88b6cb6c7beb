"""ONNX files against the models that they were made from."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)

from bertdyn.models.modes import evaluating
from bertdyn.models.unpadded import run_unpadded
from bertdyn.pruning.export import check_onnx, export_onnx, open_session, session_inputs
from bertdyn.pruning.latency import random_batches

SHAPES = [(1, 5), (3, 17), (4, 9)]
"""None is that of the traced batch."""


def _trained(folder, auto_class=AutoModelForSequenceClassification):
    """A model in training mode whose outputs are of order 1, unlike those of small initial weights."""
    model = auto_class.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.train()


@pytest.mark.parametrize("family", ["bert", "camembert", "distilbert", "albert", "flaubert", "fft_bert", "conv2d_bert"])
def test_file_is_the_model_at_other_shapes_and_with_padding(checkpoints, tmp_path, family, capfd):
    model = _trained(checkpoints[family])
    export_onnx(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # weights inside
    assert "".join(capfd.readouterr()).strip() == ""

    batches = random_batches(model.config, SHAPES, seed=0)
    assert check_onnx(model, tmp_path / "model.onnx", batches) < 1e-4
    # The padding is worth looking at: who ignores the mask is far off.
    padded = batches[1]
    unmasked = padded | {"attention_mask": torch.ones_like(padded["attention_mask"])}
    session = open_session(tmp_path / "model.onnx")
    logits, other = (session.run(["logits"], session_inputs(session, batch))[0] for batch in (padded, unmasked))
    assert np.abs(logits - other).max() > 1e-2


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForQuestionAnswering])
def test_outputs_are_those_of_the_head(checkpoints, tmp_path, auto_class):
    model = _trained(checkpoints["distilbert"], auto_class)
    export_onnx(model, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx")
    axes = {found.name: found.shape for found in session.get_inputs()}
    assert axes == {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
    names = [found.name for found in session.get_outputs()]
    assert names == (["last_hidden_state"] if auto_class is AutoModel else ["start_logits", "end_logits"])
    assert check_onnx(model, tmp_path / "model.onnx", random_batches(model.config, SHAPES, seed=0)) < 1e-4


@pytest.fixture(scope="module")
def bert(checkpoints, tmp_path_factory):
    """(model, its file)"""
    model, path = _trained(checkpoints["bert"]), tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, path)
    return model, path


def test_token_types_are_an_input_where_the_family_has_them(bert):
    model, path = bert
    (batch,) = random_batches(model.config, [(2, 11)], seed=0)
    typed = batch | {"token_type_ids": torch.arange(22).reshape(2, 11) % 2}
    assert check_onnx(model, path, [typed]) < 1e-4
    session = open_session(path)
    logits, other = (session.run(None, session_inputs(session, inputs))[0] for inputs in (batch, typed))
    assert np.abs(logits - other).max() > 1e-3


def test_check_finds_another_model_and_not_a_number(bert):
    model, path = copy.deepcopy(bert[0]), bert[1]
    batches = random_batches(model.config, SHAPES, seed=0)
    with torch.no_grad():
        model.classifier.bias += torch.tensor([0.0, 0.5])
    assert check_onnx(model, path, batches) == pytest.approx(0.5, abs=1e-4)
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    assert np.isnan(check_onnx(model, path, batches))


def test_export_leaves_no_trace_on_the_model_or_the_generators(checkpoints, tmp_path):
    model = _trained(checkpoints["bert"])
    model.bert.embeddings.eval()  # as a frozen part may be
    model.set_attn_implementation("eager")
    modes = [module.training for module in model.modules()]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    level = logging.getLogger("torch.onnx").level
    export_onnx(model, tmp_path / "model.onnx")
    check_onnx(model, tmp_path / "model.onnx", random_batches(model.config, SHAPES, seed=0))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert model.config._attn_implementation == "eager"
    assert logging.getLogger("torch.onnx").level == level
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


class BranchForSequenceClassification(BertForSequenceClassification):
    """Its graph depends on its values, which no export can follow."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if outputs.logits.sum() > 0:
            outputs.logits = outputs.logits * 2
        return outputs


class EigenForSequenceClassification(BertForSequenceClassification):
    """Has an operator that ONNX lacks."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = torch.linalg.eigvals(outputs.logits[:, :, None] * outputs.logits[:, None]).real
        return outputs


@pytest.mark.parametrize("model_class", [BranchForSequenceClassification, EigenForSequenceClassification])
def test_a_failure_is_one_line_and_leaves_what_was_there(checkpoints, tmp_path, model_class):
    model = _trained(checkpoints["bert"], model_class)
    (tmp_path / "model.onnx").write_bytes(b"older")
    with pytest.raises(
        RuntimeError, match=f"^{model_class.__name__} cannot be exported to ONNX: .*[a-z]{{4}}"
    ) as failure:
        export_onnx(model, tmp_path / "model.onnx")
    assert "\n" not in str(failure.value)
    assert "\x1b" not in str(failure.value)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.onnx", b"older")]
    assert model.training


def test_a_failure_while_writing_leaves_no_file(checkpoints, tmp_path, monkeypatch):
    def save(program, path, **options):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save)
    with pytest.raises(RuntimeError, match="No space left on device"):
        export_onnx(_trained(checkpoints["bert"]), tmp_path / "new" / "model.onnx")
    assert list((tmp_path / "new").iterdir()) == []


def test_an_unpadded_model_is_refused(checkpoints, tmp_path):
    model = _trained(checkpoints["bert"])
    run_unpadded(model)
    with pytest.raises(ValueError, match="without run_unpadded"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_too_large_for_one_file_is_refused(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("bertdyn.pruning.export.MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match="2 GiB"):
        export_onnx(_trained(checkpoints["bert"]), tmp_path / "model.onnx")


def test_modes_come_back_after_an_exception():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]
