"""Which latents a page shows, and which of them side by side.

A table of pairs has a row for everything that may become a card: left, right (latent before, after; -1: none),
right_seed (whose latent the right one is), fate, cosine, floor_cosine (of `sae.fates`; "" and NaN where nothing is
known).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest

import numpy as np
import pandas as pd
import scipy.sparse

from bertdyn.sae.fates import DIED, MIN_SEEDS, alive, ratio
from bertdyn.sae.latents import RANKINGS, activation_change, ranked
from bertdyn.sae.matching import match
from bertdyn.steps.sae_page_sides import OneSide

ORDER = ("selectivity", "change", "variance", "density")
"""The rankings that take turns in the choice of latents."""


def right_seeds(comparison: str, seeds: Sequence[int]) -> list[int]:
    """Whose latents stand to the right of those of the first seed.

    The same seed starts at the same rows in every state, so independent dictionaries of one seed are more alike than
    others, whatever fine-tuning did: of two seeds it is the other one, of more all of them, that of the first to show
    what has no partner. Of one seed nothing is paired.
    """
    if comparison != "independent" or len(seeds) == 1:
        return [seeds[0]]
    return list(seeds) if len(seeds) >= MIN_SEEDS else [seeds[1]]


def pairs_of(before: OneSide, after: Mapping[int, OneSide], fates: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    """Every latent of the first seed before, and those after that are beside none of them.

    Parameters
    ----------
    before
        The first seed.
    after
        Seed → dictionary in the later state, those of `right_seeds`; empty where there is one state.
    fates
        Those of this comparison, layer and later state, of the first seed; may be empty.
    """
    latents = np.arange(len(before.features))
    alone = _table(latents, np.full(len(latents), -1), -1)
    if not after:
        return alone
    if before.name.comparison != "independent":
        return _with_fates(_table(latents, latents, seeds[0]), fates, "both", "left")
    if len(seeds) >= MIN_SEEDS:
        return _by_fates(latents, np.arange(len(after[seeds[0]].features)), fates, seeds[0])
    [(seed, other)] = after.items()
    left = _with_fates(alone, fates, "before", "left")
    if seed != before.name.seed:
        partner, cosine = _matched(before, other)
        left = left.assign(right=partner, right_seed=np.where(partner >= 0, seed, -1), cosine=cosine)
    free = np.setdiff1d(np.arange(len(other.features)), left["right"])
    return pd.concat([left, _table(np.full(len(free), -1), free, seed)], ignore_index=True)


def _by_fates(before: np.ndarray, after: np.ndarray, fates: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Latents before beside the partners of their fates, and then those of the same seed after that have none."""
    partners = _of_side(fates, "before").reindex(before)[["partner", "partner_seed"]].fillna(-1).astype(np.int64)
    left = _table(before, partners["partner"].to_numpy(), partners["partner_seed"].to_numpy())
    known = _of_side(fates, "after")
    free = np.setdiff1d(after, known.index[known["partner"] >= 0])
    right = _table(np.full(len(free), -1), free, seed)
    tables = (_with_fates(left, fates, "before", "left"), _with_fates(right, fates, "after", "right"))
    return pd.concat(tables, ignore_index=True)


def _table(left: np.ndarray, right: np.ndarray, right_seed: np.ndarray | int) -> pd.DataFrame:
    table = pd.DataFrame({"left": left, "right": right, "right_seed": right_seed})
    return table.assign(fate="", cosine=np.nan, floor_cosine=np.nan)


def _of_side(fates: pd.DataFrame, side: str) -> pd.DataFrame:
    """Those of one side, by latent."""
    columns = ["side", "latent", "fate", "partner", "partner_seed", "cosine", "floor_cosine"]
    table = fates[columns] if len(fates) else pd.DataFrame(columns=columns)
    return table[table["side"] == side].set_index("latent")


def _with_fates(pairs: pd.DataFrame, fates: pd.DataFrame, side: str, latent: str) -> pd.DataFrame:
    """With what is known of the latents in one column."""
    own = _of_side(fates, side).reindex(pairs[latent])
    return pairs.assign(
        fate=own["fate"].fillna("").to_numpy(),
        cosine=own["cosine"].to_numpy(dtype=float),
        floor_cosine=own["floor_cosine"].to_numpy(dtype=float),
    )


def _matched(before: OneSide, after: OneSide) -> tuple[np.ndarray, np.ndarray]:
    """[latents before]: partner after, or -1 where nothing that is left is near enough, and the cosine with what is."""
    often = (alive(side.features["density"].to_numpy(), side.codes.shape[0]) for side in (before, after))
    found = match(before.directions, after.directions, *often)
    return np.where(np.nan_to_num(found.cosine) >= DIED, found.partner, -1), found.cosine


def measured(pairs: pd.DataFrame, before: OneSide, after: Mapping[int, OneSide]) -> pd.DataFrame:
    """With the columns density, variance, auc (the larger of both sides), change, and norm_ratio (NaN without a pair).

    Change is `activation_change` on the same rows; norm_ratio that of the root mean square of the activations, after
    over before.
    """
    columns = {}
    for column in {"density", "variance", "auc"} & set(before.features):
        columns[column] = _values(pairs, before, after, column).max(axis=1)
    strengths = _values(pairs, before, after, "strength").to_numpy()
    norm_ratio = ratio(strengths[:, 1], np.nan_to_num(strengths[:, 0]))
    change = np.full(len(pairs), np.nan)
    for seed, side in after.items():
        at = np.flatnonzero((pairs["left"] >= 0) & (pairs["right"] >= 0) & (pairs["right_seed"] == seed))
        left, right = (pairs[name].to_numpy()[at] for name in ("left", "right"))
        codes = (scipy.sparse.csr_array(of.codes[:, own]) for of, own in ((before, left), (side, right)))
        change[at] = activation_change(*codes)
    return pairs.assign(**columns, change=change, norm_ratio=norm_ratio)


def _values(pairs: pd.DataFrame, before: OneSide, after: Mapping[int, OneSide], column: str) -> pd.DataFrame:
    """[pairs, sides]: a column of `features` for the latents left and right; NaN for none."""
    sides = [("left", pairs["left"] >= 0, before)]
    sides += [("right", (pairs["right"] >= 0) & (pairs["right_seed"] == seed), side) for seed, side in after.items()]
    found = pd.DataFrame(np.nan, index=pairs.index, columns=["left", "right"])
    for name, at, side in sides:
        found.loc[at, name] = side.features[column].to_numpy(dtype=float)[pairs.loc[at, name]]
    return found


def chosen(pairs: pd.DataFrame, number: int, num_rows: int) -> pd.DataFrame:
    """The first ones of each ranking in turn, of pairs that were measured.

    What is on too rarely is ranked by neither AUC nor change, of which its few rows say little.
    """
    table = pairs.assign(latent=np.arange(len(pairs)))
    rankings = [by for by in ORDER if RANKINGS[by] in table]
    rare = ~alive(table["density"].to_numpy(), num_rows)
    table.loc[rare, [RANKINGS[by] for by in rankings if by in ("selectivity", "change")]] = np.nan
    orders = [ranked(table, by)["latent"].tolist() for by in rankings]
    return pairs.iloc[list(_in_turn(orders))[:number]].reset_index(drop=True)


def _in_turn(orders: Sequence[Sequence[int]]) -> Iterator[int]:
    """The first of each, the second of each, and so on; each once."""
    yield from dict.fromkeys(number for number in chain.from_iterable(zip_longest(*orders)) if number is not None)
