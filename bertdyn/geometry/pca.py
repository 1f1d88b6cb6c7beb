"""Principal components in one basis for all states, so that trajectories can be compared.

System 0 fitted a new basis for every layer and epoch: what looked like a change of shape could be
a rotation or a flipped sign.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA

MAX_ROWS = 5_000


class FixedBasis(NamedTuple):
    """Projections of several states of the same rows onto common components."""

    projections: list[np.ndarray]
    """One [rows, components] per state."""
    explained: np.ndarray
    """[states, components]: share of each state's own variance along each common component."""


def fixed_basis(states: Sequence[np.ndarray], num_components: int = 2) -> FixedBasis:
    """Fit the components on all states together, each with equal weight, and project every one.

    Parameters
    ----------
    states
        One [rows, width] per state, of the same rows. Above `MAX_ROWS` rows in all, the fit uses an
        even share of each state's rows (every k-th); the projection always uses all.
    """
    stride = max(1, -(-sum(len(s) for s in states) // MAX_ROWS))
    pca = PCA(num_components, svd_solver="covariance_eigh")
    pca.fit(np.concatenate([np.asarray(s[::stride], dtype=np.float64) for s in states]))
    projections = [pca.transform(np.asarray(s, dtype=np.float64)) for s in states]
    totals = np.array([np.asarray(s, dtype=np.float64).var(axis=0).sum() for s in states])
    along = np.array([p.var(axis=0) for p in projections])
    return FixedBasis(projections, along / np.where(totals > 0, totals, np.nan)[:, None])
