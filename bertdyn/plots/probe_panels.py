"""What the figures of probes share: a panel is a target, read off one kind of rows by one kind of probe."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bertdyn.plots.layers import grid_of_panels
from bertdyn.plots.style import new_figure, plain

ROWS = {"first": "first token", "mean": "mean over content tokens", "content": "content tokens"}
PROBES = {
    "logistic": "logistic regression",
    "ridge": "ridge regression",
    "mlp": "MLP",
    "nearest_centroid": "nearest centroid",
    "mean_difference": "difference of means",
}
MAX_PANELS = 12
MAX_STATE_LABELS = 20


class Panel(NamedTuple):
    """What one panel shows."""

    target: str
    """What is predicted."""
    rows: str
    """From which vectors of a text."""
    probe: str
    """By which model."""

    @property
    def title(self) -> str:
        rows, probe = ROWS.get(self.rows, self.rows), PROBES.get(self.probe, self.probe.replace("_", " "))
        return plain(f"{self.target}: {rows}\n{probe}")

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """Its rows of `table`."""
        return table[(table["target"] == self.target) & (table["rows"] == self.rows) & (table["probe"] == self.probe)]


def at_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Only what is of a layer; layers become numbers that a figure takes."""
    return rows.dropna(subset=["layer"]).astype({"layer": int})


def panels_of(rows: pd.DataFrame, most: int) -> tuple[list[Panel], str]:
    """What `rows` has of targets, kinds of rows and probes, at most `most`, and a line that says what is left out."""
    found = [Panel(*row) for row in rows[["target", "rows", "probe"]].drop_duplicates().itertuples(index=False)]
    targets = list(dict.fromkeys(panel.target for panel in found))
    order = [targets, [*ROWS, *rows["rows"]], [*PROBES, *rows["probe"]]]
    found.sort(key=lambda panel: [names.index(name) for names, name in zip(order, panel, strict=True)])
    panels, left_out = found, ""
    if len(panels) > most:
        first_rows = {panel.target: panel.rows for panel in reversed(found)}
        panels = [panel for panel in found if panel.rows == first_rows[panel.target]]
        left_out = "one kind of rows a target"
    if len(panels) > most:
        panels = list({panel.target: panel for panel in reversed(panels)}.values())[::-1][:most]
        left_out = "one kind of rows and one probe a target"
    return panels, left_out and f"\n{left_out}: {len(panels)} of {len(found)} panels"


def figure_of_panels(rows: pd.DataFrame, title: str) -> tuple[Figure, dict[Panel, Axes]]:
    """An empty figure that has room for lines in at most `MAX_PANELS` panels of `rows`; these panels."""
    panels, left_out = panels_of(rows, MAX_PANELS)
    columns = _across(panels)
    figure = new_figure(11.5, 2.0 + 2.9 * -(-len(panels) // columns), title + left_out)
    return figure, dict(zip(panels, grid_of_panels(figure, len(panels), columns), strict=True))


def one_scale(grid: Mapping[Panel, Axes], least: float = -np.inf) -> float:
    """The panels of a target on one scale, from `least` or above; the lowest of all values."""
    for target in {panel.target for panel in grid}:
        axes = [axes for panel, axes in grid.items() if panel.target == target]
        low, high = min(a.dataLim.y0 for a in axes), max(a.dataLim.y1 for a in axes)
        margin = 0.04 * (high - max(low, least)) or 0.05  # all values may be the same
        for a in axes:
            a.set_ylim(max(low - margin, least), high + margin)
    return min(axes.dataLim.y0 for axes in grid.values())


def number_of_texts(table: pd.DataFrame) -> str:
    """ "872 texts", or "400 to 872 texts" where panels rest on different numbers."""
    return f"{range_of(table['n'])} texts"


def range_of(numbers: pd.Series) -> str:
    """ "872", or "400 to 872"."""
    return " to ".join(f"{int(n):,}" for n in dict.fromkeys([numbers.min(), numbers.max()]))


def thin_states(axes: Axes) -> None:
    """At most `MAX_STATE_LABELS` names of states below a heat map, the first and the last among them."""
    names = [label.get_text() for label in axes.get_xticklabels()]
    places = list(range(0, len(names), -(-len(names) // MAX_STATE_LABELS)))
    places[-1] = len(names) - 1
    axes.set_xticks(places, [names[i] for i in places])


def _across(panels: Sequence[Panel]) -> int:
    """A row of panels for each target and kind of rows where there are several probes, else for each target."""
    several = max(Counter(panel[:2] for panel in panels).values())
    several = several if several > 1 else max(Counter(panel.target for panel in panels).values())
    return several if several > 1 else 3 if len(panels) > 4 else 2
