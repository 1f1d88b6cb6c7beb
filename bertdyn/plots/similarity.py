"""Figures of how alike two states are, layer by layer, always next to what unrelated rows would give.

A cosine near 1 says little by itself: in most encoders two tokens of different texts are alike too. So every cosine is
drawn in one panel with its controls (grey): random pairs of rows within each state, and rows of one state with
other rows of the other. Two fine-tunings that differ by the seed only, where there are such, show how much of a
change is chance.

The tables have one row for each pair of states, layer, kind of rows and measure, in the columns run, kind, state_a,
state_b, layer, rows, measure, value, low, high, num_rows, num_examples, interval. `low` and `high` bound a 95 %
interval and are NaN where there is none. What a table does not have, or has as NaN only, is left out of the figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bertdyn.plots.layers import (
    DEPTH,
    by_layer_and_state,
    draw,
    grid_of_panels,
    heatmap_figure,
    interval_note,
    layer_axis,
    layer_heatmap,
    legend_below,
    line_style,
    present,
    sample_note,
    state_name,
)
from bertdyn.plots.style import COLORS, new_figure, plain, tidy

ROWS = {"content": "Content tokens", "first": "First token", "mean": "Mean over content tokens"}
"""Kinds of rows, the first of which that is there is what a figure of one kind shows."""
FEWER_ROWS = {"cka": "CKA", "knn_overlap": "neighbours", "procrustes": "Procrustes"}
OTHER_MEASURES = {  # measure → name, unit
    "cka": ("Linear CKA (debiased)", "CKA"),
    "knn_overlap": ("Shared nearest neighbours", "share of neighbours in common"),
    "procrustes": ("Procrustes distance", "distance, 0 to 2\n(0 = equal up to a rotation)"),
}
CENTERED = ": cosine, means subtracted"
PAIR: dict[str, Any] = {"color": COLORS[0], "marker": "o", "linewidth": 2}
SEEDS: dict[str, Any] = {"color": COLORS[2], "marker": "^"}
CONTROLS: dict[str, dict[str, Any]] = {
    "cosine_random_pairs_a": {"color": "#A0A0A0", "linestyle": "--"},
    "cosine_random_pairs_b": {"color": "#606060", "linestyle": ":"},
    "cosine_mismatched": {"color": "#000000", "linestyle": "-."},
}
CHANCE = {"color": "#000000", "linestyle": ":"}


def main_rows(table: pd.DataFrame) -> str:
    """The kind of rows that a table is first of all about; empty for an empty table."""
    there = set(table["rows"]) if len(table) else set()
    return next((kind for kind in ROWS if kind in there), "")


def similarity_by_layer(table: pd.DataFrame, title: str) -> Figure:
    """Two states of one run: cosines with their controls above, CKA, neighbours and Procrustes below.

    Parameters
    ----------
    table
        One run and one pair of states; besides, rows of kind "reseeded" (any number of pairs of runs), drawn as
        the baseline.

    Raises
    ------
    ValueError
        If the rows that are not of kind "reseeded" are of several runs or pairs.
    """
    table = table.dropna(subset=["value"])
    pair, baseline = table[table["kind"] != "reseeded"], table[table["kind"] == "reseeded"]
    if pair.empty:  # only seeds: they are what the figure shows
        pair, baseline = baseline, pair
    else:
        _only(pair, ["run"])
    names = _names(pair, baseline)
    upper = [r for r in ROWS if ((pair["rows"] == r) & (pair["measure"] == "cosine")).any()]
    main = main_rows(pair)
    lower = [m for m in OTHER_MEASURES if ((pair["rows"] == main) & (pair["measure"] == m)).any()]
    figure = new_figure(11.5, 2.2 + 3.1 * (bool(upper) + bool(lower)), title)
    grid = _rows_of_panels(figure, [n for n in (len(upper), len(lower)) if n])
    for axes, rows in zip(grid[0] if upper else [], upper, strict=True):
        _cosine_panel(axes, rows, pair, baseline, names)
    if upper:
        _one_scale(grid[0])
    for axes, measure in zip(grid[-1] if lower else [], lower, strict=True):
        _other_panel(axes, measure, main, pair, baseline, names)
    order = [names.pair, names.pair + CENTERED, names.seeds, names.seeds + CENTERED, *names.controls.values()]
    legend_below(figure, order, columns=3 if baseline.empty else 2, note=sample_note(pair, FEWER_ROWS))
    return figure


def similarity_heatmaps(table: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Layer × state: how like each of `states` is to one and the same state, content tokens.

    Parameters
    ----------
    table
        One run; its rows of kind "states" with one `state_a`.
    states
        The `state_b` from left to right; those that are not in the table are left out.

    Raises
    ------
    ValueError
        If the table has several runs or several `state_a`.
    """
    rows = table[(table["kind"] == "states") & table["state_b"].isin(states)]
    rows = rows[rows["rows"] == main_rows(rows)]
    _, start = _only(rows, ["run", "state_a"])
    names = {
        "cosine_centered": "Cosine, means subtracted",
        "cka": "Linear CKA (debiased)",
        "knn_overlap": "Shared nearest neighbours",
        "procrustes": "Procrustes distance (0 = equal up to a rotation)",
    }
    panels = present(names, rows)
    shown = [s for s in states if s in set(rows["state_b"])]
    what = f"{ROWS[main_rows(rows)].lower()}; brighter = more like {state_name(start)}"
    figure = heatmap_figure(len(panels), rows["layer"].nunique(), f"{title}\n{what}")
    for axes, (measure, name) in zip(grid_of_panels(figure, len(panels), 2), panels, strict=True):
        values = by_layer_and_state(rows[rows["measure"] == measure], "state_b", sorted(rows["layer"].unique()), shown)
        distance = measure == "procrustes"
        layer_heatmap(
            axes,
            values,
            name,
            f"compared with {state_name(start)}",
            reverse=distance,
            **({"least": 0.0} if distance else {"most": 1.0}),
        )
    return figure


def similarity_over_runs(table: pd.DataFrame, title: str) -> Figure:
    """Several runs at the same pair of states, one colour each: cosines, their control, and CKA of the main rows.

    Over relative depth where the runs differ in their number of layers. Rows of kind "reseeded" are not drawn.

    Raises
    ------
    ValueError
        If the table has several pairs of states.
    """
    rows = table[table["kind"] != "reseeded"].dropna(subset=["value"])
    kind = main_rows(rows)
    rows = rows[rows["rows"] == kind]
    a, b = _only(rows, ["state_a", "state_b"])
    depths = rows.groupby("run")["layer"].max()
    relative = depths.nunique() > 1
    names = {
        "cosine": f"Cosine, {state_name(a)} vs {state_name(b)}",
        "cosine_random_pairs_b": f"Control: cosine of random pairs, {state_name(b)}",
        "cosine_centered": "Cosine, means subtracted",
        "cka": "Linear CKA (debiased)",
    }
    panels = present(names, rows)
    figure = new_figure(11, 1.8 + 3.1 * (-(-len(panels) // 2)), f"{title}: {ROWS[kind].lower()}")
    grid = grid_of_panels(figure, len(panels), 2)
    runs = list(rows["run"].unique())
    for axes, (measure, name) in zip(grid, panels, strict=True):
        for i, run in enumerate(runs):
            of_run = rows[(rows["run"] == run) & (rows["measure"] == measure)]
            if relative:
                of_run = of_run.assign(layer=of_run["layer"] / depths[run])
            draw(axes, of_run, plain(run), color=COLORS[i % len(COLORS)], **line_style(i))
        tidy(
            axes,
            name,
            "relative depth (0 = embeddings, 1 = last layer)" if relative else DEPTH,
            "CKA" if measure == "cka" else "cosine",
        )
        if measure == "cosine_random_pairs_b":
            axes.set_facecolor("#F4F4F4")
        if not relative:
            layer_axis(axes, rows["layer"])
    _one_scale(grid)
    legend_below(figure, [plain(run) for run in runs], columns=min(5, len(runs)), note=interval_note(rows))
    return figure


class _Names(NamedTuple):
    """What the lines of `similarity_by_layer` are called."""

    pair: str
    seeds: str
    controls: Mapping[str, str]


def _names(pair: pd.DataFrame, baseline: pd.DataFrame) -> _Names:
    states = _only(pair, ["state_a", "state_b"])
    a, b = (state_name(s) for s in states)
    what = f"{a} vs {b}"
    if a == b:
        what, a, b = f"two runs, both {a}", f"{a} of the first run", f"{b} of the second run"
    seeds = "two seeds of the same fine-tuning"
    if baseline["state_b"].nunique() == 1:
        seeds += f", both {state_name(baseline['state_b'].iloc[0])}"
    controls = (f"random pairs, {a}", f"random pairs, {b}", "mismatched pairs, one row of each state")
    return _Names(what, seeds, {m: f"control: {name}" for m, name in zip(CONTROLS, controls, strict=True)})


def _cosine_panel(axes: Axes, rows: str, pair: pd.DataFrame, baseline: pd.DataFrame, names: _Names) -> None:
    """Cosines of one kind of rows over their controls."""
    for measure, style in CONTROLS.items():
        _draw_pairs(axes, _select(pair, rows, measure), names.controls[measure], **style)
    centered = _select(baseline, rows, "cosine_centered")
    _draw_pairs(axes, centered, names.seeds + CENTERED, color=COLORS[2], linestyle=(0, (2, 1)))
    _draw_pairs(axes, _select(baseline, rows, "cosine"), names.seeds, **SEEDS)
    centered = _select(pair, rows, "cosine_centered")
    _draw_pairs(axes, centered, names.pair + CENTERED, color=COLORS[1], marker="s")
    _draw_pairs(axes, _select(pair, rows, "cosine"), names.pair, **PAIR)
    tidy(axes, f"Cosine: {ROWS[rows].lower()}", DEPTH, "cosine")
    layer_axis(axes, pair["layer"])


def _other_panel(
    axes: Axes, measure: str, rows: str, pair: pd.DataFrame, baseline: pd.DataFrame, names: _Names
) -> None:
    """One of `OTHER_MEASURES`, for one kind of rows."""
    name, unit = OTHER_MEASURES[measure]
    if measure == "knn_overlap":
        _draw_pairs(axes, _select(pair, rows, "knn_chance"), "control: neighbours by chance", **CHANCE)
    _draw_pairs(axes, _select(baseline, rows, measure), names.seeds, **SEEDS)
    _draw_pairs(axes, _select(pair, rows, measure), names.pair, **PAIR)
    tidy(axes, f"{name}: {ROWS[rows].lower()}", DEPTH, unit)
    layer_axis(axes, pair["layer"])
    axes.set_ylim(bottom=min(0.0, axes.dataLim.y0) - 0.02 * axes.dataLim.y1)
    if measure != "procrustes":
        axes.set_ylim(top=1.03)


def _draw_pairs(axes: Axes, rows: pd.DataFrame, label: str, **style: Any) -> None:
    """One line a run, all under one label; several runs show the spread themselves and have no bands."""
    runs = rows.groupby(["run", "state_a", "state_b"], sort=False)
    for i, (_, of_run) in enumerate(runs):
        draw(axes, of_run, label if i == 0 else "_", band=0.25 if runs.ngroups == 1 else 0, **style)


def _one_scale(panels: Sequence[Axes]) -> None:
    """Cosines from 0, or below it where there are such, to 1."""
    bottom = min([-0.04, *(axes.dataLim.y0 - 0.03 for axes in panels)])
    for axes in panels:
        axes.set_ylim(bottom, 1.03)


def _select(table: pd.DataFrame, rows: str, measure: str) -> pd.DataFrame:
    return table[(table["rows"] == rows) & (table["measure"] == measure)]


def _only(table: pd.DataFrame, columns: list[str]) -> tuple[str, ...]:
    """The one value of each of `columns`."""
    found = table[columns].drop_duplicates()
    if len(found) != 1:
        raise ValueError(f"The figure shows one {', '.join(columns)}; the table has {found.values.tolist()}")
    return tuple(found.iloc[0])


def _rows_of_panels(figure: Figure, counts: Sequence[int]) -> list[list[Axes]]:
    """Rows of `counts` panels each, all rows equally wide."""
    columns = int(np.lcm.reduce(counts)) if counts else 1
    grid = figure.add_gridspec(max(len(counts), 1), columns)
    return [
        [figure.add_subplot(grid[i, j * columns // n : (j + 1) * columns // n]) for j in range(n)]
        for i, n in enumerate(counts)
    ]
