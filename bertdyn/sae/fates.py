"""What fine-tuning did to each latent, beside what happens where nothing is fine-tuned.

Two dictionaries of one and the same state differ, too: by their start, by the order of the rows, by the texts that
they are counted on. So each row of a table has three fates:

- `fate`: what is claimed of this latent, from all there is;
- `share_fate` and `floor_fate`: the same comparison with the later state and with the first state itself, made alike to
  the last detail (as many seeds, as many texts). `share_table` counts these, and only their difference says something
  of fine-tuning: where it changed nothing, they have the same distribution.

A latent is alive in a state where it is on in at least a share `min_density` of the rows. Latents that are alive on
no side have no row. The functions take one layer; the column `layer` is the caller's to add. Columns:

    comparison, state, side, seed, latent      side: whose latents these are, before or after; "both" where a latent
                                               keeps its number
    fate, share_fate, floor_fate               as above
    partner, partner_seed                      the same latent in the later state (side after: in the first); -1: none
    cosine, floor_cosine                       with the later state (side after: the first), and without fine-tuning
    density_before, density_after              share of rows where it is on; NaN where it has no partner
    norm_ratio, floor_norm_ratio               root mean square of what it contributes, after over before, and likewise
                                               without fine-tuning
    since                                      first state, in training order, at which it was not kept; None: never
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from scipy.stats import false_discovery_control
from scipy.stats import t as student_t

from bertdyn.errors import InputError
from bertdyn.sae.matching import Matching, match, seen_from_second

FATES = ("born", "kept", "rotated", "died", "unstable")
"""unstable: no claim is possible, since the same happens without fine-tuning."""
MIN_DENSITY = 5e-4
"""Alive from here on: 9 rows of 17,000, a twentieth of the mean density of 3072 latents of which 32 are on."""
KEPT = 0.7
"""Cosine from which two latents of independent dictionaries are the same: an angle below 45 degrees, half of each
(0.7² = 49 %) in the other. Where Paulo & Belrose 2025 (arXiv 2501.16615) call a latent shared between seeds."""
DIED = 0.5
"""Cosine below which nothing is left of a latent: above 60 degrees, at most a quarter in the nearest there is. Chance
is well below: of 3072 random directions in 384 dimensions the nearest has 0.2."""
ROTATED_QUANTILE = 0.05
"""A latent that keeps its number is rotated where its cosine is below that of this share of the control's latents."""
ROUNDING = 1e-6
"""Float32 directions are the same to 1 minus this: no rotation is smaller."""
LEFT = ("born", "rotated", "died")
POSSIBLE = {
    ("independent", "before"): ("kept", "rotated", "died", "unstable"),
    ("independent", "after"): ("born", "kept", "rotated", "unstable"),
    ("stagewise", "both"): FATES,
    ("shared", "both"): ("born", "kept", "died"),
}


class Latents(NamedTuple):
    """The latents of one dictionary, counted on the rows of the state that it belongs to."""

    directions: np.ndarray
    """[latents, width] of length 1, of all states in one space: where each state is standardised by a scale of its own,
    its directions turn without a change of the encoder (`Dictionary.directions` are those of its own scale)."""
    density: np.ndarray
    """[latents]: share of the rows where it is on."""
    strength: np.ndarray
    """[latents]: root mean square of the activation over all rows, those where it is off too."""


# Independent dictionaries --------------------------------------------------------------------------------------------


def independent_fates(states: Mapping[str, Sequence[Latents]], min_density: float = MIN_DENSITY) -> pd.DataFrame:
    """Fates of latents of dictionaries that were trained one for each state and seed.

    Seeds are compared with other seeds only, within a state and between states: the same seed starts from the same
    numbers, so within a state it would be compared with itself. `floor_cosine` is the mean over the other seeds of the
    cosine with the latent matched in the own state, `cosine` that in the other state (0 where nothing was left to
    match). A claim is made of latents with `floor_cosine` of at least `KEPT`: kept from `KEPT` on, gone (side before:
    died, side after: born) below `DIED`, rotated between. Others are unstable: another start does not find them again
    in their own state either.

    For the shares one other seed, the next, says what is stable, and the rest say the fate, in the own state (floor)
    as in the other: a latent that was chosen for its cosine with a seed would otherwise always be kept by that seed.
    Two seeds have no rest: shares and floor are those of all latents alive, stable or not.

    Of `states` × seeds of n latents this makes seeds² optimal assignments a later state (nearly: see `match` for the
    time of one).

    Parameters
    ----------
    states
        State → one `Latents` a seed, the first state first, the later ones in training order.
    min_density
        See above.

    Returns
    -------
    pd.DataFrame
        A row for each latent alive of the first state and each later state (side before), and for each latent alive of
        each later state (side after). Its latents are of another dictionary in each state, so on the side after `since`
        is that state or None. `partner` is the one of the other seeds' that is nearest, where the latent is kept or
        rotated; densities and strengths on the other side are means over the other seeds.

    Raises
    ------
    InputError
        If there is one seed, no later state, or states differ in their number of seeds.
    """
    (first, before), *later = states.items()
    _check_states(first, later)
    for state, latents in states.items():
        if len(latents) != len(before):
            raise InputError(
                f"seeds: {len(before)} of {first}, {len(latents)} of {state}; as many of each are compared"
            )
    if len(before) < 2:
        raise InputError("seeds: 1; the floor of independent dictionaries is another seed of the same state, give 2")
    pairs_before = _within(before, min_density)
    tables = []
    for state, after in later:
        pairs_after = _within(after, min_density)
        forth, back = _between(before, after, min_density)
        for seed in range(len(before)):
            own, own_after = before[seed], after[seed]
            within, across = _partners(own, before, pairs_before, seed), _partners(own, after, forth, seed)
            tables.append(_one_side(own, within, across, "before", min_density).assign(state=state, seed=seed))
            within, across = _partners(own_after, after, pairs_after, seed), _partners(own_after, before, back, seed)
            tables.append(_one_side(own_after, within, across, "after", min_density).assign(state=state, seed=seed))
    return _finished(tables, "independent")


class _Partners(NamedTuple):
    """What the other seeds have for each latent of one dictionary; the seed that comes next first."""

    seeds: np.ndarray
    """[others]"""
    latents: np.ndarray
    """[others, latents]: number there; -1 where there is none."""
    cosines: np.ndarray
    """[others, latents]; 0 where there is none."""
    densities: np.ndarray
    """[others, latents], likewise."""
    strengths: np.ndarray
    """[others, latents], likewise."""


Pairs = Mapping[tuple[int, int], Matching]
"""(own seed, other seed) to the matching, by latent of the own."""


def _within(seeds: Sequence[Latents], min_density: float) -> Pairs:
    found = {}
    for a, first in enumerate(seeds):
        for b, second in enumerate(seeds[:a]):
            found[a, b] = _match_alive(first, second, min_density)
            found[b, a] = seen_from_second(found[a, b], len(second.density))
    return found


def _between(before: Sequence[Latents], after: Sequence[Latents], min_density: float) -> tuple[Pairs, Pairs]:
    """Pairs of different seeds, by latent of the first state and by latent of the later one."""
    forth, back = {}, {}
    for a, first in enumerate(before):
        for b, second in enumerate(after):
            if a != b:
                forth[a, b] = _match_alive(first, second, min_density)
                back[b, a] = seen_from_second(forth[a, b], len(second.density))
    return forth, back


def _match_alive(first: Latents, second: Latents, min_density: float) -> Matching:
    alive = first.density >= min_density, second.density >= min_density
    return match(first.directions, second.directions, *alive)


def _partners(own: Latents, others: Sequence[Latents], pairs: Pairs, seed: int) -> _Partners:
    seeds = np.array([(seed + i) % len(others) for i in range(1, len(others))])
    latents = np.stack([pairs[seed, other].partner for other in seeds])
    missing = latents < 0
    densities = np.stack([others[other].density[found] for other, found in zip(seeds, latents, strict=True)])
    strengths = np.stack([others[other].strength[found] for other, found in zip(seeds, latents, strict=True)])
    cosines = np.stack([pairs[seed, other].cosine for other in seeds])
    return _Partners(seeds, latents, *(np.where(missing, 0.0, values) for values in (cosines, densities, strengths)))


def _one_side(own: Latents, within: _Partners, across: _Partners, side: str, min_density: float) -> pd.DataFrame:
    """Fates of the latents alive of one dictionary against the other seeds of the other state."""
    gone = "died" if side == "before" else "born"
    floor_cosine, cosine = within.cosines.mean(axis=0), across.cosines.mean(axis=0)
    fate = np.where(floor_cosine >= KEPT, _by_cosine(cosine, gone), "unstable")
    rest = slice(1, None) if len(within.seeds) > 1 else slice(None)
    stable = (within.cosines[0] >= KEPT) | (len(within.seeds) == 1)
    share_fate, floor_fate = (
        np.where(stable, _by_cosine(partners.cosines[rest].mean(axis=0), gone), "unstable")
        for partners in (across, within)
    )
    found = np.isin(fate, ("kept", "rotated"))
    nearest = across.cosines.argmax(axis=0), np.arange(len(cosine))
    other_density = np.where(found, across.densities.mean(axis=0), np.nan)
    ratio, floor_ratio = (_ratio(partners.strengths.mean(axis=0), own.strength) for partners in (across, within))
    if side == "after":
        ratio, floor_ratio = _ratio(1.0, ratio), _ratio(1.0, floor_ratio)
    table = pd.DataFrame(
        {
            "side": side,
            "latent": np.arange(len(cosine)),
            "fate": fate,
            "share_fate": share_fate,
            "floor_fate": floor_fate,
            "partner": np.where(found, across.latents[nearest], -1),
            "partner_seed": np.where(found, across.seeds[nearest[0]], -1),
            "cosine": cosine,
            "floor_cosine": floor_cosine,
            "density_before": own.density if side == "before" else other_density,
            "density_after": other_density if side == "before" else own.density,
            "norm_ratio": np.where(found, ratio, np.nan),
            "floor_norm_ratio": np.where(fate == "unstable", np.nan, floor_ratio),
        }
    )
    return table[own.density >= min_density]


def _by_cosine(cosine: np.ndarray, gone: str) -> np.ndarray:
    return np.select([cosine >= KEPT, cosine >= DIED], ["kept", "rotated"], gone)


# Dictionaries that were continued ------------------------------------------------------------------------------------


def stagewise_fates(
    before: Latents,
    after: Mapping[str, Latents],
    control: Mapping[str, Latents],
    seed: int = 0,
    min_density: float = MIN_DENSITY,
) -> pd.DataFrame:
    """Fates of the latents of one dictionary that was trained on the first state and continued on later ones.

    Latent j stays latent j. What continued training does of itself, the control does too. Died: alive before, not
    after, but in the control; born: alive after, neither before nor in the control; what appears or vanishes in both
    is unstable. Rotated: alive before and after, with cosine(before, after) below the `ROTATED_QUANTILE` of the cosines
    of the control, `floor_cosine`: beyond what training does of itself, which may be little (read `cosine` beside it).
    The fates of the floor are the same with control and later state exchanged, so that share of the latents that the
    control kept alive is rotated.

    Parameters
    ----------
    before
        Of the dictionary as trained on the first state, counted on the first state.
    after
        Later state, in training order → the dictionary continued on it, counted on that state.
    control
        Later state → the dictionary continued on the first state as long as that of `after`, counted on the first.
    seed
        Of this dictionary.

    Returns
    -------
    pd.DataFrame
        A row for each later state and latent that is alive before, after or in the control.

    Raises
    ------
    InputError
        If there is no later state or one has no control.
    """
    _check_states("the first", list(after))
    tables = []
    for state, later in after.items():
        if state not in control:
            raise InputError(
                f"control: none for {state}; there are {', '.join(control) or 'none'}, each state needs one"
            )
        on_before, on_after, on_control = (
            latents.density >= min_density for latents in (before, later, control[state])
        )
        cosine, floor_cosine = (_row_cosines(before, latents) for latents in (later, control[state]))
        both = on_before & on_control
        least = min(np.quantile(floor_cosine[both], ROTATED_QUANTILE), 1 - ROUNDING) if both.any() else -1.0
        fate = _continued(on_before, on_after, on_control, cosine < least)
        table = pd.DataFrame(
            {
                "state": state,
                "side": "both",
                "seed": seed,
                "latent": np.arange(len(fate)),
                "fate": fate,
                "share_fate": fate,
                "floor_fate": _continued(on_before, on_control, on_after, floor_cosine < least),
                "partner": np.arange(len(fate)),
                "partner_seed": seed,
                "cosine": cosine,
                "floor_cosine": floor_cosine,
                "density_before": before.density,
                "density_after": later.density,
                "norm_ratio": _ratio(later.strength, before.strength),
                "floor_norm_ratio": _ratio(control[state].strength, before.strength),
            }
        )
        tables.append(table[on_before | on_after | on_control])
    return _finished(tables, "stagewise")


def _row_cosines(first: Latents, second: Latents) -> np.ndarray:
    return np.einsum("ij,ij->i", *(latents.directions.astype(np.float64) for latents in (first, second)))


def _continued(before: np.ndarray, after: np.ndarray, other: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Fate of each latent by where it is alive; `other` is the continuation that it is held against."""
    died, born = before & ~after, ~before & after
    return np.select(
        [died & other, born & ~other, died | born, before & after & turned],
        ["died", "born", "unstable", "rotated"],
        "kept",
    )


# One dictionary for all states ---------------------------------------------------------------------------------------


def shared_fates(
    codes: Mapping[str, scipy.sparse.csr_array], texts: np.ndarray, seed: int = 0, min_density: float = MIN_DENSITY
) -> pd.DataFrame:
    """Fates of the latents of one dictionary that codes the same rows in several states.

    Its directions are the same in all states, so nothing rotates: both cosines are 1, and a feature that turns shows
    as one latent that fades and another that grows. Died: alive before, not after; born: the other way round; kept
    otherwise. For the shares one half of the texts before is held against the other half after, and for the floor
    against the other half before.

    Beside the columns above: `log_density_ratio` = log(density after / density before); its 95 % interval over texts,
    `low` to `high`, ±inf where the texts set no bound, NaN where the latent is on nowhere in one state; `changed`, by
    the paired test of equal densities that belongs to the interval (1 in 20 latents that did not change is); its
    `p_value` and `q_value` (Benjamini & Hochberg 1995, over the latents of a state and seed). The tokens of a text are
    not independent, so texts are the sample, with Fieller's interval of a ratio of two sums, and Student's quantile
    with the degrees of freedom of the texts where the latent is on.

    Parameters
    ----------
    codes
        State → [rows, latents], the first state first, the later ones in training order; the same rows in all.
    texts
        [rows]: number of the text that a row belongs to.
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
    _check_states(first, later)
    owner = np.unique(texts, return_inverse=True)[1]
    if owner.max(initial=0) < 1:
        raise InputError(
            "texts: the rows are of one text; the floor is the difference of two halves of the texts, give 2"
        )
    before = _counted(first, codes_before, owner, codes_before.shape)
    tables = []
    for state, codes_after in later:
        after = _counted(state, codes_after, owner, codes_before.shape)
        alive_before, alive_after = before.density >= min_density, after.density >= min_density
        table = pd.DataFrame(
            {
                "state": state,
                "side": "both",
                "seed": seed,
                "latent": np.arange(len(before.density[0])),
                "fate": _by_density(alive_before[0], alive_after[0]),
                "share_fate": _by_density(alive_before[1], alive_after[2]),
                "floor_fate": _by_density(alive_before[1], alive_before[2]),
                "partner": np.arange(len(before.density[0])),
                "partner_seed": seed,
                "cosine": 1.0,
                "floor_cosine": 1.0,
                "density_before": before.density[0],
                "density_after": after.density[0],
                "norm_ratio": _ratio(after.strength[0], before.strength[0]),
                "floor_norm_ratio": _ratio(before.strength[2], before.strength[1]),
            }
        )
        table = table.join(_density_ratios(before.by_text, after.by_text))[alive_before[0] | alive_after[0]]
        tables.append(table.assign(q_value=false_discovery_control(table["p_value"])) if len(table) else table)
    return _finished(tables, "shared")


class _Counted(NamedTuple):
    """What the codes of one state amount to."""

    by_text: scipy.sparse.csr_array
    """[texts, latents]: rows of the text where the latent is on."""
    density: np.ndarray
    """[3, latents]: of all texts, of every other one, of the rest."""
    strength: np.ndarray
    """[3, latents], likewise."""


def _counted(state: str, codes: scipy.sparse.csr_array, owner: np.ndarray, shape: tuple[int, int]) -> _Counted:
    if codes.shape != shape or len(owner) != shape[0]:
        raise InputError(f"codes of {state}: {codes.shape} for {len(owner)} rows; the first state has {shape}")
    texts = owner.max() + 1
    member = scipy.sparse.csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(texts, len(owner)))
    codes = codes.astype(np.float64)
    by_text = scipy.sparse.csr_array(member @ codes.sign())
    energy = scipy.sparse.csr_array(member @ codes.power(2))
    # which sums over texts, [3, texts], as means over rows
    halves = np.stack([np.ones(texts), np.arange(texts) % 2 == 0, np.arange(texts) % 2 == 1])
    rows = (halves @ np.bincount(owner))[:, None]
    return _Counted(by_text, (halves @ by_text) / rows, np.sqrt((halves @ energy) / rows))


def _by_density(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.select([before & ~after, ~before & after], ["died", "born"], "kept")


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


# What the three have in common ---------------------------------------------------------------------------------------


def _check_states(first: str, later: Sequence[object]) -> None:
    if not later:
        raise InputError(f"states: none besides {first}; fates need a state before and one after")


def _ratio(after: np.ndarray | float, before: np.ndarray) -> np.ndarray:
    """NaN where there was nothing before."""
    return np.divide(after, before, out=np.full(len(before), np.nan), where=before > 0)


def _finished(tables: Sequence[pd.DataFrame], comparison: str) -> pd.DataFrame:
    """One table, with `since` and the columns in their order; `tables` are in training order."""
    table = pd.concat(tables, ignore_index=True)
    whose = table["state"].where(table["side"] == "after", "")  # after: the latents of each state are others
    left = table["state"].where(table["fate"].isin(LEFT))
    since = left.groupby([table["side"], whose, table["seed"], table["latent"]]).transform("first")
    table["since"] = since.astype(object).where(since.notna(), None)
    table.insert(0, "comparison", comparison)
    order = ["comparison", "state", "side", "seed", "latent"]
    return table[order + [column for column in table if column not in order]]


def share_table(fates: pd.DataFrame) -> pd.DataFrame:
    """Shares of the fates beside their floor.

    Parameters
    ----------
    fates
        Of one or several comparisons and layers: what the functions above return, with a column `layer`.

    Returns
    -------
    pd.DataFrame
        A row for each comparison, layer, state, side and fate that is possible there. share (mean over seeds of the
        share of a seed's latents), floor (likewise, without fine-tuning), excess = share − floor; each with low and
        high (share_low, floor_low, excess_low, …), a 95 % interval over seeds with Student's quantile; NaN for one
        seed. num_seeds, num_latents (mean over seeds). Dictionaries of other seeds take part in each seed's share, so
        the seeds are not quite independent, and the intervals of independent dictionaries somewhat too narrow.

    Raises
    ------
    InputError
        If there is no column `layer`.
    """
    if "layer" not in fates:
        raise InputError("fates: no column layer; the functions take one layer, add it to what they return")
    found = []
    for key, rows in fates.groupby(["comparison", "layer", "state", "side"], sort=False):
        comparison, layer, state, side = key
        sizes = rows.groupby("seed").size()
        for fate in POSSIBLE[comparison, side]:
            shares, floors = (
                rows[column].eq(fate).groupby(rows["seed"]).mean() for column in ("share_fate", "floor_fate")
            )
            found.append(
                {"comparison": comparison, "layer": layer, "state": state, "side": side, "fate": fate}
                | _over_seeds("share", shares, 0, 1)
                | _over_seeds("floor", floors, 0, 1)
                | _over_seeds("excess", shares - floors, -1, 1)
                | {"num_seeds": len(sizes), "num_latents": sizes.mean()}
            )
    return pd.DataFrame(found)


def _over_seeds(name: str, values: pd.Series, least: float, most: float) -> dict[str, float]:
    """Mean with its interval, within what is possible."""
    seeds = len(values)
    half = student_t.ppf(0.975, seeds - 1) * values.std() / np.sqrt(seeds) if seeds > 1 else np.nan
    bounds = np.clip([values.mean() - half, values.mean() + half], least, most)
    return {name: values.mean(), f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
