"""Mean and variance of the inputs of a projection, in one pass, whatever the batches are.

Blocks are merged by the formulas of Chan, Golub & LeVeque (1979) in float64, which lose no digits where the mean is
large against the spread.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class InputMoments(NamedTuple):
    """Of rows [n, width], float64."""

    count: int
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
        count = self.count + other.count
        if not other.count or not self.count:
            return self if self.count else other
        shift = other.mean - self.mean
        product = torch.outer(shift, shift) if self.scatter.dim() == 2 else shift.square()
        scatter = self.scatter + other.scatter + product * (self.count * other.count / count)
        return InputMoments(count, self.mean + shift * (other.count / count), scatter)

    @property
    def variance(self) -> Tensor:
        """[width], of the population (ddof 0)."""
        return (self.scatter.diagonal() if self.scatter.dim() == 2 else self.scatter) / max(1, self.count)

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
        return self.scatter / max(1, self.count)

    @property
    def mean_square(self) -> Tensor:
        """[width]: mean of the squared inputs."""
        return self.variance + self.mean.square()
