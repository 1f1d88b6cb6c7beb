"""What a report says of the fates of latents, comparison by comparison, always beside the floor."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from bertdyn.sae.fates import DIED, KEPT, MIN_SEEDS

STRONGER = 2.0
"""Ratio of the norms of what a latent contributes, from which on the report counts it."""
WHAT = {
    "shared": (
        "**One dictionary for the rows of both states (shared).** A latent was born or died where it is on in one "
        "state only, and doubled or halved where it is on in at least twice or at most half as many rows (q < 0.05). A "
        "pair of nearly one direction, of which one fades and the other grows, is one feature that split: each state "
        "has its own mean, and a mean that moved can need a latent of its own. "
        "Shares and floor compare one half of the texts of {first} with the other half, of {last} and of {first}."
    ),
    "stagewise": (
        "**One dictionary, continued (stagewise).** It was trained further on {last}, and its control for as long on "
        "{first} again: a latent turned where its angle to what it was before is wider than that of 95 % of the "
        "control's latents, however small that is (see the median angle), and was born or died where that did not "
        "happen in the control."
    ),
    "independent": (
        "**Dictionaries of their own (independent).** Latents are matched one to one with those of other seeds, in "
        "their own state and in the other."
    ),
}
TOLD = (
    f"Shares are of stable latents alone, which the next seed of their own state has with a cosine of {KEPT} or more: "
    f"the remaining seeds of the other state say whether they are kept ({KEPT} or more), rotated, or died (below "
    f"{DIED}; of {{last}}: born), and for the floor those of their own state say it."
)


def fate_lines(shares: pd.DataFrame, fates: pd.DataFrame, states: Sequence[str]) -> Iterator[str]:
    """Markdown of what became of the latents of the first state in the last one.

    Parameters
    ----------
    shares
        Of `sae.fates.share_table`.
    fates
        Of the functions of the three comparisons, with a column layer; nothing is said where it is empty.
    states
        In the order of training.
    """
    if fates.empty:
        return
    first, last = states[0], states[-1]
    fates = fates[fates["state"] == last]
    shares = shares[shares["state"] == last] if len(shares) else shares
    yield f"### What became of the latents of {first}, in {last}"
    yield ""
    yield f"Only the difference from the floor says something of fine-tuning. {_interval_words(shares)}"
    yield ""
    for comparison in fates["comparison"].unique():
        yield WHAT[comparison].format(first=first, last=last)
        yield ""
        of = fates[fates["comparison"] == comparison]
        if comparison == "independent":
            yield from _stable_lines(of, first, last)
        rows = list(_rows(shares, of, comparison))
        if rows and comparison == "independent":
            yield TOLD.format(last=last)
            yield ""
        if rows:
            yield "| layer | fate | share | floor | difference |"
            yield "|---|---|---|---|---|"
            yield from rows
            yield ""


def _interval_words(shares: pd.DataFrame) -> str:
    if len(shares) and shares["excess_low"].notna().any():
        return (
            "Its 95 % intervals are over seeds of dictionaries, of one fine-tuning: they do not say what another "
            "fine-tuning would give."
        )
    return f"There are no intervals: they take {MIN_SEEDS} seeds of dictionaries."


def _stable_lines(fates: pd.DataFrame, first: str, last: str) -> Iterator[str]:
    """How many latents of independent dictionaries are stable, and how alike they are."""
    told = fates["share_fate"].ne("").any()
    if not told:
        yield (
            "**Two seeds tell no fate** (`--seeds 0,1,2` does): the same seed would say what is stable and what became "
            "of it. They do tell how alike latents are."
        )
        yield ""
    yield f"| layer | stable of {first} | stable of {last} | median cosine between the states | within one |"
    yield "|---|---|---|---|---|"
    for layer, of in fates.groupby("layer"):
        stable = of["share_fate"].ne("unstable") if told else of["floor_cosine"].ge(KEPT)
        counts = [
            f"{stable[on].sum() / seeds:,.0f} of {on.sum() / seeds:,.0f} ({stable[on].mean():.1%})"
            for on, seeds in ((of["side"].eq(side), of["seed"].nunique()) for side in ("before", "after"))
        ]
        between, within = (f"{of[column].median():.2f}" for column in ("cosine", "floor_cosine"))
        yield f"| {layer} | {counts[0]} | {counts[1]} | {between} | {within} |"
    yield ""


def _rows(shares: pd.DataFrame, fates: pd.DataFrame, comparison: str) -> Iterator[str]:
    """Of one comparison, layer by layer: shares of fates, and what is measured of latents that keep their number."""
    for layer, of in fates.groupby("layer"):
        if len(shares):
            here = shares[(shares["comparison"] == comparison) & (shares["layer"] == layer)]
            for row in here.itertuples():
                if row.fate != "unstable" and (row.side != "after" or row.fate == "born"):
                    low, high = 100 * row.excess_low, 100 * row.excess_high
                    interval = f" ({_signed(low)} … {_signed(high)})" if np.isfinite(low) else ""
                    yield _row(layer, row.fate, row.share, row.floor, interval)
        if comparison == "stagewise":
            alive = of["fate"].isin(["kept", "turned"]) & of["floor_fate"].isin(["kept", "turned"])
            medians = of.loc[alive, ["cosine", "floor_cosine"]].median().clip(-1, 1)
            angle, floor = np.degrees(np.arccos(medians))
            yield f"| {layer} | median angle | {angle:.1f}° | {floor:.1f}° | {_signed(angle - floor)}° |"
        if comparison != "independent":
            for name, is_so in (
                (f"norm ×{STRONGER:g} or more", lambda ratio: ratio >= STRONGER),
                (f"norm ×{1 / STRONGER:g} or less", lambda ratio: ratio <= 1 / STRONGER),
            ):
                share, floor = (is_so(of[column]).mean() for column in ("share_norm_ratio", "floor_norm_ratio"))
                yield _row(layer, name, share, floor)


def _row(layer: object, name: str, share: float, floor: float, interval: str = "") -> str:
    points = _signed(100 * (share - floor))
    return f"| {layer} | {name} | {share:.1%} | {floor:.1%} | {points} points{interval} |"


def _signed(value: float) -> str:
    """With one decimal, and no minus before 0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"
