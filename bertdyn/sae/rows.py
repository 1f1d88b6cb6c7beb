"""The rows that dictionaries are trained on: standardised, all states and layers of a row together.

Every state of a layer is centred by its own mean. The scale of a dimension is common to the states of a layer (the
root of its mean variance), so that what fine-tuning does to the spread of the features stays visible, and directions
in two states can be compared. A standardised row of an average state has a mean squared length of 1.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertdyn.errors import InputError
from bertdyn.features.rows import RowDataset

ROWS_PER_BLOCK = 8192
LEAST_DEVIATION = 1e-2
"""Of the root mean variance of all dimensions: a dimension that hardly varies is not blown up to count like the others
(MiniLM's last layer has one that is constant in the pretrained state)."""
SHARE_OF_DEVICE = 0.5
"""Of the free memory of a GPU that rows may take."""


class Standardisation(NamedTuple):
    """Of some states and layers, float64."""

    mean: np.ndarray
    """[states, layers, width]"""
    deviation: np.ndarray
    """[layers, width]: root of the variance of a dimension, mean over states, but for `LEAST_DEVIATION`; 1 where all
    dimensions are constant."""
    variance: np.ndarray
    """[states, layers]: mean squared length of a row that is centred and divided by deviation and sqrt(width)."""


def standardisation_of(rows: RowDataset, names: Sequence[Sequence[str]]) -> Standardisation:
    """Mean and spread of all rows, in one pass.

    Parameters
    ----------
    names
        [states][layers]: what to call them in a message.

    Raises
    ------
    InputError
        If a row is not finite, or all rows are the same.
    """
    first = rows.batch(np.arange(min(len(rows), ROWS_PER_BLOCK))).double().mean(dim=2, keepdim=True)
    total, squares = torch.zeros_like(first[:, :, 0]), torch.zeros_like(first[:, :, 0])
    for block in _blocks(rows):
        centred = block.double() - first  # a large mean would cost the digits of the squares
        total += centred.sum(dim=2)
        squares += centred.square().sum(dim=2)
    mean = total / len(rows)
    variance = (squares / len(rows) - mean.square()).clamp_min(0)
    for state, layer in zip(*np.nonzero(~np.isfinite(squares.sum(dim=-1).numpy())), strict=True):
        raise InputError(f"{names[state][layer]} has rows that are not finite (NaN or infinite): extract it anew")
    common = variance.mean(dim=0)
    least = LEAST_DEVIATION * common.mean(dim=-1, keepdim=True).sqrt()
    deviation = torch.where(least > 0, common.sqrt().maximum(least), torch.ones_like(common))
    share = (variance / deviation.square()).mean(dim=-1)
    for state, layer in zip(*np.nonzero((share <= 0).numpy()), strict=True):
        raise InputError(f"{names[state][layer]}: all rows are the same, there is nothing to code; leave the layer out")
    return Standardisation((mean + first[:, :, 0]).numpy(), deviation.numpy(), share.numpy())


def _blocks(rows: RowDataset) -> Iterator[Tensor]:
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        yield rows.batch(np.arange(start, min(len(rows), start + ROWS_PER_BLOCK)))


class TrainingRows:
    """Standardised rows of several datasets of equal length, in groups: one for each dictionary of a seed.

    Parameters
    ----------
    datasets
        Their states are put one after the other.
    standardisations
        Of each dataset.
    pooled
        One group a layer, with the rows of all states together; otherwise one for each state and layer, state by state.
    device
        A GPU holds all rows if they fit; otherwise they are read from disk batch by batch.
    """

    def __init__(
        self,
        datasets: Sequence[RowDataset],
        standardisations: Sequence[Standardisation],
        *,
        pooled: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self._datasets, self.pooled, self.device = datasets, pooled, torch.device(device)
        self.mean = np.concatenate([of.mean for of in standardisations])
        self.deviation = np.concatenate([np.broadcast_to(of.deviation, of.mean.shape) for of in standardisations])
        variance = np.concatenate([of.variance for of in standardisations])
        self.num_states, self.num_layers, self.width = self.mean.shape
        self.num_groups = self.num_layers * (1 if pooled else self.num_states)
        self.variance = torch.as_tensor(variance.mean(axis=0) if pooled else variance.reshape(-1)).float().to(device)
        """[groups]: mean squared length of a group's standardised rows."""
        self._shift = torch.as_tensor(self.mean)[:, :, None].float().to(device)
        scale = 1 / (self.deviation * self.width**0.5)
        self._factor = torch.as_tensor(scale)[:, :, None].float().to(device)
        self._resident = self._load() if self._fits() else None

    def __len__(self) -> int:
        """Rows of a state."""
        return len(self._datasets[0])

    def batch(self, indices: np.ndarray) -> Tensor:
        """[groups, rows, width], float32: the rows `indices` of every state, pooled ones state by state."""
        if self._resident is not None:
            at = torch.from_numpy(indices).to(self.device)
            rows = self._resident.index_select(2, at)
        else:
            rows = torch.cat([dataset.batch(indices) for dataset in self._datasets]).to(self.device, non_blocking=True)
        rows = (rows.float() - self._shift) * self._factor
        return rows.transpose(0, 1).flatten(1, 2) if self.pooled else rows.flatten(0, 1)

    def _fits(self) -> bool:
        if self.device.type != "cuda":
            return False  # the operating system keeps what is read often
        size = len(self) * sum(dataset.batch(np.zeros(1, dtype=int)).nbytes for dataset in self._datasets)
        return size < SHARE_OF_DEVICE * torch.cuda.mem_get_info(self.device)[0]

    def _load(self) -> Tensor:
        sample = torch.cat([dataset.batch(np.zeros(1, dtype=int)) for dataset in self._datasets])
        states, layers, _, width = sample.shape
        resident = torch.empty(states, layers, len(self), width, dtype=sample.dtype, device=self.device)
        for number, block in enumerate(zip(*(_blocks(dataset) for dataset in self._datasets), strict=True)):
            start = number * ROWS_PER_BLOCK
            resident[:, :, start : start + ROWS_PER_BLOCK] = torch.cat(block).to(self.device)
        return resident


class RowBatches:
    """Batches for the training loop: every row once an epoch, but for the last, incomplete batch.

    All groups see the same rows at the same time, in an order that is a function of (seed, epoch) alone. A pooled group
    has `batch_size` rows of each state in a batch, so that all groups are trained for equally many steps.
    """

    def __init__(self, rows: TrainingRows, batch_size: int, seed: int) -> None:
        self.rows, self.seed, self.epoch, self.batch_size = rows, seed, 0, batch_size

    def set_epoch(self, epoch: int) -> None:
        """Which order the next pass has."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))
        for number in range(len(self)):
            yield {"rows": self.rows.batch(order[number * self.batch_size : (number + 1) * self.batch_size])}
