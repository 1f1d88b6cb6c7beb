"""Figures of how the features of one state lie: anisotropy, spread, rank, classes, tokens of one text.

A cosine within a text is drawn with the cosine of random pairs of different texts (dashed), which is its control: only
what exceeds it belongs to the text. The table `geometry` has one row for each run, state, layer, kind of rows and
measure, in the columns run, state, layer, rows, measure, value, low, high, interval; `low` and `high` bound a 95 %
interval and are NaN where there is none. What it does not have, or has as NaN only, is left out of the figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bertdyn.plots.layers import (
    DEPTH,
    by_layer_and_state,
    draw,
    grid_of_panels,
    heatmap_figure,
    layer_axis,
    layer_heatmap,
    legend_below,
    line_style,
    log_where_wide,
    present,
    rows_of_states,
    sample_note,
    spread,
    state_name,
)
from bertdyn.plots.style import COLORS, SEQUENTIAL, new_figure, plain, tidy

FEWER_ROWS = {"effective_rank": "effective rank", "iso_score": "IsoScore"}
MAX_STATES_DOWN = 4
MAX_LAYERS_ACROSS = 4
MAX_TOKENS = 32


def geometry_by_layer(table: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Content tokens by layer, one colour a state: cosines, effective rank, IsoScore, variances.

    At most `MAX_STATES` of `states` are shown, evenly spread, the first and the last among them.
    """
    rows, states = rows_of_states(table, states, ["content"])
    panels: dict[str, tuple[str, str, str | None, str]] = {  # measure → title, unit, dashed measure, what dashes are
        "within_text_cosine": (
            "Cosine between tokens of a text",
            "cosine",
            "random_pair_cosine",
            "control: random pairs of different texts",
        ),
        "within_text_cosine_variance": ("Variance of the cosines within a text", "variance", None, ""),
        "effective_rank": ("Effective rank", "dimensions", "effective_rank_uncentered", "effective rank, not centred"),
        "iso_score": ("IsoScore", "0 = one direction, 1 = isotropic", None, ""),
        "total_variance_normalised": ("Total variance over mean squared norm", "variance", None, ""),
        "total_variance": ("Total variance", "variance (squared units)", None, ""),
    }
    shown = present({measure: name for measure, (name, *_) in panels.items()}, rows)
    figure = new_figure(11.5, 1.8 + 3.0 * -(-len(shown) // 3), title)
    dashes: dict[str, Any] = {}
    for axes, (measure, name) in zip(grid_of_panels(figure, len(shown), 3), shown, strict=True):
        _, unit, control, meaning = panels[measure]
        _by_state(axes, rows[rows["measure"] == measure], states)
        if control in set(rows["measure"]):
            _by_state(axes, rows[rows["measure"] == control], states, dashed=True)
            dashes[meaning] = _dashed()
        tidy(axes, name, DEPTH, unit)
        layer_axis(axes, rows["layer"])
        if measure == "total_variance":
            log_where_wide(axes, rows.loc[rows["measure"] == measure, "value"])
    legend_below(figure, list(map(state_name, states)), columns=4, note=sample_note(rows, FEWER_ROWS), more=dashes)
    return figure


def class_geometry(table: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """How far apart the classes are, by layer: the first token solid, the mean over the content tokens dashed.

    At most `MAX_STATES` of `states` are shown, evenly spread, the first and the last among them.
    """
    rows, states = rows_of_states(table, states, ["first", "mean"])
    panels = {
        "class_cosine_within": ("Cosine of two texts of one class", "cosine"),
        "class_cosine_between": ("Cosine of two texts of different classes", "cosine"),
        "nearest_centroid_accuracy": ("Nearest centroid", "accuracy"),
        "silhouette": ("Silhouette", "−1 to 1"),
        "fisher_ratio": ("Fisher ratio", "variance between / within classes"),
        "nc1": ("Neural collapse, NC1 (0 = collapsed)", "variance within / between classes"),
    }
    shown = present({measure: name for measure, (name, _) in panels.items()}, rows)
    figure = new_figure(11.5, 1.8 + 3.0 * -(-len(shown) // 3), title)
    grid = dict(zip([m for m, _ in shown], grid_of_panels(figure, len(shown), 3), strict=True))
    for measure, axes in grid.items():
        of_measure = rows[rows["measure"] == measure]
        _by_state(axes, of_measure[of_measure["rows"] == "first"], states)
        _by_state(axes, of_measure[of_measure["rows"] == "mean"], states, dashed=True)
        tidy(axes, panels[measure][0], DEPTH, panels[measure][1])
        layer_axis(axes, rows["layer"])
        if measure in ("fisher_ratio", "nc1"):
            log_where_wide(axes, of_measure["value"])
    if {"class_cosine_within", "class_cosine_between"} <= set(grid):
        grid["class_cosine_within"].sharey(grid["class_cosine_between"])
        grid["class_cosine_between"].autoscale(axis="y")
    more = {
        "first token": Line2D([], [], color="black", marker="o", markersize=3.5),
        "mean over the content tokens": _dashed(),
    }
    legend_below(figure, list(map(state_name, states)), columns=4, note=sample_note(rows, FEWER_ROWS), more=more)
    return figure


def geometry_heatmaps(table: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Layer × state: cosines, effective rank and IsoScore of content tokens, nearest centroid of the first token."""
    names = {
        "within_text_cosine": "Cosine between tokens of a text",
        "random_pair_cosine": "Control: cosine of random pairs",
        "effective_rank": "Effective rank",
        "iso_score": "IsoScore",
        "nearest_centroid_accuracy": "Nearest centroid, first token",
    }
    rows = table[table["rows"] == np.where(table["measure"] == "nearest_centroid_accuracy", "first", "content")]
    rows = rows[rows["state"].isin(states) & rows["measure"].isin(names)]
    layers, shown = sorted(rows["layer"].unique()), [s for s in states if s in set(rows["state"])]
    panels = present(names, rows)
    figure = heatmap_figure(len(panels), len(layers), title, across=3)
    cosines = rows.loc[rows["measure"].isin(["within_text_cosine", "random_pair_cosine"]), "value"]
    scale = {"least": cosines.min(), "most": cosines.max()}  # of a cosine and its control: one
    for axes, (measure, name) in zip(grid_of_panels(figure, len(panels), 3), panels, strict=True):
        values = by_layer_and_state(rows[rows["measure"] == measure], "state", layers, shown)
        layer_heatmap(axes, values, name, "state", **(scale if measure.endswith("_cosine") else {}))
    return figure


def cosine_distributions(histogram: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Distribution of the cosines by layer: the first of `states` to the left, the last to the right, means marked.

    `histogram` has the columns run, state, layer, low and high (edges of a bin in [-1, 1]), density.
    """
    histogram = histogram.dropna(subset=["density"])
    sides = [(s, side) for s, side in dict(zip([states[0], states[-1]], (-1, 1), strict=True)).items()]
    shown = histogram[histogram["state"].isin([s for s, _ in sides])]
    highest = shown.groupby("layer")["density"].max()
    figure = new_figure(11.5, 5.2, title)
    axes = figure.subplots()
    axes.axhline(0, color="black", linewidth=0.5, zorder=0)
    for i, (state, side) in enumerate(sides):
        for layer, bins in shown[shown["state"] == state].sort_values("low").groupby("layer"):
            edges = np.append(bins["low"], bins["high"].iloc[-1])
            widths = 0.44 * bins["density"].to_numpy() / highest[layer]
            axes.stairs(
                layer + side * widths,
                edges,
                baseline=layer,
                orientation="horizontal",
                fill=True,
                snap=False,  # a thin tail is thin, not a line one pixel wide
                color=COLORS[i],
                alpha=0.75,
                label=state_name(state),
            )
            weights = bins["density"] * (bins["high"] - bins["low"])
            mean = ((bins["low"] + bins["high"]) / 2 * weights).sum() / weights.sum()
            axes.plot([layer, layer + side * 0.44], [mean, mean], color="black", linewidth=1.5, label="mean")
    tidy(axes, "Cosine between tokens of a text", DEPTH, "cosine")
    layers = sorted(shown["layer"].unique())
    axes.set_xticks(layers)
    axes.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
    occupied = shown[shown["density"] > 0.002 * shown["layer"].map(highest)]
    axes.set_ylim(min(-0.1, occupied["low"].min()), 1)
    legend_below(
        figure,
        [*(state_name(s) for s, _ in sides), "mean"],
        columns=3,
        note="width: density, on one scale for the two halves of a layer",
    )
    return figure


def token_cosine_heatmaps(
    matrices: Mapping[str, Mapping[int, np.ndarray]], tokens: Sequence[str], title: str
) -> Figure:
    """Cosines between the tokens of one text: states down, layers across, on one scale from 0 (and below) to 1.

    Parameters
    ----------
    matrices
        State → layer → [tokens, tokens].
    tokens
        Their names; the first `MAX_TOKENS` are shown.
    """
    number = min(len(tokens), MAX_TOKENS)
    names = [plain(t if len(t) <= 12 else t[:11] + "…") for t in tokens[:number]]
    across = MAX_LAYERS_ACROSS if number <= 16 else MAX_LAYERS_ACROSS - 1  # room for the names
    layers = spread(sorted({layer for of_state in matrices.values() for layer in of_state}), across)
    states = spread(list(matrices), MAX_STATES_DOWN)
    if number < len(tokens):
        title += f"\nthe first {number} of {len(tokens)} tokens"
    side = 10.2 / max(len(layers), 2)
    figure = new_figure(1.6 + side * len(layers), 1.6 + side * len(states), title)
    grid = figure.subplots(len(states), len(layers), squeeze=False)
    for i, state in enumerate(states):
        for j, layer in enumerate(layers):
            axes = grid[i, j]
            values = np.full((number, number), np.nan)
            if layer in matrices[state]:
                values = np.asarray(matrices[state][layer], dtype=float)[:number, :number]
            image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="none")
            axes.set_title(f"{state_name(state)}, layer {layer}", fontsize=10)
            axes.set_yticks(range(number), names if j == 0 else [""] * number, fontsize=7)
            axes.set_xticks(range(number), names if i == len(states) - 1 else [""] * number, fontsize=7, rotation=90)
            axes.tick_params(length=2)
    figure.colorbar(image, ax=grid, label="cosine", extend="min", shrink=0.6, aspect=30)
    return figure


def _by_state(axes: Axes, rows: pd.DataFrame, states: Sequence[str], dashed: bool = False) -> None:
    """One line a state; a state has one colour and marker in all panels."""
    for i, state in enumerate(states):
        style = line_style(i) | ({"linestyle": "--", "markerfacecolor": "white"} if dashed else {})
        band = 0.25 if len(states) <= 3 else 0.12
        of_state = rows[rows["state"] == state]
        draw(axes, of_state, "_" if dashed else state_name(state), band=band, color=COLORS[i], **style)


def _dashed() -> Line2D:
    return Line2D([], [], color="black", linestyle="--", marker="o", markersize=3.5, markerfacecolor="white")
