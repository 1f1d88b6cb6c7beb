"""How much of a state's geometry another state of the same rows keeps.

Debiased CKA and the Procrustes distance come from sums (`moments`), so they hold for stores larger
than memory; neighbours need the rows themselves. All three ignore rotation, scale and shift, which
`row_cosines` does not: it asks whether the vectors stayed where they were.
"""

import numpy as np
from scipy.linalg import svdvals

from bertdyn.geometry.moments import ROUNDING, CrossMoments, Moments

BLOCK_ELEMENTS = 4_000_000
"""Distances held at once: 32 MB."""


def _check_aligned(x: Moments, y: Moments) -> None:
    if x.count != y.count:
        raise ValueError(f"the rows of two states must be aligned: {x.count} and {y.count} rows")


def _unbiased_hsic(x: Moments, y: Moments, xy: CrossMoments) -> float:
    """HSIC of the Gram matrices K = XXᵀ and L = YYᵀ with empty diagonals; 0 where it is only rounding noise.

    Every sum over K and L that the estimator needs is a sum over features (‖XᵀY‖² for tr KL, …).
    """
    n = x.count
    x_squares, y_squares = float(np.trace(x.outer)), float(np.trace(y.outer))
    product = float(np.vdot(xy.product, xy.product))
    trace = product - xy.quartic
    sums = (float(x.total @ x.total) - x_squares) * (float(y.total @ y.total) - y_squares)
    rows = np.array([x.total @ xy.product @ y.total, -x.total @ xy.x_by_y, -y.total @ xy.y_by_x, xy.quartic])
    hsic = trace + sums / ((n - 1) * (n - 2)) - 2 * rows.sum() / (n - 2)
    scale = product + xy.quartic + abs(sums) / ((n - 1) * (n - 2)) + 2 * np.abs(rows).sum() / (n - 2)
    return float(hsic) / (n * (n - 3)) if abs(hsic) > ROUNDING * scale else 0.0


def debiased_cka(x: Moments, y: Moments, xy: CrossMoments) -> float:
    """Linear CKA from the unbiased HSIC: 1 for the same geometry, 0 on average for unrelated rows.

    Plain CKA of unrelated states grows towards 1 as width/rows does. This one stays at 0 (and so may
    be a little negative), so that states are comparable whatever the number of rows, where rows are
    independent. Tokens of one text are not: with them it grows as 1/texts does, which
    `intervals.bias_corrected` takes off.

    Returns
    -------
    float
        NaN below 4 rows and where a state has no geometry: its self-HSIC is not positive, as for the
        first token at layer 0, whose rows are all the same.

    References
    ----------
    Song et al. 2012, JMLR 13 (the estimator); Kornblith et al. 2019 (CKA); Nguyen, Raghu & Kornblith 2021.
    """
    _check_aligned(x, y)
    if x.count < 4 or x.total_variance == 0 or y.total_variance == 0:
        return float("nan")
    self_x = _unbiased_hsic(x, x, CrossMoments(x.outer, x.weighted, x.weighted, x.quartic))
    self_y = _unbiased_hsic(y, y, CrossMoments(y.outer, y.weighted, y.weighted, y.quartic))
    if self_x <= 0 or self_y <= 0:
        return float("nan")
    # Two roots: the product of two self-HSICs may overflow where each does not.
    return float(_unbiased_hsic(x, y, xy) / np.sqrt(self_x) / np.sqrt(self_y))


def procrustes_distance(x: Moments, y: Moments, xy: CrossMoments) -> float:
    """Squared distance left after the best rotation of centred states of unit norm, 2 − 2‖XᵀY‖_*, in [0, 2].

    0 for the same shape, 2 for orthogonal ones. Unlike CKA it does not neglect directions of small
    variance. Unrelated states are nearer than 2 if rows are few against the width. NaN where the rows
    of a state are all the same.

    References
    ----------
    Ding, Denain & Steinhardt 2021, "Grounding Representation Similarity with Statistical Testing".
    """
    _check_aligned(x, y)
    if not (x.total_variance > 0 and y.total_variance > 0):
        return float("nan")
    centred = (xy.product - np.outer(x.total, y.total) / x.count) / (x.count - 1)
    overlap = svdvals(centred).sum() / np.sqrt(x.total_variance) / np.sqrt(y.total_variance)
    return max(0.0, 2 - 2 * float(overlap))


def neighbours(rows: np.ndarray, k: int) -> np.ndarray:
    """The k nearest other rows of every row by Euclidean distance, exact, nearest first.

    A row is excluded by its index, not by its distance, since texts with the same vector exist.
    Distances are computed a block of rows at a time.

    Returns
    -------
    np.ndarray
        Int [n, k]. All −1 where all rows are the same: nothing there is nearer than anything else.
    """
    rows = np.asarray(rows, dtype=np.float64)
    n = len(rows)
    if not 1 <= k < n:
        raise ValueError(f"k must be from 1 to {n - 1} (the number of other rows), not {k}")
    # Exact zeros for rows that are the same; and ‖a‖² + ‖b‖² − 2ab loses digits far from the origin.
    rows = rows - rows[0]
    if not rows.any():
        return np.full((n, k), -1)
    squares = np.einsum("nd,nd->n", rows, rows)
    nearest = np.empty((n, k), dtype=np.int64)
    step = max(1, BLOCK_ELEMENTS // n)
    for start in range(0, n, step):
        block = np.arange(start, min(start + step, n))
        distances = rows[block] @ rows.T
        distances *= -2
        distances += squares  # the row's own ‖a‖² does not change the order
        distances[np.arange(len(block)), block] = np.inf
        candidates = np.argpartition(distances, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, candidates, axis=1), axis=1, kind="stable")
        nearest[block] = np.take_along_axis(candidates, order, axis=1)
    return nearest


def neighbour_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of common neighbours of every row in two states, [n]; NaN where a state has no neighbours (−1).

    `a` and `b` are `neighbours` [n, k] of the same rows; see `chance_overlap` for unrelated states.
    """
    if a.shape != b.shape:
        raise ValueError(f"neighbours of two states must have the same shape: {a.shape} and {b.shape}")
    both = np.sort(np.concatenate([a, b], axis=1), axis=1)
    common = (both[:, 1:] == both[:, :-1]).sum(axis=1) / a.shape[1]  # an index comes once in each state
    return np.where((a[:, 0] < 0) | (b[:, 0] < 0), np.nan, common)


def chance_overlap(n: int, k: int) -> float:
    """Expected `neighbour_overlap` of unrelated states: k/(n − 1)."""
    return k / (n - 1)


def row_cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine between every row of x [n, width] and the same row of y, [n]; NaN where one of them is zero."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines = np.full(len(x), np.nan)
    np.divide(np.einsum("nd,nd->n", x, y), norms, out=cosines, where=norms > 0)
    return np.clip(cosines, -1, 1)
