"""Two probes on the same texts: how much better is the second, and could the texts alone explain it.

The probes are taken as they are: another training seed of the encoder is not among what these intervals cover.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control

from bertdyn.geometry.intervals import BLOCK_ELEMENTS, bootstrap_ratio

FLIPS = 9_999
"""Random sign flips of the permutation test: its smallest p-value is 1/10,000."""

Cell = tuple[str, int]
"""(state, layer)"""


class Difference(NamedTuple):
    """The second score minus the first, over texts that have both."""

    value: float
    """Mean over texts."""
    low: float
    """Lower end of the 95 % interval, bootstrap over texts."""
    high: float
    """Upper end."""
    p_value: float
    """Two-sided, of no difference."""


def paired_difference(a: np.ndarray, b: np.ndarray, *, seed: int, resamples: int = 1_000) -> Difference:
    """mean(b) − mean(a) of scores of the same texts.

    Parameters
    ----------
    a, b
        [texts]: correct or not (0/1), or squared errors. A text where one is NaN drops out.
    seed
        Of the bootstrap and of the sign flips.

    Returns
    -------
    Difference
        The p-value is McNemar's exact one where all differences are −1, 0 or 1, and otherwise that of a sign-flip
        permutation test of the mean. 1 where no text differs; all members NaN where no text has both scores.

    References
    ----------
    McNemar 1947; Dror et al. 2018, "The Hitchhiker's Guide to Testing Statistical Significance in NLP".
    """
    differences = (np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64))[:, None]
    return Difference(*(float(member[0]) for member in _compare(differences, seed, resamples)))


def paired_table(
    scores: Mapping[Cell, np.ndarray], pairs: Iterable[tuple[Cell, Cell]], *, seed: int, resamples: int = 1_000
) -> pd.DataFrame:
    """`paired_difference` of many pairs, with the false discovery rate over all of them.

    Parameters
    ----------
    scores
        (state, layer) to [texts]: the same texts in the same order in all of them.
    pairs
        (a, b), each a key of `scores`.

    Returns
    -------
    pd.DataFrame
        A row for each pair: state_a, layer_a, state_b, layer_b, difference, low, high, p_value, q_value (Benjamini
        & Hochberg 1995, over this table), n (texts that have both scores). Every pair sees the same resamples.
    """
    pairs = list(pairs)
    table = pd.DataFrame([(*a, *b) for a, b in pairs], columns=["state_a", "layer_a", "state_b", "layer_b"])
    columns = [np.asarray(scores[b], dtype=np.float64) - scores[a] for a, b in pairs]
    differences = np.stack(columns, axis=1) if pairs else np.empty((0, 0))
    table["difference"], table["low"], table["high"], table["p_value"] = _compare(differences, seed, resamples)
    table["q_value"] = np.nan
    known = table["p_value"].notna()  # no text has both scores of the others
    table.loc[known, "q_value"] = false_discovery_control(table.loc[known, "p_value"])
    table["n"] = (~np.isnan(differences)).sum(axis=0)
    return table


def _compare(differences: np.ndarray, seed: int, resamples: int) -> tuple[np.ndarray, ...]:
    """Mean, low, high and p-value, each [pairs], of differences [texts, pairs]."""
    n = (~np.isnan(differences)).sum(axis=0)
    means = np.full(differences.shape[1], np.nan)
    np.divide(np.nansum(differences, axis=0), n, out=means, where=n > 0)
    low, high = bootstrap_ratio(differences, np.ones(len(differences)), seed=seed, replicates=resamples)
    discordant = np.isnan(differences) | np.isin(differences, (-1, 0, 1))
    exact = discordant.all(axis=0)
    p_values = np.empty(differences.shape[1])
    p_values[exact] = [_mcnemar(column) for column in differences[:, exact].T]
    p_values[~exact] = _sign_flips(differences[:, ~exact], seed)
    p_values[n == 0] = np.nan
    return means, low, high, p_values


def _mcnemar(differences: np.ndarray) -> float:
    gains, losses = int((differences == 1).sum()), int((differences == -1).sum())
    return float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0


def _sign_flips(differences: np.ndarray, seed: int) -> np.ndarray:
    """[pairs]: how often a sum of differences with random signs is as far from 0 as the one observed.

    Products of matrices for all pairs, where `scipy.stats.permutation_test` makes an array of flips for each.
    """
    values = np.nan_to_num(differences)  # a text that drops out adds nothing, whatever its sign
    observed = np.abs(values.sum(axis=0)) - 1e-12 * np.abs(values).sum(axis=0)  # rounding does not break ties
    rng = np.random.default_rng(seed)
    as_far = np.zeros(values.shape[1], dtype=np.int64)
    step = max(1, BLOCK_ELEMENTS // max(1, len(values)))
    for start in range(0, FLIPS, step):
        signs = rng.integers(2, size=(min(step, FLIPS - start), len(values))) * 2.0 - 1
        as_far += (np.abs(signs @ values) >= observed).sum(axis=0)
    return (1 + as_far) / (1 + FLIPS)
