"""Freeze schedules: which parts of an encoder learn in which epoch.

A schedule is a pure function of the epoch, so that a resumed run freezes what the uninterrupted
one would. Only `requires_grad` changes: the optimiser keeps its moments and the learning-rate
schedule goes on. (System 0 made a new optimiser and a new schedule at the unfreezing.)
Autograd stops at the lowest trainable parameter, so frozen embeddings and layers at the bottom
cost no backward pass; frozen layers above trainable embeddings still do.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from bertdyn.errors import InputError
from bertdyn.models.anatomy import Anatomy, anatomy_of
from bertdyn.training.loop import Listener, Progress


class Frozen(NamedTuple):
    """What is frozen in one epoch."""

    embeddings: bool
    """All embedding parameters."""
    layers: int
    """The first so many layers."""


@dataclass(frozen=True)
class FreezeSchedule:
    """Embeddings and/or the first `layers` layers, for `epochs` epochs (0: the whole run).

    With `gradual`, one layer an epoch is released from the top after that, the embeddings last.
    """

    layers: int = 0
    embeddings: bool = False
    epochs: int = 0
    gradual: bool = False

    def frozen(self, epoch: int) -> Frozen:
        """What is frozen in `epoch` (from 1)."""
        if self.epochs == 0 or epoch <= self.epochs:
            return Frozen(self.embeddings, self.layers)
        if not self.gradual:
            return Frozen(False, 0)
        released = epoch - self.epochs
        return Frozen(self.embeddings and released <= self.layers, max(0, self.layers - released))

    @property
    def freezes(self) -> bool:
        """Whether anything is ever frozen."""
        return self.embeddings or self.layers > 0


def training_cost(schedule: FreezeSchedule, depth: int, num_epochs: int) -> float:
    """FLOPs of the encoder's layers over a training, as a share of those with nothing frozen.

    Forward, backward to a layer's inputs and backward to its weights cost about the same. A frozen layer has no
    backward to its weights, and none to its inputs where nothing below it learns.
    """
    cost = 0
    for epoch in range(1, num_epochs + 1):
        frozen = schedule.frozen(epoch)
        passed_through = 0 if frozen.embeddings else frozen.layers
        cost += 3 * (depth - frozen.layers) + 2 * passed_through + (frozen.layers - passed_through)
    return cost / (3 * depth * num_epochs)


def make_schedule(model: PreTrainedModel, layers: int, embeddings: bool, epochs: int, gradual: bool) -> FreezeSchedule:
    """A schedule that fits `model`; `layers` -1 means all of them.

    Raises
    ------
    InputError
        If there are fewer layers of their own in `model`.
    """
    depth = len(anatomy_of(model).layers)
    if layers > depth:
        shared = " (its layers share their weights)" if anatomy_of(model).shares_layers else ""
        raise InputError(
            f"--freeze_layers {layers}: this {model.config.model_type} has {depth} layer(s){shared}; "
            f"accepted are -1 (all) and 0 to {depth}"
        )
    return FreezeSchedule(depth if layers == -1 else layers, embeddings, epochs, gradual)


class Freezing(Listener):
    """Applies a schedule to a model at the start of every epoch."""

    def __init__(self, model: PreTrainedModel, schedule: FreezeSchedule) -> None:
        self.anatomy = anatomy_of(model)
        self.schedule = schedule

    def on_epoch_start(self, progress: Progress) -> None:
        apply_freeze(self.anatomy, self.schedule.frozen(progress.epoch))


def apply_freeze(anatomy: Anatomy, frozen: Frozen) -> None:
    """Make the parameters of embeddings and layers learn, or not."""
    for module in anatomy.embeddings.values():
        _set_trainable(module, not frozen.embeddings)
    for number, layer in enumerate(anatomy.layers, start=1):
        for module in layer.values():
            _set_trainable(module, number > frozen.layers)


def _set_trainable(module: nn.Module, trainable: bool) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(trainable)
