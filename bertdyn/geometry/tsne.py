"""t-SNE of several states in one map, so that a point's way from state to state can be seen."""

from collections.abc import Sequence

import numpy as np
from sklearn.manifold import TSNE

MAX_ROWS = 500
"""Of each state: time grows faster than rows."""


def joint_tsne(states: Sequence[np.ndarray], *, seed: int) -> list[np.ndarray]:
    """[rows, 2] for each state [rows, width], of the same first rows (at most `MAX_ROWS`), in one embedding.

    Distances between far points mean nothing in t-SNE, and neither does the size of a cluster.
    """
    rows = [np.asarray(state[:MAX_ROWS], dtype=np.float64) for state in states]
    together = np.concatenate(rows)
    perplexity = min(30.0, (len(together) - 1) / 3)
    places = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(together)
    return np.split(places, len(states))
