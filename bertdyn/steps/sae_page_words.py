"""What a page of features says besides latents: which dictionaries it shows, and what to know before reading it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bertdyn.sae.fates import DIED, MIN_SEEDS
from bertdyn.sae.naming import Name
from bertdyn.steps.sae_report import Studied

FLOOR = {
    "shared": "Two halves of the texts of one state differ, too",
    "stagewise": "Latents turn as well when a dictionary is continued as long on the first state again",
    "independent": "Two seeds of one state do not find the same latents, either",
}
"""What happens without fine-tuning, by comparison."""
METRICS = {
    "FVU, standardised": ("fvu_standardized", "share of variance not explained, all dimensions alike"),
    "FVU": ("fvu", "the same, of rows as they are"),
    "L0": ("l0", "latents that are on in a row, mean"),
    "dead": ("dead_share", "share of latents that are on nowhere here"),
    "dense": ("dense_share", "share of latents that are on in more than a tenth of the rows"),
}
"""What a measure is called → its column of `Studied.errors`, and what it is."""


class PageWords(NamedTuple):
    """What the page says besides latents."""

    title: str
    summary: Sequence[str]
    facts: Mapping[str, str]
    metrics: Mapping[tuple[str, str], Sequence[float]]
    """(name, what it is) → a value for each state."""
    caveats: Sequence[str]


def page_words(found: Studied, activation: str, run_id: str, shown: Sequence[Name]) -> PageWords:
    """Of one page.

    Parameters
    ----------
    activation
        Of the dictionaries.
    shown
        The dictionaries that metrics are given of, one for each state of the page.
    """
    comparison, _, layer, seed, _ = shown[0]
    ends = [name.state for name in shown]
    errors = found.errors[found.errors["rows"] == found.rows].set_index(list(Name._fields)).sort_index()
    facts = {
        "run": run_id,
        "comparison": comparison,
        "layer": str(layer),
        "rows": found.rows,
        "dictionary": f"{activation}, {errors.loc[shown[0], 'num_latents']:,} latents, seed {seed}",
    }
    if shown[-1].seed != seed:
        facts["dictionary"] += f" left, {shown[-1].seed} right"
    elif comparison == "independent" and len(ends) > 1 and len(found.seeds) >= MIN_SEEDS:
        facts["metrics, densities"] = f"of seed {seed}, left and right"
    caveats = [
        "Strongest examples flatter a latent: most of what it is on for is in the quarters below.",
        "A latent is what one dictionary needed to reconstruct rows; another seed may cut them up differently.",
    ]
    return PageWords(
        title=f"Layer {layer} of {found.label}: {' and '.join(ends)}",
        summary=[
            f"Features of layer {layer}: {_what(comparison, found.seeds, ends)}",
            f"Texts are of the part {found.part}.",
        ],
        facts=facts,
        metrics={
            (name, meaning): [float(errors.loc[of, column]) for of in shown]
            for name, (column, meaning) in METRICS.items()
        },
        caveats=[*_floor_words(found.latents.shares, comparison, layer, ends[-1]), *caveats],
    )


def _what(comparison: str, seeds: Sequence[int], ends: Sequence[str]) -> str:
    """Which dictionaries stand left and right, in sentences."""
    first, last = ends[0], ends[-1]
    if len(ends) == 1:
        return f"a dictionary for the rows of {first}."
    if comparison == "shared":
        return "one dictionary for the rows of all states: the same latent left and right."
    if comparison == "stagewise":
        return "a dictionary trained on the first state and continued on the later ones: a latent keeps its number."
    same = "The same seed starts at the same rows in both states, and latents are alike for that reason alone"
    if len(seeds) == 1:
        return (
            f"a dictionary for each state, and no latent beside another: those of {first} stand left, those of {last} "
            f"right. {same}; with a second seed they are paired (--seeds 0,1), with a third it can be told what became "
            "of them (--seeds 0,1,2)."
        )
    if len(seeds) < MIN_SEEDS:
        return (
            f"a dictionary for each state and seed. Left is seed {seeds[0]} on {first}, right seed {seeds[1]} on "
            f"{last}; latents are matched one to one by the angle of their directions, and stand side by side where "
            f"the cosine is at least {DIED}. {same}. Two seeds do not tell what became of a latent, so there are no "
            "fates: read the cosine of a card beside its floor, that of the left latent with the other seed in its own "
            "state."
        )
    return (
        f"a dictionary for each state and seed. Left is seed {seeds[0]} on {first}; right, if the latent was kept or "
        f"rotated, the nearest of its matches among the other seeds on {last}, one to one by the angle of their "
        f"directions. {same}. The cosine of a card is the mean over the other seeds, and its floor the same within the "
        f"latent's own state. Latents that stand right alone are of seed {seeds[0]}."
    )


def _floor_words(shares: pd.DataFrame, comparison: str, layer: int, state: str) -> list[str]:
    """What became of the latents beside what happens without fine-tuning; nothing where that is not known."""
    if shares.empty:
        return []
    here = shares["comparison"].eq(comparison) & shares["layer"].eq(layer) & shares["state"].eq(state)
    told = (shares["side"].ne("after") | shares["fate"].eq("born")) & shares["fate"].ne("unstable")
    words = ", ".join(f"{row.fate} {row.share:.1%} (floor {row.floor:.1%})" for row in shares[here & told].itertuples())
    meaning = "What the words mean stands in the report of the run."
    return [f"{FLOOR[comparison]}. In this layer: {words}. {meaning}"] if words else []


def floor_note(comparison: str, own_state: str, first: str, floor_cosine: float) -> str:
    """What a cosine is to be read beside; "" where there is nothing to compare.

    Parameters
    ----------
    own_state
        That of the latent that the card is of.
    first
        The first state.
    """
    if not np.isfinite(floor_cosine) or comparison == "shared":
        return ""
    if comparison == "stagewise":
        return f"floor: cosine {floor_cosine:.2f} where it was continued on {first} again"
    return f"floor: cosine {floor_cosine:.2f} with another seed in {own_state}"


def absent_words(seeds: Sequence[int], fate: str, other_state: str, on_left: bool) -> str:
    """Why a latent of independent dictionaries stands alone.

    Parameters
    ----------
    other_state
        The state that has nothing beside it.
    on_left
        Whether the latent is of the first state.
    """
    if len(seeds) == 1:
        return "Not paired: there is one seed."
    if len(seeds) < MIN_SEEDS:
        other = seeds[1] if on_left else seeds[0]
        return f"No match of seed {other} in {other_state} with a cosine of at least {DIED}."
    if fate == "unstable":
        return "Not told: other seeds do not find this latent again in its own state, either."
    if fate:
        return f"No counterpart: with the matches of other seeds in {other_state} the mean cosine is below {DIED}."
    return "Not compared: it is on too rarely."
