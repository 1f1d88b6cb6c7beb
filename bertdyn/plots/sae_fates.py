"""Figures of what became of latents in fine-tuning, always beside what becomes of them without it.

The tables are those of `bertdyn.sae.fates`: shares of fates with their floor, and a row for each latent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bertdyn.errors import InputError
from bertdyn.plots.layers import grid_of_panels, legend_below, spread, state_name
from bertdyn.plots.style import COLORS, new_figure, tidy

FATES = ("born", "doubled", "kept", "split", "turned", "rotated", "halved", "died", "unstable")
COMPARISONS = {
    "independent": "independent dictionaries",
    "stagewise": "one dictionary, continued",
    "shared": "one dictionary for all states",
}
FLOORS = {  # what the floor is
    "independent": "another seed of the same state",
    "stagewise": "continued on the first state again",
    "shared": "two halves of the texts of one state",
}
WORDS = {  # what cannot be known from the name of a fate
    "independent": "independent: shares of stable latents (born: of the later state's)",
    "stagewise": "turned: by more than 95 % of the floor's, however little",
    "shared": "doubled, halved: on in twice as many rows, half as many (q < 0.05); split: one of each, alike",
}
FLOOR_LOOK: dict[str, Any] = {"facecolor": "white", "edgecolor": "#7F7F7F", "hatch": "////", "linewidth": 0.6}
MAX_LAYERS_ACROSS = 4
MAX_STATES_IN_BARS = 3
MAX_STATES_IN_CURVES = 4


def plot_fates(shares: pd.DataFrame, title: str) -> Figure:
    """Shares of the fates, each beside its hatched floor; a row of panels a comparison, a column a layer.

    Of independent dictionaries the shares are of stable latents: born of the later state's, all others of the first
    state's. Error bars are the 95 % intervals over seeds, where there are any.

    Parameters
    ----------
    shares
        Of `bertdyn.sae.fates.share_table`. At most `MAX_LAYERS_ACROSS` layers and `MAX_STATES_IN_BARS` states are
        shown, evenly spread, the first and the last among them.

    Raises
    ------
    InputError
        If the table is empty.
    """
    shares = shares[(shares["side"] != "after") | (shares["fate"] == "born")].dropna(subset=["share"])
    comparisons, layers, states = _axes_of(shares, MAX_STATES_IN_BARS)
    width = {1: 7.0, 2: 9.5}.get(len(layers), 12.5)
    left_out = _left_out(shares, layers, states)
    figure = new_figure(width, 2.0 + 2.7 * len(comparisons), title + left_out)
    panels = grid_of_panels(figure, len(comparisons) * len(layers), len(layers))
    for i, axes in enumerate(panels):
        comparison, layer = comparisons[i // len(layers)], layers[i % len(layers)]
        panel = shares[(shares["comparison"] == comparison) & (shares["layer"] == layer)]
        _bars(axes, panel, states)
        tidy(axes, f"{COMPARISONS[comparison]}\nlayer {layer}", "", "share of latents")
        axes.set_ylim(0, 1)
    notes = [*_floors(comparisons), *(WORDS[comparison] for comparison in comparisons)]
    if shares["share_low"].notna().any():
        notes.append("bars: 95 % intervals over seeds of dictionaries, of one fine-tuning")
    hatched = {"floor": Patch(**FLOOR_LOOK)}
    legend_below(figure, list(map(state_name, states)), columns=5, note="\n".join(notes), more=hatched)
    return figure


def _bars(axes: Axes, panel: pd.DataFrame, states: Sequence[str]) -> None:
    """For each fate that is possible here a pair of bars a state: the share, and its floor."""
    fates = [fate for fate in FATES if fate in set(panel["fate"])]
    width = 0.8 / (2 * len(states))
    error = {"linewidth": 0.8, "color": "black"}
    for i, state in enumerate(states):
        rows = panel[panel["state"] == state].set_index("fate").reindex(fates)
        for j, column in enumerate(("share", "floor")):
            values = rows[column].to_numpy(dtype=float)
            ends = np.abs(rows[[f"{column}_low", f"{column}_high"]].to_numpy(dtype=float).T - values)
            look = FLOOR_LOOK if j else {"color": COLORS[i], "label": state_name(state)}
            places = np.arange(len(fates)) - 0.4 + (2 * i + j + 0.5) * width
            axes.bar(places, values, width, yerr=ends if np.isfinite(ends).any() else None, error_kw=error, **look)
    axes.set_xticks(range(len(fates)), fates, fontsize=8)
    if not fates:
        axes.text(0.5, 0.5, "no stable latents", ha="center", va="center", transform=axes.transAxes)


def plot_cosines(fates: pd.DataFrame, title: str) -> Figure:
    """How alike latents are to themselves in a later state: the share of them below each cosine, and the floor dashed.

    A row of panels a comparison, a column a layer. Left out are one dictionary for all states, which has no cosines,
    latents of a continued dictionary that are dead at either end or in the control, and the later state's own of
    independent ones.

    Parameters
    ----------
    fates
        Of `bertdyn.sae.fates`, with a column layer. At most `MAX_LAYERS_ACROSS` layers and `MAX_STATES_IN_CURVES`
        states are shown, evenly spread, the first and the last among them.

    Raises
    ------
    InputError
        If nothing is left to show.
    """
    fates = fates[(fates["comparison"] != "shared") & (fates["side"] != "after")]
    numbered, both = fates["comparison"] == "stagewise", ["kept", "turned"]
    dead = numbered & ~(fates["fate"].isin(both) & fates["floor_fate"].isin(both))
    fates = fates[~dead].dropna(subset=["cosine", "floor_cosine"])
    comparisons, layers, states = _axes_of(fates, MAX_STATES_IN_CURVES)
    width = {1: 7.0, 2: 9.5}.get(len(layers), 12.5)
    figure = new_figure(width, 1.9 + 2.8 * len(comparisons), title + _left_out(fates, layers, states))
    panels = grid_of_panels(figure, len(comparisons) * len(layers), len(layers))
    for i, axes in enumerate(panels):
        comparison, layer = comparisons[i // len(layers)], layers[i % len(layers)]
        panel = fates[(fates["comparison"] == comparison) & (fates["layer"] == layer)]
        _curves(axes, panel, states)
        of_comparison = fates.loc[fates["comparison"] == comparison, ["cosine", "floor_cosine"]]
        axes.set_xlim(of_comparison.quantile(0.005).min() - 0.01, 1.01)  # one scale a comparison
        axes.set_ylim(0, 1.01)
        tidy(axes, f"{COMPARISONS[comparison]}\nlayer {layer}", "cosine with its match", "share below")
    legend_below(figure, list(map(state_name, states)), columns=5, note="\n".join(_floors(comparisons)))
    return figure


def _curves(axes: Axes, panel: pd.DataFrame, states: Sequence[str]) -> None:
    shown = panel[panel["state"].isin(states)]
    for i, state in enumerate(states):
        cosines = shown.loc[shown["state"] == state, "cosine"]
        if len(cosines):
            dashes = ("-", "-.", (0, (4, 1)), (0, (1, 1)))[i]
            axes.ecdf(cosines, color=COLORS[i], linestyle=dashes, linewidth=1.6, label=state_name(state))
    if len(shown):
        axes.ecdf(shown["floor_cosine"], color="black", linestyle=":", linewidth=1.8, label="floor")


def _axes_of(table: pd.DataFrame, most_states: int) -> tuple[list[str], list[int], list[str]]:
    """Comparisons, layers and states that are shown."""
    if table.empty:
        raise InputError("fates: no latents of a state to compare with the first; independent or stagewise are shown")
    comparisons = [name for name in COMPARISONS if name in set(table["comparison"])]
    layers = spread(sorted(table["layer"].unique()), MAX_LAYERS_ACROSS)
    return comparisons, layers, spread(list(dict.fromkeys(table["state"])), most_states)


def _floors(comparisons: Sequence[str]) -> list[str]:
    """What the floor of each comparison is."""
    return [f"floor of {COMPARISONS[comparison]}: {FLOORS[comparison]}" for comparison in comparisons]


def _left_out(table: pd.DataFrame, layers: Sequence[int], states: Sequence[str]) -> str:
    pairs = [("layers", len(layers), table["layer"].nunique()), ("states", len(states), table["state"].nunique())]
    parts = [f"{shown} of {number} {what}" for what, shown, number in pairs if shown < number]
    return f"\n{', '.join(parts)}" if parts else ""
