"""What is recorded in a batch is what the model computes on each text alone, in every family, padded or not."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from bertdyn.models.anatomy import anatomy_of
from bertdyn.models.config import SITES
from bertdyn.models.recording import recording
from bertdyn.models.unpadded import can_run_unpadded, run_unpadded
from tests.families import FAMILIES, LAYERS
from tests.models.test_unpadded import CAN, LENGTHS, make_batch

EVERYTHING = {site: range(site == "attention" or site != "hidden", LAYERS + 1) for site in SITES}
WAYS = [(family, "padded") for family in FAMILIES] + [(family, "unpadded") for family in CAN]


def load(folder, way, auto_class=AutoModelForSequenceClassification):
    torch.manual_seed(0)
    model = auto_class.from_pretrained(folder).eval()
    if way == "unpadded":
        assert can_run_unpadded(model)
        run_unpadded(model)
    return model


@torch.inference_mode()
def alone(folder, ids):
    """The same of one text, by transformers' own records and by hooks that keep every call."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    kept = {name: [] for name in ("context", "attention_output", "ffn_in", "ffn_out")}
    anatomy = anatomy_of(model)
    for layer in anatomy.layers:
        for name in ("attention_output", "ffn_in"):
            layer[name].register_forward_hook(lambda module, args, output, name=name: kept[name].append(output[0]))
        layer["attention_output"].register_forward_pre_hook(lambda module, args: kept["context"].append(args[0][0]))
        layer["ffn_out"].register_forward_hook(lambda module, args, output: kept["ffn_out"].append(args[0][0]))
    output = model(input_ids=ids[None], output_hidden_states=True, output_attentions=True)
    values = {("hidden", layer): hidden[0] for layer, hidden in enumerate(output.hidden_states)}
    for number in range(1, LAYERS + 1):
        values["context", number] = kept["context"][number - 1]
        values["attention_output", number] = kept["attention_output"][number - 1]
        values["ffn_pre", number] = kept["ffn_in"][number - 1]
        values["ffn_post", number] = kept["ffn_out"][number - 1]
        values["attention", number] = output.attentions[number - 1][0, :, 0].mean(dim=0)
    return values, output.logits[0]


@pytest.mark.parametrize(("family", "way"), WAYS)
def test_what_is_recorded_equals_the_text_alone(checkpoints, family, way):
    model = load(checkpoints[family], way)
    batch = make_batch(model.config.vocab_size)
    with torch.inference_mode(), recording(model, EVERYTHING) as record:
        recorded = record(batch)
    assert set(recorded.values) == {(site, layer) for site, layers in EVERYTHING.items() for layer in layers}
    texts = recorded.packing.rows // recorded.packing.shape[1]
    for number, length in enumerate(LENGTHS):
        expected, logits = alone(checkpoints[family], batch["input_ids"][number, :length])
        torch.testing.assert_close(recorded.output.logits[number], logits, atol=1e-5, rtol=0)
        for key, values in recorded.values.items():
            torch.testing.assert_close(
                values[texts == number], expected[key], atol=1e-5, rtol=0, msg=str((key, number))
            )


def test_no_hook_stays_and_logits_are_as_before(checkpoints):
    model = load(checkpoints["albert"], "unpadded")
    batch = make_batch(model.config.vocab_size)
    model(**batch, output_hidden_states=True)  # transformers' own hooks stay
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with torch.inference_mode():
        before = model(**batch).logits
        with pytest.raises(ZeroDivisionError), recording(model, EVERYTHING) as record:
            inside = record(batch).output.logits
            raise ZeroDivisionError
        after = model(**batch).logits
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    torch.testing.assert_close(inside, before, atol=1e-6, rtol=0)
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def test_only_the_wanted_layers_are_kept(checkpoints):
    model = load(checkpoints["albert"], "unpadded", AutoModel)
    with torch.inference_mode(), recording(model, {"hidden": [2], "ffn_post": [1, 3]}) as record:
        values = record(make_batch(model.config.vocab_size)).values
    assert set(values) == {("hidden", 2), ("ffn_post", 1), ("ffn_post", 3)}


def test_half_precision_attention_is_computed_in_float32(checkpoints):
    model = load(checkpoints["bert"], "unpadded").to(torch.bfloat16)
    with torch.inference_mode(), recording(model, {"attention": [1], "hidden": [1]}) as record:
        recorded = record(make_batch(model.config.vocab_size))
    assert recorded.values["hidden", 1].dtype == torch.bfloat16
    attention = recorded.values["attention", 1]
    texts = recorded.packing.rows // recorded.packing.shape[1]
    torch.testing.assert_close(torch.zeros(4).index_add_(0, texts, attention), torch.ones(4))
