"""A unit stays if and only if its score reaches the threshold of its block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertdyn.errors import InputError
from bertdyn.pruning.plan import identity
from bertdyn.pruning.shape import Shape, Site
from bertdyn.pruning.thresholds import by_ratios, by_thresholds, per_layer

SHAPE = Shape((4, 3), (9, 12), head_size=8, hidden_size=32, depth=2)
SHARED = Shape((4,), (9,), head_size=8, hidden_size=32, depth=12)

numbers = st.integers(0, 6).map(lambda n: n / 4)  # few different ones: many ties
scores = st.tuples(*(st.lists(numbers, min_size=n, max_size=n) for n in (4, 9, 3, 12))).map(
    lambda lists: {s: torch.tensor(v, dtype=torch.float64) for s, v in zip(SHAPE.sites, lists, strict=True)}
)
thresholds = st.tuples(*(st.tuples(numbers, numbers) for _ in range(2))).map(
    lambda pairs: {"attention": pairs[0], "ffn": pairs[1]}
)
quantiles = st.tuples(*(st.tuples(st.floats(0, 1), st.floats(0, 1)) for _ in range(2))).map(
    lambda pairs: {"attention": pairs[0], "ffn": pairs[1]}
)


def threshold(of, site):
    return of[site.kind][site.layer - 1]


@given(scores, thresholds)
def test_what_reaches_the_threshold_stays(values, least):
    expected = {site: tuple((values[site] >= threshold(least, site)).nonzero()[:, 0].tolist()) for site in SHAPE.sites}
    if not any(expected.values()):
        with pytest.raises(InputError, match="remove everything"):
            by_thresholds(SHAPE, values, least, "absolute", allow_empty=True)
        return
    assert by_thresholds(SHAPE, values, least, "absolute", allow_empty=True).kept == expected
    floored = by_thresholds(SHAPE, values, least, "absolute").kept
    for site, units in expected.items():
        if units:
            assert floored[site] == units
        else:
            assert floored[site] == (int(values[site].argmax()),)  # the best one stays


@given(scores, quantiles, quantiles, st.booleans(), st.sampled_from([1, 2, 4]))
def test_raising_thresholds_keeps_a_subset(values, one, other, allow_empty, round_to):
    low = {kind: tuple(map(min, one[kind], other[kind])) for kind in one}
    high = {kind: tuple(map(max, one[kind], other[kind])) for kind in one}
    more, less = (
        by_thresholds(SHAPE, values, least, "quantile", allow_empty=allow_empty, round_to=round_to)
        for least in (low, high)
    )
    for site in SHAPE.sites:
        assert set(less.kept[site]) <= set(more.kept[site])


@given(scores)
def test_quantiles_are_shares_of_the_units(values):
    none = dict.fromkeys(("attention", "ffn"), (0.0, 0.0))
    assert by_thresholds(SHAPE, values, none, "quantile") == identity(SHAPE)
    every = dict.fromkeys(("attention", "ffn"), (1.0, 1.0))
    highest = by_thresholds(SHAPE, values, every, "quantile").kept
    for site, units in highest.items():
        assert units == tuple((values[site] == values[site].max()).nonzero()[:, 0].tolist())


def test_a_quantile_of_different_scores_removes_that_share():
    generator = torch.Generator().manual_seed(0)
    values = {s: torch.randperm(SHAPE.units(s), generator=generator).double() for s in SHAPE.sites}
    plan = by_thresholds(SHAPE, values, {"attention": (0.5, 0.0), "ffn": (0.8, 0.25)}, "quantile")
    # of 4 scores two reach the median, of 9 two their 0.8 quantile (6.4), of 12 nine their 0.25 quantile (2.75)
    assert plan.result.heads == (2, 3)
    assert plan.result.neurons == (2, 9)
    assert set(plan.kept[Site("ffn", 1)]) == set((values[Site("ffn", 1)] >= 7).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("round_to", [1, 4, 8])
@given(values=scores, least=thresholds, allow_empty=st.booleans())
def test_neurons_are_rounded_up_to_multiples_or_all(round_to, values, least, allow_empty):
    if not any((values[site] >= threshold(least, site)).any() for site in SHAPE.sites):
        return
    plan = by_thresholds(SHAPE, values, least, "absolute", allow_empty=allow_empty, round_to=round_to)
    plain = by_thresholds(SHAPE, values, least, "absolute", allow_empty=True)
    for site in SHAPE.sites:
        count, units, own = len(plan.kept[site]), SHAPE.units(site), len(plain.kept[site])
        if site.kind == "attention":
            assert count == max(own, 0 if allow_empty else 1)
        else:
            assert count % round_to == 0 or count == units
            assert own <= count < own + round_to or (own == 0 and count == min(round_to, units))
            assert count or allow_empty
        assert set(plain.kept[site]) <= set(plan.kept[site])
        gone = set(range(units)) - set(plan.kept[site])
        if count and gone:
            assert values[site][list(gone)].max() <= values[site][list(plan.kept[site])].min()


def test_removing_everything_is_refused_with_the_highest_scores():
    values = {site: torch.linspace(0, 0.125 * site.layer, SHAPE.units(site)).double() for site in SHAPE.sites}
    values[Site("ffn", 1)][4] = 3.5
    everything = {"attention": (9.0, 9.0), "ffn": (9.0, 9.0)}
    for allow_empty in (True, False):
        with pytest.raises(InputError, match=r"0\.25 of a head and 3\.5 of a neuron$") as error:
            by_thresholds(SHAPE, values, everything, "absolute", allow_empty=allow_empty)
        assert "\n" not in str(error.value)


def test_removing_everything_that_is_left_is_refused():
    """Also where an earlier pruning took all blocks of a kind."""
    without = SHAPE._replace(neurons=(0, 0))
    values = {site: torch.ones(without.units(site)).double() for site in without.sites}
    with pytest.raises(InputError, match="remove everything: .* 1 of a head"):
        by_thresholds(without, values, {"attention": (2.0, 2.0), "ffn": (2.0, 2.0)}, "absolute")


@given(scores, quantiles, st.sampled_from([1, 4]))
def test_ratios_keep_the_best_share(values, ratios, round_to):
    plan = by_ratios(SHAPE, values, ratios, round_to=round_to)
    for site, units in plan.kept.items():
        exact = threshold(ratios, site) * SHAPE.units(site)
        step = round_to if site.kind == "ffn" else 1
        assert exact - 0.5 - 1e-9 <= len(units) <= max(1, exact + 0.5 + 1e-9) + step - 1
        gone = [i for i in range(SHAPE.units(site)) if i not in units]
        assert not gone or values[site][gone].max() <= values[site][list(units)].min()
    assert by_ratios(SHAPE, values, {"attention": (1, 1), "ffn": (1, 1)}) == identity(SHAPE)


def test_numbers_are_one_a_layer_or_one_for_all():
    assert per_layer([0.5], SHAPE, "ffn_thresholds") == [0.5, 0.5]
    assert per_layer([0.5, 0.1], SHAPE, "ffn_thresholds") == [0.5, 0.1]
    assert per_layer([0.5], SHARED, "ffn_thresholds") == [0.5]
    with pytest.raises(InputError, match=r"^--ffn_keep_ratios has 3 numbers: accepted are 2 .*neurons.* one for all$"):
        per_layer([1, 1, 1], SHAPE, "ffn_keep_ratios")
    with pytest.raises(
        InputError, match=r"^--attention_thresholds has 12 .* 1 .*heads.* 12 layers share their weights"
    ):
        per_layer([0.5] * 12, SHARED, "attention_thresholds")
