"""Fates of latents of one dictionary that codes the same rows in several states: how often each is on."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from scipy.stats import false_discovery_control
from scipy.stats import t as student_t

from bertdyn.errors import InputError
from bertdyn.sae.fates import KEPT, alive, check_states, finished, ratio

DOUBLED = 2.0
"""Ratio of densities from which on a latent is on far more often: a size that a reader sees. With some ten thousand
rows nearly every latent has a density that changed significantly, though by little."""
FALSE_DISCOVERIES = 0.05
"""Share of latents that are expected not to have changed among those that are called doubled or halved."""


def shared_fates(
    codes: Mapping[str, scipy.sparse.csr_array], texts: np.ndarray, directions: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """Fates of the latents of one dictionary that codes the same rows in several states.

    Its directions are the same in all states, so nothing turns: both cosines are 1, and a feature that turns shows as
    one latent that fades and another that grows. Died: alive before, not after; born: the other way round. Doubled:
    alive in both, `DOUBLED` times as dense or more, by a change with a q value below `FALSE_DISCOVERIES`; halved: the
    other way round; kept otherwise.

    Each state is centred by its own mean, which moves when other features become more frequent. Then one feature may
    need two latents, one for each state, of nearly the same direction: such a pair, one of them on less often and the
    other more, with a cosine of `KEPT` or more, is split, and not a death and a birth.

    For the shares one half of the texts before is held against the other half after, and for the floor against the
    other half before; `share_norm_ratio` and `floor_norm_ratio` likewise. Other texts cannot be paired, so the q
    values of halves are those of a test of two samples. They have half of the texts: the shares are near those of
    `fate`, and not equal.

    Beside the columns of all fates: `log_density_ratio` = log(density after / density before); its 95 % interval over
    texts, `low` to `high`, ±inf where the texts set no bound, NaN where the latent is on nowhere in one state;
    `changed`, by the paired test of equal densities that belongs to the interval (1 in 20 latents that did not change
    is); its `p_value` and `q_value` (Benjamini & Hochberg 1995, over the latents of a state and seed). The tokens of a
    text are not independent, so texts are the sample, with Fieller's interval of a ratio of two sums, and Student's
    quantile with the degrees of freedom of the texts where the latent is on.

    Parameters
    ----------
    codes
        State → [rows, latents], the first state first, the later ones in training order; the same rows in all.
    texts
        [rows]: number of the text that a row belongs to.
    directions
        [latents, width] of length 1.
    seed
        Of this dictionary.

    Returns
    -------
    pd.DataFrame
        A row for each later state and latent that is alive before or after.

    Raises
    ------
    InputError
        If there is no later state, only one text, or the codes are not of the same rows and latents.

    References
    ----------
    Fieller 1954, "Some problems in interval estimation".
    """
    (first, codes_before), *later = codes.items()
    check_states(first, later)
    owner = np.unique(texts, return_inverse=True)[1]
    if owner.max(initial=0) < 1:
        raise InputError(
            "texts: the rows are of one text; the floor is the difference of two halves of the texts, give 2"
        )
    before = _counted(first, codes_before, owner, codes_before.shape)

    def fate(earlier: _Sample, later: _Sample, q_value: np.ndarray) -> np.ndarray:
        return _with_splits(_by_density(earlier, later, q_value, len(owner)), directions)

    tables = []
    for state, codes_after in later:
        after = _counted(state, codes_after, owner, codes_before.shape)
        rows = alive(before.all.density, len(owner)) | alive(after.all.density, len(owner))
        own, other, later_other = before.halves[0], before.halves[1], after.halves[1]
        ratios = _density_ratios(before.all.by_text, after.all.by_text)
        ratios["q_value"] = _q_values(ratios["p_value"].to_numpy(), rows)
        table = pd.DataFrame(
            {
                "state": state,
                "side": "both",
                "seed": seed,
                "latent": np.arange(len(rows)),
                "fate": fate(before.all, after.all, ratios["q_value"].to_numpy()),
                "share_fate": fate(own, later_other, _q_values(_unpaired(own, later_other), rows)),
                "floor_fate": fate(own, other, _q_values(_unpaired(own, other), rows)),
                "partner": np.arange(len(rows)),
                "partner_seed": seed,
                "cosine": 1.0,
                "floor_cosine": 1.0,
                "density_before": before.all.density,
                "density_after": after.all.density,
                "norm_ratio": ratio(after.all.strength, before.all.strength),
                "share_norm_ratio": ratio(later_other.strength, own.strength),
                "floor_norm_ratio": ratio(other.strength, own.strength),
            }
        )
        tables.append(table.join(ratios)[rows])
    return finished(tables, "shared")


class _Sample(NamedTuple):
    """What the codes of some texts amount to."""

    by_text: scipy.sparse.csr_array
    """[texts, latents]: rows of the text where the latent is on."""
    rows: np.ndarray
    """[texts]: rows of the text."""
    density: np.ndarray
    """[latents]"""
    strength: np.ndarray
    """[latents]"""


class _Counted(NamedTuple):
    """What the codes of one state amount to."""

    all: _Sample
    halves: tuple[_Sample, _Sample]
    """Every other text, and the rest."""


def _counted(state: str, codes: scipy.sparse.csr_array, owner: np.ndarray, shape: tuple[int, int]) -> _Counted:
    if codes.shape != shape or len(owner) != shape[0]:
        raise InputError(f"codes of {state}: {codes.shape} for {len(owner)} rows; the first state has {shape}")
    texts = owner.max() + 1
    member = scipy.sparse.csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(texts, len(owner)))
    codes = codes.astype(np.float64)
    by_text = scipy.sparse.csr_array(member @ codes.sign())
    energy = scipy.sparse.csr_array(member @ codes.power(2))
    rows = np.bincount(owner)
    whole, even, odd = (
        _Sample(
            by_text[which],
            rows[which],
            by_text[which].sum(axis=0) / rows[which].sum(),
            np.sqrt(energy[which].sum(axis=0) / rows[which].sum()),
        )
        for which in (slice(None), slice(0, None, 2), slice(1, None, 2))
    )
    return _Counted(whole, (even, odd))


def _with_splits(fate: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """`fate` with "split" for latents of nearly one direction of which one fades and another grows."""
    down, up = np.flatnonzero(np.isin(fate, ("died", "halved"))), np.flatnonzero(np.isin(fate, ("born", "doubled")))
    twins = directions[down] @ directions[up].T >= KEPT
    split = np.concatenate([down[twins.any(axis=1)], up[twins.any(axis=0)]])
    return np.where(np.isin(np.arange(len(fate)), split), "split", fate)


def _by_density(before: _Sample, after: _Sample, q_value: np.ndarray, num_rows: int) -> np.ndarray:
    """Fate of each latent; `num_rows`: of all texts, so that halves of them have the bound of the whole."""
    on_before, on_after = (alive(sample.density, num_rows) for sample in (before, after))
    changed = on_before & on_after & (q_value < FALSE_DISCOVERIES)
    return np.select(
        [
            on_before & ~on_after,
            ~on_before & on_after,
            changed & (after.density >= DOUBLED * before.density),
            changed & (before.density >= DOUBLED * after.density),
        ],
        ["died", "born", "doubled", "halved"],
        "kept",
    )


def _q_values(p_value: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[latents], of the family of latents that have a row; 1 for others."""
    values = np.ones(len(p_value))
    if rows.any():
        values[rows] = false_discovery_control(p_value[rows])
    return values


def _unpaired(first: _Sample, second: _Sample) -> np.ndarray:
    """p values of equal densities in two samples of different texts, [latents]."""
    variance = _density_variance(first) + _density_variance(second)
    texts_on = first.by_text.sign().sum(axis=0) + second.by_text.sign().sum(axis=0)
    difference = np.abs(second.density - first.density)
    with np.errstate(divide="ignore", invalid="ignore"):  # as often in every text of one length
        statistic = np.where(difference == 0, 0.0, difference / np.sqrt(variance))
    return np.where(texts_on < 2, 1.0, 2 * student_t.sf(statistic, np.maximum(texts_on - 2, 1)))


def _density_variance(sample: _Sample) -> np.ndarray:
    """[latents]: of a density over texts, which are of different lengths (the linearised variance of a ratio)."""
    on, rows, texts = sample.by_text, sample.rows.astype(np.float64), len(sample.rows)
    squares = on.power(2).sum(axis=0) - 2 * sample.density * (rows @ on) + sample.density**2 * np.sum(rows**2)
    return texts / max(texts - 1, 1) * np.maximum(squares, 0) / rows.sum() ** 2


def _density_ratios(before: scipy.sparse.csr_array, after: scipy.sparse.csr_array) -> pd.DataFrame:
    """Fieller's interval of each latent's Σ after / Σ before over texts, and the test of no change.

    It has the ratios r that the texts do not contradict: (Σ after − r Σ before)² ≤ q² var(Σ after − r Σ before), with q
    Student's quantile. At r = 1 this is the paired test of no difference.
    """
    x, y = before.sum(axis=0), after.sum(axis=0)
    texts_on = (before + after).sign().sum(axis=0)
    freedom = np.maximum(texts_on - 1, 1)
    q2 = student_t.ppf(0.975, freedom) ** 2
    low, high = _fieller(
        x**2 - q2 * _covariance(before, before),
        x * y - q2 * _covariance(before, after),
        y**2 - q2 * _covariance(after, after),
    )
    change = after - before
    with np.errstate(divide="ignore", invalid="ignore"):  # a density of 0; a change that is the same in all texts
        statistic = np.where(y == x, 0.0, np.abs(y - x) / np.sqrt(np.maximum(_covariance(change, change), 0)))
        bounds = np.log([y / x, low, high])
    p_value = 2 * student_t.sf(statistic, freedom)
    bounds[1:, texts_on < 2], p_value[texts_on < 2] = np.array([[-np.inf], [np.inf]]), 1.0
    bounds[1:, (x == 0) | (y == 0)] = np.nan  # a sum without variance: no interval
    columns = dict(zip(["log_density_ratio", "low", "high"], bounds, strict=True))
    return pd.DataFrame(columns | {"changed": p_value < 0.05, "p_value": p_value})


def _covariance(a: scipy.sparse.csr_array, b: scipy.sparse.csr_array) -> np.ndarray:
    """[latents]: of the sums of a and of b over texts, both [texts, latents]."""
    texts = a.shape[0]
    return texts / (texts - 1) * (a.multiply(b).sum(axis=0) - a.sum(axis=0) * b.sum(axis=0) / texts)


def _fieller(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ratios r ≥ 0 with a r² − 2 b r + c ≤ 0 as low and high: a ≤ 0 sets no upper bound, c ≤ 0 no lower one."""
    root = np.sqrt(np.maximum(b**2 - a * c, 0))
    low = np.divide(c, b + root, out=np.zeros(len(a)), where=(c > 0) & (b + root > 0))
    return low, np.divide(b + root, a, out=np.full(len(a), np.inf), where=a > 0)
