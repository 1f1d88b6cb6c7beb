"""The best plan within a budget: what trying all plans finds."""

import re
import time
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bertdyn.errors import InputError
from bertdyn.pruning.budget import STEPS, by_budget
from bertdyn.pruning.cost import Costs, flop_costs, latency_costs, parameter_costs
from bertdyn.pruning.plan import best, identity
from bertdyn.pruning.shape import Shape

SMALL = Shape((3, 2), (6, 4), head_size=8, hidden_size=32, depth=2)
MINILM = Shape((12,) * 6, (1536,) * 6, head_size=32, hidden_size=384, depth=6)


def table_costs(heads, neurons, fixed=0.0):
    """Costs that rise by these steps."""
    tables = {"attention": np.cumsum([0, *heads]), "ffn": np.cumsum([0, *neurons])}
    return Costs("latency", lambda kind, units: float(tables[kind][units]), fixed)


def drawn(shape, seed, ties=False):
    generator = np.random.default_rng(seed)
    return {
        site: torch.tensor(
            generator.integers(0, 4, shape.units(site)) if ties else generator.exponential(size=shape.units(site)),
            dtype=torch.float64,
        )
        for site in shape.sites
    }


def loss_of(plan, scores):
    return sum(float(s.sum() - s[list(plan.kept[site])].sum()) for site, s in scores.items())


def counts_of(shape, site, allow_empty, round_to):
    step, units = round_to if site.kind == "ffn" else 1, shape.units(site)
    found = {count for count in range(units + 1) if count % step == 0 or count == units}
    return sorted(found if allow_empty else found - {0})


def brute_force(shape, scores, costs, most, allow_empty=False, round_to=1):
    """The smallest loss of all plans that cost at most `most`, None if none does."""
    choices = [counts_of(shape, site, allow_empty, round_to) for site in shape.sites]
    lowest = None
    for counts in product(*choices):
        cost = costs.fixed + sum(costs.block(s.kind, n) for s, n in zip(shape.sites, counts, strict=True))
        if cost <= most * (1 + 1e-9):
            loss = sum(
                float(scores[s].sort().values[: shape.units(s) - n].sum())
                for s, n in zip(shape.sites, counts, strict=True)
            )
            lowest = loss if lowest is None else min(lowest, loss)
    return lowest


def assert_best_units(plan, scores):
    for site, units in plan.kept.items():
        assert units == best(scores[site], len(units))


steps = st.lists(st.sampled_from([0.0, 0.3, 1.0, 1.7, 4.0]), min_size=6, max_size=6)  # flat, concave, stepped


@settings(deadline=None, max_examples=60)
@given(
    heads=steps,
    neurons=steps,
    fixed=st.sampled_from([0.0, 2.5]),
    budget=st.floats(0.05, 1),
    seed=st.integers(0, 10**6),
    ties=st.booleans(),
    allow_empty=st.booleans(),
    round_to=st.sampled_from([1, 2, 4]),
)
def test_within_one_step_of_the_best_of_all_plans(heads, neurons, fixed, budget, seed, ties, allow_empty, round_to):
    costs, scores = table_costs(heads, neurons, fixed), drawn(SMALL, seed, ties)
    dense = costs.of(SMALL)
    assume(dense > 0)
    expected = brute_force(SMALL, scores, costs, budget * dense, allow_empty, round_to)
    if expected is None:
        with pytest.raises(InputError, match=r"^--budget .* out of reach"):
            by_budget(SMALL, scores, costs, budget, allow_empty=allow_empty, round_to=round_to)
        return
    plan = by_budget(SMALL, scores, costs, budget, allow_empty=allow_empty, round_to=round_to)
    assert costs.of(plan.result) <= budget * dense * (1 + 1e-8)
    for site, units in plan.kept.items():
        assert len(units) in counts_of(SMALL, site, allow_empty, round_to)
    assert_best_units(plan, scores)
    # The grid may hide the last bit of the budget, which is worth at most one step of one block.
    one_step = max(float(values.sort().values[-round_to:].sum()) for values in scores.values())
    assert expected - 1e-9 <= loss_of(plan, scores) <= expected + one_step + 1e-9


@settings(deadline=None, max_examples=60)
@given(
    head=st.integers(1, 9),
    neuron=st.integers(1, 4),
    power=st.integers(0, 5),
    seed=st.integers(0, 10**6),
    allow_empty=st.booleans(),
)
def test_exact_where_costs_are_multiples_of_the_grid(head, neuron, power, seed, allow_empty):
    costs, scores = table_costs([head] * 3, [neuron] * 6, 7.0), drawn(SMALL, seed)
    dense, least = costs.of(SMALL), costs.of(SMALL._replace(heads=(1, 1), neurons=(1, 1)))
    least = 7.0 if allow_empty else least
    slack = 2.0**power  # whose grid of 8192 steps has a point at every whole number
    assert STEPS % slack == 0
    assume(least + slack <= dense)
    plan = by_budget(SMALL, scores, costs, (least + slack) / dense, allow_empty=allow_empty)
    expected = brute_force(SMALL, scores, costs, least + slack, allow_empty)
    assert loss_of(plan, scores) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.integers(0, 10**6), allow_empty=st.booleans())
def test_the_whole_budget_keeps_everything(seed, noise, allow_empty):
    generator = np.random.default_rng(noise)
    latency = latency_costs(
        float(generator.uniform(0.1, 3)),
        {
            "attention": {n: float(generator.uniform(0, 2)) for n in (1, 2, 3)},
            "ffn": {n: float(generator.uniform(0, 2)) for n in (1, 3, 6)},
        },
    )
    for costs in (parameter_costs(SMALL), flop_costs(SMALL), latency):
        assert by_budget(SMALL, drawn(SMALL, seed), costs, 1, allow_empty=allow_empty) == identity(SMALL)


def test_a_budget_of_exactly_the_smallest_encoder_gives_it():
    """What rounding leaves of it, some 1e-16, is not worth a grid."""
    least = SMALL._replace(heads=(1, 1), neurons=(1, 1))
    for seed in range(100):
        drawn_steps = np.random.default_rng(seed).uniform(0.1, 2, size=(2, 6))
        costs = table_costs(*drawn_steps, fixed=1.0)
        plan = by_budget(SMALL, drawn(SMALL, seed), costs, costs.of(least) / costs.of(SMALL))
        assert plan.result == least


@settings(deadline=None)
@given(
    heads=steps,
    neurons=steps,
    fixed=st.floats(0, 3),
    seed=st.integers(0, 100),
    allow_empty=st.booleans(),
    round_to=st.sampled_from([1, 4]),
)
def test_what_can_be_reached_is_said_and_works(heads, neurons, fixed, seed, allow_empty, round_to):
    costs, scores = table_costs(heads, neurons, fixed), drawn(SMALL, seed)
    least = SMALL._replace(heads=(1, 1), neurons=(round_to, min(4, round_to)))
    least = SMALL._replace(heads=(0, 0), neurons=(0, 0)) if allow_empty else least
    assume(costs.of(SMALL) > 0 and costs.of(least) > 0.01 * costs.of(SMALL))
    options = {"allow_empty": allow_empty, "round_to": round_to}
    with pytest.raises(InputError) as error:
        by_budget(SMALL, scores, costs, 0.005, **options)
    message = str(error.value)
    found = re.fullmatch(
        r"--budget 0\.005: .*accepted are (\S+) to 1 of the encoder's latency(; --allow_empty .*)?", message
    )
    assert found
    assert bool(found[2]) != allow_empty
    said = float(found[1])
    assert said == pytest.approx(costs.of(least) / costs.of(SMALL), abs=2e-3)
    plan = by_budget(SMALL, scores, costs, said, **options)
    assert costs.of(plan.result) <= said * costs.of(SMALL) * (1 + 1e-9)


def test_a_budget_can_be_a_share_of_another_encoder():
    """Rounds: what is left is cut again, and its budget is a share of the dense model's cost."""
    scores, costs = drawn(MINILM, 0), flop_costs(MINILM)
    left = by_budget(MINILM, scores, costs, 0.7).result
    plan = by_budget(left, drawn(left, 1), costs, 0.5, of=costs.of(MINILM))
    assert costs.of(plan.result) <= 0.5 * costs.of(MINILM)
    assert costs.of(plan.result) > 0.4999 * costs.of(MINILM)


def test_blocks_without_units_cost_what_they_cost():
    """Parameters of a removed block are still there: its bias and LayerNorm."""
    shape = SMALL._replace(heads=(3, 0), neurons=(0, 4))
    costs, scores = parameter_costs(shape), drawn(shape, 2)
    for budget in np.linspace(0.4, 1, 25):  # some just short of a unit more
        plan = by_budget(shape, scores, costs, budget)
        expected = brute_force(shape, scores, costs, budget * costs.of(shape) - 2 * 3 * 32)
        assert costs.of(plan.result) <= budget * costs.of(shape) * (1 + 1e-9)
        assert expected - 1e-9 <= loss_of(plan, scores) <= expected + max(float(s.max()) for s in scores.values())


@pytest.mark.parametrize("round_to", [1, 16])
def test_the_size_of_minilm_takes_no_time(round_to):
    scores = drawn(MINILM, 3)
    costs = flop_costs(MINILM)
    started = time.process_time()
    plan = by_budget(MINILM, scores, costs, 0.6, round_to=round_to)
    assert time.process_time() - started < 3
    assert 0.599 * costs.of(MINILM) < costs.of(plan.result) <= 0.6 * costs.of(MINILM)
    assert all(len(plan.kept[site]) % round_to == 0 for site in MINILM.sites if site.kind == "ffn")
