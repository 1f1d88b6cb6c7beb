"""Each criterion is its formula, and knows units by what they do, not by where they stand."""

import copy
import math

import pytest
import torch

from bertdyn.models.anatomy import anatomy_of
from bertdyn.pruning.changes import between_states, between_texts
from bertdyn.pruning.config import CRITERIA
from bertdyn.pruning.moments import InputMoments
from bertdyn.pruning.scores import IN_LOSS, Evidence, comparable, unit_scores
from bertdyn.pruning.shape import Site, projection, shape_of
from bertdyn.pruning.statistics import Gradients, gate_gradients, input_moments
from bertdyn.tasks.classification import Classification
from tests.pruning.models import batch, load

MEASURED = [criterion for criterion in CRITERIA if criterion not in ("auto", "random")]


def labelled(model):
    lengths = (9, 4, 7, 5)
    return batch(model, lengths) | {"labels": torch.tensor([0, 1, 1, 0]), "index": torch.arange(4)}


def evidence_of(model, other):
    """All that any criterion needs, measured."""
    texts = [labelled(model)]
    changes = {
        "activation_change": between_texts(model, texts),
        "state_change": between_states(model, other, texts),
    }
    return Evidence(input_moments(model, texts), gate_gradients(model, texts, Classification()), changes)


def made_up(model, seed=0):
    """Evidence of random numbers, for formulas."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    shape = shape_of(model)
    widths = {site: projection(model, site).in_features for site in shape.sites}
    return Evidence(
        {site: InputMoments.of(3 + draw(20, width), site.layer == 1) for site, width in widths.items()},
        Gradients(
            7,
            {site: draw(shape.units(site)).abs() for site in shape.sites},
            {site: draw(shape.units(site)).abs() for site in shape.sites},
        ),
        {
            name: {site: draw(width).abs() for site, width in widths.items()}
            for name in ("activation_change", "state_change")
        },
    )


def naive(criterion, model, evidence, site, unit):
    shape = shape_of(model)
    width = shape.unit_width(site.kind)
    inputs = range(unit * width, (unit + 1) * width)
    out = projection(model, site).weight.detach().numpy()  # [hidden, inputs]
    if criterion == "taylor":
        return evidence.gradients.absolute[site][unit].item() / 7
    if criterion == "fisher":
        return evidence.gradients.fisher[site][unit].item() / 7
    if criterion in evidence.changes:
        return sum(evidence.changes[criterion][site][i].item() for i in inputs) / width
    if criterion == "magnitude":
        layer = anatomy_of(model).layers[site.layer - 1]
        weights = [out[:, i] for i in inputs]
        for part in ("query", "key", "value") if site.kind == "attention" else ("ffn_in",):
            weights += [layer[part].weight.detach().numpy()[i] for i in inputs]
        return math.sqrt(sum(float(w) ** 2 for row in weights for w in row))
    moments = evidence.moments[site]
    variance = [moments.scatter[i, i] if moments.scatter.dim() == 2 else moments.scatter[i] for i in range(len(out[0]))]
    total = 0.0
    for i in inputs:
        spread, mean = float(variance[i]) / moments.num_rows, float(moments.mean[i])
        if criterion == "fluctuation":
            total += spread * sum(float(w) ** 2 for w in out[:, i])
        else:
            total += math.sqrt(spread + mean**2) * sum(abs(float(w)) for w in out[:, i])
    return total


@pytest.mark.parametrize("criterion", MEASURED)
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_score_is_its_formula(checkpoints, family, criterion):
    model = load(checkpoints[family])
    evidence = made_up(model)
    # magnitude needs no data at all
    found = unit_scores(criterion, model, Evidence() if criterion == "magnitude" else evidence)
    shape = shape_of(model)
    assert list(found) == shape.sites
    for site in shape.sites:
        assert found[site].dtype == torch.float64
        expected = [naive(criterion, model, evidence, site, unit) for unit in range(shape.units(site))]
        assert found[site].tolist() == pytest.approx(expected, rel=1e-10)


def permuted(model, orders):
    """The same function with the units of each block in another order."""
    model = copy.deepcopy(model)
    for site, order in orders.items():
        layer, width = anatomy_of(model).layers[site.layer - 1], shape_of(model).unit_width(site.kind)
        rows = torch.tensor([unit * width + i for unit in order for i in range(width)])
        with torch.no_grad():
            for part in ("query", "key", "value") if site.kind == "attention" else ("ffn_in",):
                layer[part].weight.copy_(layer[part].weight[rows])
                layer[part].bias.copy_(layer[part].bias[rows])
            projection(model, site).weight.copy_(projection(model, site).weight[:, rows])
    return model


@pytest.mark.parametrize("family", ["bert", "albert", "flaubert"])
def test_units_in_another_order_have_the_same_scores(checkpoints, family):
    model = load(checkpoints[family])
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    shape = shape_of(model)
    orders = {site: torch.randperm(shape.units(site), generator=generator).tolist() for site in shape.sites}
    before, after = evidence_of(model, other), evidence_of(permuted(model, orders), permuted(other, orders))
    for criterion in MEASURED:
        one, two = unit_scores(criterion, model, before), unit_scores(criterion, permuted(model, orders), after)
        for site, order in orders.items():
            torch.testing.assert_close(two[site], one[site][order], rtol=1e-4, atol=1e-6 * float(one[site].max()))
            assert len(set(one[site].tolist())) == shape.units(site)


def test_a_unit_that_nothing_reads_is_worth_nothing(checkpoints):
    model = load(checkpoints["bert"])
    shape = shape_of(model)
    with torch.no_grad():
        for site in shape.sites:
            width = shape.unit_width(site.kind)
            projection(model, site).weight[:, 2 * width : 3 * width] = 0
    evidence = evidence_of(model, model)
    for criterion in ("wanda", "fluctuation", "taylor", "fisher"):
        for values in unit_scores(criterion, model, evidence).values():
            assert values[2] == 0
            assert (values > 0).sum() == len(values) - 1


def test_random_scores_depend_on_the_seed_alone(checkpoints):
    model = load(checkpoints["bert"])
    one, same = (unit_scores("random", model, Evidence(), seed=3) for _ in range(2))
    other = unit_scores("random", model, Evidence(), seed=4)
    for site in shape_of(model).sites:
        assert torch.equal(one[site], same[site])
        assert not torch.equal(one[site], other[site])
    assert not torch.equal(one[Site("ffn", 1)], one[Site("ffn", 2)])


@pytest.mark.parametrize("criterion", [criterion for criterion in CRITERIA if criterion != "auto"])
def test_comparable_scores_are_of_the_loss_or_sum_to_one(checkpoints, criterion):
    model = load(checkpoints["bert"])
    scores = unit_scores(criterion, model, made_up(model))
    found = comparable(scores, criterion)
    for site, values in scores.items():
        if criterion in IN_LOSS:
            assert torch.equal(found[site], values)
        else:
            assert float(found[site].sum()) == pytest.approx(1, abs=1e-12)
            assert torch.equal(found[site].argsort(), values.argsort())
    dead = {site: torch.zeros_like(values) for site, values in scores.items()}
    assert all(not values.any() for values in comparable(dead, criterion).values())  # zero, not NaN
