"""From a model and calibration texts to a pruned model: look, score, plan, cut, make up for what went.

    statistics of the units → scores → plan → compensation, block by block → pruned model

A part of the calibration texts, the referee, is kept out of the statistics: what is chosen (a criterion, what a block's
compensation is) is chosen by the KL divergence from the dense model on it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from bertdyn.data.batching import Batch
from bertdyn.pruning.agreement import Referee
from bertdyn.pruning.changes import Changes, between_states, between_texts
from bertdyn.pruning.compensation import METHODS, Projection, compensate
from bertdyn.pruning.config import CRITERIA
from bertdyn.pruning.moments import InputMoments
from bertdyn.pruning.plan import Plan
from bertdyn.pruning.scores import IN_LOSS, Evidence, Scores, unit_scores
from bertdyn.pruning.shape import Shape, Site, projection, shape_of
from bertdyn.pruning.statistics import gate_gradients, input_moments
from bertdyn.pruning.surgery import prune
from bertdyn.tasks.task import Task

logger = logging.getLogger(__name__)

STATE_CHANGE = "state_change"
BAR_FROM = 5
MakePlan = Callable[[Shape, Scores, str, float], Plan]
"""(shape, scores, criterion, how far: above 0 to 1 in the last round) → plan"""


@dataclass(frozen=True)
class Calibration:
    """Texts to look at units with, as batches on the device of the model."""

    fit: Sequence[Batch]
    """For statistics."""
    pairs: Sequence[Batch]
    """The same texts, two by two: for `activation_change`."""
    referee: Referee
    """Other texts, and what the dense model says of them."""
    task: Task
    other_state: PreTrainedModel | None = None
    """For `state_change`."""
    seed: int = 0
    """Of `random`, and of the labels that `fisher` draws."""


class Found(NamedTuple):
    """What a search ends with."""

    model: PreTrainedModel
    plan: Plan
    """In the numbering of the dense model."""
    criteria: list[str]
    """That of each round."""
    methods: dict[Site, str]
    """Block that lost units in the last round → its compensation there."""
    kl: float
    """From the dense model, mean over the referee's texts, which chose among what was tried."""
    tried: dict[str, float]
    """Criterion → KL, of the last round in which several were tried."""
    scores: Scores
    """Of the dense model's units, in the first round."""


@dataclass
class Looked:
    """Statistics of one model, each computed when a criterion first asks for it."""

    model: PreTrainedModel
    calibration: Calibration
    centred: bool
    """Whether gates are about the mean, since the mean will be folded into the bias."""
    covariance: bool
    known: dict[str, Scores] = field(default_factory=dict)
    """Criterion → scores, of those that were asked for."""
    _moments: dict[Site, InputMoments] | None = None
    _evidence: dict[str, Evidence] = field(default_factory=dict)

    @property
    def moments(self) -> dict[Site, InputMoments]:
        """Of the inputs of the output projections."""
        if self._moments is None:
            batches = bar(self.calibration.fit, "what units give out")
            self._moments = input_moments(self.model, batches, covariance=self.covariance)
        return self._moments

    def scores(self, criterion: str) -> Scores:
        """The scores of the model's units by `criterion`."""
        if criterion not in self.known:
            evidence = self._of(criterion)
            self.known[criterion] = unit_scores(criterion, self.model, evidence, seed=self.calibration.seed)
        return self.known[criterion]

    def _of(self, criterion: str) -> Evidence:
        kind = "gradients" if criterion in IN_LOSS else criterion
        if kind not in self._evidence:
            self._evidence[kind] = self._look(criterion)
        return self._evidence[kind]

    def _look(self, criterion: str) -> Evidence:
        calibration = self.calibration
        if criterion in IN_LOSS:
            centres = None
            if self.centred:
                centres = {site: of.mean.to(self.model.dtype) for site, of in self.moments.items()}
            batches = bar(calibration.fit, "gradients of gates")
            gradients = gate_gradients(self.model, batches, calibration.task, centres=centres, seed=calibration.seed)
            return Evidence(gradients=gradients)
        if criterion == "activation_change":
            return Evidence(changes={criterion: between_texts(self.model, calibration.pairs)})
        if criterion == STATE_CHANGE:
            assert calibration.other_state is not None
            changes: Changes = between_states(self.model, calibration.other_state, calibration.fit)
            return Evidence(changes={criterion: changes})
        return Evidence(moments=self.moments if criterion in ("fluctuation", "wanda") else None)


def bar(items: Sequence[Any], what: str, unit: str = "batch") -> Iterable[Any]:
    """A progress bar that goes when it is full; none for a handful of items."""
    return tqdm(items, desc=what, unit=unit, leave=False, disable=len(items) < BAR_FROM)


def look(model: PreTrainedModel, calibration: Calibration, compensation: str) -> Looked:
    """The statistics that pruning `model` needs, with what will make up for the units that go in mind."""
    needs_covariance = compensation in ("auto", "least_squares")
    return Looked(model, calibration, centred=compensation != "none", covariance=needs_covariance)


def search(
    dense: PreTrainedModel,
    calibration: Calibration,
    criterion: str,
    make_plan: MakePlan,
    *,
    compensation: str = "auto",
    rounds: int = 1,
) -> Found:
    """Prune `dense`, which stays as it is.

    Parameters
    ----------
    dense
        In evaluation mode, computing its padding.
    criterion
        One of `CRITERIA`; auto tries all that can be computed, in every round.
    make_plan
        How much stays, of what scores.
    compensation
        One of `METHODS`, or auto: for each block the best on the referee's texts.
    rounds
        Cut in so many steps; statistics are those of the model that is left.
    """
    model, plan, fit, first_scores, tried = dense, None, None, None, {}
    criteria: list[str] = []
    first = look(dense, calibration, compensation)
    for number in range(1, rounds + 1):
        looked = first if plan is None else look(model, calibration, compensation)
        if plan is not None and STATE_CHANGE in first.known:
            # What training did to a unit is not what the repair of its neighbours did to it.
            looked.known[STATE_CHANGE] = {
                site: first.known[STATE_CHANGE][site][list(plan.kept[site])] for site in shape_of(model).sites
            }
        names = candidates(calibration) if criterion == "auto" else [criterion]
        plans = {name: make_plan(shape_of(model), looked.scores(name), name, number / rounds) for name in names}
        best, fit, kls = "", None, {}
        for name in names:
            one = _fit(looked, plans[name], compensation)
            kls[name] = one.kl
            if fit is None or one.kl < fit.kl:
                best, fit = name, one
        assert fit is not None
        tried = kls if len(kls) > 1 else {}
        criteria.append(best)
        first_scores = first_scores or looked.scores(best)
        if compensation == "auto" and number == rounds:
            fit = _by_block(looked, plans[best], fit)
        plan = plans[best] if plan is None else plan.then(plans[best])
        model = fit.model
        logger.info("round %d of %d, %s: KL %.4f on %d texts", number, rounds, best, fit.kl, _num_texts(calibration))
    assert plan is not None
    assert fit is not None
    assert first_scores is not None
    return Found(model, plan, criteria, fit.methods, fit.kl, tried, first_scores)


def apply(looked: Looked, plan: Plan, *, compensation: str) -> Found:
    """Prune the model that was looked at by a plan that is there already, with compensation as `search` has it."""
    fit = _fit(looked, plan, compensation)
    if compensation == "auto":
        fit = _by_block(looked, plan, fit)
    return Found(fit.model, plan, ["plan"], fit.methods, fit.kl, {}, {})


def cut(looked: Looked, plan: Plan, method: str) -> PreTrainedModel:
    """The model that was looked at, cut by `plan`, with one of `METHODS` in all blocks; the referee is not asked."""
    return prune(looked.model, plan, _projections(looked, plan, method))


def candidates(calibration: Calibration) -> list[str]:
    """The criteria that auto tries."""
    left_out = {"auto", "random"} | ({STATE_CHANGE} if calibration.other_state is None else set())
    return [name for name in CRITERIA if name not in left_out]


def cut_sites(plan: Plan) -> list[Site]:
    """The blocks that lose units."""
    return [site for site, units in plan.kept.items() if len(units) < plan.shape.units(site)]


class _Fit(NamedTuple):
    model: PreTrainedModel
    methods: dict[Site, str]
    kl: float


def _fit(looked: Looked, plan: Plan, compensation: str) -> _Fit:
    """The model cut by `plan`, with one compensation for all blocks: the one asked for, or the best."""
    fits = []
    for method in METHODS if compensation == "auto" else (compensation,):
        pruned = cut(looked, plan, method)
        fits.append(_Fit(pruned, dict.fromkeys(cut_sites(plan), method), looked.calibration.referee.kl(pruned)))
    return min(fits, key=lambda fit: fit.kl)


def _by_block(looked: Looked, plan: Plan, fit: _Fit) -> _Fit:
    """Go through the blocks once, from the last, and take for each the compensation with the lowest KL."""
    projections = {method: _projections(looked, plan, method) for method in METHODS}
    model, methods, lowest = fit.model, dict(fit.methods), fit.kl
    for site in bar(cut_sites(plan)[::-1], "compensation", "block"):
        for method in METHODS:
            if method == methods[site]:
                continue
            _set(model, site, projections[method][site])
            kl = looked.calibration.referee.kl(model)
            if kl < lowest:
                methods[site], lowest = method, kl
            else:
                _set(model, site, projections[methods[site]][site])
    return _Fit(model, methods, lowest)


def _projections(looked: Looked, plan: Plan, method: str) -> dict[Site, Projection]:
    found = {}
    for site in plan.kept:
        own = projection(looked.model, site)
        moments = None if method == "none" else looked.moments[site]
        found[site] = compensate(own.weight.detach(), own.bias.detach(), plan.inputs(site), moments, method)
    return found


@torch.no_grad()
def _set(model: PreTrainedModel, site: Site, new: Projection) -> None:
    own = projection(model, site)
    own.bias.copy_(new.bias)
    if new.weight.shape[1]:
        own.weight.copy_(new.weight)


def _num_texts(calibration: Calibration) -> int:
    return sum(len(batch["input_ids"]) for batch in calibration.referee.batches)
