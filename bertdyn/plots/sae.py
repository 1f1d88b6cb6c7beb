"""Figures of sparse dictionaries: how well they code a layer, at what price, and what can be read off their codes.

A dictionary codes random rows well, too, and so does PCA with as many components. So every score stands with what is
not a trained dictionary of a trained encoder. Where there are several seeds, a line goes through their mean and each
one is a small point. At most `MAX_STATES` states are shown, evenly spread, the first and the last among them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bertdyn.errors import InputError
from bertdyn.plots.layers import (
    DEPTH,
    MAX_STATES,
    draw,
    grid_of_panels,
    layer_axis,
    legend_below,
    line_style,
    log_where_wide,
    spread,
    state_name,
)
from bertdyn.plots.style import COLORS, new_figure, tidy

Look = dict[str, Any]
"""What Matplotlib takes as the style of a line."""
ROWS = {"content": "content tokens", "first": "first token", "both": "content and first token"}
FVU = {"fvu": "FVU", "fvu_standardized": "FVU, dimensions standardised"}
BASELINES: dict[str, tuple[str, Look]] = {  # baseline → name, look
    "pca": ("PCA with as many components", {"linestyle": ":", "marker": "^"}),
    "random_dictionary": ("random dictionary", {"linestyle": "-.", "marker": "x"}),
    "random_init": ("dictionary of a random encoder", {"linestyle": "--", "marker": "s", "color": "#7F7F7F"}),
}
REPLACEMENTS: dict[str, tuple[str, Look]] = {  # what is put in place of the rows → name, look
    "dictionary": ("dictionary", {"color": COLORS[0], "marker": "o", "linewidth": 2.0}),
    "pca": ("PCA with as many components", {"color": COLORS[1], "marker": "^"}),
    "random_dictionary": ("random dictionary", {"color": COLORS[3], "marker": "x"}),
    "mean": ("mean of all rows", {"color": COLORS[7], "marker": "s"}),
    "zero": ("zeros", {"color": COLORS[6], "marker": "v"}),
}
FIDELITY = {"agreement": "same label as\nthe unspliced model", "kl": "KL from the unspliced\nmodel (nats)"}
BASES: dict[str, tuple[str, Look]] = {
    "dictionary": ("latents of the dictionary", {"color": COLORS[0], "marker": "o", "linewidth": 2.0}),
    "pca": ("principal components", {"color": COLORS[1], "marker": "^"}),
    "dimensions": ("dimensions of the layer", {"color": COLORS[2], "marker": "D"}),
    "random_init": ("latents of a random encoder's dictionary", {"color": COLORS[7], "linestyle": "--", "marker": "s"}),
}
MAJORITY: Look = {"color": "black", "linestyle": (0, (1, 2)), "linewidth": 1.3}
SIZES = {1: "1 feature", 5: "5 features", 0: "all features"}
MAX_LAYERS_ACROSS = 4
MAX_STATE_ROWS = 3
DASHES: tuple[Look, ...] = (  # of the states; open markers tell them apart where there is one layer
    {"linestyle": "-", "fillstyle": "full"},
    {"linestyle": "--", "fillstyle": "none"},
    {"linestyle": ":", "fillstyle": "left"},
)
BINS_A_DECADE = 5


def plot_frontier(table: pd.DataFrame, title: str, measure: str = "fvu_standardized") -> Figure:
    """Fraction of variance unexplained against the mean number of latents that are on, a panel a layer.

    A line a state; PCA and the random dictionary of a state in its colour, the random encoder grey. Below each other
    where the table has several kinds of rows.

    Parameters
    ----------
    table
        Columns layer, state, seed, baseline ("none" or of `BASELINES`), k, l0, rows, and `measure`. Points of one k
        are averaged over seeds.
    measure
        Of `FVU`.

    Raises
    ------
    InputError
        If the table has no dictionary with this measure.
    """
    table = _present(table, ["l0", measure])
    trained = table[table["baseline"] == "none"]
    if trained.empty:
        raise InputError(f"frontier: no {measure} of a dictionary; the baselines {_names(table['baseline'])} alone")
    layers, kinds = spread(sorted(trained["layer"].unique()), MAX_LAYERS_ACROSS), _known(ROWS, trained["rows"])
    states = _states(trained)
    left_out = _left_out(trained, layer=layers, state=states)
    figure = new_figure(_width(len(layers)), 1.9 + 2.9 * len(kinds), title + left_out)
    panels = grid_of_panels(figure, len(kinds) * len(layers), len(layers))
    for i, axes in enumerate(panels):
        rows, layer = kinds[i // len(layers)], layers[i % len(layers)]
        panel = table[(table["rows"] == rows) & (table["layer"] == layer)]
        _frontiers(axes, panel, states, measure)
        tidy(axes, f"layer {layer}: {ROWS.get(rows, rows)}", "latents on in a row (mean L0)", FVU[measure])
        axes.set_xscale("log")
        _plain_ticks(axes, panel[panel["baseline"] == "none"].groupby("k")["l0"].mean())
    _same_scale(panels, table[measure])
    _legend(figure, table, states, BASELINES)
    return figure


def _frontiers(axes: Axes, panel: pd.DataFrame, states: Sequence[str], measure: str) -> None:
    for i, state in enumerate(states):
        of_state = panel[panel["state"] == state]
        look = {"color": COLORS[i]}
        trained = of_state[of_state["baseline"] == "none"]
        _over_seeds(axes, trained, "k", "l0", measure, state_name(state), marker=line_style(i)["marker"], **look)
        for baseline in ("pca", "random_dictionary"):
            rows = of_state[of_state["baseline"] == baseline]
            _over_seeds(axes, rows, "k", "l0", measure, "", **BASELINES[baseline][1], **look)
    random = panel[panel["baseline"] == "random_init"]
    _over_seeds(axes, random, "k", "l0", measure, "", **BASELINES["random_init"][1])


def plot_densities(table: pd.DataFrame, title: str) -> Figure:
    """Histogram of the latents' log10 density by state, a panel a layer; those never on are bars of their own.

    Parameters
    ----------
    table
        Columns layer, state, latent, density (share of rows where the latent is on); latents of all seeds are pooled.

    Raises
    ------
    InputError
        If the table has no density above 0.
    """
    table = _present(table, ["density"])
    on = table.loc[table["density"] > 0, "density"]
    if on.empty:
        raise InputError("densities: none above 0; a histogram of the density needs latents that are on")
    layers, states = sorted(table["layer"].unique()), _states(table)
    shown = spread(layers, 2 * MAX_LAYERS_ACROSS)
    across = min(len(shown), 3)
    left_out = _left_out(table, layer=shown, state=states)
    figure = new_figure(_width(across), 1.7 + 2.8 * -(-len(shown) // across), title + left_out)
    lowest = min(np.floor(np.log10(on.min())), -1)
    edges = np.linspace(lowest, 0, int(-lowest * BINS_A_DECADE) + 1)
    panels = grid_of_panels(figure, len(shown), across)
    for axes, layer in zip(panels, shown, strict=True):
        of_layer = table[table["layer"] == layer]
        for i, state in enumerate(states):
            density = of_layer.loc[of_layer["state"] == state, "density"].to_numpy(dtype=float)
            _density(axes, density, edges, i, len(states), state_name(state))
        tidy(axes, f"layer {layer}", "share of rows where it is on", "share of latents")
        ticks = range(int(lowest) + 1, 1, max(1, int(-lowest) // 4))
        axes.set_xticks([lowest - 0.5, *ticks], ["never", *(f"$10^{{{tick}}}$" for tick in ticks)])
        axes.set_xlim(lowest - 1, 0.1)
    _one_top(panels)
    legend_below(figure, list(map(state_name, states)), columns=4, note="bars: latents that are never on")
    return figure


def _density(axes: Axes, density: np.ndarray, edges: np.ndarray, i: int, states: int, name: str) -> None:
    """One state's histogram, and its bar left of it."""
    if not len(density):
        return
    dead = density == 0
    shares = np.histogram(np.log10(density[~dead]), edges)[0] / len(density)
    axes.stairs(shares, edges, label=name, linewidth=1.6, color=COLORS[i], linestyle=("-", "--", ":")[i // 2 % 3])
    width = 0.7 / states
    axes.bar(edges[0] - 0.85 + (i + 0.5) * width, dead.mean(), width, color=COLORS[i])


def plot_fidelity(table: pd.DataFrame, title: str) -> Figure:
    """What the model still says where a layer is replaced: agreement of labels above, KL below, by layer.

    A column of panels for each place of the replacement. The line of a state is solid, dashed, dotted in their order.

    Parameters
    ----------
    table
        Columns layer, state, where (of `ROWS`), replacement (of `REPLACEMENTS`), seed, agreement, kl. At most
        `MAX_STATE_ROWS` states are shown.

    Raises
    ------
    InputError
        If the table has no agreement of a dictionary.
    """
    table = _present(table, ["agreement", "kl"])
    spliced = table[table["replacement"] == "dictionary"]
    if spliced.empty:
        raise InputError(f"fidelity: no replacement dictionary; the table has {_names(table['replacement'])}")
    places, states = _known(ROWS, table["where"]), spread(_states(spliced), MAX_STATE_ROWS)
    figure = new_figure(_width(len(places)), 6.6, title + _left_out(spliced, state=states))
    panels = grid_of_panels(figure, 2 * len(places), len(places))
    for i, axes in enumerate(panels):
        measure, where = list(FIDELITY)[i // len(places)], places[i % len(places)]
        panel = table[table["where"] == where]
        for state, dashes in zip(states, DASHES, strict=False):
            for replacement, (name, look) in REPLACEMENTS.items():
                rows = panel[(panel["state"] == state) & (panel["replacement"] == replacement)]
                _over_seeds(axes, rows, "layer", "layer", measure, name, **dashes, **look)
        tidy(axes, f"{ROWS.get(where, where)} replaced" if i < len(places) else "", DEPTH, FIDELITY[measure])
        layer_axis(axes, table["layer"])
    _same_scale(panels[: len(places)], table["agreement"])
    _same_scale(panels[len(places) :], table["kl"])
    dashed: dict[str, Artist] = {
        state_name(s): Line2D([], [], color="black", marker="o", **DASHES[i]) for i, s in enumerate(states)
    }
    note = state_name(states[0]) if len(states) == 1 else ""
    order = [name for name, _ in REPLACEMENTS.values()]
    legend_below(figure, order, columns=4, note=_notes(note, table), more=dashed if len(states) > 1 else None)
    return figure


def plot_sparse_probes(table: pd.DataFrame, title: str) -> Figure:
    """Accuracy of probes that see the 1 or 5 best features of a basis, or all, by layer; the majority class dotted.

    Parameters
    ----------
    table
        Columns layer, state, basis (of `BASES`), size (1, 5; 0: all), accuracy, accuracy_low, accuracy_high (a 95 %
        interval), majority (accuracy of the most frequent class). The basis random_init stands in the panels of all
        states. At most `MAX_STATE_ROWS` states are shown.

    Raises
    ------
    InputError
        If the table has no accuracy of a dictionary.
    """
    table = _present(table, ["accuracy"])
    encoded = table[table["basis"] == "dictionary"]
    if encoded.empty:
        raise InputError(f"sparse probes: no basis dictionary; the table has {_names(table['basis'])}")
    sizes, states = _known(SIZES, encoded["size"]), spread(_states(encoded), MAX_STATE_ROWS)
    size = (_width(len(sizes)), 1.9 + 2.8 * len(states))
    figure = new_figure(*size, title + _left_out(encoded, state=states))
    panels = grid_of_panels(figure, len(sizes) * len(states), len(sizes))
    for i, axes in enumerate(panels):
        state, number = states[i // len(sizes)], sizes[i % len(sizes)]
        panel = table[(table["size"] == number) & ((table["state"] == state) | (table["basis"] == "random_init"))]
        for basis, (name, look) in BASES.items():
            columns = {"accuracy": "value", "accuracy_low": "low", "accuracy_high": "high"}
            rows = panel[panel["basis"] == basis].groupby("layer", as_index=False)[list(columns)].mean()
            draw(axes, rows.rename(columns=columns), name, band=0.15, **look)
        axes.axhline(panel["majority"].mean(), label="majority class", **MAJORITY)
        tidy(axes, f"{state_name(state)}: {SIZES.get(number, number)}", DEPTH, "accuracy")
        layer_axis(axes, table["layer"])
    _one_top(panels, bottom=None)
    note = "bands: 95 % intervals over texts" if table["accuracy_low"].notna().any() else ""
    legend_below(figure, [name for name, _ in BASES.values()], columns=3, note=note)
    return figure


# What the figures share ----------------------------------------------------------------------------------------------


def _over_seeds(axes: Axes, rows: pd.DataFrame, key: str, x: str, y: str, label: str, **style: Any) -> None:
    """A line through the means over the rows of one `key`; the rows themselves as small points where they are more."""
    if rows.empty:
        return
    look: Look = {"linewidth": 1.5, "markersize": 4.5, "label": label or "_"} | style
    means = rows.groupby(key, as_index=False)[[column for column in (x, y) if column != key]].mean().sort_values(x)
    axes.plot(means[x], means[y], **look)
    if len(rows) > len(means):
        axes.scatter(rows[x], rows[y], s=7, color=look["color"], alpha=0.5, linewidths=0)


def _present(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Rows that have a value in all of `columns`."""
    return table.dropna(subset=list(columns))


def _states(table: pd.DataFrame) -> list[str]:
    """In the order of the table."""
    return spread(list(dict.fromkeys(table["state"])), MAX_STATES)


def _known(names: Mapping[Any, str], values: pd.Series) -> list[Any]:
    """What there is among `values`, in the order of `names`."""
    found = set(values)
    return [*(name for name in names if name in found), *sorted(found - set(names))]


def _names(values: pd.Series) -> str:
    return ", ".join(map(str, values.unique())) or "nothing"


def _width(columns: int) -> float:
    return {1: 7.0, 2: 9.0}.get(columns, 11.5)


def _left_out(table: pd.DataFrame, **shown: Sequence[Any]) -> str:
    """A line for the title: of which columns not all values are `shown`."""
    numbers = {column: (len(values), table[column].nunique()) for column, values in shown.items()}
    parts = [f"{some} of {all_} {column}s" for column, (some, all_) in numbers.items() if some < all_]
    return f"\n{', '.join(parts)}" if parts else ""


def _plain_ticks(axes: Axes, values: Iterable[float]) -> None:
    """Marks at the dictionaries' own L0 as plain numbers, those that are not too near to one another."""
    marks: list[float] = []
    for value in sorted(values):
        if not marks or value > 1.4 * marks[-1]:
            marks.append(value)
    axes.set_xticks(marks, [f"{mark:.0f}" if mark >= 10 else f"{mark:.1f}" for mark in marks])
    axes.minorticks_off()


def _same_scale(panels: Sequence[Axes], values: pd.Series) -> None:
    """One scale for all, logarithmic where the values are of different orders of magnitude."""
    _one_top(panels, bottom=None)
    for axes in panels:
        log_where_wide(axes, values)
    if panels[0].get_yscale() == "log":
        for axes in panels:
            axes.set_ylim(0.7 * min(a.dataLim.minposy for a in panels), 1.5 * max(a.dataLim.y1 for a in panels))


def _one_top(panels: Sequence[Axes], bottom: float | None = 0.0) -> None:
    """All panels on one linear scale, from `bottom` where it is given."""
    low = min(axes.dataLim.y0 for axes in panels) if bottom is None else bottom
    high = max(axes.dataLim.y1 for axes in panels)
    margin = 0.05 * (high - low) or 0.05
    for axes in panels:
        axes.set_ylim(low - margin if bottom is None else bottom, high + margin)


def _legend(figure: Figure, table: pd.DataFrame, states: Sequence[str], looks: Mapping[str, tuple[str, Look]]) -> None:
    """States by colour, baselines by their dashes and markers in black (or their own colour)."""
    there = [looks[baseline] for baseline in looks if baseline in set(table["baseline"])]
    plain: Look = {"color": "black", "markersize": 4.5}
    more: dict[str, Artist] = {name: Line2D([], [], **(plain | look)) for name, look in there}
    note = "baselines of a state in its colour" if set(table["baseline"]) & {"pca", "random_dictionary"} else ""
    legend_below(figure, list(map(state_name, states)), columns=4, note=_notes(note, table), more=more)


def _notes(note: str, table: pd.DataFrame) -> str:
    seeds = table["seed"].nunique()
    return "; ".join(filter(None, [note, f"lines: means of {seeds} seeds, points: each" if seeds > 1 else ""]))
