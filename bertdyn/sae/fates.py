"""What fine-tuning did to each latent, beside what happens where nothing is fine-tuned.

Two dictionaries of one and the same state differ, too: by their start, by how long they are trained, by the texts that
they are counted on. So each latent has three fates:

- `fate`: what is claimed of it, from all there is;
- `share_fate` and `floor_fate`: what `share_table` counts. Both come from comparisons of one make (as many seeds, as
  many texts): the share's is between the first state and the later one, the floor's is without fine-tuning. Where it
  changed nothing, they have the same distribution, so only their difference says something of fine-tuning.

What is compared is in `independent_fates`, `stagewise_fates` and `shared_fates`; here is what they have in common.
Latents that are alive (`alive`) in none of the states that are compared have no row. The functions take one layer; the
column `layer` is the caller's to add. Columns:

    comparison, state, side, seed, latent      state: the later one; side: whose latents these are, before or after;
                                               "both" where a latent keeps its number
    fate, share_fate, floor_fate               of `FATES`; "" where none can be told
    partner, partner_seed                      the same latent in the later state (side after: in the first); -1: none
    cosine, floor_cosine                       with the later state (side after: the first), and without fine-tuning
    density_before, density_after              share of rows where it is on; NaN where it has no partner
    norm_ratio                                 root mean square of its activations, after over before, from all there is
    share_norm_ratio, floor_norm_ratio         the same by comparisons of one make, as for the fates; only of latents
                                               that keep their number has it a share
    since                                      first state, in training order, at which it was not kept; None: never
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from bertdyn.errors import InputError

FATES = ("born", "doubled", "kept", "split", "turned", "rotated", "halved", "died", "unstable")
"""Rotated: by more than 45 degrees, of independent dictionaries. Turned: by more than without fine-tuning, however
little that is, of continued ones. Doubled and halved: on in at least twice as many rows, or at most half as many, of
shared ones; split: one fades and another of nearly the same direction grows. Unstable: no claim is possible, since the
same happens without fine-tuning."""
MIN_DENSITY = 5e-4
"""Alive from here on: 9 rows of 17,000, a twentieth of the mean density of 3072 latents of which 32 are on."""
MIN_ROWS = 8
"""And from so many rows on, where rows are few: of a latent that is on in 8 rows on average, chance leaves none in 3 of
10,000 samples of rows (Poisson)."""
KEPT = 0.7
"""Cosine from which two latents of independent dictionaries are the same: an angle below 45 degrees, half of each
(0.7² = 49 %) in the other. Where Paulo & Belrose 2025 (arXiv 2501.16615) call a latent shared between seeds."""
DIED = 0.5
"""Cosine below which nothing is left of a latent: above 60 degrees, at most a quarter in the nearest there is. Chance
is well below: of 3072 random directions in 384 dimensions the nearest has 0.2."""
MIN_SEEDS = 3
"""For fates of independent dictionaries, and for any interval over seeds: two have one degree of freedom, and two
independent dictionaries one matching."""
POSSIBLE = {
    ("independent", "before"): ("kept", "rotated", "died"),
    ("independent", "after"): ("born", "kept", "rotated"),
    ("stagewise", "both"): ("born", "kept", "turned", "died", "unstable"),
    ("shared", "both"): ("born", "doubled", "kept", "split", "halved", "died"),
}
"""(comparison, side) → the fates that `share_table` has there."""


class Latents(NamedTuple):
    """The latents of one dictionary, counted on the rows of the state that it belongs to."""

    directions: np.ndarray
    """[latents, width] of length 1, of all states in one space: where each state is standardised by a scale of its own,
    its directions turn without a change of the encoder (`Dictionary.directions` are those of its own scale)."""
    density: np.ndarray
    """[latents]: share of the rows where it is on."""
    strength: np.ndarray
    """[latents]: root mean square of the activation over all rows, those where it is off too."""
    num_rows: int
    """How many rows they are counted on."""


def alive(density: np.ndarray, num_rows: int) -> np.ndarray:
    """Which latents are on often enough to be compared: in a share `MIN_DENSITY` of the rows, and in `MIN_ROWS`."""
    return density >= max(MIN_DENSITY, MIN_ROWS / num_rows)


def check_states(first: str, later: Sequence[object]) -> None:
    """Refuse a comparison of nothing.

    Raises
    ------
    InputError
        If there is no later state.
    """
    if not later:
        raise InputError(f"states: none besides {first}; fates need a state before and one after")


def ratio(after: np.ndarray | float, before: np.ndarray) -> np.ndarray:
    """After over before, [latents]; NaN where there was nothing before."""
    return np.divide(after, before, out=np.full(len(before), np.nan), where=before > 0)


def finished(tables: Sequence[pd.DataFrame], comparison: str) -> pd.DataFrame:
    """One table, with `since` and the columns in their order; `tables` are in training order."""
    table = pd.concat(tables, ignore_index=True)
    whose = table["state"].where(table["side"] == "after", "")  # after: the latents of each state are others
    left = table["state"].where(~table["fate"].isin(["", "kept", "unstable"]))
    since = left.groupby([table["side"], whose, table["seed"], table["latent"]]).transform("first")
    table["since"] = since.astype(object).where(since.notna(), None)
    table.insert(0, "comparison", comparison)
    order = ["comparison", "state", "side", "seed", "latent"]
    return table[order + [column for column in table if column not in order]]


def share_table(fates: pd.DataFrame) -> pd.DataFrame:
    """Shares of the fates beside their floor.

    Of independent dictionaries the shares are of stable latents alone (see `independent_fates`); of the others, of all
    that are alive.

    Parameters
    ----------
    fates
        Of one or several comparisons and layers: what the functions of the three comparisons return, with a column
        `layer`.

    Returns
    -------
    pd.DataFrame
        A row for each comparison, layer, state, side and fate that is possible there; none where no seed has a latent
        whose fate can be told. share (mean over seeds of the share of a seed's latents), floor (likewise, without
        fine-tuning), excess = share − floor; each with low and high (share_low, floor_low, excess_low, …), a 95 %
        interval with Student's quantile, NaN below `MIN_SEEDS` seeds. num_seeds, num_latents (alive, mean over seeds),
        num_counted (those that the shares are of, likewise).

        The seeds are those of dictionaries, of one fine-tuning: the intervals say how well more dictionaries would
        agree on these two encoders, not what another fine-tuning would give. Dictionaries of other seeds take part in
        each seed's share of independent ones, so these seeds are not quite independent, and the intervals somewhat too
        narrow.

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
        counted = rows[~rows["share_fate"].isin(["", "unstable"])] if comparison == "independent" else rows
        if counted.empty:
            continue
        seeds = rows["seed"].nunique()
        for fate in POSSIBLE[comparison, side]:
            shares, floors = (
                counted[column].eq(fate).groupby(counted["seed"]).mean() for column in ("share_fate", "floor_fate")
            )
            found.append(
                {"comparison": comparison, "layer": layer, "state": state, "side": side, "fate": fate}
                | _over_seeds("share", shares, 0, 1)
                | _over_seeds("floor", floors, 0, 1)
                | _over_seeds("excess", shares - floors, -1, 1)
                | {"num_seeds": len(shares), "num_latents": len(rows) / seeds, "num_counted": len(counted) / seeds}
            )
    return pd.DataFrame(found)


def _over_seeds(name: str, values: pd.Series, least: float, most: float) -> dict[str, float]:
    """Mean with its interval, within what is possible."""
    seeds = len(values)
    half = student_t.ppf(0.975, seeds - 1) * values.std() / np.sqrt(seeds) if seeds >= MIN_SEEDS else np.nan
    bounds = np.clip([values.mean() - half, values.mean() + half], least, most)
    return {name: values.mean(), f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
