"""Figures of what a probe reads off each layer, always next to what it would read without what is claimed.

An accuracy says little by itself: a probe reads much off an encoder that was never trained, and fits labels that mean
nothing. So scores are drawn with the same probe on a random encoder (grey, dashed), on shuffled labels (dotted), and
with what needs no encoder (the majority class, TF-IDF).

The table `probes` has one row for each layer, state, kind of rows, target, probe, baseline and metric, in the columns
of these names, with value, low, high (a 95 % interval over texts, NaN where there is none) and n (texts) besides.
`baseline` is "none" for the probe itself; layer, state and rows are missing for what needs no encoder. What the table
does not have, or has as NaN only, is left out of the figure.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bertdyn.errors import InputError
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
    rows_of_states,
    state_name,
)
from bertdyn.plots.probe_panels import (
    ROWS,
    Panel,
    at_layers,
    figure_of_panels,
    number_of_texts,
    one_scale,
    panels_of,
    thin_states,
)
from bertdyn.plots.style import COLORS, tidy

BY_LAYER: dict[str, tuple[str, dict[str, Any]]] = {  # baseline → name, look
    "random_init": ("random encoder", {"color": "#7F7F7F", "linestyle": "--", "marker": "x", "markersize": 4}),
    "control": ("control task (mean over states)", {"color": "#A0A0A0", "linestyle": "-."}),
    "shuffled": ("shuffled labels (mean over states)", {"color": "#A0A0A0", "linestyle": ":"}),
}
WITHOUT_ENCODER: dict[str, tuple[dict[str, str], dict[str, Any]]] = {  # baseline → name by unit, look
    "tfidf": ({"accuracy": "TF-IDF", "R²": "TF-IDF"}, {"color": "#000000", "linestyle": (0, (6, 2))}),
    "majority": (
        {"accuracy": "majority class", "R²": "predicting the mean"},
        {"color": "#000000", "linestyle": (0, (1, 2))},
    ),
}
LOWEST_R2 = -0.5
MAX_HEATMAPS = 8


def scores_by_layer(probes: pd.DataFrame, states: Sequence[str], target: str, title: str) -> Figure:
    """Accuracy or R² of one target by layer, one colour a state, with all baselines, all panels on one scale.

    At most `MAX_STATES` of `states` are shown, evenly spread, the first and the last among them. R² below `LOWEST_R2`
    is not drawn, and the legend says so.

    Raises
    ------
    InputError
        If the table has no accuracy and no R² of this target.
    """
    main = _main_metric(probes[probes["target"] == target])
    scores = _present(probes, main, f"accuracy or r2 of {target}")
    unit = _unit(scores)
    figure, grid, shown = _lines(scores, states, title, unit)
    for baseline, (names, style) in WITHOUT_ENCODER.items():
        of_baseline = scores[scores["baseline"] == baseline]
        for panel, axes in grid.items():
            own = of_baseline[of_baseline["probe"] == panel.probe]
            if len(of_baseline):  # of another probe: the best is the one to beat
                value = (own if len(own) else of_baseline)["value"].max()
                axes.axhline(value, label=names[unit], linewidth=1.3, **style)
    lowest = one_scale(grid, LOWEST_R2 if unit == "R²" else -np.inf)
    hidden = f"R² below {LOWEST_R2} is not drawn (lowest: {lowest:.1f})".replace("-", "−")
    _legend(figure, shown, scores, hidden if unit == "R²" and lowest < LOWEST_R2 else "")
    return figure


def score_heatmaps(probes: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Layer × state: accuracy or R², one scale a target, the baselines in the titles of the panels.

    At most `MAX_HEATMAPS` panels: beyond these, one kind of rows a target, and then one probe.

    Raises
    ------
    InputError
        If the table has no accuracy and no R².
    """
    scores = _present(probes, _main_metric(probes), "accuracy or r2")
    probed = at_layers(scores[(scores["baseline"] == "none") & scores["state"].isin(states)])
    panels, left_out = panels_of(probed, MAX_HEATMAPS)
    layers, shown = sorted(probed["layer"].unique()), [s for s in states if s in set(probed["state"])]
    figure = heatmap_figure(len(panels), len(layers) + 7, title + left_out)  # 7: names of states, titles of three lines
    for axes, panel in zip(grid_of_panels(figure, len(panels), 2), panels, strict=True):
        of_target = probed[probed["target"] == panel.target]
        unit, least, most = _unit(of_target), of_target["value"].min(), of_target["value"].max()
        if least < 0 < most:  # one layer that is far below the mean would leave the others one colour
            unit, least = f"{unit} (darkest: 0 or less)", 0.0
        values = by_layer_and_state(panel.of(probed), "state", layers, shown)
        layer_heatmap(axes, values, f"{panel.title}: {unit}\n{_baselines(scores, panel)}", "state", least, most)
        thin_states(axes)
    return figure


def selectivity_by_layer(probes: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """How much better the probe does than on labels that mean nothing (Hewitt & Liang, 2019), by layer.

    The accuracy less that on the control task where there is such, else less that on shuffled labels.

    Raises
    ------
    InputError
        If the table has no selectivity.
    """
    rows = probes[probes["metric"] == "selectivity"]
    rows = _present(probes, rows, "selectivity")
    figure, grid, shown = _lines(rows, states, title, "accuracy − accuracy\non the control's labels")
    for axes in grid.values():
        axes.axhline(0, color="black", linewidth=0.8, label="0 = the control's labels are fitted as well")
    one_scale(grid)
    _legend(figure, shown, rows)
    return figure


def code_lengths(probes: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Uniform code length of the labels over their online code length, given the layer (Voita & Titov, 2020).

    Raises
    ------
    InputError
        If the table has no compression.
    """
    rows = _present(probes, probes[probes["metric"] == "compression"], "compression")
    figure, grid, shown = _lines(rows, states, title, "compression\n(uniform / online code)")
    by_sizes = probes[(probes["metric"] == "compression") & (probes["baseline"] == "majority")]
    by_sizes = by_sizes.set_index("target")["value"]
    for panel, axes in grid.items():
        axes.axhline(1, color="black", linewidth=0.8, label="1 = uniform code")
        if panel.target in by_sizes:
            name = "the sizes of the classes alone"
            axes.axhline(by_sizes[panel.target], color="black", linestyle=":", linewidth=1.3, label=name)
    one_scale(grid)
    _legend(figure, shown, rows)
    return figure


def _main_metric(probes: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the targets that have one, R² of the others."""
    classes = probes["target"].isin(probes.loc[probes["metric"] == "accuracy", "target"])
    return probes[probes["metric"] == np.where(classes, "accuracy", "r2")]


def _unit(scores: pd.DataFrame) -> str:
    return "R²" if "r2" in set(scores["metric"]) else "accuracy"


def _present(probes: pd.DataFrame, chosen: pd.DataFrame, what: str) -> pd.DataFrame:
    """`chosen` of `probes` without NaN; some of it is of the probe itself."""
    chosen = chosen.dropna(subset=["value"])
    if not (chosen["baseline"] == "none").any():
        targets, metrics = (", ".join(map(str, probes[column].unique())) for column in ("target", "metric"))
        raise InputError(f"probes: no {what} of a probe; the table has the targets {targets}, the metrics {metrics}")
    return chosen


def _lines(
    table: pd.DataFrame, states: Sequence[str], title: str, unit: str
) -> tuple[Figure, dict[Panel, Axes], list[str]]:
    """Values by layer, one line a state over its baselines; the panels; the states that are shown."""
    table = at_layers(table)
    probed, shown = rows_of_states(table[table["baseline"] == "none"], states, list(ROWS))
    if not shown:
        raise InputError(f"probes: none of the states {', '.join(states)} is in the table")
    figure, grid = figure_of_panels(probed, title)
    for panel, axes in grid.items():
        of_panel = panel.of(table)
        for baseline, (name, style) in BY_LAYER.items():
            rows = of_panel[of_panel["baseline"] == baseline]
            if baseline != "random_init":
                rows = rows[rows["state"].isin(states)].groupby("layer", as_index=False)["value"].mean()
                rows = rows.assign(low=np.nan, high=np.nan)
            draw(axes, rows, name, band=0.15, **style)
        for i, state in enumerate(shown):
            of_state = of_panel[(of_panel["baseline"] == "none") & (of_panel["state"] == state)]
            band = 0.25 if len(shown) <= 3 else 0.12
            draw(axes, of_state, state_name(state), band=band, color=COLORS[i], **line_style(i))
        tidy(axes, panel.title, DEPTH, unit)
        layer_axis(axes, of_panel["layer"])
    return figure, grid, shown


def _legend(figure: Figure, states: Sequence[str], table: pd.DataFrame, note: str = "") -> None:
    """States first, then baselines, headed by what stands behind the figure."""
    bands = "bands: 95 % intervals over texts" if table["low"].notna().any() else ""
    note = "; ".join(filter(None, [number_of_texts(table[table["baseline"] == "none"]), bands, note]))
    legend_below(figure, list(map(state_name, states)), columns=4, note=note)


def _baselines(scores: pd.DataFrame, panel: Panel) -> str:
    """What the numbers of a heat map have to be held against."""
    of_target = scores[scores["target"] == panel.target]
    found = {
        "the mean" if _unit(of_target) == "R²" else "majority": of_target[of_target["baseline"] == "majority"],
        "TF-IDF": of_target[of_target["baseline"] == "tfidf"],
        "random encoder at best": panel.of(scores[scores["baseline"] == "random_init"]),
    }
    best = {name: round(rows["value"].max(), 2) + 0.0 for name, rows in found.items() if len(rows)}  # no -0.00
    return ", ".join(f"{name} {value:.2f}" for name, value in best.items()).replace("-0", "−0")
