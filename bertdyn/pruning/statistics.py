"""What the units of an encoder do on some texts: moments of what they give out, and how much the output needs them.

Only real tokens count, so that padding changes nothing; and nothing depends on how the texts are batched. Of a
classifier, which reads first tokens only, the last layer is looked at there alone: what it says of other tokens is
never read (Kwon et al. 2022 do the same).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bertdyn.data.batching import Batch, model_inputs
from bertdyn.models.loading import HEADS
from bertdyn.models.modes import evaluating
from bertdyn.models.recording import recording
from bertdyn.models.unpadded import Packing
from bertdyn.pruning.gates import gated
from bertdyn.pruning.moments import InputMoments
from bertdyn.pruning.shape import Shape, Site, shape_of
from bertdyn.tasks.task import Once, Task

RECORDED = {"attention": "context", "ffn": "ffn_post"}
"""Kind of block → the site of `recording` that shows what its units give out."""
MOST_OPTIONS = 4
"""Up to so many classes the Fisher information is summed over all of them; beyond, `DRAWS` are drawn for each text."""
DRAWS = 2


@dataclass(frozen=True, eq=False)
class Gradients:
    """How the output depends on gates at 1, one a unit and text; sums over texts, float64."""

    num_texts: int = 0
    absolute: dict[Site, Tensor] = field(default_factory=dict)
    """[units]: sum of |∂ loss / ∂ gate|, the loss being the task's with the true labels."""
    fisher: dict[Site, Tensor] = field(default_factory=dict)
    """[units]: sum of E (∂ log p(label) / ∂ gate)², the label drawn from the model's own probabilities."""

    def __add__(self, other: "Gradients") -> "Gradients":
        if not self.num_texts:
            return other
        return Gradients(
            self.num_texts + other.num_texts,
            {site: value + other.absolute[site] for site, value in self.absolute.items()},
            {site: value + other.fisher[site] for site, value in self.fisher.items()},
        )


@torch.inference_mode()
def input_moments(
    model: PreTrainedModel, batches: Iterable[Batch], *, covariance: bool = False
) -> dict[Site, InputMoments]:
    """Moments of the inputs of all output projections over the real tokens of `batches`.

    Parameters
    ----------
    batches
        On the device of the model.
    covariance
        Keep products of all pairs of inputs, [width, width] a block, for least-squares compensation.
    """
    moments: dict[Site, InputMoments] = {}
    for outputs in unit_outputs(model, batches):
        for site, rows, _ in outputs.rows:
            new = InputMoments.of(rows, covariance)
            moments[site] = moments[site] + new if site in moments else new
    return moments


class UnitRows(NamedTuple):
    """What the units of one block give out in one call of it."""

    site: Site
    rows: Tensor
    """[tokens, width]; [batch, width] of first tokens."""
    first_tokens: bool


class UnitOutputs(NamedTuple):
    """Of one batch."""

    rows: list[UnitRows]
    """One a block and call; a shared layer is called several times."""
    packing: Packing
    """Which token of the batch each row is."""


def unit_outputs(model: PreTrainedModel, batches: Iterable[Batch]) -> Iterator[UnitOutputs]:
    """What the units of every block give out on each batch, real tokens only: what statistics are made of.

    Of a classifier's last layer, first tokens only. In evaluation mode.
    """
    shape = shape_of(model)
    calls = _calls(shape)
    wanted: dict[str, list[int]] = {}
    for call, site in calls:
        wanted.setdefault(RECORDED[site.kind], []).append(call)
    with evaluating(model), recording(model, wanted) as record:
        for batch in batches:
            recorded = record(model_inputs(batch))
            found = []
            for call, site in calls:
                rows = recorded.values[RECORDED[site.kind], call]
                firsts = call == shape.depth and reads_first_token(model)
                rows = rows.index_select(0, recorded.packing.firsts) if firsts else rows
                found.append(UnitRows(site, rows, firsts))
            yield UnitOutputs(found, recorded.packing)


def reads_first_token(model: PreTrainedModel) -> bool:
    """Whether the head of `model` reads the first token of the last layer and nothing else."""
    return HEADS["classification"] in type(model).__name__


def _calls(shape: Shape) -> list[tuple[int, Site]]:
    """(number of the call, the block that is called) through the whole depth; a shared layer is called again."""
    layers = len(shape.heads)
    return [
        (call, site)
        for call in range(1, shape.depth + 1)
        for site in shape.sites
        if site.layer == (call - 1) * layers // shape.depth + 1
    ]


def gate_gradients(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    task: Task,
    *,
    centres: Mapping[Site, Tensor] | None = None,
    seed: int = 0,
) -> Gradients:
    """How the loss and the probabilities of each text depend on every unit.

    Parameters
    ----------
    model
        Computing its padding (no `run_unpadded`).
    batches
        With labels, on the device of the model.
    centres
        [width] by block: a closed gate leaves these values instead of zero, as folding the mean will.
    seed
        Of the labels that are drawn where there are more than `MOST_OPTIONS`; a text's depend on its `index` alone.

    References
    ----------
    Michel et al. 2019 (|∂ loss / ∂ gate| of heads); Kwon et al. 2022 (Fisher information of gates).
    """
    shape = shape_of(model)
    total = Gradients()
    like: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    with evaluating(model), torch.enable_grad():
        for batch in batches:
            num_texts = len(batch["input_ids"])
            gates = {site: torch.ones(num_texts, shape.units(site), **like, requires_grad=True) for site in shape.sites}
            with gated(model, gates, centres):
                once = Once(model)
                loss = task.loss(once, batch) * num_texts  # a sum, so that each text has a gradient of its own
                options = task.log_probabilities(once, batch)
            absolute = _gradients(loss, gates)
            fisher = dict.fromkeys(gates, torch.zeros((), dtype=torch.float64, device=model.device))
            for weight, chosen in _labels(options, batch["index"].tolist(), seed):
                for site, gradient in _gradients(chosen.sum(), gates).items():
                    fisher[site] = fisher[site] + weight[:, None].double() * gradient.double().square()
            total = total + Gradients(
                num_texts,
                {site: gradient.double().abs().sum(dim=0) for site, gradient in absolute.items()},
                {site: squares.sum(dim=0) for site, squares in fisher.items()},
            )
    return total


def _gradients(value: Tensor, gates: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    found = torch.autograd.grad(value, list(gates.values()), retain_graph=True)
    return dict(zip(gates, found, strict=True))


def _labels(options: list[Tensor], index: list[int], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of (weight [batch], log-probability [batch]) over which the Fisher information is summed.

    `options` are log-probabilities [batch, options] of independent choices: one for classes, two for start and end.
    """
    if len(options) == 1 and options[0].shape[1] <= MOST_OPTIONS:
        for chosen in options[0].unbind(dim=1):
            yield chosen.detach().exp(), chosen
        return
    # By the text alone, so that neither padding nor its neighbours change what is drawn.
    uniform = np.stack([np.random.default_rng([seed, i]).random((DRAWS, len(options))) for i in index])
    for draw in range(DRAWS):
        drawn = []
        for choice, log_probabilities in enumerate(options):
            below = log_probabilities.detach().double().exp().cumsum(dim=1)
            level = torch.from_numpy(uniform[:, draw, choice]).to(below.device)[:, None] * below[:, -1:]
            label = (below <= level).sum(dim=1, keepdim=True).clamp(max=below.shape[1] - 1)
            drawn.append(log_probabilities.gather(1, label)[:, 0])
        total = torch.stack(drawn).sum(dim=0)
        yield torch.full_like(total, 1 / DRAWS).detach(), total
