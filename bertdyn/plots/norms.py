"""Figures of the lengths of features and of the dimensions that stand out."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D

from bertdyn.plots.layers import DEPTH, legend_below, log_where_wide, rows_of_states, spread, state_name
from bertdyn.plots.style import COLORS, new_figure, tidy

MAX_BOXES = 4
MAX_LAYERS_ACROSS = 4
MAX_NAMED_OUTLIERS = 6
QUANTILES = {"norm_q05": "whislo", "norm_q25": "q1", "norm_q50": "med", "norm_q75": "q3", "norm_q95": "whishi"}


def norm_figure(geometry: pd.DataFrame, dimensions: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Lengths of the content tokens by layer; below, the mean of every dimension with the outliers named.

    Parameters
    ----------
    geometry
        Its quantiles of the norm: boxes from 25 to 75 %, whiskers from 5 to 95 %, at most `MAX_BOXES` states.
    dimensions
        Columns run, state, layer, dimension, mean, std, outlier; the first and the last of `states` are shown, at most
        `MAX_LAYERS_ACROSS` layers, and the `MAX_NAMED_OUTLIERS` largest outliers of a panel get their number.
    """
    norms, boxes = rows_of_states(geometry[geometry["measure"].isin(QUANTILES)], states, ["content"])
    boxes = spread(boxes, MAX_BOXES)
    below = [s for s in dict.fromkeys([states[0], states[-1]]) if s in set(dimensions["state"])]
    layers = spread(sorted(dimensions["layer"].unique()), MAX_LAYERS_ACROSS)
    heights = [3.3] * bool(boxes) + [2.2] * len(below)
    figure = new_figure(11.5, 0.9 + sum(heights), title)
    grid = figure.add_gridspec(max(len(heights), 1), max(len(layers), 1), height_ratios=heights or None)
    colors = {s: COLORS[i] for i, s in enumerate(dict.fromkeys([*boxes, *below]))}
    if boxes:
        _norm_boxes(figure.add_subplot(grid[0, :]), norms, {s: colors[s] for s in boxes})
    for j, layer in enumerate(layers):
        of_layer = dimensions[dimensions["layer"] == layer]
        cells = [grid[bool(boxes) + i, j] for i in range(len(below))]
        _dimensions_of_layer(figure, cells, of_layer, {s: colors[s] for s in below}, "mean ± std" if j == 0 else "")
    dot = Line2D([], [], color="black", marker="o", markersize=3, linestyle="")
    legend_below(
        figure,
        list(map(state_name, states)),
        columns=5,
        note="boxes: 25 to 75 %; whiskers: 5 to 95 % of the content tokens",
        more={f"outlier dimension (numbered: the {MAX_NAMED_OUTLIERS} largest)": dot},
    )
    return figure


def _norm_boxes(axes: Axes, rows: pd.DataFrame, colors: Mapping[str, str]) -> None:
    """Boxes from the quantiles, those of one layer side by side."""
    table = rows.pivot(index=["state", "layer"], columns="measure", values="value")
    table = table.reindex(columns=list(QUANTILES)).dropna().rename(columns=QUANTILES)
    shown = [s for s in colors if s in table.index.get_level_values("state")]
    width = 0.8 / max(len(shown), 1)
    for i, state in enumerate(shown):
        of_state = table.loc[state]
        boxes = axes.bxp(
            of_state.to_dict("records"),
            positions=of_state.index + (i - (len(shown) - 1) / 2) * width,
            widths=0.8 * width,
            manage_ticks=False,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": colors[state], "linewidth": 0.5},
            medianprops={"color": "white", "linewidth": 1.5},
            whiskerprops={"color": colors[state]},
            capprops={"color": colors[state]},
        )
        boxes["boxes"][0].set_label(state_name(state))
    tidy(axes, "Length of the content tokens", DEPTH, "Euclidean norm")
    axes.set_xticks(sorted(rows["layer"].unique()))
    log_where_wide(axes, rows["value"])
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)


def _dimensions_of_layer(
    figure: Figure, cells: Sequence[SubplotSpec], rows: pd.DataFrame, colors: Mapping[str, str], unit: str
) -> None:
    """The states of `colors` one below the other, on one scale."""
    axes = None
    for cell, (state, color) in zip(cells, colors.items(), strict=True):
        axes = figure.add_subplot(cell, sharex=axes, sharey=axes)
        _dimension_means(axes, rows[rows["state"] == state].sort_values("dimension"), color)
        last = cell is cells[-1]
        tidy(axes, f"{state_name(state)}, layer {rows['layer'].iloc[0]}", "dimension" if last else "", unit)
    if axes is not None:
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom - 0.2 * (top - bottom), top + 0.2 * (top - bottom))  # room for the outliers' numbers


def _dimension_means(axes: Axes, rows: pd.DataFrame, color: str) -> None:
    """Mean ± standard deviation over the dimensions; the outliers' numbers above (negative ones below)."""
    x, mean, std = (rows[c].to_numpy(dtype=float) for c in ("dimension", "mean", "std"))
    axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.3, linewidth=0)
    axes.plot(x, mean, color=color, linewidth=0.7)
    outliers = rows[rows["outlier"]]
    axes.plot(outliers["dimension"], outliers["mean"], "o", color="black", markersize=2.5)
    named = outliers.loc[outliers["mean"].abs().nlargest(MAX_NAMED_OUTLIERS).index]
    for sign, y in ((1, 0.97), (-1, 0.03)):
        side = named[np.sign(named["mean"]) == sign].sort_values("dimension")
        places = _apart(side["dimension"].to_numpy(dtype=float), 0.13 * len(x), x.min(), x.max())
        for place, dimension, value in zip(places, side["dimension"], side["mean"], strict=True):
            axes.annotate(
                str(dimension),
                (dimension, value),
                (place, y),
                textcoords=axes.get_xaxis_transform(),
                fontsize=7.5,
                ha="center",
                va="top" if sign > 0 else "bottom",
                arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#606060", "shrinkA": 0, "shrinkB": 1},
            )


def _apart(places: np.ndarray, least: float, low: float, high: float) -> np.ndarray:
    """Sorted `places` moved to be `least` apart from each other, and within [low, high] where they fit."""
    moved = places.copy()
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + least)
    if len(moved):
        moved[-1] = min(moved[-1], high)
    for i in range(len(moved) - 1, 0, -1):
        moved[i - 1] = min(moved[i - 1], moved[i] - least)
    return moved
