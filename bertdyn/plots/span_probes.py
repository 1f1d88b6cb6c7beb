"""Figures of span probes: scores by layer beside never answering and a random encoder, thresholds, convergence.

`table` is that of `probe_spans`: one row a layer, state, baseline and metric, with value, low and high (shares 0 to 1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bertdyn.plots.layers import (
    DEPTH,
    MAX_STATES,
    by_layer_and_state,
    draw,
    grid_of_panels,
    heatmap_figure,
    layer_axis,
    layer_heatmap,
    legend_below,
    line_style,
    spread,
    state_name,
)
from bertdyn.plots.style import COLORS, SEQUENTIAL, epoch_axis, new_figure, tidy

RANDOM = "random_init"
SCORES = {
    "f1": "F1, all questions",
    "has_ans_f1": "F1 where there is an answer",
    "best_span_f1": "F1 of the best span where there is\nan answer, whatever the null score",
}
NEVER = "never answering"
BANDS = "bands: 95 % intervals (bootstrap over contexts)"
CURVES = {"f1": "F1, all questions", "has_ans_f1": "F1 where there is an answer"}


def span_scores_by_layer(table: pd.DataFrame, title: str) -> Figure:
    """One panel a score: a line a state with its interval; grey: the random encoder, and never answering."""
    probes = table[table["baseline"].isin(["none", RANDOM])]
    panels = [score for score in SCORES if (probes["metric"] == score).any()]
    states = [state for state in dict.fromkeys(probes["state"]) if state != RANDOM]
    shown = spread(states, MAX_STATES)
    styles = {state: {"color": COLORS[i], **line_style(i)} for i, state in enumerate(shown)}
    styles |= {RANDOM: {"color": COLORS[7], "marker": "x", "linestyle": "--"}}
    figure = new_figure(11.5, 4.6, title)
    for axes, score in zip(grid_of_panels(figure, len(panels), 3), panels, strict=True):
        of_score = probes[probes["metric"] == score]
        for state, style in styles.items():
            draw(axes, of_score[of_score["state"] == state], _name(state), band=0.2, **style)
        never = table[(table["baseline"] == "majority") & (table["metric"] == score)]
        if len(never):
            axes.axhline(never["value"].iloc[0], color="black", linestyle=":", linewidth=1.2, label=NEVER)
        layer_axis(axes, of_score["layer"])
        tidy(axes, SCORES[score], DEPTH, "share")
        axes.set_ylim(0, 1)
    legend_below(figure, [*map(_name, shown), _name(RANDOM), NEVER], columns=4, note=BANDS)
    return figure


def span_heatmaps(table: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Layer × state of each score."""
    probes = table[table["baseline"].isin(["none", RANDOM])]
    panels = [score for score in SCORES if (probes["metric"] == score).any()]
    layers = sorted(set(probes["layer"]))
    figure = heatmap_figure(len(panels), len(layers), title, across=3)
    for axes, score in zip(grid_of_panels(figure, len(panels), 3), panels, strict=True):
        values = by_layer_and_state(probes[probes["metric"] == score], "state", layers, states)
        layer_heatmap(axes, values.astype(float).rename(columns=_name), SCORES[score], "state")
    return figure


def threshold_curves_by_layer(curves: pd.DataFrame, chosen: Mapping[tuple[str, int], float], title: str) -> Figure:
    """A row a score, a column a state, a line a layer: what every other threshold would have given.

    Parameters
    ----------
    curves
        Of one part: state, layer, threshold and scores.
    chosen
        Threshold of each state and layer, drawn as a point.
    """
    states = spread(list(dict.fromkeys(curves["state"])), 4)
    scores = [score for score in CURVES if score in curves and curves[score].notna().any()]
    layers = sorted(set(curves["layer"]))
    figure = new_figure(11.5, 1.2 + 2.7 * len(scores), title)
    grid = figure.subplots(len(scores), len(states), sharex="col", sharey=True, squeeze=False)
    for row, score in zip(grid, scores, strict=True):
        for axes, state in zip(row, states, strict=True):
            for layer, of_layer in curves[curves["state"] == state].groupby("layer"):
                style = _depth(layer, layers)
                axes.plot(of_layer["threshold"], of_layer[score], label=f"layer {layer}", linewidth=1.3, **style)
                threshold = chosen[state, layer]
                # The scores change where a question's difference is reached, and stay until the next.
                before = of_layer[of_layer["threshold"] <= threshold].tail(1)
                place = before if len(before) else of_layer.head(1)
                axes.plot([threshold], place[score], marker="o", markersize=5, markeredgecolor="black", **style)
            tidy(axes, f"{_name(state)}: {CURVES[score]}", "", "share" if state == states[0] else "")
            axes.set_ylim(0, 1)
    for axes in grid[-1]:
        axes.set_xlabel("threshold on (null − best span)")
    legend_below(figure, [f"layer {layer}" for layer in layers], columns=7, note="points: chosen on validation")
    return figure


def convergence_curves(record: pd.DataFrame, title: str) -> Figure:
    """A row a state, a column a learning rate, a line a layer: validation loss over the epochs."""
    states = spread(list(dict.fromkeys(record["state"])), MAX_STATES)
    rates, layers = sorted(set(record["learning_rate"])), sorted(set(record["layer"]))
    figure = new_figure(max(11.5, 2.2 * len(rates)), 1.2 + 2.3 * len(states), title)
    grid = figure.subplots(len(states), len(rates), sharex=True, sharey="row", squeeze=False)
    for row, state in zip(grid, states, strict=True):
        for axes, rate in zip(row, rates, strict=True):
            panel = record[(record["state"] == state) & (record["learning_rate"] == rate)]
            _losses(axes, panel, layers)
            epoch_axis(axes, sorted(set(record["epoch"])))
            tidy(axes, f"{_name(state)}, learning rate {rate:g}", "", "validation loss" if rate == rates[0] else "")
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    legend_below(figure, [f"layer {layer}" for layer in layers], columns=7, note="points: the probe of each layer")
    return figure


def _losses(axes: Axes, panel: pd.DataFrame, layers: Sequence[int]) -> None:
    for layer, rows in panel.groupby("layer"):
        style = _depth(layer, layers)
        axes.plot(rows["epoch"], rows["validation_loss"], label=f"layer {layer}", linewidth=1.3, **style)
        best = rows[rows["chosen"]]
        axes.plot(best["epoch"], best["validation_loss"], marker="o", markersize=6, markeredgecolor="black", **style)


def _depth(layer: Any, layers: Sequence[int]) -> dict[str, Any]:
    """Darker: nearer to the embeddings."""
    return {"color": matplotlib.colormaps[SEQUENTIAL](0.95 * layers.index(layer) / max(len(layers) - 1, 1))}


def _name(state: str) -> str:
    return "random encoder" if state == RANDOM else state_name(state)
