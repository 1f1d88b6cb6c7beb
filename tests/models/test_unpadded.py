"""Unpadded = padded: logits, gradients, both tasks, every family that can; and nothing of it is saved."""

import copy

import pytest
import torch
from transformers import AutoModel

from bertdyn.errors import InputError
from bertdyn.models import unpadded
from bertdyn.models.loading import AUTO_CLASSES, HEADS, load_model
from bertdyn.models.unpadded import can_run_unpadded, is_unpadded, packing_of, run_unpadded
from tests.families import FAMILIES

CAN = [family for family in FAMILIES if family != "flaubert"]
LENGTHS = (7, 1, 12, 3)


def make_batch(vocab_size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(5, vocab_size, mask.shape, generator=generator)
    return {"input_ids": ids.where(mask, torch.tensor(1)), "attention_mask": mask.long()}


def load(folder, task: str, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AUTO_CLASSES[task].from_pretrained(folder, dtype=dtype)
    return model.eval()  # dropout off; gradients flow all the same


def outputs(model, batch, task: str) -> torch.Tensor:
    """What the head says of real tokens, one flat vector."""
    output = model(**batch)
    if task == "classification":
        return output.logits.flatten()
    real = batch["attention_mask"].bool()
    return torch.cat([output.start_logits[real], output.end_logits[real]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("task", AUTO_CLASSES)
@pytest.mark.parametrize("attention", ["_padded_attention", "_jagged_attention"])
@pytest.mark.parametrize("family", CAN)
def test_logits_and_gradients_are_those_of_the_padded_model(checkpoints, family, attention, task, dtype, monkeypatch):
    monkeypatch.setattr(unpadded, "_padded_attention", getattr(unpadded, attention))  # what a CPU would choose
    padded, packed = (load(checkpoints[family], task, dtype) for _ in range(2))
    run_unpadded(packed)
    batch = make_batch(padded.config.vocab_size)
    atol = 1e-5 if dtype == torch.float32 else 1e-10
    expected, found = (outputs(model, batch, task) for model in (padded, packed))
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
    weights = torch.linspace(-1, 1, len(expected), dtype=dtype)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    compared = 0
    for (name, one), other in zip(padded.named_parameters(), packed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=atol, rtol=0, msg=name)
            compared += one.grad.abs().max() > atol
    assert compared > 20  # gradients that are all zero would prove nothing


@pytest.mark.parametrize("family", CAN)
def test_linear_layers_see_real_tokens_only(checkpoints, family):
    model = load(checkpoints[family], "classification", torch.float32)
    run_unpadded(model)
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:-1].numel()))
    model(**make_batch(model.config.vocab_size))
    # the encoder's; one token a text for the head's and, where a layer can be split there, behind the last attention
    assert set(seen) == {sum(LENGTHS), len(LENGTHS)}
    assert (seen.count(len(LENGTHS)) <= 2) == (family in ("distilbert", "albert"))


def test_texts_do_not_see_each_other(checkpoints):
    """One text changed, the logits of the others are the same bits."""
    model = load(checkpoints["bert"], "classification", torch.float32)
    run_unpadded(model)
    batch = make_batch(model.config.vocab_size)
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    changed["input_ids"][0, 2] += 1
    with torch.inference_mode():
        before, after = model(**batch).logits, model(**changed).logits
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("family", CAN)
def test_texts_of_one_token_and_batches_larger_than_a_block(checkpoints, family):
    """Every text one token long: packed tokens and first tokens are equally many, their orders are not mixed up."""
    padded, packed = (load(checkpoints[family], "classification", torch.float32) for _ in range(2))
    run_unpadded(packed)
    generator = torch.Generator().manual_seed(0)
    many = torch.randint(1, 9, (2 * unpadded.TEXTS_IN_A_BLOCK + 3,), generator=generator)
    for lengths in (torch.ones(5, dtype=torch.long), many):
        mask = (torch.arange(9) < lengths[:, None]).long()
        batch = {"input_ids": torch.randint(5, 40, mask.shape, generator=generator), "attention_mask": mask}
        torch.testing.assert_close(packed(**batch).logits, padded(**batch).logits, atol=1e-5, rtol=0)


def test_packing_and_back():
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    packing = packing_of(mask.long())
    states = torch.randn(4, 12, 3)
    packed = packing.pack(states)
    assert len(packed) == sum(LENGTHS)
    assert torch.equal(packing.unpack(packed), states * mask[..., None])
    assert torch.equal(packed[packing.firsts], states[:, 0])
    assert packing.offsets.diff().tolist() == sorted(LENGTHS, reverse=True)


def test_rows_from_the_collator_are_accepted(checkpoints):
    """They are what a GPU packs by; see the collator's own test for what they are."""
    model = load(checkpoints["bert"], "classification", torch.float32)
    run_unpadded(model)
    batch = make_batch(model.config.vocab_size)
    rows = batch["attention_mask"].flatten().nonzero().squeeze(1)
    assert torch.equal(model(**batch, token_rows=rows).logits, model(**batch).logits)


def test_hidden_states_are_padded_when_asked_for(checkpoints):
    plain, model = (load(checkpoints["bert"], "classification", torch.float32) for _ in range(2))
    run_unpadded(model)
    batch = make_batch(model.config.vocab_size)
    expected = plain(**batch, output_hidden_states=True).hidden_states
    found = model(**batch, output_hidden_states=True).hidden_states
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert model(**batch).logits.shape == (4, 2)  # and the next call runs unpadded again


def test_an_encoder_without_head_gives_its_states_back_padded(checkpoints):
    plain, model = (AutoModel.from_pretrained(checkpoints["bert"]).eval() for _ in range(2))
    run_unpadded(model)
    batch = make_batch(model.config.vocab_size)
    real = batch["attention_mask"].bool()
    with torch.inference_mode():
        expected, found = plain(**batch).last_hidden_state, model(**batch).last_hidden_state
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)
    assert not found[~real].any()


def test_dropout_is_on_in_training(checkpoints):
    model = load(checkpoints["bert"], "classification", torch.float32)
    run_unpadded(model)
    batch = make_batch(model.config.vocab_size)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    for module in model.modules():  # the attention's own dropout, too
        if isinstance(module, torch.nn.Dropout) and module is not model.bert.encoder.layer[0].attention.self.dropout:
            module.p = 0.0
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_what_cannot_run_packed_runs_padded(checkpoints):
    """Gradient checkpointing (its second forward knows no packing), a decoder, another attention implementation."""
    plain, model = (load(checkpoints["bert"], "classification", torch.float32) for _ in range(2))
    run_unpadded(model)
    batch = make_batch(model.config.vocab_size)
    expected = plain(**batch).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=0)
    model.set_attn_implementation(unpadded.NAME)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(getattr(module, "dropout", None), "p"):
            module.dropout.p = 0.0
    model.gradient_checkpointing_enable()
    model.train()
    logits = model(**batch).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    logits.sum().backward()
    assert model.bert.encoder.layer[0].intermediate.dense.weight.grad.any()
    plain.config.is_decoder = True
    assert not can_run_unpadded(plain)


def test_a_failed_call_leaves_nothing_behind(checkpoints):
    model = load(checkpoints["bert"], "classification", torch.float32)
    run_unpadded(model)
    batch = make_batch(model.config.vocab_size)
    with pytest.raises(IndexError):
        model(input_ids=batch["input_ids"] + 10**6, attention_mask=batch["attention_mask"])
    whole = torch.ones_like(batch["input_ids"])
    torch.testing.assert_close(
        model(batch["input_ids"]).logits, model(batch["input_ids"], attention_mask=whole).logits, atol=1e-5, rtol=0
    )


def test_nothing_of_it_is_saved(checkpoints, tmp_path):
    model = load(checkpoints["bert"], "classification", torch.float32)
    run_unpadded(model)
    copied = copy.deepcopy(model)
    batch = make_batch(model.config.vocab_size)
    assert torch.equal(copied(**batch).logits, model(**batch).logits)
    model.save_pretrained(tmp_path)
    assert unpadded.NAME not in (tmp_path / "config.json").read_text()
    again = load_model(str(tmp_path), "classification", label_names=["LABEL_0", "LABEL_1"])
    assert is_unpadded(model)
    assert not is_unpadded(again)


def test_flaubert_cannot(checkpoints):
    model = load(checkpoints["flaubert"], "classification", torch.float32)
    assert HEADS["classification"] in type(model).__name__
    assert not can_run_unpadded(model)
    with pytest.raises(InputError, match="^--unpadded true: this flaubert computes with padding only; accepted are"):
        run_unpadded(model)
