"""How many dimensions a state uses, from the eigenvalues of its second moment or covariance.

`Moments.outer` (uncentred, as in system 2) and `Moments.covariance` are the matrices meant here. None
of these values exceeds the number of rows, so compare states only at the same rows.
"""

import numpy as np


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Decreasing eigenvalues of a positive semidefinite matrix; those that are rounding noise are 0."""
    values = np.linalg.eigvalsh(matrix)[::-1]
    noise = len(values) * np.finfo(np.float64).eps * max(values[0], 0.0)
    return np.where(values > noise, values, 0.0)


def effective_rank(second_moment: np.ndarray) -> float:
    """Exponential of the entropy of the singular values, each taken as a share of their sum.

    Parameters
    ----------
    second_moment
        [width, width]: sum or mean of x xᵀ over rows, centred or not; its scale does not matter. The
        square roots of its eigenvalues are the singular values of the rows.

    Returns
    -------
    float
        From 1 (one direction) to the width (all alike); 0 for a zero matrix, NaN for one with NaN.

    References
    ----------
    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    if np.isnan(second_moment).any():
        return float("nan")
    singular = np.sqrt(_eigenvalues(second_moment))
    if singular[0] == 0:
        return 0.0
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-shares @ np.log(shares)))


def iso_score(covariance: np.ndarray) -> float:
    """How uniformly variance fills the space: 1 in all directions, (k − 1)/(width − 1) in k of them, 0 in one.

    The published steps (eigenvalues λ scaled to length √n, their distance δ from (1, …, 1) relative to its
    largest possible value, φ = (n − δ²(n − √n))²/n², (nφ − 1)/(n − 1)) reduce to nφ = (Σλ)²/Σλ²: two
    traces, no eigenvalues. Unlike the mean cosine it does not depend on the mean. NaN where nothing varies.

    References
    ----------
    Rudman, Gillman, Rayne & Eickhoff 2022, "IsoScore: Measuring the Uniformity of Embedding Space Utilization".
    """
    width, trace = len(covariance), float(np.trace(covariance))
    if not trace > 0 or width < 2:
        return float("nan")
    scaled = covariance / trace
    return float((1 / np.vdot(scaled, scaled) - 1) / (width - 1))
