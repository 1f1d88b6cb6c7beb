"""Costs from sizes alone are those of real models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from bertdyn.models.anatomy import anatomy_of, places
from bertdyn.pruning.cost import flop_costs, grid, latency_costs, parameter_costs
from bertdyn.pruning.plan import Plan, identity
from bertdyn.pruning.shape import Shape, Site, shape_of
from bertdyn.pruning.surgery import prune
from tests.families import FAMILIES
from tests.pruning.models import batch, load, random_plan, rises


def plans(shape):
    """Nothing, something, and whole blocks removed."""
    some = random_plan(shape, seed=11)
    if shape.shares_layers:
        return [identity(shape), some]
    return [identity(shape), some, Plan(shape, some.kept | {Site("attention", 2): (), Site("ffn", 3): ()})]


def total(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_right(checkpoints, family):
    model = load(checkpoints[family])
    costs = parameter_costs(shape_of(model))
    for plan in plans(shape_of(model)):
        pruned = prune(model, plan)
        of = places(pruned)
        in_layers = sum(p.numel() for name, p in pruned.named_parameters() if of[name].layer is not None)
        assert costs.of(shape_of(pruned)) == costs.of(plan.result) == in_layers
        assert total(model) - total(pruned) == costs.of(plan.shape) - costs.of(plan.result)
        assert parameter_costs(shape_of(pruned)).of(plan.result) == in_layers


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert", "flaubert"])
def test_flops_are_what_torch_counts(checkpoints, family):
    model = load(checkpoints[family], "encoder", dtype=torch.float32)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    batch_size, length = 3, 9
    inputs = batch(model, (length,) * batch_size)
    outside = 0
    if family == "albert":  # from the narrower embeddings; no part of any layer
        mapping = anatomy_of(model).embeddings["embeddings_projection"]
        outside = 2 * batch_size * length * mapping.in_features * mapping.out_features
    for plan in plans(shape_of(model)):
        pruned = prune(model, plan)
        if family != "flaubert":  # knows no other
            pruned.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            pruned(**inputs)
        costs = flop_costs(shape_of(model), batch_size, length)
        assert costs.of(plan.result) == counter.get_total_flops() - outside
    assert flop_costs(shape_of(model), length=length).of(plan.result) * batch_size == costs.of(plan.result)


def test_the_published_model_has_the_published_size():
    """System 4: BERT-small, heads and neurons cut in layers 3 and 4; 17.72 % of all parameters."""
    config = BertConfig(
        vocab_size=30522, num_hidden_layers=4, hidden_size=512, num_attention_heads=8, intermediate_size=2048
    )
    with torch.device("meta"):
        dense = BertForSequenceClassification(config)
    shape = shape_of(dense)
    assert shape == Shape((8,) * 4, (2048,) * 4, head_size=64, hidden_size=512, depth=4)
    kept = dict(identity(shape).kept)
    for layer, heads, neurons in ((3, 6, 193), (4, 1, 83)):
        kept |= {Site("attention", layer): tuple(range(heads)), Site("ffn", layer): tuple(range(neurons))}
    pruned = prune(dense, Plan(shape, kept))
    assert pruned.device.type == "meta"
    assert total(dense) == 28_764_674
    assert total(pruned) == 23_667_798
    assert round(100 * (total(pruned) / total(dense) - 1), 2) == -17.72
    parameters = parameter_costs(shape)
    assert round(100 * (parameters.of(shape_of(pruned)) / parameters.of(shape) - 1), 1) == -40.4
    flops = flop_costs(shape)
    assert round(100 * (flops.of(shape_of(pruned)) / flops.of(shape) - 1), 1) == -40.2


def test_latencies_are_interpolated_and_never_fall():
    costs = latency_costs(1.0, {"attention": {2: 0.4, 4: 0.5}, "ffn": {10: 0.3, 20: 0.2, 30: 0.7}})
    assert costs.name == "latency"
    found = [costs.block("attention", n) for n in (0, 1, 2, 3, 4)]
    assert found == pytest.approx([0, 0.2, 0.4, 0.45, 0.5])
    # 20 neurons were faster than 10: noise, which the search must not see
    assert [costs.block("ffn", n) for n in (0, 5, 10, 15, 20, 25, 30)] == pytest.approx([0, 0.15, *[0.3] * 3, 0.5, 0.7])
    assert all(rises(costs, kind, width) for kind, width in (("attention", 4), ("ffn", 30)))
    shape = Shape((4, 2, 0), (30, 0, 5), head_size=8, hidden_size=32, depth=3)
    assert costs.of(shape) == pytest.approx(1 + 0.5 + 0.4 + 0.7 + 0.15)
    assert costs.table(shape, Site("attention", 1), [0, 2, 4]) == pytest.approx([0, 0.4, 0.5])


@pytest.mark.parametrize("width", [1, 4, 12, 13, 1536])
def test_a_grid_ends_at_the_full_width(width):
    found = grid(width)
    assert found[-1] == width
    assert found == sorted(set(found))
    assert found[0] >= 1
    assert len(found) == min(width, 12)
    gaps = [b - a for a, b in zip([0, *found], found, strict=False)]
    assert max(gaps) - min(gaps) <= 1
