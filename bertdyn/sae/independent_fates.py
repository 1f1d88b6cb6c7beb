"""Fates of latents of dictionaries that were trained one for each state and seed, and are matched to each other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bertdyn.errors import InputError
from bertdyn.sae.fates import DIED, KEPT, MIN_SEEDS, Latents, alive, check_states, finished, ratio
from bertdyn.sae.matching import Matching, match, seen_from_second


def independent_fates(states: Mapping[str, Sequence[Latents]]) -> pd.DataFrame:
    """Fates of latents of dictionaries that were trained one for each state and seed.

    Seeds are compared with other seeds only, within a state and between states: the same seed starts from the same
    numbers, so within a state it would be compared with itself. `floor_cosine` is the mean over the other seeds of the
    cosine with the latent matched in the own state, `cosine` that in the other state (0 where nothing was left to
    match). A claim is made of latents with `floor_cosine` of at least `KEPT`: kept from `KEPT` on, gone (side before:
    died, side after: born) below `DIED`, rotated between. Others are unstable: another start does not find them again
    in their own state either.

    For the shares one other seed, the next, says what is stable, and the rest say the fate, in the own state (floor)
    as in the other: a latent that was chosen for its cosine with a seed would otherwise always be kept by that seed.

    Two seeds have no rest, and tell no fate: all three columns are "". What they do say is how alike latents are
    between the states (`cosine`) and within one (`floor_cosine`).

    Of `states` × seeds of n latents this makes seeds² optimal assignments a later state (nearly: see `match` for the
    time of one).

    Parameters
    ----------
    states
        State → one `Latents` a seed, the first state first, the later ones in training order.

    Returns
    -------
    pd.DataFrame
        A row for each latent alive of the first state and each later state (side before), and for each latent alive of
        each later state (side after). Its latents are of another dictionary in each state, so on the side after `since`
        is that state or None. `partner` is the one of the other seeds' that is nearest, where the latent is kept or
        rotated; densities and strengths on the other side are means over the other seeds. There is no
        `share_norm_ratio`.

    Raises
    ------
    InputError
        If there is one seed, no later state, or states differ in their number of seeds.
    """
    (first, before), *later = states.items()
    check_states(first, later)
    for state, latents in states.items():
        if len(latents) != len(before):
            raise InputError(
                f"seeds: {len(before)} of {first}, {len(latents)} of {state}; as many of each are compared"
            )
    if len(before) < 2:
        raise InputError("seeds: 1; the floor of independent dictionaries is another seed of the same state, give 3")
    pairs_before = _within(before)
    tables = []
    for state, after in later:
        pairs_after = _within(after)
        forth, back = _between(before, after)
        for seed in range(len(before)):
            own, own_after = before[seed], after[seed]
            within, across = _partners(own, before, pairs_before, seed), _partners(own, after, forth, seed)
            tables.append(_one_side(own, within, across, "before").assign(state=state, seed=seed))
            within, across = _partners(own_after, after, pairs_after, seed), _partners(own_after, before, back, seed)
            tables.append(_one_side(own_after, within, across, "after").assign(state=state, seed=seed))
    return finished(tables, "independent")


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


def _within(seeds: Sequence[Latents]) -> Pairs:
    found = {}
    for a, first in enumerate(seeds):
        for b, second in enumerate(seeds[:a]):
            found[a, b] = _match_alive(first, second)
            found[b, a] = seen_from_second(found[a, b], len(second.density))
    return found


def _between(before: Sequence[Latents], after: Sequence[Latents]) -> tuple[Pairs, Pairs]:
    """Pairs of different seeds, by latent of the first state and by latent of the later one."""
    forth, back = {}, {}
    for a, first in enumerate(before):
        for b, second in enumerate(after):
            if a != b:
                forth[a, b] = _match_alive(first, second)
                back[b, a] = seen_from_second(forth[a, b], len(second.density))
    return forth, back


def _match_alive(first: Latents, second: Latents) -> Matching:
    taking_part = (alive(latents.density, latents.num_rows) for latents in (first, second))
    return match(first.directions, second.directions, *taking_part)


def _partners(own: Latents, others: Sequence[Latents], pairs: Pairs, seed: int) -> _Partners:
    seeds = np.array([(seed + i) % len(others) for i in range(1, len(others))])
    latents = np.stack([pairs[seed, other].partner for other in seeds])
    missing = latents < 0
    densities = np.stack([others[other].density[found] for other, found in zip(seeds, latents, strict=True)])
    strengths = np.stack([others[other].strength[found] for other, found in zip(seeds, latents, strict=True)])
    cosines = np.stack([pairs[seed, other].cosine for other in seeds])
    return _Partners(seeds, latents, *(np.where(missing, 0.0, values) for values in (cosines, densities, strengths)))


def _one_side(own: Latents, within: _Partners, across: _Partners, side: str) -> pd.DataFrame:
    """Fates of the latents alive of one dictionary against the other seeds of the other state."""
    floor_cosine, cosine = within.cosines.mean(axis=0), across.cosines.mean(axis=0)
    fate, share_fate, floor_fate = _claims(within.cosines, across.cosines, "died" if side == "before" else "born")
    found = np.isin(fate, ("kept", "rotated"))
    nearest = across.cosines.argmax(axis=0), np.arange(len(cosine))
    other_density = np.where(found, across.densities.mean(axis=0), np.nan)
    norm_ratio, floor_ratio = (ratio(partners.strengths.mean(axis=0), own.strength) for partners in (across, within))
    if side == "after":
        norm_ratio, floor_ratio = ratio(1.0, norm_ratio), ratio(1.0, floor_ratio)
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
            "norm_ratio": np.where(found, norm_ratio, np.nan),
            "floor_norm_ratio": np.where(np.isin(fate, ("", "unstable")), np.nan, floor_ratio),
        }
    )
    return table[alive(own.density, own.num_rows)]


def _claims(within: np.ndarray, across: np.ndarray, gone: str) -> Iterator[np.ndarray]:
    """Fate, share_fate and floor_fate, each [latents], from cosines [others, latents], the next seed's first."""
    if len(within) + 1 < MIN_SEEDS:
        yield from [np.full(within.shape[1], "")] * 3
        return
    yield np.where(within.mean(axis=0) >= KEPT, _by_cosine(across.mean(axis=0), gone), "unstable")
    for cosines in (across, within):
        yield np.where(within[0] >= KEPT, _by_cosine(cosines[1:].mean(axis=0), gone), "unstable")


def _by_cosine(cosine: np.ndarray, gone: str) -> np.ndarray:
    return np.select([cosine >= KEPT, cosine >= DIED], ["kept", "rotated"], gone)
