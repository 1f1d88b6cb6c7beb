"""Figures of pooled features: points by layer and state, in one fixed basis per layer."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bertdyn.geometry.pca import FixedBasis
from bertdyn.plots.layers import spread, state_name
from bertdyn.plots.style import COLORS, new_figure, plain

MAX_CELLS_ACROSS = 8
MAX_POINTS = 500
MAX_PANELS_ACROSS = 4
"""Layers side by side in the picture of one state."""
LEGEND_ACROSS = 5
"""Classes side by side in a legend."""


def pca_grid(
    bases: Mapping[int, FixedBasis], states: Sequence[str], labels: np.ndarray, label_names: Sequence[str], title: str
) -> Figure:
    """Layers down, states across; each row has one basis; the share of variance that it shows stands in each panel.

    Parameters
    ----------
    bases
        Layer → projections of all `states`.
    labels
        [rows], class ids.
    """
    points = {layer: basis.projections for layer, basis in bases.items()}
    notes = {layer: [f"{share.sum():.0%}" for share in basis.explained] for layer, basis in bases.items()}
    return point_grid(points, states, labels, label_names, title, notes)


def pca_of_state(
    bases: Mapping[int, FixedBasis], number: int, labels: np.ndarray, label_names: Sequence[str], title: str
) -> Figure:
    """One state of `pca_grid`, a panel a layer, on scales that are the same for every state: a frame of a film.

    Parameters
    ----------
    bases
        Layer → projections of all states.
    number
        Of the state among them.
    labels
        [rows], class ids.
    """
    layers = sorted(bases)
    down = math.ceil(len(layers) / MAX_PANELS_ACROSS)
    across = math.ceil(len(layers) / down)
    legend = 0.2 * math.ceil(len(label_names) / LEGEND_ACROSS)
    figure = new_figure(max(5.0, 0.6 + 2.3 * across), 1.0 + legend + 2.2 * down, title)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for layer, axes in zip(layers, grid, strict=False):
        everything = np.concatenate(bases[layer].projections)
        margin = 0.05 * np.ptp(everything, axis=0) + 1e-9
        low, high = everything.min(axis=0) - margin, everything.max(axis=0) + margin
        _draw_classes(axes, bases[layer].projections[number], labels, label_names)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        share = bases[layer].explained[number].sum()
        axes.set_title(f"layer {layer}" + (f" ({share:.0%} of variance)" if share >= 0 else ""), fontsize=9)
    for axes in grid[len(layers) :]:
        axes.set_axis_off()
    _legend_of_classes(figure, grid[0])
    return figure


def point_grid(
    points: Mapping[int, Sequence[np.ndarray]],
    states: Sequence[str],
    labels: np.ndarray,
    label_names: Sequence[str],
    title: str,
    notes: Mapping[int, Sequence[str]] | None = None,
) -> Figure:
    """Layers down, states across; colours are classes; each row has one scale.

    Parameters
    ----------
    points
        Layer → [rows, 2] for each of `states`.
    labels
        [rows], class ids.
    notes
        Layer → a few characters for each state, written into its panel.
    """
    layers = spread(sorted(points), MAX_CELLS_ACROSS)
    shown = spread(range(len(states)), MAX_CELLS_ACROSS)
    figure = new_figure(1.3 + 1.55 * len(shown), 1.3 + 1.45 * len(layers), title)
    grid = figure.subplots(len(layers), len(shown), squeeze=False, sharex="row", sharey="row")
    for i, layer in enumerate(layers):
        for j, state in enumerate(shown):
            axes = grid[i, j]
            _draw_classes(axes, points[layer][state], labels, label_names)
            axes.set_xticks([])
            axes.set_yticks([])
            if notes:
                axes.text(0.03, 0.03, notes[layer][state], transform=axes.transAxes, fontsize=7, color="#444444")
            if i == 0:
                axes.set_title(state_name(states[state]), fontsize=9)
            if j == 0:
                axes.set_ylabel(f"layer {layer}", fontsize=9)
    _legend_of_classes(figure, grid[0, 0])
    return figure


def _draw_classes(axes: Axes, places: np.ndarray, labels: np.ndarray, label_names: Sequence[str]) -> None:
    stride = max(1, len(labels) // MAX_POINTS)
    for label, name in enumerate(label_names):
        chosen = places[labels == label][::stride]
        color = COLORS[label % len(COLORS)]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=3, alpha=0.6, color=color, label=plain(name), linewidths=0)


def _legend_of_classes(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, names, loc="outside lower center", ncols=min(LEGEND_ACROSS, len(names)), fontsize=8, frameon=False
    )
    for handle in legend.legend_handles:
        handle.set_sizes([24])  # type: ignore[union-attr]
        handle.set_alpha(1)  # type: ignore[union-attr]
