"""Figures of pooled features: points by layer and state, in one fixed basis per layer."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from bertdyn.geometry.pca import FixedBasis
from bertdyn.plots.layers import spread, state_name
from bertdyn.plots.style import COLORS, new_figure, plain

MAX_CELLS_ACROSS = 8
MAX_POINTS = 500


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
    stride = max(1, len(labels) // MAX_POINTS)
    for i, layer in enumerate(layers):
        for j, state in enumerate(shown):
            axes = grid[i, j]
            places = points[layer][state]
            for label, name in enumerate(label_names):
                chosen = places[labels == label][::stride]
                axes.scatter(
                    chosen[:, 0],
                    chosen[:, 1],
                    s=3,
                    alpha=0.6,
                    color=COLORS[label % len(COLORS)],
                    label=plain(name),
                    linewidths=0,
                )
            axes.set_xticks([])
            axes.set_yticks([])
            if notes:
                axes.text(0.03, 0.03, notes[layer][state], transform=axes.transAxes, fontsize=7, color="#444444")
            if i == 0:
                axes.set_title(state_name(states[state]), fontsize=9)
            if j == 0:
                axes.set_ylabel(f"layer {layer}", fontsize=9)
    handles, names = grid[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles, names, loc="outside lower center", ncols=min(5, len(names)), fontsize=8, frameon=False
    )
    for handle in legend.legend_handles:
        handle.set_sizes([24])  # type: ignore[union-attr]
        handle.set_alpha(1)  # type: ignore[union-attr]
    return figure
