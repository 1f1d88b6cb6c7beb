"""Cosines between tokens of one state: within texts, between texts, over all pairs.

The cosine over pairs is a sum over unit vectors u, Σ_{i≠j} u_i·u_j = ‖Σu‖² − n, so nothing here needs
all pairs of a store. Within a text the pairs' distribution is wanted too, and a text is short.

System 2 pooled the pairs of all texts, which gives a text weight by its length squared; here every
text counts once. Cosines between *different* texts are the control for anisotropy: a high cosine
within a text means little where unrelated tokens have it too (Ethayarajh 2019).
"""

from typing import NamedTuple

import numpy as np


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [..., width] at length 1, float64; a zero row has no direction and gives NaN."""
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, np.nan)


def _ratio(numerator: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return numerator / np.where(pairs > 0, pairs, np.nan)


def mean_pair_cosine(total_unit: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """Mean cosine over all pairs of different rows, from the sum of their unit vectors.

    Parameters
    ----------
    total_unit
        [..., width]: sum of the unit vectors of each group of rows.
    count
        [...]: number of rows of each group; NaN below two.
    """
    count = np.asarray(count, dtype=np.float64)
    return _ratio(np.sum(np.square(total_unit), axis=-1) - count, count * (count - 1))


def mean_between_groups(group_totals: np.ndarray, group_counts: np.ndarray) -> float:
    """Mean cosine over all pairs of rows from different groups (texts, classes).

    Parameters
    ----------
    group_totals
        [groups, width]: sum of the unit vectors of each group.
    group_counts
        [groups]: rows of each group; NaN where fewer than two groups have any.
    """
    counts = np.asarray(group_counts, dtype=np.float64)
    total = group_totals.sum(axis=0)
    if np.count_nonzero(counts) < 2:
        return float("nan")
    return float((total @ total - np.sum(np.square(group_totals))) / (counts.sum() ** 2 - counts @ counts))


class WithinText(NamedTuple):
    """Geometry of the tokens of each text; NaN per text with fewer than two tokens."""

    mean: np.ndarray
    """[texts]: mean cosine over the text's pairs of tokens."""
    variance: np.ndarray
    """[texts]: population variance of those cosines."""
    histogram: np.ndarray
    """[bins]: density of the cosines, the mean of the texts' own densities: each has weight 1, whatever its length.
    Zeros without texts, so that blocks combine by their `num_texts`."""
    num_texts: int
    """Number of texts in the histogram, those with at least two tokens and without a zero row."""
    trace: np.ndarray
    """[texts]: trace of the covariance (ddof 1) of the text's tokens, system 2's total variance."""
    trace_normalised: np.ndarray
    """[texts]: the trace divided by the mean ‖h‖² of the text's tokens: spread, not norm."""


def within_text(rows: np.ndarray, offsets: np.ndarray, bins: np.ndarray) -> WithinText:
    """Cosines between the tokens of each text, and their spread.

    Parameters
    ----------
    rows
        [rows, width] of any float type, possibly memory-mapped; read a text at a time.
    offsets
        [texts + 1]: text t has the rows offsets[t] to offsets[t + 1].
    bins
        Increasing edges of the histogram; cosines beyond the outer edges count in the outer bins.
    """
    offsets, bins = np.asarray(offsets), np.asarray(bins, dtype=np.float64)
    counts = np.diff(offsets)
    mean, variance, trace, trace_normalised = np.full((4, len(counts)), np.nan)
    shares, num_texts = np.zeros(len(bins) - 1), 0
    # Batched products over texts of one length were no faster on one core: the time goes into the Gram matrices.
    for text, (start, count) in enumerate(zip(offsets[:-1], counts, strict=True)):
        tokens = np.array(rows[start : start + count], dtype=np.float64)
        if count < 2:
            continue
        units = unit(tokens)
        square_norm = np.vdot(tokens, tokens) / count
        tokens -= tokens.mean(axis=0)
        trace[text] = np.vdot(tokens, tokens) / (count - 1)
        trace_normalised[text] = _ratio(trace[text], square_norm)
        cosines = (units @ units.T)[np.triu_indices(count, 1)]
        mean[text], variance[text] = mean_pair_cosine(units.sum(axis=0), count), cosines.var()
        if not np.isnan(mean[text]):
            shares += np.histogram(np.clip(cosines, bins[0], bins[-1]), bins)[0] / len(cosines)
            num_texts += 1
    histogram = shares / np.diff(bins) / max(num_texts, 1)
    return WithinText(mean, variance, histogram, num_texts, trace, trace_normalised)
