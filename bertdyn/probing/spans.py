"""Span probes: where a question's answer begins and ends, read off single tokens of a layer by two directions.

A probe is one direction for the start and one for the end; the logit of a token is the product of its features with
them. A bias would be the same for all tokens of a window, which a softmax over them does not see. Softmax, loss and
search are those of the task: over the context and the window's first token, which stands for "no answer".

The probes of all layers and learning rates are trained together, in one pass over the store an epoch. The loss is
convex and the directions start at zero, so that a seed decides nothing but the order of the windows. The mean of the
features is a bias, too, and their standard deviation goes into the directions: prediction takes features as they are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import get_constant_schedule

from bertdyn.data.batching import Batch, EpochShuffle
from bertdyn.probing.window_rows import WindowRows, check_finite, mean_and_scale
from bertdyn.tasks.question_answering import Answers, QuestionAnswering, best_spans, position_losses, window_losses
from bertdyn.training.loop import Listener, Progress, train
from bertdyn.training.progress_bar import ProgressBar

WINDOWS_WITH_BAR = 3000
"""Fewer take a second or two and show no progress bar."""
BEST = "validation loss of the best probe"


def position_weights(training: Tensor, positions: Tensor) -> Tensor:
    """How much the loss of a window counts whose answer begins (or ends) at each of `positions`.

    System 3's N / count, here divided by the number of positions that occur ("balanced" in scikit-learn), so that the
    mean over the training windows is 1. A position where no answer of the training windows is has the weight 0.

    Parameters
    ----------
    training
        [windows]: positions in the training windows, 0 for no answer.
    """
    counts = torch.bincount(training, minlength=int(positions.max()) + 1).to(torch.get_default_dtype())
    weights = torch.where(counts > 0, len(training) / counts, 0) / (counts > 0).sum()
    return weights[positions]


class SpanProbes(nn.Module):
    """The probes of all learning rates and layers, at zero.

    Parameters
    ----------
    num_rates
        Learning rates.
    mean
        [layers, width]: subtracted from the features. Nothing depends on it, but Adam would take the rounding noise
        of a dimension that hardly varies for a gradient.
    scale
        [layers, width]: what features are divided by.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, num_rates: int, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        layers, width = scale.shape
        # One parameter a learning rate: an optimiser has one rate for each of its groups of parameters.
        self.weights = nn.ParameterList([torch.zeros(layers, 2, width) for _ in range(num_rates)])
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def directions(self) -> Tensor:
        """Start and end directions [rates, layers, 2, width] for features as they are."""
        return torch.stack(list(self.weights)) / self.scale[:, None]

    def forward(self, batch: Batch) -> Tensor:
        return span_logits(self.directions(), batch, self.mean)


def span_logits(directions: Tensor, batch: Batch, mean: Tensor | None = None) -> Tensor:
    """Start and end logits [2, rates, layers, batch, seq] of directions [rates, layers, 2, width]; in the padding,
    those of any token. `mean` [layers, width] is subtracted from the features first."""
    rates, layers, _, width = directions.shape
    by_layer = directions.transpose(0, 1).reshape(layers, 2 * rates, width)
    of_layers = []
    # One layer after the other: converting all at once would touch as much new memory as the batch has features.
    for number, features in enumerate(batch["features"]):
        converted = features.to(directions.dtype)
        of_layers.append((converted if mean is None else converted - mean[number]) @ by_layer[number].T)
    logits = torch.cat(of_layers, dim=1)
    padded = logits.index_select(0, batch["place"].flatten())
    return padded.view(*batch["place"].shape, layers, rates, 2).permute(4, 3, 2, 0, 1)


def _flat(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
    """Start and end logits [probes * batch, seq], and the numbers of the windows repeated for each probe."""
    start, end = logits.flatten(1, 3)
    probes = prod(logits.shape[1:3])
    return start, end, {name: column.repeat(probes) for name, column in batch.items() if column.ndim == 1}


def span_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Mean over the batch of the weighted losses of each probe, [rates, layers]."""
    start, end, repeated = _flat(logits, batch)
    start_losses, end_losses = position_losses(start, end, repeated)
    losses = (repeated["start_weights"] * start_losses + repeated["end_weights"] * end_losses) / 2
    return losses.view(logits.shape[1:4]).mean(dim=2)


class FittedSpans(NamedTuple):
    """The probe of each layer that is best on validation."""

    layers: list[int]
    directions: Tensor
    """Start and end [layers, 2, width], for features as they are in the store."""
    learning_rates: list[float]
    """Of each layer's probe."""
    validation_losses: list[float]
    """Of each layer's probe; weighted as in training."""
    record: pd.DataFrame
    """One row a layer, learning rate and epoch: layer, learning_rate, epoch, train_loss (mean over the epoch while it
    went on; NaN in epoch 0, before training), validation_loss, chosen."""


class _Convergence(Listener):
    """Losses of all probes in every epoch; keeps each layer's directions where validation is best."""

    def __init__(
        self, accelerator: Accelerator, probes: SpanProbes, rates: Sequence[float], rows: WindowRows, batch_size: int
    ) -> None:
        self.accelerator, self.probes, self.rates, self.rows = accelerator, probes, rates, rows
        self.batches = rows.batches(batch_size)
        self.records: list[dict[str, float]] = []
        self.chosen: dict[int, tuple[float, float, int]] = {}  # position of the layer → loss, learning rate, epoch
        self.best = torch.zeros(len(rows.layers), 2, probes.scale.shape[1])
        self.total = self.weight = torch.zeros(())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over all probes: each has the gradient that it would have alone."""
        losses = span_losses(model(batch), batch)
        self.total = self.total + losses.detach() * len(batch["index"])
        self.weight = self.weight + len(batch["index"])
        return losses.sum()

    def on_epoch_start(self, progress: Progress) -> None:
        self.total, self.weight = torch.zeros((2, *self._shape()), device=self.accelerator.device)

    def on_epoch_end(self, progress: Progress) -> None:
        on_train = torch.full(self._shape(), torch.nan)
        if progress.epoch > 0:
            on_train = (self.accelerator.reduce(self.total) / self.accelerator.reduce(self.weight)).cpu()
        losses = self._on_validation()
        directions = self.probes.directions().detach().cpu()
        for column, layer in enumerate(self.rows.layers):
            for row, rate in enumerate(self.rates):
                loss = float(losses[row, column])
                entry = {"layer": layer, "learning_rate": rate, "epoch": progress.epoch}
                self.records.append(entry | {"train_loss": float(on_train[row, column]), "validation_loss": loss})
                if column not in self.chosen or loss < self.chosen[column][0]:
                    self.chosen[column] = loss, rate, progress.epoch
                    self.best[column] = directions[row, column]
        progress.metrics[BEST] = min(loss for loss, *_ in self.chosen.values())

    @torch.inference_mode()
    def _on_validation(self) -> Tensor:
        total = torch.zeros(self._shape(), device=self.accelerator.device)
        directions = self.probes.directions()
        for batch in self.batches:
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            total += span_losses(span_logits(directions, batch), batch) * len(batch["index"])
        return (total / len(self.rows)).cpu()

    def _shape(self) -> tuple[int, int]:
        return len(self.rates), len(self.rows.layers)


class _Bar(ProgressBar):
    """Of the loss, which is the sum over all probes, it shows their mean."""

    def __init__(self, num_probes: int, batches_per_epoch: int, num_epochs: int) -> None:
        super().__init__(batches_per_epoch, num_epochs, shown=(BEST,))
        self.num_probes = num_probes

    def on_step_end(self, progress: Progress, batch: Batch, loss: Tensor) -> None:
        super().on_step_end(progress, batch, loss / self.num_probes)


def fit_span_probes(
    accelerator: Accelerator,
    train_rows: WindowRows,
    validation_rows: WindowRows,
    *,
    learning_rates: Sequence[float],
    num_epochs: int,
    batch_size: int,
    normalize: bool = True,
    weigh_positions: bool = False,
    seed: int = 0,
) -> FittedSpans:
    """Train a probe for each layer and learning rate; keep each layer's best by validation loss, over all epochs.

    AdamW without weight decay, at a constant rate. Precision is torch's default.

    Parameters
    ----------
    train_rows, validation_rows
        Of the same state and layers.
    batch_size
        Windows a step (and process).
    normalize
        Features of variance 1, by all tokens of the training windows.
    weigh_positions
        See `position_weights`; the weights of training count on validation, too.
    seed
        Of the order of the training windows.

    Raises
    ------
    InputError
        If a feature is NaN or infinite.
    """
    check_finite(validation_rows)
    mean, scale = mean_and_scale(train_rows)
    if weigh_positions:
        train_rows, validation_rows = (_weighted(rows, train_rows) for rows in (train_rows, validation_rows))
    scale = scale if normalize else torch.ones_like(scale)
    probes = SpanProbes(len(learning_rates), mean, scale).to(accelerator.device)
    optimizer = torch.optim.AdamW(
        [{"params": [weights], "lr": rate} for weights, rate in zip(probes.weights, learning_rates, strict=True)],
        weight_decay=0.0,
    )
    convergence = _Convergence(accelerator, probes, learning_rates, validation_rows, batch_size)
    batches = train_rows.batches(batch_size, EpochShuffle(len(train_rows), seed))
    listeners: list[Listener] = [convergence]
    if accelerator.is_main_process:
        listeners.append(_Bar(len(learning_rates) * len(train_rows.layers), len(batches), num_epochs))
    train(
        accelerator,
        probes,
        batches,
        convergence.loss,
        optimizer,
        get_constant_schedule(optimizer),
        num_epochs=num_epochs,
        seed=seed,
        listeners=listeners,
    )
    record = pd.DataFrame(convergence.records)
    losses, rates, epochs = zip(*(convergence.chosen[i] for i in range(len(train_rows.layers))), strict=True)
    chosen = set(zip(train_rows.layers, rates, epochs, strict=True))
    keys = zip(record["layer"], record["learning_rate"], record["epoch"], strict=True)
    record["chosen"] = [key in chosen for key in keys]
    record = record.sort_values(["layer", "learning_rate", "epoch"], ignore_index=True)
    return FittedSpans(list(train_rows.layers), convergence.best, list(rates), list(losses), record)


def _weighted(rows: WindowRows, train_rows: WindowRows) -> WindowRows:
    names = ("start_positions", "end_positions")
    weights = [position_weights(train_rows.numbers[name], rows.numbers[name]) for name in names]
    return dataclasses.replace(rows, weights=torch.stack(weights))


@torch.inference_mode()
def predict_spans(
    accelerator: Accelerator,
    directions: Tensor,
    rows: WindowRows,
    task: QuestionAnswering,
    part: str,
    batch_size: int = 32,
) -> list[Answers]:
    """What each layer's probe answers to the questions of `part`; every process does all of it.

    Parameters
    ----------
    directions
        [layers, 2, width], for features as they are in the store.
    rows
        Of the windows `task.windows[part]`.

    Raises
    ------
    InputError
        If a feature is NaN or infinite.
    """
    directions = directions.to(accelerator.device)[None]
    found: list[Mapping[str, Tensor]] = []
    batches = rows.batches(batch_size)
    for batch in tqdm(batches, desc=f"answers, {part}", unit="batch", disable=len(rows) < WINDOWS_WITH_BAR):
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        start, end, repeated = _flat(span_logits(directions, batch), batch)
        spans = best_spans(
            start, end, repeated["context_start"], repeated["context_end"], task.max_answer_length
        )._asdict()
        columns = {"index": repeated["index"], "start": spans["start"], "end": spans["end"]}
        columns |= {"span_score": spans["score"], "null_score": start[:, 0] + end[:, 0]}
        columns |= {"loss": window_losses(start, end, repeated)}
        found.append({name: column.view(len(rows.layers), -1) for name, column in columns.items()})
    joined = {name: torch.cat([batch[name] for batch in found], dim=1).cpu().numpy() for name in found[0]}
    if not np.isfinite(joined["loss"]).all():
        check_finite(rows)
    return [
        task.merge_windows(pd.DataFrame({name: column[layer] for name, column in joined.items()}), part)
        for layer in range(len(rows.layers))
    ]


def save_directions(path: Path, layers: Sequence[int], directions: Tensor) -> None:
    """Directions [layers, 2, width] in safetensors, as `layer_03/start` and `layer_03/end`."""
    tensors = {
        f"layer_{layer:02d}/{name}": direction.contiguous()
        for layer, pair in zip(layers, directions, strict=True)
        for name, direction in zip(("start", "end"), pair, strict=True)
    }
    save_file(tensors, path)


def load_directions(path: Path) -> tuple[list[int], Tensor]:
    """Layers and directions [layers, 2, width] that `save_directions` wrote."""
    tensors = load_file(path)
    layers = sorted({int(name.split("/")[0].removeprefix("layer_")) for name in tensors})
    pairs = [[tensors[f"layer_{layer:02d}/{name}"] for name in ("start", "end")] for layer in layers]
    return layers, torch.stack([torch.stack(pair) for pair in pairs])
