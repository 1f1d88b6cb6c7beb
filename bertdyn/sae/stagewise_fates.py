"""Fates of latents of a dictionary that was trained on the first state and continued on later ones."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bertdyn.errors import InputError
from bertdyn.sae.fates import Latents, alive, check_states, finished, ratio

TURNED_QUANTILE = 0.05
"""A latent has turned where its cosine is below that of all but this share of the control's latents."""
ROUNDING = 1e-6
"""Float32 directions are the same to 1 minus this: no latent turns less."""


def stagewise_fates(
    before: Latents, after: Mapping[str, Latents], control: Mapping[str, Latents], seed: int = 0
) -> pd.DataFrame:
    """Fates of the latents of one dictionary that was trained on the first state and continued on later ones.

    Latent j stays latent j. What continued training does of itself, the control does too. Died: alive before, not
    after, but in the control; born: alive after, neither before nor in the control; what appears or vanishes in both
    is unstable. Turned: alive before and after, with cosine(before, after) below the `TURNED_QUANTILE` of the cosines
    of the control, `floor_cosine`. That is more than training does of itself, and no size: where the control hardly
    moves, a few degrees are enough, so read the angles beside the shares. The fates of the floor are the same with
    control and later state exchanged, so `TURNED_QUANTILE` of the latents that the control kept alive turn there.

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
    check_states("the first", list(after))
    tables = []
    for state, later in after.items():
        if state not in control:
            raise InputError(
                f"control: none for {state}; there are {', '.join(control) or 'none'}, each state needs one"
            )
        on_before, on_after, on_control = (
            alive(latents.density, latents.num_rows) for latents in (before, later, control[state])
        )
        cosine, floor_cosine = (_row_cosines(before, latents) for latents in (later, control[state]))
        both = on_before & on_control
        least = min(np.quantile(floor_cosine[both], TURNED_QUANTILE), 1 - ROUNDING) if both.any() else -1.0
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
                "norm_ratio": ratio(later.strength, before.strength),
                "share_norm_ratio": ratio(later.strength, before.strength),
                "floor_norm_ratio": ratio(control[state].strength, before.strength),
            }
        )
        tables.append(table[on_before | on_after | on_control])
    return finished(tables, "stagewise")


def _row_cosines(first: Latents, second: Latents) -> np.ndarray:
    return np.einsum("ij,ij->i", *(latents.directions.astype(np.float64) for latents in (first, second)))


def _continued(before: np.ndarray, after: np.ndarray, other: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Fate of each latent by where it is alive; `other` is the continuation that it is held against."""
    died, born = before & ~after, ~before & after
    return np.select(
        [died & other, born & ~other, died | born, before & after & turned],
        ["died", "born", "unstable", "turned"],
        "kept",
    )
