"""Figures of what changes between states: probes carried over, paired tests, stages, and what goes with accuracy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import offset_copy

from bertdyn.errors import InputError
from bertdyn.plots.layers import (
    DEPTH,
    MAX_DEPTH_LABELS,
    by_layer_and_state,
    draw,
    layer_axis,
    layer_heatmap,
    legend_below,
    line_style,
    spread,
    state_name,
)
from bertdyn.plots.probe_panels import (
    Panel,
    at_layers,
    figure_of_panels,
    number_of_texts,
    one_scale,
    panels_of,
    range_of,
    thin_states,
)
from bertdyn.plots.style import COLORS, new_figure, plain, tidy

DIFFERENCES = {"accuracy": "difference of accuracy", "squared_error": "difference of squared error\n(below 0: better)"}
COEFFICIENTS = {
    "spearman": "Spearman",
    "partial_layer": "layer held",
    "partial_state": "state held",
    "partial_layer_state": "both held",
}
MAX_TRANSFERS = 8
MAX_PAIRS = 4
SIGNIFICANT = 0.05


def transfer_by_layer(transfer: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Does a probe of one state work on another one? The first and the last of `states`, in both directions.

    Solid: the probe of a state on that state. Dashed: the probe of the other state as it is, which fails where its
    direction has lost its meaning, and also where all vectors have moved together. Dotted: the same, recentred, which
    fails for the direction only.

    Parameters
    ----------
    transfer
        Columns target, rows, probe, layer, fitted_on and scored_on (states), accuracy, accuracy_recentred (the cut of
        the probe moved as the mean of the vectors did), cosine (of the two states' directions), cosine_by_chance (of
        those of two halves of the texts), n (texts). At most `MAX_TRANSFERS` rows of panels are shown: beyond these,
        one kind of rows a target, and then one probe.

    Raises
    ------
    InputError
        If the table has fewer than two of `states`.
    """
    there = [s for s in states if s in set(transfer["fitted_on"]) & set(transfer["scored_on"])]
    if len(there) < 2:
        raise InputError(f"transfer: two of the states {', '.join(states)} are needed; the table has {there}")
    pair = [there[0], there[-1]]
    table = transfer[transfer["fitted_on"].isin(pair) & transfer["scored_on"].isin(pair)]
    table = at_layers(table.assign(low=np.nan, high=np.nan))
    panels, left_out = panels_of(table, MAX_TRANSFERS)
    figure = new_figure(11.5, 1.7 + 2.8 * len(panels), title + left_out)
    for panel, row in zip(panels, figure.subplots(len(panels), 3, squeeze=False), strict=True):
        _transfer_panels(row, panel, panel.of(table), pair)
    order = [*_transfer_labels(*pair), *_transfer_labels(*pair[::-1])]  # one column for each fitted probe
    note = f"{number_of_texts(table)}; recentred: the cut of the probe moved as the mean of the vectors did"
    legend_below(figure, order, columns=2, note=note)
    return figure


def paired_figure(paired: pd.DataFrame, title: str) -> Figure:
    """How a layer's probe does in one state less how it does in another on the same texts, by layer.

    At most `MAX_PAIRS` pairs of states are shown, evenly spread.

    Parameters
    ----------
    paired
        Columns target, rows, probe, kind (only "states" is shown), metric (a key of `DIFFERENCES`, the same for all
        rows of a target), state_a, state_b, layer_b, difference (b less a), low, high, q_value, n (texts).

    Raises
    ------
    InputError
        If the table has no difference of kind "states".
    """
    table = paired[paired["kind"] == "states"].dropna(subset=["difference"])
    if table.empty:
        raise InputError('paired: no difference of kind "states"')
    table = at_layers(table.rename(columns={"layer_b": "layer"}))
    pairs = spread(list(dict.fromkeys(zip(table["state_a"], table["state_b"], strict=True))), MAX_PAIRS)
    figure, grid = figure_of_panels(table, title)
    step = 0.7 / len(pairs)  # side by side, so that the bars are seen
    for panel, axes in grid.items():
        of_panel = panel.of(table)
        axes.axhline(0, color="black", linewidth=0.8)
        for i, (a, b) in enumerate(pairs):
            rows = of_panel[(of_panel["state_a"] == a) & (of_panel["state_b"] == b)].sort_values("layer")
            rows = rows.assign(x=rows["layer"] + (i - (len(pairs) - 1) / 2) * step)
            bars = rows.dropna(subset=["low", "high"])
            axes.vlines(bars["x"], bars["low"], bars["high"], color=COLORS[i], linewidth=1.2)
            axes.plot(rows["x"], rows["difference"], color=COLORS[i], linewidth=0.6, alpha=0.5)
            look = {"color": COLORS[i], "marker": line_style(i)["marker"]}
            _dots(axes, rows["x"], rows["difference"], rows["q_value"] < SIGNIFICANT, **look)
            axes.plot([], [], linestyle="", label=f"{state_name(b)} − {state_name(a)}", **look)
        tidy(axes, panel.title, DEPTH, DIFFERENCES[of_panel["metric"].iloc[0]])
        layer_axis(axes, table["layer"])
    one_scale(grid)
    note = f"{number_of_texts(table)}; bars: 95 % intervals"
    _filled_legend(figure, note, f"q < {SIGNIFICANT} (false discovery rate)", "not so")
    return figure


def stages_figure(
    scores: pd.DataFrame,
    states: Sequence[str],
    change_points: Sequence[int],
    support: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    title: str,
) -> Figure:
    """Layer × state with the states where a stage begins: a line before each, above it its interval and support.

    Parameters
    ----------
    scores
        Columns state, layer, value.
    change_points
        Indices into `states`: the first state of each stage but the first.
    support
        Of each change point, from 0 to 1.
    intervals
        Indices, too: the 95 % interval of each change point; NaN where there is none.

    Raises
    ------
    InputError
        If the three are not equally long, a change point is no state after the first, or there are no scores.
    """
    if not len(change_points) == len(support) == len(intervals):
        raise InputError(
            f"stages: {len(change_points)} change points, {len(support)} supports, {len(intervals)} intervals; "
            "each change point has one of either"
        )
    if outside := [c for c in change_points if not 0 < c < len(states)]:
        raise InputError(f"stages: change points {outside} are not within 1 to {len(states) - 1}")
    scores = at_layers(scores.dropna(subset=["value"]))
    if not set(scores["state"]) & set(states):
        raise InputError(f"stages: no scores of the states {', '.join(states)}")
    layers = sorted(scores["layer"].unique())
    figure = new_figure(11.5, 3.0 + 0.19 * max(len(layers), 9), title)
    axes = figure.subplots()
    layer_heatmap(axes, by_layer_and_state(scores, "state", layers, states), "", "state")
    figure.axes[-1].set_ylabel("score")
    thin_states(axes)
    outline = [withStroke(linewidth=4, foreground="black")]
    for i, c in enumerate(change_points):
        axes.axvline(c - 0.5, color="white", linewidth=2, path_effects=outline, label="_" if i else "a stage begins")
    _brackets(axes, change_points, support, intervals)
    if change_points:
        bracket = Line2D([], [], color="black", marker="|", markersize=7)
        what = "above: 95 % interval of where it begins, and its support"
        legend_below(figure, [], columns=2, note="", more={what: bracket})
    return figure


def association_figure(table: pd.DataFrame, title: str) -> Figure:
    """Rank correlations of measures with a score, one panel a coefficient, one line a measure, 95 % intervals.

    Parameters
    ----------
    table
        Columns measure, coefficient (a key of `COEFFICIENTS`), value, low, high, n (pairs of layer and
        state), groups (layers).

    Raises
    ------
    InputError
        If the table has no value of a known coefficient.
    """
    table = table[table["coefficient"].isin(COEFFICIENTS)].dropna(subset=["value"])
    if table.empty:
        raise InputError(f"associations: no value of {', '.join(COEFFICIENTS)}")
    measures = list(dict.fromkeys(table["measure"]))
    names = [name for name in COEFFICIENTS if name in set(table["coefficient"])]
    figure = new_figure(11.5, 1.9 + 0.3 * max(len(measures), 2), title)
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, coefficient in zip(grid, names, strict=True):
        rows = table[table["coefficient"] == coefficient]
        y = rows["measure"].map(measures.index)
        axes.axvline(0, color="black", linewidth=0.8)
        bars = rows.assign(y=y).dropna(subset=["low", "high"])
        axes.hlines(bars["y"], bars["low"], bars["high"], color=COLORS[0], linewidth=2, alpha=0.6)
        _dots(axes, rows["value"], y, (rows["low"] > 0) | (rows["high"] < 0), color=COLORS[0], marker="o")
        tidy(axes, COEFFICIENTS[coefficient], "rank correlation", "")
        axes.set_xlim(-1, 1)
        axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
    grid[0].set_yticks(range(len(measures)), [plain(m.replace("_", " ")) for m in measures], fontsize=9)
    grid[0].set_ylim(len(measures) - 0.5, -0.5)
    note = f"{range_of(table['n'])} pairs of layer and state, {range_of(table['groups'])} layers; bars: 95 % intervals"
    _filled_legend(figure, note, "the interval excludes 0", "it does not")
    return figure


def _transfer_panels(row: Sequence[Axes], panel: Panel, rows: pd.DataFrame, pair: Sequence[str]) -> None:
    """Accuracies on texts of the last state, on those of the first, and the cosine of the two states' directions."""
    first, last = pair
    every = -(-rows["layer"].nunique() // MAX_DEPTH_LABELS)  # markers side by side would hide the dashes
    style = {state: line_style(i) | {"color": COLORS[i], "markevery": every} for i, state in enumerate(pair)}
    for axes, scored_on, other in ((row[0], last, first), (row[1], first, last)):
        own, carried = (_of_states(rows, fitted_on, scored_on) for fitted_on in (scored_on, other))
        label, _, _ = _transfer_labels(scored_on, other)
        draw(axes, own.assign(value=own["accuracy"]), label, **style[scored_on])
        _, label, recentred = _transfer_labels(other, scored_on)
        dashed, dotted = {"linestyle": "--"}, {"linestyle": ":", "markerfacecolor": "white"}
        draw(axes, carried.assign(value=carried["accuracy"]), label, **style[other] | dashed)
        draw(axes, carried.assign(value=carried["accuracy_recentred"]), recentred, **style[other] | dotted)
        tidy(axes, f"{panel.title}\nscored on {state_name(scored_on)}", DEPTH, "accuracy")
    row[1].sharey(row[0])
    row[0].autoscale(axis="y")
    directions = _of_states(rows, first, last)
    draw(row[2], directions.assign(value=directions["cosine"]), "_", color="black", marker="s")  # its title names it
    by_chance = directions.assign(value=directions["cosine_by_chance"])
    draw(row[2], by_chance, "_", color=COLORS[-1], linestyle=":")
    row[2].axhline(0, color="black", linewidth=0.5)
    row[2].set_ylim(min(-0.05, row[2].dataLim.y0 - 0.05), 1.05)
    tidy(row[2], f"{panel.title}\nthe two directions (dotted: by chance)", DEPTH, "cosine")
    for axes in row:
        layer_axis(axes, rows["layer"])


def _of_states(rows: pd.DataFrame, fitted_on: str, scored_on: str) -> pd.DataFrame:
    return rows[(rows["fitted_on"] == fitted_on) & (rows["scored_on"] == scored_on)]


def _transfer_labels(state: str, other: str) -> tuple[str, str, str]:
    """Of the probe of `state`: on its own state, on the other one, and there recentred."""
    carried = f"fitted on {state_name(state)}, scored on {state_name(other)}"
    return f"fitted and scored on {state_name(state)}", carried, f"{carried}, recentred"


def _brackets(
    axes: Axes, change_points: Sequence[int], support: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> None:
    """Above the heat map, as high as it needs that none lies on another: intervals, and the support in percent."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    room = 0.03 * (axes.get_xlim()[1] - axes.get_xlim()[0])  # half the width of a number
    ends: list[float] = []  # of each height, where it is taken up to
    for c, share, (low, high) in sorted(zip(change_points, support, intervals, strict=True)):
        left, right = np.fmin(low - 0.5, c - 0.5 - room), np.fmax(high - 0.5, c - 0.5 + room)  # no NaN
        height = next((i for i, end in enumerate(ends) if end < left), len(ends))
        ends[height : height + 1] = [right]
        above = offset_copy(axes.get_xaxis_transform(), figure, y=7 + 21 * height, units="points")
        style: dict[str, Any] = {"color": "black", "transform": above, "clip_on": False}
        axes.add_artist(Line2D([low - 0.5, high - 0.5], [1, 1], marker="|", markersize=7, **style))
        axes.add_artist(Line2D([c - 0.5], [1], marker="o", markersize=4, **style))
        words = offset_copy(above, figure, y=4, units="points")
        axes.text(c - 0.5, 1, f"{share:.0%}".replace("%", " %"), transform=words, ha="center", fontsize=9)


def _dots(axes: Axes, x: pd.Series, y: pd.Series, filled: pd.Series, color: str, marker: str) -> None:
    """Full where `filled`, else hollow."""
    faces = np.where(filled.fillna(False), color, "white")
    axes.scatter(x, y, s=22, c=faces, edgecolors=color, marker=marker, zorder=3, clip_on=False)


def _filled_legend(figure: Figure, note: str, filled: str, hollow: str) -> None:
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markeredgecolor": "black", "markersize": 5}
    more = {
        f"filled: {filled}": Line2D([], [], markerfacecolor="black", **look),
        f"hollow: {hollow}": Line2D([], [], markerfacecolor="white", **look),
    }
    legend_below(figure, [], columns=4, note=note, more=more)
