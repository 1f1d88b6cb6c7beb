"""Figures of one training: curves, dynamics by layer and epoch, confusion matrix."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure

from bertdyn.plots.style import COLORS, DIVERGING, SEQUENTIAL, epoch_axis, new_figure, plain, tidy

MAX_CLASSES_WITH_COUNTS = 20


def training_curves(
    history: pd.DataFrame, scores: Mapping[str, str], baselines: Mapping[str, float], best: int, title: str
) -> Figure:
    """Loss and validation scores by epoch.

    Parameters
    ----------
    history
        One row an epoch: epoch, train/loss, eval/loss, and the columns of `scores`.
    scores
        Column → name; shares between 0 and 1.
    baselines
        Name → validation score, drawn as horizontal lines.
    best
        The selected epoch.
    """
    figure = new_figure(10, 4.2, title)
    left, right = figure.subplots(1, 2)
    epochs = history["epoch"].tolist()
    for key, name, color in (("train/loss", "train (mean over the epoch)", 0), ("eval/loss", "validation", 1)):
        if key in history:
            left.plot(epochs, history[key], "o-", color=COLORS[color], label=name, markersize=4)
    tidy(left, "Loss", "epoch (0 = before training)", "cross-entropy (nats)")
    for color, (key, name) in enumerate(scores.items(), start=1):
        right.plot(epochs, history[key], "o-", color=COLORS[color], label=name, markersize=4)
    for (name, value), style in zip(baselines.items(), ("--", ":", "-."), strict=False):
        right.axhline(value, color=COLORS[7], linestyle=style, linewidth=1, label=f"baseline: {name}")
    right.axvline(best, color=COLORS[7], linewidth=0.8, alpha=0.6, label="best epoch")
    tidy(right, "Validation score", "epoch (0 = before training)", "share")
    for axes in (left, right):
        epoch_axis(axes, epochs)
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
    return figure


def dynamics_heatmaps(groups: pd.DataFrame, title: str) -> Figure:
    """Layer × epoch: distance from the start, relative update, gradient norm, change of the norm.

    `groups` is the output of `bertdyn.training.groups.by_group`.
    """
    order = _group_order(groups["group"].unique())
    start = groups[groups["epoch"] == 0].set_index("group")["norm"]
    groups = groups.assign(norm_change=groups["norm"] / groups["group"].map(start) - 1)
    panels = (
        ("distance_from_init", "Distance from the start, ‖W − W₀‖"),
        ("relative_update", "Relative update in the epoch, ‖ΔW‖ / ‖W‖"),
        ("grad_norm_rms", "Gradient norm (root mean square)"),
        ("norm_change", "Relative change of the weight norm since epoch 0"),
    )
    trained = groups[groups["epoch"] > 0]
    epochs = sorted(trained["epoch"].unique())
    figure = new_figure(11, 1.6 + 0.26 * 2 * len(order), title)
    for axes, (column, name) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        table = trained.pivot(index="group", columns="epoch", values=column).reindex(index=order, columns=epochs)
        values = table.to_numpy(dtype=float)
        signed = column == "norm_change"
        norm = _signed_norm(values) if signed else _positive_norm(values)
        image = axes.imshow(values, aspect="auto", cmap=DIVERGING if signed else SEQUENTIAL, norm=norm)
        axes.set_title(name, fontsize=10)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        stride = -(-len(epochs) // 10)
        axes.set_xticks(range(0, len(epochs), stride), epochs[::stride])
        axes.set_xlabel("epoch")
        bar = figure.colorbar(image, ax=axes, format="%.3g")
        if isinstance(norm, SymLogNorm):
            steps = norm.vmax * np.array([1, 0.1, 0.01])
            bar.set_ticks([*-steps, 0, *steps[::-1]])
        elif isinstance(norm, LogNorm):  # its own ticks are whole powers of ten, of which there may be none
            low, high = norm.vmin or 1, norm.vmax or 1
            bar.set_ticks(np.geomspace(low, high, 4).tolist() if high > 1.2 * low else [low, high])
            bar.minorticks_off()
    return figure


def component_curves(rows: pd.DataFrame, title: str) -> Figure:
    """Distance from the start and gradient norm by epoch, one line a kind of component.

    `rows` is `bertdyn.training.dynamics.Dynamics.table`; tensors of one component are combined over layers.
    """
    columns = (
        ("distance_from_init", "Distance from the start, ‖W − W₀‖"),
        ("grad_norm_rms", "Gradient norm (root mean square)"),
    )
    rows = rows[rows["epoch"] > 0]
    squares = (rows[[c for c, _ in columns]] ** 2).groupby([rows["component"], rows["epoch"]]).sum(min_count=1) ** 0.5
    figure = new_figure(11, 4.6, title)
    components = rows["component"].unique()  # in the order of the parameters: from input to output
    epochs = sorted(rows["epoch"].unique())
    for axes, (column, name) in zip(figure.subplots(1, 2), columns, strict=True):
        for i, component in enumerate(components):
            series = squares.loc[component, column].dropna()
            axes.plot(
                series.index,
                series.where(series > 0),
                "o" if i < len(COLORS) else "s",
                linestyle="-" if i < len(COLORS) else "--",
                color=COLORS[i % len(COLORS)],
                label=component.replace("_", " "),
                markersize=3,
            )
        tidy(axes, name, "epoch", "Frobenius norm, all layers")
        axes.set_yscale("log")
        epoch_axis(axes, epochs)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def confusion_figure(confusion: pd.DataFrame, label_names: Sequence[str], title: str) -> Figure:
    """Counts by true and predicted class, coloured by the share of the true class.

    `confusion` has the columns true, predicted, count.
    """
    counts = confusion.pivot(index="true", columns="predicted", values="count").loc[label_names, label_names]
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    size = min(2.2 + 0.62 * len(label_names), 16)
    figure = new_figure(size + 1.4, size, title)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1)
    for i in range(len(label_names) if len(label_names) <= MAX_CLASSES_WITH_COUNTS else 0):
        for j in range(len(label_names)):
            color = "black" if shares.iat[i, j] > 0.5 else "white"
            axes.text(
                j, i, f"{counts.iat[i, j]}\n{shares.iat[i, j]:.0%}", ha="center", va="center", color=color, fontsize=8
            )
    names = [plain(name) for name in label_names]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(image, ax=axes, label="share of the true class")
    return figure


def _group_order(groups: Sequence[str]) -> list[str]:
    layers = sorted(g for g in groups if g.startswith("layer_"))
    return [g for g in ("embeddings", *layers, "pooler", "head") if g in groups]


def _positive_norm(values: np.ndarray) -> Normalize:
    """Logarithmic colours where the values differ."""
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.min() < positive.max():
        return LogNorm(positive.min(), positive.max())
    return Normalize()


def _signed_norm(values: np.ndarray) -> Normalize:
    """Logarithmic colours on both sides of 0; below a hundredth of the largest value, linear."""
    largest = np.nanmax(np.abs(values), initial=0.0)
    return SymLogNorm(largest / 100, vmin=-largest, vmax=largest) if largest > 0 else Normalize()
