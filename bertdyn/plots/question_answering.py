"""Figures of question answering."""

import pandas as pd
from matplotlib.figure import Figure

from bertdyn.plots.style import COLORS, new_figure, tidy

CURVES = {"f1": "F1, all", "exact": "exact match, all", "has_ans_f1": "F1, answerable", "no_ans_f1": "F1, unanswerable"}


def threshold_figure(curve: pd.DataFrame, chosen: float, title: str) -> Figure:
    """Scores over the threshold on the null score, and the one chosen on validation.

    `curve` has the columns part, threshold and those of `CURVES` (shares between 0 and 1).
    """
    figure = new_figure(10, 4.2, title)
    for axes, (part, rows) in zip(figure.subplots(1, 2, sharey=True), curve.groupby("part", sort=False), strict=True):
        for color, (column, name) in enumerate(CURVES.items()):
            if column not in rows:  # no such questions
                continue
            axes.plot(rows["threshold"], rows[column], color=COLORS[color], label=name)
        axes.axvline(chosen, color=COLORS[7], linestyle="--", linewidth=1, label="chosen on validation")
        tidy(axes, f"{part.capitalize()} part", "threshold on (null score − best span's score)", "share")
        axes.set_ylim(0, 1)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
