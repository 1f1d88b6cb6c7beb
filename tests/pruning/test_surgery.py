"""A pruned model is the masked dense one, of every family, however attention is computed."""

import hashlib

import pytest
import torch

from bertdyn.errors import InputError
from bertdyn.models.anatomy import anatomy_of
from bertdyn.models.unpadded import can_run_unpadded, run_unpadded
from bertdyn.pruning.gates import gated
from bertdyn.pruning.plan import Plan, identity
from bertdyn.pruning.shape import Site, projection, shape_of
from bertdyn.pruning.surgery import prune
from tests.families import FAMILIES
from tests.pruning.models import AUTO, batch, gates_of, load, outputs, random_plan

EMPTY = [family for family in FAMILIES if family != "albert"]


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def masked(model, plan, inputs):
    with gated(model, gates_of(plan, model.dtype)):
        return outputs(model, inputs)


@pytest.mark.parametrize("head", AUTO)
@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_is_masked_dense(checkpoints, family, head):
    model = load(checkpoints[family], head)
    plan, inputs = random_plan(shape_of(model)), batch(model)
    expected = masked(model, plan, inputs)
    pruned = prune(model, plan)
    assert shape_of(pruned) == plan.result != plan.shape
    assert_same(outputs(pruned, inputs), expected, atol=1e-12, rtol=0)
    assert max((a - b).abs().max() for a, b in zip(outputs(model, inputs), expected, strict=True)) > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa", "unpadded"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "flaubert"])
def test_whatever_computes_attention_in_float32(checkpoints, family, attention):
    options = {} if attention == "unpadded" else {"attn_implementation": attention}
    model = load(checkpoints[family], dtype=torch.float32, **options)
    plan, inputs = random_plan(shape_of(model), seed=2), batch(model)
    expected = masked(model, plan, inputs)
    pruned = prune(model, plan)
    if attention == "unpadded":
        assert can_run_unpadded(pruned)
        run_unpadded(pruned)
    else:
        pruned.set_attn_implementation(attention)
    assert_same(outputs(pruned, inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_changes_nothing(checkpoints, family):
    model = load(checkpoints[family], dtype=torch.float32)
    pruned = prune(model, identity(shape_of(model)))
    before, after = model.state_dict(), pruned.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(
        torch.equal(a, b) for a, b in zip(outputs(model, batch(model)), outputs(pruned, batch(model)), strict=True)
    )
    own = ("model_type", "layer_num_heads", "layer_intermediate_sizes", "auto_map", "architectures", "dtype")
    configs = [{k: v for k, v in m.config.to_dict().items() if k not in own} for m in (model, pruned)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("family", "way"),
    [(f, way) for f in EMPTY for way in ("padded", "unpadded") if (f, way) != ("flaubert", "unpadded")],
)
def test_a_block_without_units_leaves_its_bias(checkpoints, family, way):
    model = load(checkpoints[family])
    shape = shape_of(model)
    kept = dict(random_plan(shape, seed=3).kept)
    kept |= {Site("attention", 1): (), Site("ffn", 2): (), Site("attention", 3): (), Site("ffn", 3): ()}
    plan, inputs = Plan(shape, kept), batch(model)
    expected = masked(model, plan, inputs)
    pruned = prune(model, plan)
    if way == "unpadded":
        run_unpadded(pruned)
    assert shape_of(pruned).heads[0] == shape_of(pruned).neurons[1] == 0
    assert_same(outputs(pruned, inputs), expected, atol=1e-12, rtol=0)
    assert all(parameter.numel() for parameter in pruned.parameters())  # nothing of width 0


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_masked_model(checkpoints, family):
    """One step of SGD gives the weights that the masked model gets."""
    model = load(checkpoints[family])
    plan, inputs = random_plan(shape_of(model), seed=4), batch(model)
    pruned = prune(model, plan)
    for m in (model, pruned):
        m.train(False)
    labels = torch.tensor([0, 1, 0])
    with gated(model, gates_of(plan)):
        model(**inputs, labels=labels).loss.backward()
    pruned(**inputs, labels=labels).loss.backward()
    for m in (model, pruned):
        with torch.no_grad():
            for parameter in m.parameters():
                parameter -= 0.1 * parameter.grad if parameter.grad is not None else 0
    assert_same(
        list(prune(model, plan).state_dict().values()), list(pruned.state_dict().values()), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_twice_is_pruning_with_the_composed_plan(checkpoints, family):
    model = load(checkpoints[family])
    first = random_plan(shape_of(model), seed=5, least=2)
    once = prune(model, first)
    second = random_plan(shape_of(once), seed=6)
    twice = prune(once, second)
    at_once = prune(model, first.then(second))
    assert type(twice) is type(at_once) is type(once)
    assert all(
        torch.equal(a, b) for a, b in zip(twice.state_dict().values(), at_once.state_dict().values(), strict=True)
    )
    same = prune(once, identity(shape_of(once)))
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), same.state_dict().values(), strict=True))


def permute(model, site, order):
    """The same function with the units of one block in another order."""
    layer = anatomy_of(model).layers[site.layer - 1]
    width = shape_of(model).unit_width(site.kind)
    rows = torch.tensor([unit * width + i for unit in order for i in range(width)])
    with torch.no_grad():
        for component in ("query", "key", "value") if site.kind == "attention" else ("ffn_in",):
            layer[component].weight.copy_(layer[component].weight[rows])
            layer[component].bias.copy_(layer[component].bias[rows])
        projection(model, site).weight.copy_(projection(model, site).weight[:, rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_units_means_nothing(checkpoints, family):
    model = load(checkpoints[family])
    inputs, shape = batch(model), shape_of(model)
    plan = random_plan(shape, seed=7)
    expected, pruned = outputs(model, inputs), outputs(prune(model, plan), inputs)
    kept = {}
    for number, (site, units) in enumerate(plan.kept.items()):
        order = torch.randperm(shape.units(site), generator=torch.Generator().manual_seed(number)).tolist()
        permute(model, site, order)
        kept[site] = tuple(sorted(order.index(unit) for unit in units))
    assert_same(outputs(model, inputs), expected, atol=1e-12, rtol=0)
    assert_same(outputs(prune(model, Plan(shape, kept)), inputs), pruned, atol=1e-12, rtol=0)


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix in (".safetensors", ".json")
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_reloaded_bit_for_bit(checkpoints, family, tmp_path):
    model = load(checkpoints[family], dtype=torch.float32)
    pruned, inputs = prune(model, random_plan(shape_of(model), seed=8)), batch(model)
    pruned.save_pretrained(tmp_path / "once")
    again = AUTO["classification"].from_pretrained(tmp_path / "once").eval()
    assert type(again) is type(pruned)
    assert all(
        torch.equal(a, b) for a, b in zip(pruned.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert torch.equal(outputs(pruned, inputs)[0], outputs(again, inputs)[0])
    again.save_pretrained(tmp_path / "twice")
    assert digests(tmp_path / "once") == digests(tmp_path / "twice")
    # any other head goes on the same encoder
    for head in ("encoder", "question-answering"):
        other = AUTO[head].from_pretrained(tmp_path / "once").eval()
        expected = pruned.base_model(**inputs).last_hidden_state
        assert torch.equal(other.base_model(**inputs).last_hidden_state, expected)


def test_the_scale_of_attention_is_that_of_the_dense_head_size(checkpoints, tmp_path):
    model = load(checkpoints["bert"])
    pruned, inputs = prune(model, random_plan(shape_of(model), seed=9)), batch(model)
    pruned.save_pretrained(tmp_path)
    again = AUTO["classification"].from_pretrained(tmp_path).eval()
    for m in (pruned, again):
        assert {layer.attention.self.scaling for layer in m.bert.encoder.layer} == {(32 // 4) ** -0.5}
    expected = outputs(pruned, inputs)[0]
    for layer in pruned.bert.encoder.layer:
        layer.attention.self.scaling = (32 // layer.attention.self.num_attention_heads) ** -0.5
    assert (outputs(pruned, inputs)[0] - expected).abs().max() > 1e-6


def test_a_plan_for_another_shape_is_refused(checkpoints):
    model = load(checkpoints["bert"])
    once = prune(model, random_plan(shape_of(model), seed=10))
    with pytest.raises(InputError, match="the plan is for an encoder with heads .* this one has heads"):
        prune(once, random_plan(shape_of(model), seed=10))
