"""What the figures by layer and state have in common: names, lines with bands, heat maps, one legend for all panels.

The tables have one row for each state (or pair of states), layer, kind of rows and measure, with the columns value,
low, high, num_rows, num_examples and interval besides. `low` and `high` bound a 95 % interval and are NaN where there
is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend

from bertdyn.plots.style import COLORS, SEQUENTIAL, new_figure, plain

DEPTH = "layer (0 = embeddings)"
NOT_DEFINED = "#D9D9D9"
MAX_STATES = 6
MAX_STATES_WITH_VALUES = 7
MAX_LAYERS_WITH_VALUES = 13
MAX_DEPTH_LABELS = 13
LOG_FROM = 30  # largest / smallest value from which an axis is logarithmic


def state_name(state: str) -> str:
    """`epoch_003` → "epoch 3"."""
    head, _, number = state.rpartition("_")
    return plain(f"{head.replace('_', ' ')} {int(number)}" if head and number.isdigit() else state.replace("_", " "))


def spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of `values`, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


def rows_of_states(table: pd.DataFrame, states: Sequence[str], rows: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """What there is of at most `MAX_STATES` of `states`, and which these are."""
    there = table[table["rows"].isin(rows)].dropna(subset=["value"])
    shown = spread([s for s in states if s in set(there["state"])], MAX_STATES)
    return there[there["state"].isin(shown)], shown


def present(names: Mapping[str, str], rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Those of the measures `names` that `rows` has a value of."""
    found = set(rows.dropna(subset=["value"])["measure"])
    return [(measure, name) for measure, name in names.items() if measure in found]


def draw(axes: Axes, rows: pd.DataFrame, label: str, band: float = 0.25, **style: Any) -> None:
    """The values over the layers as a line, its interval as a band with edges, so that a narrow one is seen too.

    `band` is the opacity of the band; 0: none.
    """
    rows = rows.dropna(subset=["value"]).sort_values("layer")
    if rows.empty:
        return
    style = {"linewidth": 1.5, "markersize": 3.5} | style
    axes.plot(rows["layer"], rows["value"], label=label, **style)
    known = rows[rows["low"].notna() & rows["high"].notna()]
    if band and len(known):
        color = style["color"]
        axes.fill_between(
            known["layer"], known["low"], known["high"], facecolor=color, alpha=band, edgecolor=color, linewidth=0.5
        )


def line_style(i: int) -> dict[str, Any]:
    """Marker and dashes of the `i`-th line: a second sign besides the colour, and a new one once colours repeat."""
    return {"marker": "os^Dv<>P"[i % 8], "linestyle": ("-", "--", ":", "-.")[i // len(COLORS) % 4]}


def layer_axis(axes: Axes, layers: Iterable[int]) -> None:
    """Whole layers only, at most `MAX_DEPTH_LABELS` of them."""
    layers = sorted(set(layers))
    axes.set_xticks(layers[:: -(-len(layers) // MAX_DEPTH_LABELS)])


def log_where_wide(axes: Axes, values: pd.Series) -> None:
    """A logarithmic axis for `values` of different orders of magnitude."""
    if values.min() > 0 and values.max() > LOG_FROM * values.min():
        axes.set_yscale("log")


def by_layer_and_state(rows: pd.DataFrame, column: str, layers: Sequence[int], states: Sequence[str]) -> pd.DataFrame:
    """[layers, states] of one measure; NaN where there is none."""
    return rows.pivot(index="layer", columns=column, values="value").reindex(index=layers, columns=states)


def grid_of_panels(figure: Figure, count: int, across: int) -> list[Axes]:
    """`count` panels of one size, at most `across` in a row."""
    across = min(across, count)
    return [figure.add_subplot(-(-count // across), across, i + 1) for i in range(count)]


def heatmap_figure(panels: int, layers: int, title: str, across: int = 2) -> Figure:
    """A figure that has room for heat maps of `layers` rows."""
    return new_figure(11.5, 1.0 + (1.2 + 0.17 * max(layers, 7)) * -(-panels // across), title)


def layer_heatmap(
    axes: Axes,
    values: pd.DataFrame,
    name: str,
    x: str,
    least: float | None = None,
    most: float | None = None,
    reverse: bool = False,
) -> None:
    """Layers down (0 above, as in the model), states across; written values where there is room; grey: not defined.

    Parameters
    ----------
    values
        Index: layers; columns: states.
    least, most
        Ends of the colours; the data's where not given.
    reverse
        Small values are the bright ones.
    """
    data = values.to_numpy(dtype=float)
    finite = data[np.isfinite(data)]
    least = min(finite) if least is None else least
    most = max(finite) if most is None else most
    colors = matplotlib.colormaps[SEQUENTIAL + "_r" * reverse].with_extremes(bad=NOT_DEFINED)
    image = axes.imshow(data, aspect="auto", cmap=colors, vmin=least, vmax=most, interpolation="none")
    if data.shape[1] <= MAX_STATES_WITH_VALUES and data.shape[0] <= MAX_LAYERS_WITH_VALUES:
        _write_values(axes, image, data)
    stride = -(-len(values) // MAX_DEPTH_LABELS)
    axes.set_yticks(range(0, len(values), stride), values.index[::stride], fontsize=8)
    names = [state_name(state) for state in values.columns]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    if len(names) > 5:
        axes.tick_params("x", rotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_title(name, fontsize=10)
    axes.set_xlabel(x if np.isfinite(data).all() else f"{x} (grey: not defined)")
    axes.set_ylabel("layer")
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.colorbar(image, ax=axes)


def _write_values(axes: Axes, image: AxesImage, data: np.ndarray) -> None:
    """The values as numbers, black on bright colours and white on dark ones."""
    digits = 2 if np.abs(data[np.isfinite(data)]).max(initial=0) < 10 else 0
    for (i, j), value in np.ndenumerate(data):
        if np.isfinite(value):
            value = round(value, digits) + 0.0  # no -0.00
            color = "black" if image.cmap(image.norm(value))[1] > 0.5 else "white"
            axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=8, color=color)


def legend_below(
    figure: Figure, order: Sequence[str], columns: int, note: str, more: Mapping[str, Artist] | None = None
) -> Legend:
    """One legend for all panels, each label once, in `order` (others after, then `more`), headed by a small note."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = [*(label for label in order if label in found), *(label for label in found if label not in order)]
    found |= more or {}
    labels += more or {}
    return figure.legend(
        [found[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=9,
        frameon=False,
        title=note,
        title_fontsize=8.5,
        handlelength=3,
    )


def interval_note(rows: pd.DataFrame) -> str:
    """What the bands are, if there are any."""
    kinds = sorted(set(rows.loc[rows["low"].notna(), "interval"]))
    return f"bands: 95 % intervals ({', '.join(kinds)})" if kinds else ""


def sample_note(rows: pd.DataFrame, names: Mapping[str, str]) -> str:
    """How many texts and content tokens stand behind the figure, which of `names` rest on fewer, what the bands are."""
    parts = [f"{int(n):,} texts" for n in [rows["num_examples"].max()] if n > 0]
    numbers = rows[rows["rows"] == "content"].groupby("measure")["num_rows"].max().dropna().astype(int)
    if len(numbers):
        fewer = [f"{names[m]}: {n:,}" for m, n in numbers.items() if m in names and n < numbers.max()]
        parts.append(f"{numbers.max():,} content tokens" + (f" ({', '.join(fewer)})" if fewer else ""))
    return "; ".join([*parts, *filter(None, [interval_note(rows)])])
