"""Sums over rows from which shift-invariant measures follow in closed form.

They add up, so that a feature store larger than memory is one pass over blocks, and they subtract,
so that a group of texts is left out of an estimate without a second pass (see `intervals.jackknife`).

Fourth powers lose digits where the mean is large against the spread, as in most layers of BERT:
pass rows from which an approximate mean (of the first block, say) has been subtracted, the same one
for all blocks. No measure depends on which.
"""

from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

ROUNDING = 1e-12
"""Share of a sum of squares below which a difference of such sums is rounding noise, not signal."""

Sums = TypeVar("Sums", "Moments", "CrossMoments")


def _combined(a: Sums, b: Sums, sign: int) -> Sums:
    return type(a)(*(getattr(a, f.name) + sign * getattr(b, f.name) for f in fields(a)))


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the rows x of one state."""

    count: int
    """Number of rows."""
    total: np.ndarray
    """[width]: sum of x."""
    outer: np.ndarray
    """[width, width]: sum of x xᵀ."""
    weighted: np.ndarray
    """[width]: sum of x ‖x‖²."""
    quartic: float
    """Sum of ‖x‖⁴."""

    @classmethod
    def of(cls, rows: np.ndarray) -> "Moments":
        """The sums over one block of rows [n, width] of any float type."""
        rows = np.asarray(rows, dtype=np.float64)
        squares = np.einsum("nd,nd->n", rows, rows)
        return cls(len(rows), rows.sum(axis=0), rows.T @ rows, squares @ rows, float(squares @ squares))

    def __add__(self, other: "Moments") -> "Moments":
        return _combined(self, other, 1)

    def __sub__(self, other: "Moments") -> "Moments":
        """Take out a group of rows that is part of these sums."""
        return _combined(self, other, -1)

    @property
    def mean(self) -> np.ndarray:
        """[width]; NaN without rows."""
        return self.total / self.count if self.count else np.full_like(self.total, np.nan)

    @property
    def mean_square_norm(self) -> float:
        """Mean of ‖x‖²; the one value here that depends on the subtracted mean."""
        return float(np.trace(self.outer)) / self.count if self.count else float("nan")

    @property
    def total_variance(self) -> float:
        """Trace of the covariance; exactly 0 for rows that are the same up to rounding, NaN below two rows."""
        if self.count < 2:
            return float("nan")
        squares = float(np.trace(self.outer))
        centred = squares - float(self.total @ self.total) / self.count
        return centred / (self.count - 1) if centred > ROUNDING * squares else 0.0

    @property
    def covariance(self) -> np.ndarray:
        """[width, width], with ddof 1; exactly 0 where `total_variance` is, NaN below two rows."""
        if self.count < 2:
            return np.full_like(self.outer, np.nan)
        if self.total_variance == 0:
            return np.zeros_like(self.outer)
        return (self.outer - np.outer(self.total, self.total) / self.count) / (self.count - 1)


@dataclass(frozen=True, eq=False)
class CrossMoments:
    """Sums over the pairs (x, y) of one row in two states, whose widths may differ."""

    product: np.ndarray
    """[width of x, width of y]: sum of x yᵀ."""
    x_by_y: np.ndarray
    """[width of x]: sum of x ‖y‖²."""
    y_by_x: np.ndarray
    """[width of y]: sum of y ‖x‖²."""
    quartic: float
    """Sum of ‖x‖² ‖y‖²."""

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> "CrossMoments":
        """The sums over one block of aligned rows, x [n, width of x] and y [n, width of y]."""
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        if len(x) != len(y):
            raise ValueError(f"the rows of two states must be aligned: {len(x)} and {len(y)} rows")
        x_squares, y_squares = np.einsum("nd,nd->n", x, x), np.einsum("nd,nd->n", y, y)
        return cls(x.T @ y, y_squares @ x, x_squares @ y, float(x_squares @ y_squares))

    def __add__(self, other: "CrossMoments") -> "CrossMoments":
        return _combined(self, other, 1)

    def __sub__(self, other: "CrossMoments") -> "CrossMoments":
        return _combined(self, other, -1)
