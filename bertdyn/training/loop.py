"""The one training loop of this project.

Model, batches, loss and optimiser are passed in; everything else (evaluation, freezing, dynamics,
features, checkpoints, early stopping, progress) is a `Listener` around it, called in the order of
the list. Epoch 0 is the state before training: `on_epoch_end` is called for it, too.

What is unusual: all randomness of an epoch (dropout, order of batches) is a function of
(seed, epoch) alone. A training resumed at an epoch's end is therefore the uninterrupted one bit
for bit, whatever the listeners drew in between, and no generator state needs to be saved.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from bertdyn.data.batching import Batch
from bertdyn.training.gradients import clip_gradients, tensor_norms


@dataclass
class Progress:
    """Where a training stands; all that is needed besides tensors to go on with it."""

    epoch: int = -1
    """The last epoch that ended; -1 before epoch 0 (the state before training) was looked at."""
    step: int = 0
    """Optimiser updates so far, those that a float16 overflow skipped included."""
    num_processes: int = 1
    """How many processes share a batch; another number would be another training."""
    stop: bool = False
    """Set by a listener to end the training after this epoch."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per ended epoch, epoch 0 first: metric name → value."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the newest epoch; listeners add theirs here."""
        return self.history[-1]


class Listener:
    """Something that happens around the loop; override what you need."""

    def on_epoch_start(self, progress: Progress) -> None:
        """Before the first batch of `progress.epoch` (from 1)."""

    def on_gradients(self, progress: Progress, norms: Tensor) -> None:
        """Before an update: `norms` [parameter tensors] holds each gradient's norm, unclipped, on the device."""

    def on_step_end(self, progress: Progress, batch: Batch, loss: Tensor) -> None:
        """After every batch; `loss` is detached and on the device: reading it costs a synchronisation."""

    def on_epoch_end(self, progress: Progress) -> None:
        """After the last batch of an epoch, and once for epoch 0."""

    def on_train_end(self, progress: Progress) -> None:
        """When the training is over, by an error too."""


class AtEpochEnd(Listener):
    """Calls a function with the progress at the end of every epoch."""

    def __init__(self, function: Callable[[Progress], Any]) -> None:
        self.function = function

    def on_epoch_end(self, progress: Progress) -> None:
        self.function(progress)


def train(
    accelerator: Accelerator,
    model: nn.Module,
    batches: DataLoader,
    loss_function: Callable[[nn.Module, Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    *,
    num_epochs: int,
    seed: int,
    max_grad_norm: float = 0.0,
    listeners: Sequence[Listener] = (),
    progress: Progress | None = None,
    together: bool = True,
) -> Progress:
    """Train `model` in place for epochs `progress.epoch + 1 … num_epochs`.

    Parameters
    ----------
    accelerator
        Decides device, precision, accumulation and the share of each process.
    batches
        A DataLoader whose order is that of its sampler's `set_epoch`, if it shuffles.
    loss_function
        `(model, batch) -> scalar`, the mean over the batch.
    scheduler
        Counts updates, not batches; it is stepped here once per update.
    max_grad_norm
        0 means no clipping.
    progress
        Where to go on; None starts with epoch 0.
    together
        Whether all processes train one model; otherwise each trains its own, and none waits for another.

    Returns
    -------
    Progress
        With `train/loss` (mean over the examples seen) among each trained epoch's metrics.

    Raises
    ------
    FloatingPointError
        If the mean loss of an epoch is not finite.
    """
    parameters = list(model.parameters())
    if together:
        model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    else:  # what is prepared as if for evaluation is not wrapped: no gradients are exchanged
        model = accelerator.prepare_model(model, evaluation_mode=True)
        optimizer, batches = accelerator.prepare(optimizer, batches)
    progress = progress or Progress(num_processes=accelerator.num_processes)
    accumulation, num_batches = accelerator.gradient_accumulation_steps, len(batches)
    try:
        if progress.epoch < 0:
            progress.epoch = 0
            progress.history.append({})
            _tell(listeners, "on_epoch_end", progress)
        while progress.epoch < num_epochs and not progress.stop:
            progress.epoch += 1
            progress.history.append({})
            set_seed(epoch_seed(seed, progress.epoch), device_specific=True)
            batches.set_epoch(progress.epoch)  # type: ignore[attr-defined]  # accelerate's DataLoader has it
            _tell(listeners, "on_epoch_start", progress)
            model.train()
            total = torch.zeros(2, device=accelerator.device)  # sum of losses, number of examples
            for position, batch in enumerate(batches):
                with accelerator.accumulate(model):
                    loss = loss_function(model, batch)
                    # accelerate divides by the full number even where an epoch's last group is smaller
                    group = min(accumulation, num_batches - position + position % accumulation)
                    accelerator.backward(loss * (accumulation / group))
                    if accelerator.sync_gradients:
                        accelerator.unscale_gradients()
                        norms = tensor_norms(parameters)
                        clip_gradients(parameters, norms, max_grad_norm)
                        _tell(listeners, "on_gradients", progress, norms)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    progress.step += 1
                    if not accelerator.optimizer_step_was_skipped:  # fp16 overflow
                        scheduler.step()
                loss = loss.detach()
                total[0] += loss * find_batch_size(batch)
                total[1] += find_batch_size(batch)
                _tell(listeners, "on_step_end", progress, batch, loss)
            if together:
                total = accelerator.reduce(total)
            progress.metrics["train/loss"] = mean_loss = float(total[0] / total[1])
            if not math.isfinite(mean_loss):
                raise FloatingPointError(
                    f"the training diverged in epoch {progress.epoch} (mean loss {mean_loss}): lower --learning_rate"
                )
            progress.metrics["train/learning_rate"] = float(scheduler.get_last_lr()[0])
            _tell(listeners, "on_epoch_end", progress)
    finally:
        _tell(listeners, "on_train_end", progress)
    return progress


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch of one training; epochs of neighbouring seeds have nothing in common."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _tell(listeners: Sequence[Listener], event: str, *arguments: Any) -> None:
    for listener in listeners:
        getattr(listener, event)(*arguments)
