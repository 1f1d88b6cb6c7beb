"""Figures of a sweep: how the trials went, what they chose, and what can be had at which cost."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bertdyn.plots.style import COLORS, SEQUENTIAL, new_figure, tidy

STATES = {"complete": ("o", COLORS[0]), "pruned": ("x", COLORS[7]), "fail": ("^", COLORS[1])}
STATE_WORDS = {"complete": "came to its end", "pruned": "stopped early", "infeasible": "above the budget"}
REFERENCES = {"uniform": ("s", COLORS[1]), "divided": ("D", COLORS[2]), "winner": ("*", COLORS[6])}
REFERENCE_WORDS = {
    "uniform": "uniform thresholds at the winner's cost",
    "divided": "exact division of the winner's cost",
    "winner": "the winner",
}


def history(trials: pd.DataFrame, value: str, higher_is_better: bool, label: str, title: str) -> Figure:
    """The value of every trial in the order of their numbers, and the best so far.

    Parameters
    ----------
    trials
        number, state, feasible, origin, and a column `value`; of stopped trials it is not drawn, but where they stood.
    """
    figure = new_figure(9, 4, title)
    axes = figure.subplots()
    done = trials[trials["state"] == "complete"]
    groups = {
        "chosen by the sampler": done[done["feasible"] & (done["origin"] == "sampler")],
        "tried first": done[done["feasible"] & (done["origin"] != "sampler")],
        STATE_WORDS["infeasible"]: done[~done["feasible"]],
    }
    for (name, rows), marker, color in zip(groups.items(), "osx", (COLORS[0], COLORS[1], COLORS[7]), strict=True):
        if len(rows):
            axes.plot(rows["number"], rows[value], marker, color=color, markersize=5, label=f"{name} ({len(rows)})")
    good = done[done["feasible"]].sort_values("number")
    if len(good):
        best = good[value].cummax() if higher_is_better else good[value].cummin()
        axes.step(good["number"], best, where="post", color="black", linewidth=1.2, label="best so far")
    stopped = trials[trials["state"] == "pruned"]
    if len(stopped):
        bottom = axes.get_ylim()[0]
        axes.plot(
            stopped["number"], np.full(len(stopped), bottom), "|", color=COLORS[7], markersize=12,
            label=f"{STATE_WORDS['pruned']} ({len(stopped)})",
        )  # fmt: skip
    if not higher_is_better and len(good) and (good[value] > 0).all() and good[value].max() > 30 * good[value].min():
        axes.set_yscale("log")
    tidy(axes, "", "trial", label)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def front_history(trials: pd.DataFrame, values: Sequence[str], title: str) -> Figure:
    """How the front of two low values advanced, trial by trial.

    Parameters
    ----------
    trials
        number, area (share of the rectangle that the front beats, after this trial), origin, in the order of numbers.
    values
        What the two are.
    """
    figure = new_figure(9, 3.6, title)
    axes = figure.subplots()
    axes.step(trials["number"], trials["area"], where="post", color="black", linewidth=1.2, label="front so far")
    gained = trials[trials["area"].diff().fillna(trials["area"]) > 0]
    for name, rows, marker, color in (
        ("gained by the sampler", gained[gained["origin"] == "sampler"], "o", COLORS[0]),
        ("gained by what was tried first", gained[gained["origin"] != "sampler"], "s", COLORS[1]),
    ):
        if len(rows):
            axes.plot(rows["number"], rows["area"], marker, color=color, markersize=5, label=f"{name} ({len(rows)})")
    tidy(
        axes,
        f"hypervolume of {' and '.join(values)} below the worst of the first ten trials",
        "trial",
        "share that is beaten",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def pareto(
    trials: pd.DataFrame, front: Sequence[int], references: pd.DataFrame, cost: str, title: str, note: str
) -> Figure:
    """KL from the dense model over cost on validation: trials, the front, and what stands beside the winner.

    Parameters
    ----------
    trials
        number, state, origin, kl, cost.
    front
        Numbers of the trials of the front, by cost.
    references
        name (of `REFERENCES`), part, kl, cost; those of validation are drawn.
    note
        Whether trials were trained after the cut.
    """
    figure = new_figure(9, 5, title)
    axes = figure.subplots()
    done = trials[(trials["state"] == "complete") & trials["feasible"]]
    positive = done.loc[done["kl"] > 0, "kl"]
    floor = float(positive.min()) / 2 if len(positive) else 1e-6  # where a model that says the same is drawn
    for name, rows, marker, color in (
        ("chosen by the sampler", done[done["origin"] == "sampler"], "o", COLORS[4]),
        ("System 4's lists", done[done["origin"].str.startswith("System 4")], "v", COLORS[3]),
        ("uniform thresholds, tried first", done[done["origin"].str.startswith("uniform")], "s", COLORS[5]),
        ("unpruned (KL 0)", done[done["origin"] == "unpruned"], "P", COLORS[7]),
    ):
        if len(rows):
            axes.plot(rows["cost"], rows["kl"].clip(lower=floor), marker, color=color, markersize=5, label=name)
    best = done.set_index("number").loc[list(front)]
    axes.step(best["cost"], best["kl"].clip(lower=floor), where="post", color=COLORS[0], linewidth=1.5, label="front")
    for row in references[references["part"] == "validation"].to_dict("records"):
        marker, color = REFERENCES[row["name"]]
        axes.plot(
            row["cost"], max(row["kl"], floor), marker, color=color, markersize=14 if marker == "*" else 8,
            label=REFERENCE_WORDS[row["name"]], markeredgecolor="white",
            zorder=4 if row["name"] == "winner" else 3,
        )  # fmt: skip
    axes.set_yscale("log")
    tidy(axes, note, f"encoder {cost}, share of the dense model's", "KL(dense ‖ pruned), nats")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def parallel_coordinates(trials: pd.DataFrame, value: str, higher_is_better: bool, label: str, title: str) -> Figure:
    """A line a trial through what it chose, coloured by its value: the better, the darker and the later drawn.

    Parameters
    ----------
    trials
        param/… and `value`; those that came to their end are drawn, and of parameters with more than one value.
    """
    done = trials[(trials["state"] == "complete") & trials["feasible"]].dropna(subset=[value])
    names = [name for name in done if name.startswith("param/") and done[name].nunique() > 1]
    scaled, ticks, places_of = [], [], [0.0]
    for name in names:
        column = done[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            low, high = float(column.min()), float(column.max())
            scaled.append(((column - low) / (high - low)).to_numpy(dtype=float))
            ticks.append([(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")])
        else:
            words = sorted(column.dropna().unique(), key=str)
            places = {word: i / max(1, len(words) - 1) for i, word in enumerate(words)}
            scaled.append(column.map(places).to_numpy(dtype=float))
            ticks.append([(place, str(word)) for word, place in places.items()])
        # Words need more room than numbers.
        places_of.append(places_of[-1] + (1.0 if ticks[-1][0][1][0] in "-0123456789" else 1.9))
    at = places_of[:-1]
    figure = new_figure(max(7.0, 2.5 + 0.75 * places_of[-1]), 4.8, title)
    axes = figure.subplots()
    ranks = done[value].rank(ascending=higher_is_better, pct=True).to_numpy()
    colors = colormaps[SEQUENTIAL].reversed()
    lines = np.array(scaled).T
    for i in np.argsort(ranks):
        axes.plot(at, lines[i], color=colors(ranks[i]), linewidth=0.8 + ranks[i] ** 4, alpha=0.75)
    for x, marks in zip(at, ticks, strict=True):
        axes.axvline(x, color="black", linewidth=0.5)
        for place, word in marks:
            axes.annotate(word, (x, place), xytext=(3, 3), textcoords="offset points", fontsize=7)
    axes.set_xticks(at, [n.removeprefix("param/") for n in names], rotation=40, ha="right", fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.1)
    axes.set_xlim(-0.2, places_of[-1])
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    scale = figure.colorbar(ScalarMappable(Normalize(0, 1), colors), ax=axes, pad=0.01)
    scale.set_ticks([0, 1], labels=["worst", "best"])
    scale.set_label(f"rank by {label}")
    return figure


def importance(importances: pd.DataFrame, title: str) -> Figure:
    """How much each parameter decides whether a trial is among the best by each value.

    Parameters
    ----------
    importances
        value, parameter, importance.
    """
    values = list(dict.fromkeys(importances["value"]))
    order = importances.groupby("parameter")["importance"].max().sort_values().index
    figure = new_figure(2.5 + 3.5 * len(values), 1.6 + 0.28 * len(order), title)
    for axes, name, color in zip(
        np.atleast_1d(figure.subplots(1, len(values), sharey=True)), values, (COLORS[0], COLORS[2]), strict=False
    ):
        of = importances[importances["value"] == name].set_index("parameter")["importance"].reindex(order).fillna(0)
        axes.barh(range(len(of)), of, color=color)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        tidy(axes, f"of {name}", "importance (PED-ANOVA, sum 1)", "")
        axes.grid(axis="y", visible=False)
    return figure
