"""How much stays, as the options say it: a function from scores to a plan."""

from collections.abc import Sequence
from typing import Any

from bertdyn.errors import InputError
from bertdyn.pruning.budget import by_budget, check_reachable
from bertdyn.pruning.config import PruningConfig
from bertdyn.pruning.cost import Costs
from bertdyn.pruning.plan import Plan
from bertdyn.pruning.scores import Scores, comparable
from bertdyn.pruning.search import MakePlan
from bertdyn.pruning.shape import KINDS, Shape
from bertdyn.pruning.thresholds import by_ratios, by_thresholds, per_layer


def plan_maker(config: PruningConfig, dense: Shape, costs: Costs) -> MakePlan:
    """The function that makes plans as `config` says.

    Parameters
    ----------
    dense
        The encoder before pruning: budgets are shares of its cost.
    costs
        What `--budget_of` names.

    Raises
    ------
    InputError
        If a list of thresholds or ratios does not fit the layers, or blocks that all layers share shall be emptied.
    """
    options: dict[str, Any] = {"allow_empty": config.allow_empty, "round_to": config.round_to}
    if config.allow_empty and dense.shares_layers:
        raise InputError(
            "--allow_empty true: the layers of this encoder share their weights, so that a block would go from all of "
            "them; accepted is false"
        )
    budget = config.target_budget
    if budget is not None:
        whole = costs.of(dense)
        check_reachable(dense, costs, budget, of=whole, **options)

        def within(shape: Shape, scores: Scores, criterion: str, progress: float) -> Plan:
            share = budget if progress == 1 else 1 - (1 - budget) * progress
            return by_budget(shape, comparable(scores, criterion), costs, share, of=whole, **options)

        return within
    ratios = {kind: config.keep_ratios(kind) for kind in KINDS}
    if any(ratios.values()):
        shares = _by_layer(ratios, dense, "keep_ratios")
        return lambda shape, scores, criterion, progress: by_ratios(shape, scores, shares, **options)
    least = _by_layer({kind: config.thresholds(kind) for kind in KINDS}, dense, "thresholds")
    return lambda shape, scores, criterion, progress: by_thresholds(
        shape, scores, least, config.threshold_kind, **options
    )


def _by_layer(numbers: dict[str, list[float]], dense: Shape, way: str) -> dict[str, Sequence[float]]:
    return {kind: per_layer(values, dense, f"{kind}_{way}") for kind, values in numbers.items()}
