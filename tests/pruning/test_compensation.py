"""What removed units leave behind: exact where they are constant, nearer than nothing on the texts it comes from."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import oas

from bertdyn.models.anatomy import anatomy_of
from bertdyn.pruning.compensation import METHODS, compensate, oas_damping
from bertdyn.pruning.moments import InputMoments
from bertdyn.pruning.plan import Plan, identity
from bertdyn.pruning.shape import Site, projection, shape_of
from bertdyn.pruning.statistics import input_moments
from bertdyn.pruning.surgery import prune
from tests.families import FAMILIES, tolerance_of
from tests.pruning.models import batch, load, outputs, random_plan


def make_constant(model, site, units):
    """These units give out the same for every token: neurons by their bias; heads, whose weights sum to 1, too."""
    layer, width = anatomy_of(model).layers[site.layer - 1], shape_of(model).unit_width(site.kind)
    inputs = [unit * width + i for unit in units for i in range(width)]
    with torch.no_grad():
        inner = layer["value" if site.kind == "attention" else "ffn_in"]
        inner.weight[inputs] = 0
        inner.bias[inputs] = 0.5 + torch.rand(len(inputs), dtype=inner.bias.dtype)


def mended(model, plan, inputs, method):
    """`model` cut by `plan`, with one compensation in all blocks."""
    moments = input_moments(model, [inputs], covariance=True)
    projections = {}
    for site in plan.kept:
        own = projection(model, site)
        projections[site] = compensate(own.weight.detach(), own.bias.detach(), plan.inputs(site), moments[site], method)
    return prune(model, plan, projections)


@pytest.mark.parametrize("head", ["classification", "question-answering"])
@pytest.mark.parametrize("family", FAMILIES)
def test_constants_fold_into_the_bias_without_a_trace(checkpoints, family, head):
    model = load(checkpoints[family], head)
    shape, inputs = shape_of(model), batch(model)
    kept = dict(identity(shape).kept)
    for site in shape.sites:
        units = tuple(range(0, shape.units(site), 3))
        make_constant(model, site, units)
        kept[site] = tuple(unit for unit in kept[site] if unit not in units)
    if not shape.shares_layers:  # whole blocks, of which nothing but the bias is left
        for site in (Site("attention", 2), Site("ffn", 1)):
            make_constant(model, site, range(shape.units(site)))
            kept[site] = ()
    plan, expected = Plan(shape, kept), outputs(model, inputs)
    others = batch(model, (5, 8), seed=1)  # texts that were not looked at
    expected_of_others = outputs(model, others)
    tolerance = tolerance_of(family, 1e-12)
    for method in ("mean", "least_squares"):
        pruned = mended(model, plan, inputs, method)
        for texts, wanted in ((inputs, expected), (others, expected_of_others)):
            for one, other in zip(outputs(pruned, texts), wanted, strict=True):
                torch.testing.assert_close(one, other, atol=tolerance, rtol=0)
    cut = outputs(mended(model, plan, inputs, "none"), inputs)
    assert max((a - b).abs().max() for a, b in zip(cut, expected, strict=True)) > 1e-3


def test_the_mean_of_what_goes_is_folded_into_the_bias_alone(checkpoints):
    """Kept columns stay bit for bit; only the bias takes the mean."""
    model = load(checkpoints["bert"])
    plan, inputs = random_plan(shape_of(model), seed=2), batch(model)
    assert plan.result != plan.shape
    moments = input_moments(model, [inputs])
    for site in plan.kept:
        own, stays = projection(model, site), plan.inputs(site)
        found = compensate(own.weight.detach(), own.bias.detach(), stays, moments[site], "mean")
        assert torch.equal(found.weight, own.weight[:, stays])
        centred = moments[site].mean.clone()
        centred[stays] = 0
        torch.testing.assert_close(found.bias, own.weight @ centred + own.bias, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_removed_leaves_the_weights_bit_for_bit(checkpoints, method):
    model = load(checkpoints["bert"], dtype=torch.float32)
    pruned = mended(model, identity(shape_of(model)), batch(model), method)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), pruned.state_dict().values(), strict=True)
    )


def block(num_rows, width=10, hidden=6, rank=10, seed=0):
    """Correlated inputs [rows, width] of a projection, its weight and bias."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    rows = draw(num_rows, rank) @ draw(rank, width) + 0.1 * draw(num_rows, width) + 2 * draw(width)
    return rows, draw(hidden, width), draw(hidden)


def error(rows, weight, bias, kept, method):
    """Mean squared error of what the block adds."""
    found = compensate(weight, bias, kept, InputMoments.of(rows, True), method)
    assert found.weight.shape == (len(weight), len(kept))
    missing = rows @ weight.T + bias - (rows[:, kept] @ found.weight.T + found.bias)
    return float(missing.square().sum(dim=1).mean())


@given(
    num_rows=st.sampled_from([1, 2, 3, 8, 50, 400]),
    rank=st.sampled_from([1, 3, 10]),
    seed=st.integers(0, 10**6),
    kept=st.sets(st.integers(0, 9), max_size=9).map(sorted),
)
def test_each_method_is_nearer_than_the_one_before(num_rows, rank, seed, kept):
    """On the rows that it is computed from, whatever is removed; also where there are fewer rows than inputs."""
    rows, weight, bias = block(num_rows, rank=rank, seed=seed)
    none, mean, least_squares = (error(rows, weight, bias, kept, method) for method in METHODS)
    assert np.isfinite([none, mean, least_squares]).all()
    assert mean <= none * (1 + 1e-10)
    assert least_squares <= mean * (1 + 1e-10) + 1e-12
    if not kept:
        assert least_squares == mean


def test_what_the_others_say_exactly_is_not_lost():
    rows, weight, bias = block(5000, rank=3)
    kept = list(range(6))
    assert error(rows, weight, bias, kept, "least_squares") < 0.02 * error(rows, weight, bias, kept, "mean")


def test_few_rows_of_many_inputs_do_not_explode():
    """Without damping, three rows would be read as an exact law, and weights would grow without bound."""
    rows, weight, bias = block(3, width=200, rank=200)
    found = compensate(weight, bias, list(range(100)), InputMoments.of(rows, True), "least_squares")
    assert torch.isfinite(found.weight).all()
    assert torch.isfinite(found.bias).all()
    assert found.weight.norm() < 3 * weight.norm()
    fresh, _, _ = block(500, width=200, rank=200, seed=1)
    fresh = fresh - fresh.mean(dim=0) + rows.mean(dim=0)
    kept, exact = list(range(100)), fresh @ weight.T + bias
    lost = {
        method: float((exact - fresh[:, kept] @ out.weight.T - out.bias).square().mean())
        for method in ("mean", "least_squares")
        for out in [compensate(weight, bias, kept, InputMoments.of(rows, True), method)]
    }
    assert lost["least_squares"] < 1.5 * lost["mean"]


def test_damping_is_that_of_the_oracle_approximating_shrinkage():
    """As scikit-learn estimates it, which leaves out 2 / p."""
    p = 300
    for num_rows in (50, 400, 3000):
        rows, _, _ = block(num_rows, width=p, rank=p)
        rows = rows * torch.linspace(0.5, 2, p)
        moments = InputMoments.of(rows, True)
        _, rho = oas(rows.numpy())
        mu = float(moments.covariance.trace()) / p
        assert oas_damping(moments.covariance, num_rows) == pytest.approx(rho * mu / (1 - rho), rel=0.02)
