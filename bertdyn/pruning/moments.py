"""Mean and variance of the inputs of a projection, in one pass, whatever the batches are.

Blocks are merged by the formulas of Chan, Golub & LeVeque (1979) in float64, which lose no digits where the mean is
large against the spread.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class InputMoments(NamedTuple):
    """Of rows [n, width], float64."""

    num_rows: int
    mean: Tensor
    """[width]"""
    scatter: Tensor
    """[width]: sums of squared deviations from the mean; [width, width]: sums of products of deviations."""

    @classmethod
    def of(cls, rows: Tensor, covariance: bool) -> "InputMoments":
        """The moments of one block of rows [n, width]."""
        mean = rows.mean(dim=0, dtype=torch.float64)
        centred = rows - mean.to(rows.dtype)
        if covariance:  # products in the type of the rows: sums of millions of them in float64 take minutes
            return cls(len(rows), mean, (centred.T @ centred).double())
        return cls(len(rows), mean, centred.double().square().sum(dim=0))

    def __add__(self, other: "InputMoments") -> "InputMoments":  # type: ignore[override]
        """The moments of both blocks together."""
        num_rows = self.num_rows + other.num_rows
        if not other.num_rows or not self.num_rows:
            return self if self.num_rows else other
        shift = other.mean - self.mean
        product = torch.outer(shift, shift) if self.scatter.dim() == 2 else shift.square()
        scatter = self.scatter + other.scatter + product * (self.num_rows * other.num_rows / num_rows)
        return InputMoments(num_rows, self.mean + shift * (other.num_rows / num_rows), scatter)

    @property
    def variance(self) -> Tensor:
        """[width], of the population (ddof 0)."""
        return (self.scatter.diagonal() if self.scatter.dim() == 2 else self.scatter) / max(1, self.num_rows)

    @property
    def covariance(self) -> Tensor:
        """[width, width], of the population.

        Raises
        ------
        ValueError
            If only variances were asked for.
        """
        if self.scatter.dim() != 2:
            raise ValueError("these moments hold variances only: collect them with covariance=True")
        return self.scatter / max(1, self.num_rows)

    @property
    def mean_square(self) -> Tensor:
        """[width]: mean of the squared inputs."""
        return self.variance + self.mean.square()
