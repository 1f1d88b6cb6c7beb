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
    """One [rows, components] per state; the origin is the mean of the first state."""
    explained: np.ndarray
    """[states, components]: share of each state's own variance along each common component."""


def fixed_basis(states: Sequence[np.ndarray], num_components: int = 2) -> FixedBasis:
    """Project every state onto the components along which rows vary *within* states.

    Each state is centred before the fit, so that a common drift of all rows from state to state
    does not take the place of the structure among rows; the projections keep the drift that lies
    along the components. All states have equal weight.

    Parameters
    ----------
    states
        One [rows, width] per state, of the same rows. Above `MAX_ROWS` rows in all, the fit uses an
        even share of each state's rows (every k-th); the projection always uses all.
    """
    arrays = [np.asarray(state, dtype=np.float64) for state in states]
    stride = max(1, -(-sum(len(a) for a in arrays) // MAX_ROWS))
    pca = PCA(num_components, svd_solver="covariance_eigh")
    pca.fit(np.concatenate([a[::stride] - a[::stride].mean(axis=0) for a in arrays]))
    origin = arrays[0].mean(axis=0)
    projections = [(a - origin) @ pca.components_.T for a in arrays]
    totals = np.array([a.var(axis=0).sum() for a in arrays])
    along = np.array([p.var(axis=0) for p in projections])
    return FixedBasis(projections, along / np.where(totals > 0, totals, np.nan)[:, None])
