"""Rows of a feature store for PyTorch: several states and layers side by side, in one random order."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bertdyn.features.store import FeatureStore


class RowDataset(Dataset[Tensor]):
    """Row i of every state and layer of one kind of array, [states, layers, width].

    Nothing is held in memory; a batch reads its own rows of the memory-mapped arrays.

    Parameters
    ----------
    rows
        Only these row numbers, such as those of content tokens. Default: all.

    Raises
    ------
    InputError
        If the store does not have a kind, state or layer.
    """

    def __init__(
        self,
        store: FeatureStore,
        kind: str,
        states: Sequence[str],
        layers: Sequence[int],
        rows: np.ndarray | None = None,
    ) -> None:
        self._arrays = [[store.array(kind, state, layer) for layer in layers] for state in states]
        self._rows = np.arange(len(self._arrays[0][0])) if rows is None else np.asarray(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch(np.array([index]))[:, :, 0]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """What a DataLoader asks for: a list of items, read together."""
        return list(self.batch(np.asarray(indices)).permute(2, 0, 1, 3))

    def batch(self, indices: np.ndarray) -> Tensor:
        """Some rows, [states, layers, batch, width]."""
        rows = self._rows[indices]
        return torch.from_numpy(np.stack([[array[rows] for array in of_state] for of_state in self._arrays]))


def random_batches(dataset: RowDataset, batch_size: int, *, seed: int, epoch: int = 0) -> Iterator[Tensor]:
    """Every row once, [states, layers, batch, width], in an order that is a function of (seed, epoch) alone.

    All states and layers of the dataset see the same rows at the same time.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(dataset))
    for start in range(0, len(order), batch_size):
        yield dataset.batch(order[start : start + batch_size])
