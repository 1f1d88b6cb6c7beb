"""95 % intervals over examples: a bootstrap for means, a jackknife for everything else."""

import numpy as np
from scipy.stats import t as student_t

BLOCK_ELEMENTS = 2_000_000
"""Resampled examples held at once, at three 8-byte arrays: 48 MB."""


def bootstrap_ratio(
    numerators: np.ndarray, denominators: np.ndarray, *, seed: int, replicates: int = 1_000
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of Σ numerators / Σ denominators, where examples are resampled with replacement.

    An example is a text with all its tokens (a sum of cosines and a number of tokens), since the tokens
    of a text are not independent. Every column uses the same resamples.

    Parameters
    ----------
    numerators
        [examples] or [examples, k]. NaN says that the example has no such value: it drops out of that
        column together with its denominator.
    denominators
        [examples]; ones for a plain mean.

    Returns
    -------
    tuple
        (low, high), each of shape [] or [k]; NaN where no example has a value.
    """
    numerators = np.asarray(numerators, dtype=np.float64)
    values = numerators[:, None] if numerators.ndim == 1 else numerators
    missing = np.isnan(values)
    weights = np.where(missing, 0.0, np.asarray(denominators, dtype=np.float64)[:, None])
    values = np.where(missing, 0.0, values)
    examples, k = values.shape
    rng = np.random.default_rng(seed)
    ratios = np.full((replicates, k), np.nan)
    step = max(1, BLOCK_ELEMENTS // max(1, examples))
    for start in range(0, replicates if examples else 0, step):
        block = min(step, replicates - start)
        drawn = rng.integers(examples, size=(block, examples)) + examples * np.arange(block)[:, None]
        times = np.bincount(drawn.ravel(), minlength=block * examples).reshape(block, examples).astype(np.float64)
        below = times @ weights
        np.divide(times @ values, below, out=ratios[start : start + block], where=below != 0)
    interval = np.full((2, k), np.nan)
    known = ~np.isnan(ratios).all(axis=0)
    interval[:, known] = np.nanquantile(ratios[:, known], [0.025, 0.975], axis=0)
    low, high = interval.reshape(2, *numerators.shape[1:])
    return low, high


def bias_corrected(estimate: float, leave_one_out: np.ndarray) -> float:
    """`estimate` less its bias of order 1/groups: g θ − (g − 1) mean(θ_i); as it is below two groups.

    References
    ----------
    Quenouille 1956; Efron & Tibshirani 1993, chapter 10.
    """
    groups = len(leave_one_out)
    return groups * estimate - (groups - 1) * float(np.mean(leave_one_out)) if groups > 1 else estimate


def jackknife(estimate: float, leave_one_out: np.ndarray) -> tuple[float, float]:
    """Interval from the estimates with each of g groups of examples left out (of about equal size).

    The standard error is √((g − 1)/g Σ(θ_i − θ̄)²), the quantile Student's with g − 1 degrees of freedom.

    Not a bootstrap, because a resample repeats rows: for measures of *pairs* of rows (debiased CKA, mean
    pair cosine), of neighbours or of a spectrum, a repeated row is a pair of identical rows, which makes
    unrelated states look alike and ranks small. Leaving out keeps all rows different. It fits smooth
    measures, so not medians.

    Returns
    -------
    tuple
        (low, high); NaN below two groups or where an estimate is not finite.

    References
    ----------
    Efron & Tibshirani 1993, chapter 11; Shao & Wu 1989 (groups).
    """
    left_out = np.asarray(leave_one_out, dtype=np.float64)
    groups = len(left_out)
    if groups < 2 or not np.isfinite([estimate, *left_out]).all():
        return float("nan"), float("nan")
    error = np.sqrt((groups - 1) * np.mean(np.square(left_out - left_out.mean())))
    margin = float(student_t.ppf(0.975, groups - 1) * error)
    return estimate - margin, estimate + margin
