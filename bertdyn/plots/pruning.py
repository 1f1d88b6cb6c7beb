"""Figures of pruning: what stays, what it costs in agreement, what it gains in time."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from bertdyn.plots.style import COLORS, SEQUENTIAL, new_figure, tidy

GONE = "#D9D9D9"
STAGE_STYLES = {"surgery": ("after surgery", COLORS[1], "o"), "recovery": ("after recovery", COLORS[0], "s")}


def architecture(plan: pd.DataFrame, title: str) -> Figure:
    """Heads and neurons of each layer before and after.

    Parameters
    ----------
    plan
        One row a layer: layer, heads, heads_kept, neurons, neurons_kept.
    """
    figure = new_figure(9, 1.8 + 0.35 * len(plan), title)
    for axes, (unit, color) in zip(
        figure.subplots(1, 2, sharey=True), (("heads", COLORS[0]), ("neurons", COLORS[2])), strict=True
    ):
        layers, all_units, kept = plan["layer"], plan[unit], plan[f"{unit}_kept"]
        axes.barh(layers, all_units, color=GONE)
        axes.barh(layers, kept, color=color)
        for layer, count, of in zip(layers, kept, all_units, strict=True):
            axes.annotate(f"{count:,}", (of, layer), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        tidy(axes, f"{unit}: {kept.sum():,} of {all_units.sum():,}", unit, "layer" if unit == "heads" else "")
        axes.set_yticks(layers)
        axes.set_ylim(len(plan) + 0.6, 0.4)
        axes.set_xlim(0, max(1, all_units.max()) * 1.14)
        axes.grid(axis="y", visible=False)
    handles = [Patch(color=color) for color in (COLORS[0], COLORS[2], GONE)]
    figure.legend(
        handles, ["heads kept", "neurons kept", "removed"], loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def scores_figure(scores: pd.DataFrame, names: Mapping[str, str], title: str) -> Figure:
    """KL divergence from the dense model and the task's score, of every model and stage, with 95 % intervals.

    Parameters
    ----------
    scores
        One row a model, stage and part; the test part is drawn.
    names
        Model → what a reader sees, in the order of the rows of the figure from the top.
    """
    rows = scores[scores["part"] == "test"]
    score = "accuracy" if "accuracy" in rows else "f1"
    models = [name for name in names if name in set(rows["model"])]
    figure = new_figure(10, 1.9 + 0.55 * len(models), title)
    left, right = figure.subplots(1, 2, sharey=True)
    for stage, (label, color, marker) in STAGE_STYLES.items():
        for i, model in enumerate(models):
            row = rows[(rows["model"] == model) & (rows["stage"] == stage)]
            if row.empty:
                continue
            at = i + (0.13 if stage == "recovery" else -0.13)
            found = row.iloc[0]
            style = {"color": color, "marker": marker, "markersize": 6, "capsize": 3, "linestyle": "none"}
            if found["kl"] > 0:
                _with_interval(left, found["kl"], found.get("kl_low"), found.get("kl_high"), at, style)
            _with_interval(right, found[score], found.get(f"{score}_low"), found.get(f"{score}_high"), at, style)
        if stage in set(rows["stage"]):
            left.plot([], [], color=color, marker=marker, linestyle="none", label=label)
    dense = rows[(rows["model"] == "dense") & (rows["stage"] == "surgery")]
    if not dense.empty:
        right.axvline(float(dense[score].iloc[0]), color="black", linewidth=0.8, linestyle=":", label="dense, before")
        left.plot([], [], color="black", linewidth=0.8, linestyle=":", label="dense, before")
    if (rows["kl"] > 0).any():
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        left.xaxis.set_major_formatter("{x:g}")
        left.xaxis.set_minor_formatter(NullFormatter())
        left.tick_params(axis="x", labelrotation=30)
    tidy(left, "KL(dense ‖ model), lower is nearer", "nats a text", "")
    tidy(right, score.capitalize() if score == "accuracy" else "F1", score, "")
    left.set_yticks(range(len(models)), [names[model] for model in models])
    left.set_ylim(len(models) - 0.5, -0.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _with_interval(axes, value: float, low: float | None, high: float | None, at: float, style: dict) -> None:
    error = None
    if low is not None and high is not None and np.isfinite([low, high]).all():
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(value, at, xerr=error, **style)


def head_scores(units: pd.DataFrame, title: str) -> Figure:
    """The score of every head, layer × head; removed ones are crossed out.

    Parameters
    ----------
    units
        One row a unit: kind, layer, unit, score, kept.
    """
    heads = units[units["kind"] == "attention"]
    scores = heads.pivot(index="layer", columns="unit", values="score")
    kept = heads.pivot(index="layer", columns="unit", values="kept")
    figure = new_figure(2.5 + 0.45 * scores.shape[1], 1.6 + 0.45 * len(scores), title)
    axes = figure.subplots()
    values = scores.to_numpy(dtype=float)
    image = axes.imshow(np.log10(np.maximum(values, _floor(values))), cmap=SEQUENTIAL, aspect="auto")
    middle = float(np.log10(np.maximum(values, _floor(values)))[np.isfinite(values)].mean())
    for (row, column), stays in np.ndenumerate(kept.to_numpy()):
        if stays is False or stays == 0:
            bright = np.log10(max(values[row, column], _floor(values))) > middle
            axes.text(column, row, "×", ha="center", va="center", fontsize=13, color="black" if bright else "white")
    axes.set_xticks(range(scores.shape[1]), scores.columns)
    axes.set_yticks(range(len(scores)), scores.index)
    axes.set_xlabel("head (× removed)")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="log₁₀ score")
    return figure


def neuron_scores(units: pd.DataFrame, title: str) -> Figure:
    """The sorted scores of each layer's neurons; a dot where what stays begins."""
    neurons = units[units["kind"] == "ffn"]
    figure = new_figure(8, 4.5, title)
    axes = figure.subplots()
    layers = sorted(neurons["layer"].unique())
    floor = _floor(neurons["score"].to_numpy(dtype=float))
    for i, layer in enumerate(layers):
        of = neurons[neurons["layer"] == layer].sort_values("score")
        share = np.arange(1, len(of) + 1) / len(of)
        values = np.maximum(of["score"].to_numpy(dtype=float), floor)
        color, style = COLORS[i % len(COLORS)], ("-", "--", ":")[i // len(COLORS) % 3]
        axes.plot(share, values, color=color, linestyle=style, label=f"layer {layer}: {of['kept'].mean():.0%} stay")
        if not of["kept"].all():
            first = min(int((~of["kept"]).sum()), len(of) - 1)
            axes.plot(share[first], values[first], "o", color=color, markersize=6)
    axes.set_yscale("log")
    tidy(axes, "dots: as many neurons to the left go", "share of the layer's neurons, by score", "score (log scale)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def _floor(values: np.ndarray) -> float:
    """What stands for zero on a logarithmic scale."""
    positive = values[values > 0]
    return float(positive.min()) if len(positive) else 1.0


def latency_figure(latency: pd.DataFrame, title: str) -> Figure:
    """Time of a batch as a share of the dense model's, by shape and backend, with 95 % intervals over rounds.

    Parameters
    ----------
    latency
        As `bertdyn.pruning.latency` makes it; the pruned model's rows are drawn.
    """
    rows = latency[latency["model"] == "pruned"]
    shapes = list(dict.fromkeys(zip(rows["batch_size"], rows["sequence_length"], strict=True)))
    figure = new_figure(7.5, 1.8 + 0.5 * len(shapes), title)
    axes = figure.subplots()
    for i, (backend, of) in enumerate(rows.groupby("backend", sort=False)):
        at = [shapes.index(shape) for shape in zip(of["batch_size"], of["sequence_length"], strict=True)]
        axes.errorbar(
            of["ratio"],
            np.array(at) + 0.12 * (2 * i - 1),
            xerr=[of["ratio"] - of["ratio_low"], of["ratio_high"] - of["ratio"]],
            color=COLORS[i],
            marker="os"[i % 2],
            linestyle="none",
            capsize=3,
            label=f"{backend} ({of['device'].iloc[0]})",
        )
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    tidy(axes, "median over rounds, both models in each; one thread", "pruned / dense", "")
    axes.set_yticks(range(len(shapes)), [f"{texts} × {tokens} tokens" for texts, tokens in shapes])
    axes.set_ylim(len(shapes) - 0.5, -0.5)
    axes.set_xlim(0, max(1.05, float(rows["ratio_high"].max()) * 1.05))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
