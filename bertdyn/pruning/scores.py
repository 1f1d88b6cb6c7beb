"""How much each unit matters, by several criteria: weights and statistics in, a number a unit out.

| criterion | score of a unit | source |
|---|---|---|
| taylor | mean over texts of abs(∂ loss / ∂ gate) | Michel et al. 2019; Molchanov et al. 2019 |
| fisher | E (∂ log p / ∂ gate)²: twice the KL divergence that closing the gate costs, to second order | Kwon 2022 |
| fluctuation | Σ variance of the inputs × ‖their output weights‖² | FLAP, An et al. 2024 |
| wanda | Σ root mean square of the inputs × Σ abs(their output weights) | Sun et al. 2024, summed over outputs |
| magnitude | norm of all weights of the unit | |
| activation_change | mean over tokens of abs(what it gives out in one text - in another) | System 4 |
| state_change | mean over tokens of abs(what it gives out in one state of training - in another) | |
| random | uniform | |

Inputs are those of the block's output projection: the neurons behind the activation function, the heads' context.
(System 4 took neurons *before* it, where most of what moves is cut off by GELU.) A head's score is the sum over its
dimensions, for the two changes their mean.

`taylor` and `fisher` are in units of the loss, and so comparable between blocks. The others are not: for a budget over
the whole encoder, `comparable` scales the scores of each block to the sum 1, which makes all blocks equally important.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bertdyn.models.anatomy import anatomy_of
from bertdyn.pruning.moments import InputMoments
from bertdyn.pruning.shape import Shape, Site, projection, shape_of
from bertdyn.pruning.statistics import Gradients

Scores = dict[Site, Tensor]
"""[units] by block, float64, none below 0; the higher, the more a unit matters."""

IN_LOSS = ("taylor", "fisher")
"""Criteria whose scores are comparable between blocks."""
NEED_MOMENTS = ("fluctuation", "wanda")
NEED_CHANGES = ("activation_change", "state_change")


class Evidence(NamedTuple):
    """What criteria are computed from; what a criterion does not need may be None."""

    moments: Mapping[Site, InputMoments] | None = None
    gradients: Gradients | None = None
    changes: Mapping[str, Mapping[Site, Tensor]] | None = None
    """`activation_change` or `state_change` → [width] by block."""


def unit_scores(criterion: str, model: PreTrainedModel, evidence: Evidence, *, seed: int = 0) -> Scores:
    """The scores of all units of `model` by one criterion.

    Parameters
    ----------
    criterion
        One of `CRITERIA` (`bertdyn.pruning.config`) but auto.
    seed
        Of `random`.
    """
    shape = shape_of(model)
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return {site: torch.rand(shape.units(site), generator=generator, dtype=torch.float64) for site in shape.sites}
    if criterion == "magnitude":
        return {site: _magnitude(model, shape, site) for site in shape.sites}
    if criterion in IN_LOSS:
        found = evidence.gradients
        assert found is not None
        sums = found.absolute if criterion == "taylor" else found.fisher
        return {site: sums[site].cpu() / found.num_texts for site in shape.sites}
    if criterion in NEED_CHANGES:
        assert evidence.changes is not None
        changes = evidence.changes[criterion]
        return {site: _by_unit(changes[site].cpu(), shape, site) / shape.unit_width(site.kind) for site in shape.sites}
    assert evidence.moments is not None
    weigh = {"fluctuation": _fluctuation, "wanda": _wanda}[criterion]
    return {
        site: _by_unit(
            weigh(projection(model, site).weight.detach().double(), evidence.moments[site]).cpu(), shape, site
        )
        for site in shape.sites
    }


def comparable(scores: Scores, criterion: str) -> Scores:
    """Scores that can be added up over blocks: in units of the loss as they are, all others of sum 1 a block."""
    if criterion in IN_LOSS:
        return scores
    return {site: values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) for site, values in scores.items()}


def _by_unit(values: Tensor, shape: Shape, site: Site) -> Tensor:
    """[width] → [units], summed over the inputs of a unit."""
    return values.double().unflatten(0, (-1, shape.unit_width(site.kind))).sum(dim=1)


def _fluctuation(weight: Tensor, moments: InputMoments) -> Tensor:
    return moments.variance * weight.square().sum(dim=0)


def _wanda(weight: Tensor, moments: InputMoments) -> Tensor:
    return moments.mean_square.sqrt() * weight.abs().sum(dim=0)


def _magnitude(model: PreTrainedModel, shape: Shape, site: Site) -> Tensor:
    layer = anatomy_of(model).layers[site.layer - 1]
    inner = ("query", "key", "value") if site.kind == "attention" else ("ffn_in",)
    squares = projection(model, site).weight.detach().double().square().sum(dim=0)
    for component in inner:
        squares = squares + layer[component].weight.detach().double().square().sum(dim=1)  # type: ignore[operator]
    return _by_unit(squares.cpu(), shape, site).sqrt()
