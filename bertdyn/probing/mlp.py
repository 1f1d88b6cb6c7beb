"""Probes with one hidden layer, all layers and folds in one training.

What a linear probe cannot read may still be there. Every probe is early-stopped by a fold of its own: the one that
judges fold k is fitted without fold k and fold k + 1, and the latter says which epoch is the best. It is thus fitted to
fewer texts than a linear probe of the same folds (three of five folds, where that has four).
"""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from bertdyn.data.batching import Batch, EpochShuffle
from bertdyn.probing.cross_validation import losses_of
from bertdyn.probing.linear import scaling_of
from bertdyn.training.loop import AtEpochEnd, Progress, train

NUM_UPDATES = 1_000
"""At most; the epochs that this takes depend on the number of rows."""
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2


class Perceptrons(nn.Module):
    """Many perceptrons side by side: [layers, probes] of them, each on the rows of its layer."""

    def __init__(self, layers: int, probes: int, width: int, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(layers, probes, width, hidden_size) * (2 / width) ** 0.5)
        self.inner_bias = nn.Parameter(torch.zeros(layers, probes, 1, hidden_size))
        self.outer = nn.Parameter(torch.randn(layers, probes, hidden_size, outputs) * hidden_size**-0.5)
        self.outer_bias = nn.Parameter(torch.zeros(layers, probes, 1, outputs))

    def forward(self, features: Tensor) -> Tensor:
        """[layers, probes, rows, outputs] of [layers, probes, rows, width]."""
        hidden = (features @ self.inner + self.inner_bias).relu()
        return hidden @ self.outer + self.outer_bias


def cross_validate_mlp(
    accelerator: Accelerator,
    features: Tensor,
    targets: Tensor,
    folds: Tensor,
    *,
    outputs: int,
    hidden_size: int,
    seed: int,
) -> Tensor:
    """Held-out scores [layers, rows, targets, outputs] of perceptrons that have not seen a row in any way.

    Parameters
    ----------
    features
        [layers, rows, width], on the device of `accelerator`.
    targets
        [rows, targets]; class ids, or numbers (then `outputs` is 1).
    folds
        [rows], 0 to K - 1, K at least 3.
    seed
        Of weights and the order of rows.
    """
    layers, num_rows, width = features.shape
    num_folds, num_targets = int(folds.max()) + 1, targets.shape[1]
    classes = outputs > 1
    numbers = torch.arange(num_folds, device=folds.device)
    judged = folds[:, None] == numbers  # [rows, folds]
    stopping = folds[:, None] == (numbers + 1) % num_folds
    training = ~(judged | stopping)
    scalings = [scaling_of(of_layer, training) for of_layer in features]
    mean, std = (torch.stack(part)[:, :, None] for part in zip(*scalings, strict=True))  # [layers, folds, 1, width]
    wanted = targets[:, None].expand(-1, num_folds, -1).reshape(num_rows, -1)  # [rows, folds × targets]
    if not classes:  # numbers of mean 0 and variance 1 over the rows that each probe is fitted to
        level, spread = (part.flatten() for part in scaling_of(targets.double(), training))
        wanted = ((wanted - level) / spread).to(features.dtype)

    def rows_of(index: Tensor) -> Tensor:
        rows = (features[:, None, index] - mean) / std
        return rows.repeat_interleave(num_targets, dim=1)

    def losses(model: nn.Module, index: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [rows, layers × folds × targets, outputs], and the loss of each."""
        scores = model(rows_of(index)).flatten(0, 1).transpose(0, 1)
        return scores, losses_of(scores, wanted[index].repeat(1, layers), classes)

    def share(mask: Tensor, index: Tensor) -> Tensor:
        """[rows, layers × folds × targets]: weight of a row in the mean loss of each probe."""
        return (mask / mask.sum(dim=0))[index].repeat_interleave(num_targets, dim=1).repeat(1, layers)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        index = batch["index"]
        # A sum over probes: no probe's gradient depends on how many others there are.
        return (losses(model, index)[1] * share(training, index)).sum() * num_rows / len(index)

    best = torch.full((layers * num_folds * num_targets,), torch.inf, device=features.device)
    held_out = features.new_zeros(num_rows, len(best), outputs)

    @torch.inference_mode()
    def keep_the_best(progress: Progress) -> None:
        everything = torch.arange(num_rows, device=features.device).split(BATCH_SIZE * 8)
        parts = [losses(model, index) for index in everything]
        scores, found = (torch.cat(part) for part in zip(*parts, strict=True))
        index = torch.cat(list(everything))
        validation = (found * share(stopping, index)).sum(dim=0)
        better = validation < best
        held_out[:, better] = scores[:, better]
        best[better] = validation[better]

    torch.manual_seed(seed)
    model = Perceptrons(layers, num_folds * num_targets, width, hidden_size, outputs).to(features)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rows = [{"index": row} for row in range(num_rows)]
    batches: DataLoader = DataLoader(rows, batch_size=BATCH_SIZE, sampler=EpochShuffle(num_rows, seed))  # type: ignore[arg-type]
    constant = LambdaLR(optimizer, lambda step: 1.0)
    listeners = [AtEpochEnd(keep_the_best)]
    num_epochs = math.ceil(NUM_UPDATES / len(batches))
    train(accelerator, model, batches, loss, optimizer, constant, num_epochs=num_epochs, seed=seed, listeners=listeners)
    if not classes:
        held_out = (held_out * spread.repeat(layers)[:, None] + level.repeat(layers)[:, None]).to(features.dtype)
    scores = held_out.view(num_rows, layers, num_folds, num_targets, outputs)
    return scores[torch.arange(num_rows, device=folds.device), :, folds].transpose(0, 1)
