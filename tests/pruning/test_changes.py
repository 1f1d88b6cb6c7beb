"""How much units change: what a loop over pairs of texts, or over two states, finds."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from bertdyn.models.unpadded import run_unpadded
from bertdyn.pruning.changes import between_states, between_texts
from bertdyn.pruning.plan import identity
from bertdyn.pruning.shape import projection, shape_of
from bertdyn.pruning.surgery import prune
from tests.families import FAMILIES, tolerance_of
from tests.pruning.models import batch, load, random_plan

PAIRS = ((9, 4), (3, 7), (8, 8))


def pairs(model, order=(0, 1, 2)):
    """The texts of `PAIRS` two by two."""
    whole = batch(model, tuple(length for pair in PAIRS for length in pair))
    rows = [row for pair in order for row in (2 * pair, 2 * pair + 1)]
    return {name: value[rows] for name, value in whole.items()}


def outputs_of(model: PreTrainedModel, ids, head):
    """Site → what its units give out in each of its calls, [tokens, width], of one text alone."""
    seen = {}
    handles = [
        projection(model, site).register_forward_pre_hook(
            lambda module, args, site=site: seen.setdefault(site, []).append(args[0][0])
        )
        for site in shape_of(model).sites
    ]
    with torch.no_grad():
        model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None])
    for handle in handles:
        handle.remove()
    for site, found in seen.items():
        if head == "classification" and site.layer == len(shape_of(model).heads):
            found[-1] = found[-1][:1]
    return seen


def texts(whole):
    return [ids[mask.bool()] for ids, mask in zip(whole["input_ids"], whole["attention_mask"], strict=True)]


def mean_of(pieces):
    return {site: torch.cat(rows).mean(dim=0) for site, rows in pieces.items()}


def assert_same(found, expected, family):
    assert set(found) == set(expected)
    for site, values in expected.items():
        torch.testing.assert_close(found[site], values, atol=tolerance_of(family, 1e-10), rtol=0)


@pytest.mark.parametrize("head", ["classification", "question-answering"])
@pytest.mark.parametrize("family", FAMILIES)
def test_between_texts_is_a_loop_over_pairs(checkpoints, family, head):
    model = load(checkpoints[family], head)
    whole = pairs(model)
    seen = [outputs_of(model, ids, head) for ids in texts(whole)]
    pieces = {}
    for one, other in zip(seen[0::2], seen[1::2], strict=True):
        for site in one:
            for a, b in zip(one[site], other[site], strict=True):
                both = min(len(a), len(b))  # positions that both texts have
                pieces.setdefault(site, []).append((a[:both] - b[:both]).abs())
    expected = mean_of(pieces)
    model.train()
    assert_same(between_texts(model, [whole]), expected, family)
    mixed = pairs(model, (2, 0, 1))
    assert_same(
        between_texts(model, [{k: v[:2] for k, v in mixed.items()}, {k: v[2:] for k, v in mixed.items()}]),
        expected,
        family,
    )
    assert model.training
    if family != "flaubert":
        run_unpadded(model)
        assert_same(between_texts(model, [whole]), expected, family)


def changed(model):
    """Another state of it."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return other


@pytest.mark.parametrize("head", ["classification", "question-answering"])
@pytest.mark.parametrize("family", FAMILIES)
def test_between_states_is_the_same_texts_in_both(checkpoints, family, head):
    model = load(checkpoints[family], head)
    other, whole = changed(model), pairs(model)
    pieces = {}
    for ids in texts(whole):
        here, there = outputs_of(model, ids, head), outputs_of(other, ids, head)
        for site in here:
            pieces.setdefault(site, []).extend((a - b).abs() for a, b in zip(here[site], there[site], strict=True))
    expected = mean_of(pieces)
    halves = [{k: v[:4] for k, v in whole.items()}, {k: v[4:] for k, v in whole.items()}]
    assert_same(between_states(model, other, [whole]), expected, family)
    assert_same(between_states(other, model, iter(halves)), expected, family)  # batches that can be read once
    assert all(values.min() > 0 for values in expected.values())
    same = between_states(model, copy.deepcopy(model), halves)
    assert set(same) == set(expected)
    assert all(not values.any() for values in same.values())


def test_states_of_another_width_are_refused(checkpoints):
    model = load(checkpoints["bert"])
    whole = pairs(model)
    narrower = prune(model, random_plan(shape_of(model), seed=1))
    with pytest.raises(ValueError, match="another width"):
        between_states(model, narrower, [whole])
    same = between_states(model, prune(model, identity(shape_of(model))), [whole])
    assert all(not values.any() for values in same.values())


def test_both_models_are_left_as_they_were_after_an_exception(checkpoints):
    model = load(checkpoints["bert"]).train()
    other, whole = changed(model).eval(), pairs(model)

    def hooks():
        return [sum(len(x._forward_pre_hooks) + len(x._forward_hooks) for x in m.modules()) for m in (model, other)]

    def breaking():
        yield whole
        raise OSError("no more texts")

    between_states(model, other, [whole])  # transformers installs hooks of its own, which stay
    before = hooks()
    for look in (lambda: between_states(model, other, breaking()), lambda: between_texts(model, breaking())):
        with pytest.raises(OSError, match="no more texts"):
            look()
        assert hooks() == before
        assert (model.training, other.training) == (True, False)
