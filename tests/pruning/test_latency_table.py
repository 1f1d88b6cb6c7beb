"""The latency of an encoder is a sum over its blocks, measured here."""

import pandas as pd
import pytest
import torch
from torch import nn

from bertdyn.pruning import latency_table
from bertdyn.pruning.budget import by_budget
from bertdyn.pruning.plan import Plan, identity
from bertdyn.pruning.shape import KINDS, Site, shape_of
from bertdyn.pruning.surgery import prune
from tests.families import FAMILIES
from tests.pruning.models import batch, load, random_plan, rises

BATCH = (2, 6)


def products(run):
    """Multiply-adds of all linear layers in one call."""
    counts = []

    def hook(module, args, output):
        if isinstance(module, nn.Linear):
            counts.append(args[0].numel() * module.out_features)

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        run()
    finally:
        handle.remove()
    return float(sum(counts))


@pytest.fixture
def costs_of(monkeypatch):
    """The table of a machine that takes a second for a multiply-add."""

    def measure(runners, rounds, *, seed):
        return pd.DataFrame({name: [products(run)] * rounds for name, run in runners.items()})

    monkeypatch.setattr(latency_table, "measure", measure)
    return lambda model: latency_table.measured_costs(model, *BATCH)


def encoder(folder):
    return load(folder, "encoder", dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sum_over_blocks_is_what_the_encoder_takes(checkpoints, costs_of, family):
    """Also where layers are shared, whose block is called in each of them."""
    model = encoder(checkpoints[family])
    costs, texts = costs_of(model), batch(model, BATCH[1:] * BATCH[0])
    for plan in (identity(shape_of(model)), random_plan(shape_of(model), seed=12)):
        pruned = prune(model, plan)
        assert costs.of(plan.result) == pytest.approx(products(lambda pruned=pruned: pruned(**texts)))


def test_layers_that_are_cut_differently_add_up_too(checkpoints, costs_of):
    """A pruned model can be pruned again."""
    dense = encoder(checkpoints["bert"])
    kept = dict(random_plan(shape_of(dense), seed=13).kept)
    kept |= {Site("attention", 2): (), Site("ffn", 1): (), Site("ffn", 2): tuple(range(5))}
    model = prune(dense, Plan(shape_of(dense), kept))
    costs, texts = costs_of(model), batch(model, BATCH[1:] * BATCH[0])
    assert costs.of(shape_of(model)) == pytest.approx(products(lambda: model(**texts)))


def test_a_budget_of_what_was_measured(checkpoints):
    model = encoder(checkpoints["bert"])
    shape, training = shape_of(model), model.training
    before, threads = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_num_threads()
    costs = latency_table.measured_costs(model, *BATCH)
    assert costs.name == "latency"
    assert costs.of(shape) >= costs.fixed > 0
    assert all(costs.block(kind, 0) == 0 for kind in KINDS)
    assert rises(costs, "attention", 4)
    assert rises(costs, "ffn", 64)
    scores = {site: torch.rand(shape.units(site)).double() for site in shape.sites}
    share = (costs.fixed + 0.6 * (costs.of(shape) - costs.fixed)) / costs.of(shape)
    plan = by_budget(shape, scores, costs, share, allow_empty=True)
    assert costs.of(plan.result) <= share * costs.of(shape) * (1 + 1e-6)
    assert (model.training, torch.get_num_threads()) == (training, threads)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_texts_longer_than_the_model_takes_are_refused(checkpoints):
    with pytest.raises(ValueError, match="positions for 1 to 128"):
        latency_table.measured_costs(encoder(checkpoints["roberta"]), 1, 200)
