"""A plan within a budget: how many units each block keeps, so that the sum of the scores that go is smallest.

Given scores that add up, a block that keeps k units keeps its k best. What is left is to divide the budget among the
blocks, a multiple-choice knapsack, which dynamic programming over a fine grid of costs solves for any cost that is a
sum over blocks: parameters, FLOPs, or a table of measured latencies (ZipLM, Kurtic et al. 2023, does the same with
latency; Kwon et al. 2022 sweep over the number of heads, which is this for two kinds of units of constant cost).
"""

import math
from typing import NamedTuple

import numpy as np

from bertdyn.errors import InputError
from bertdyn.pruning.cost import Costs
from bertdyn.pruning.plan import Plan, best
from bertdyn.pruning.scores import Scores
from bertdyn.pruning.shape import Shape, Site

STEPS = 8192
"""Of the grid of costs. Rounding up to it wastes at most one step a block; what is left is then filled unit by unit."""


class _Options(NamedTuple):
    """Of one block."""

    counts: np.ndarray
    """Numbers of units that it may keep, ascending."""
    costs: np.ndarray
    losses: np.ndarray
    """Sum of the scores that go, by number of units that stay."""


def by_budget(
    shape: Shape,
    scores: Scores,
    costs: Costs,
    budget: float,
    *,
    of: float | None = None,
    allow_empty: bool = False,
    round_to: int = 1,
) -> Plan:
    """The plan of the smallest loss whose encoder costs at most `budget` × `of`.

    Parameters
    ----------
    scores
        [units] by block, comparable between blocks and none below 0.
    costs
        Of the blocks.
    budget
        Share of the cost, above 0, at most 1.
    of
        The cost of which it is a share. Default: that of `shape`.
    allow_empty
        Let a block lose all its units.
    round_to
        Numbers of neurons are multiples of this, or all there are.

    Raises
    ------
    InputError
        If no such encoder is within the budget; it says what the smallest one costs.
    """
    dense = costs.of(shape) if of is None else of
    least = check_reachable(shape, costs, budget, of=dense, allow_empty=allow_empty, round_to=round_to)
    options = {site: _options(shape, site, scores[site].numpy(), costs, allow_empty, round_to) for site in shape.sites}
    slack = budget * dense - least
    slack = slack if slack > 1e-9 * dense else 0.0  # less is rounding
    chosen = _fill(options, _knapsack(options, slack), slack)
    kept = {site: best(scores[site], int(options[site].counts[chosen[site]])) for site in options}
    return Plan(shape, kept)


def check_reachable(
    shape: Shape, costs: Costs, budget: float, *, of: float, allow_empty: bool = False, round_to: int = 1
) -> float:
    """The cost of the smallest encoder that can be made of `shape`.

    Raises
    ------
    InputError
        If it is above `budget` × `of`; it says which budgets are in reach.
    """
    smallest = {site: int(_counts(shape, site, allow_empty, round_to)[0]) for site in shape.sites}

    def numbers(kind: str, dense: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(smallest.get(Site(kind, layer), 0) for layer in range(1, len(dense) + 1))

    least = costs.of(shape._replace(heads=numbers("attention", shape.heads), neurons=numbers("ffn", shape.neurons)))
    if not least <= budget * of * (1 + 1e-9):
        # Rounded up: the number that is shown is in reach.
        lowest = math.ceil(1000 * least / of) / 1000
        how = "" if allow_empty or shape.shares_layers else "; --allow_empty true lets whole blocks go"
        raise InputError(
            f"--budget {budget:g}: out of reach; accepted are {lowest} to 1 of the encoder's {costs.name}{how}"
        )
    return least


def _counts(shape: Shape, site: Site, allow_empty: bool, round_to: int) -> np.ndarray:
    """Numbers of units that a block may keep, ascending."""
    units, step = shape.units(site), round_to if site.kind == "ffn" else 1
    return np.unique([*range(0 if allow_empty else min(step, units), units, step), units])


def _options(shape: Shape, site: Site, scores: np.ndarray, costs: Costs, allow_empty: bool, round_to: int) -> _Options:
    units, counts = shape.units(site), _counts(shape, site, allow_empty, round_to)
    ascending = np.sort(scores)
    lost = np.concatenate([[0.0], np.cumsum(ascending)])[units - counts]
    return _Options(counts, costs.table(shape, site, counts.tolist()), lost)


def _knapsack(options: dict[Site, _Options], slack: float) -> dict[Site, int]:
    """Block → which of its options, at the smallest sum of losses; costs are rounded up to the grid."""
    step = slack / STEPS
    lowest = np.zeros(STEPS + 1)  # loss of the blocks so far, by what they may spend
    choices: list[np.ndarray] = []
    for option in options.values():
        extra = option.costs - option.costs[0]
        spent = np.ceil(extra / step - 1e-9).astype(int) if step > 0 else np.where(extra > 0, STEPS + 1, 0)
        best_loss = np.full(STEPS + 1, np.inf)
        choice = np.zeros(STEPS + 1, dtype=np.int32)
        for i in np.flatnonzero(spent <= STEPS):
            loss = np.full(STEPS + 1, np.inf)
            loss[spent[i] :] = lowest[: STEPS + 1 - spent[i]] + option.losses[i]
            better = loss < best_loss
            best_loss[better], choice[better] = loss[better], i
        lowest = best_loss
        choices.append(choice)
    left, chosen = STEPS, dict[Site, int]()
    for (site, option), choice in zip(reversed(options.items()), reversed(choices), strict=True):
        chosen[site] = int(choice[left])
        extra = option.costs[chosen[site]] - option.costs[0]
        left -= int(np.ceil(extra / step - 1e-9)) if step > 0 else 0
    return chosen


def _fill(options: dict[Site, _Options], chosen: dict[Site, int], slack: float) -> dict[Site, int]:
    """Spend what rounding left: again and again the next larger option that saves most loss."""
    chosen = dict(chosen)
    left = slack * (1 + 1e-9) - sum(
        float(options[site].costs[i] - options[site].costs[0]) for site, i in chosen.items()
    )
    while True:
        gains: dict[Site, float] = {}
        for site, i in chosen.items():
            option = options[site]
            if i + 1 < len(option.counts) and option.costs[i + 1] - option.costs[i] <= left:
                gains[site] = option.losses[i] - option.losses[i + 1]
        if not gains:
            return chosen
        best_site = max(gains, key=lambda site: gains[site])
        costs, now = options[best_site].costs, int(chosen[best_site])
        left -= float(costs[now + 1] - costs[now])
        chosen[best_site] = now + 1
