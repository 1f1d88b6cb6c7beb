"""Spliced hidden states: what recording records is edited, what the edit returns is what the rest of the model sees."""

import pytest
import torch
from transformers import AutoModel

from bertdyn.models.recording import recording
from bertdyn.models.splicing import kinds_of, run_from, splicing
from bertdyn.models.unpadded import packing_of
from tests.families import LAYERS
from tests.models.test_recording import WAYS, load
from tests.models.test_unpadded import make_batch

HIDDEN = {"hidden": range(LAYERS + 1)}


def other_batch(batch):
    """Other tokens at the same places."""
    ids = batch["input_ids"]
    return batch | {"input_ids": torch.where(batch["attention_mask"].bool(), (ids + 7) % 20 + 5, ids)}


def record_all(model, batch):
    with recording(model, HIDDEN) as record:
        recorded = record(batch)
    return [recorded.values["hidden", layer] for layer in range(LAYERS + 1)], recorded.output.logits


@pytest.mark.parametrize("layer", range(LAYERS + 1))
@pytest.mark.parametrize(("family", "way"), WAYS)
@torch.inference_mode()
def test_the_rest_of_the_model_sees_what_the_edit_returns(checkpoints, family, way, layer):
    """With the hidden states of a text spliced into another, everything from there on is that of the first text."""
    model = load(checkpoints[family], way)
    batch = make_batch(model.config.vocab_size)
    states, logits = record_all(model, batch)
    others, other_logits = record_all(model, other_batch(batch))
    seen = []

    def edit(rows):
        seen.append(rows.clone())
        return states[layer]

    with splicing(model, layer, edit):
        found, spliced = record_all(model, other_batch(batch))
        plain = model(**other_batch(batch)).logits
    assert all(torch.equal(rows, others[layer]) for rows in seen)
    assert len(seen) == 2  # one in each call, though ALBERT's layer is called three times
    for number in range(LAYERS + 1):
        assert torch.equal(found[number], (others if number < layer else states)[number]), number
    assert torch.equal(spliced, logits)
    torch.testing.assert_close(plain, logits, atol=1e-6, rtol=0)
    assert not torch.allclose(logits, other_logits, atol=1e-4)  # else nothing was tested
    from_there = run_from(model, layer, other_batch(batch), states[layer]).logits
    torch.testing.assert_close(from_there, logits, atol=1e-6, rtol=0)
    assert torch.equal(model(**batch).logits, load(checkpoints[family], way)(**batch).logits)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
@pytest.mark.parametrize(("family", "way"), WAYS)
@torch.inference_mode()
def test_an_edit_that_changes_nothing_changes_no_bit(checkpoints, family, way, layer):
    model = load(checkpoints[family], way)
    batch = make_batch(model.config.vocab_size)
    expected, logits = record_all(model, batch)
    with splicing(model, layer, lambda rows: rows):
        found, spliced = record_all(model, batch)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(spliced, logits)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
@pytest.mark.parametrize(("family", "way"), WAYS)
@torch.inference_mode()
def test_padding_changes_nothing(checkpoints, family, way, layer):
    """Each text alone gives what it gives in the batch, with an edit that moves it far."""
    model = load(checkpoints[family], way)
    batch = make_batch(model.config.vocab_size)

    def edit(rows):
        return rows.flip(1) * 2

    rows = record_all(model, batch)[0][layer]
    with splicing(model, layer, edit):
        together = model(**batch).logits
        alone = [
            model(**{name: value[i : i + 1, :length] for name, value in batch.items()}).logits[0]
            for i, length in enumerate(batch["attention_mask"].sum(dim=1))
        ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)
    batch["token_rows"] = batch["attention_mask"].flatten().nonzero().squeeze(1)  # as the collator adds it
    torch.testing.assert_close(run_from(model, layer, batch, edit(rows)).logits, together, atol=1e-5, rtol=0)
    untouched = run_from(model, layer, batch, rows).logits
    assert not torch.allclose(together, untouched, atol=1e-3)


@torch.inference_mode()
def test_layers_below_are_not_computed(checkpoints):
    model = load(checkpoints["albert"], "unpadded")
    batch = make_batch(model.config.vocab_size)
    rows = record_all(model, batch)[0][2]
    calls = []
    attention = model.albert.encoder.albert_layer_groups[0].albert_layers[0].attention
    handle = attention.register_forward_hook(lambda *_: calls.append(1))
    run_from(model, 2, batch, rows)
    handle.remove()
    assert len(calls) == LAYERS - 2


def test_nothing_stays_on_the_model(checkpoints):
    model = load(checkpoints["albert"], "unpadded")
    batch = make_batch(model.config.vocab_size)

    def fail(rows):
        raise ZeroDivisionError

    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]

    before, logits = hooks(), model(**batch).logits
    with pytest.raises(ZeroDivisionError), splicing(model, 1, fail):
        model(**batch)
    with pytest.raises(ValueError, match=r"hidden states of shape \[2, 32\] were given for \[23, 32\]"):
        run_from(model, 1, batch, torch.zeros(2, 32))
    assert hooks() == before
    assert torch.equal(model(**batch).logits, logits)


def test_an_encoder_without_head(checkpoints):
    model = load(checkpoints["bert"], "unpadded", AutoModel)
    batch = make_batch(model.config.vocab_size)
    rows = torch.randn(23, 32)
    states = run_from(model, LAYERS, batch, rows).last_hidden_state
    assert torch.equal(packing_of(batch["attention_mask"]).pack(states), rows)


def test_gradients_flow_through_a_splice(checkpoints):
    """The gradient of what is spliced in is that of finite differences."""
    model = load(checkpoints["bert"], "unpadded").double()
    batch = make_batch(model.config.vocab_size)
    rows = torch.randn(23, 32, dtype=torch.float64, requires_grad=True)
    run_from(model, 1, batch, rows).logits[:, 0].sum().backward()
    step = torch.randn(23, 32, dtype=torch.float64)
    with torch.no_grad():
        ends = [run_from(model, 1, batch, rows + sign * 1e-5 * step).logits[:, 0].sum() for sign in (1, -1)]
    assert float((rows.grad * step).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_what_cannot_be_spliced(checkpoints):
    model = load(checkpoints["bert"], "padded")
    batch = make_batch(model.config.vocab_size)
    with pytest.raises(ValueError, match="no layer 4 to splice into: accepted are 0 to 3"), splicing(model, 4, abs):
        pass
    with pytest.raises(ValueError, match="must be called with attention_mask"), splicing(model, 1, abs):
        model(batch["input_ids"])
    with pytest.raises(ValueError, match="as a whole"), splicing(model, 1, abs):
        model.bert(**batch)
    with pytest.raises(ValueError, match="training mode"), splicing(model.train(), 1, abs):
        pass
    model.eval().config.chunk_size_feed_forward = 1
    with pytest.raises(ValueError, match="chunk_size_feed_forward"):
        run_from(model, 1, batch, torch.zeros(23, 32))


def test_kinds_of_tokens():
    """The first token is first whatever it is, special ones behind it are neither; padding does not appear."""
    ids = torch.tensor([[1, 7, 2, 0, 0], [5, 8, 1, 9, 2]])
    packing = packing_of((ids > 0).long())
    kinds = kinds_of(packing, ids, torch.tensor([1, 2]))
    found = {name: sorted(packing.rows[getattr(kinds, name)].tolist()) for name in kinds._fields}
    assert found == {"content": [1, 6, 8], "first": [0, 5]}
