"""Weights as they were at an earlier moment, in a file.

Distances need the initial weights and those at the epoch's start. As copies in memory they would be
two more models there (on the GPU, with its training); read back piece by piece, they cost nothing
until the epoch ends.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bertdyn.errors import InputError

CHUNK = 2**20
"""Elements that are compared at a time."""


class Snapshot:
    """A copy of `tensors` in an unnamed file in `folder`; `take` replaces it."""

    def __init__(self, tensors: Iterable[Tensor], folder: Path | None = None) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # as long as the snapshot
        self.take(tensors)

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Remember what `tensors` are now.

        Raises
        ------
        InputError
            If the disk is full.
        """
        try:
            self.file.seek(0)
            for tensor in tensors:
                for piece in _pieces(tensor):
                    piece.cpu().view(torch.uint8).numpy().tofile(self.file)
            self.file.flush()
        except OSError as error:
            raise InputError(f"cannot write the weights to measure distances from: {error}") from error

    def compare(self, tensors: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Distances ‖now - then‖ and norms ‖then‖ [tensors], float64.

        `tensors` are those of `take` in the same order, of the same shapes and types.
        """
        self.file.seek(0)
        distances, norms = [], []
        for tensor in tensors:
            distance, norm = torch.zeros(2, dtype=torch.float64, device=tensor.device)
            for piece in _pieces(tensor):
                then = self._read(piece)
                distance += _square_sum(piece - then)
                norm += _square_sum(then)
            distances.append(distance)
            norms.append(norm)
        return torch.stack(distances).sqrt(), torch.stack(norms).sqrt()

    def _read(self, like: Tensor) -> Tensor:
        content = np.fromfile(self.file, dtype=np.uint8, count=like.nbytes)
        return torch.from_numpy(content).view(like.dtype).to(like.device)


def norms(tensors: Iterable[Tensor]) -> Tensor:
    """Frobenius norms [tensors], float64: float32 sums lose more of an embedding table's than an epoch changes."""
    zero = torch.zeros((), dtype=torch.float64)
    return torch.stack([sum((_square_sum(p) for p in _pieces(t)), zero.to(t.device)) for t in tensors]).sqrt()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    yield from tensor.detach().flatten().split(CHUNK) if tensor.numel() else ()


def _square_sum(piece: Tensor) -> Tensor:
    return piece.double().square().sum()
