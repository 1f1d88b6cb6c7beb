"""Figures of how alike two states are, layer by layer, always next to what unrelated rows would give.

A cosine near 1 says little by itself: in most encoders two tokens of different texts are alike too. So every cosine is
drawn in one panel with its controls (grey): random pairs of rows within each state, and rows of one state with
other rows of the other. Two fine-tunings that differ by the seed only, where there are such, show how much of a
change is chance.

The tables have one row for each pair of states, layer, kind of rows and measure, in the columns run, kind, state_a,
state_b, layer, rows, measure, value, low, high, num_rows, num_examples, interval. `low` and `high` bound a 95 %
interval and are NaN where there is none. What a table does not have, or has as NaN only, is left out of the figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from bertdyn.plots.style import COLORS, SEQUENTIAL, new_figure, plain, tidy

ROWS = {"content": "Content tokens", "first": "First token", "mean": "Mean over content tokens"}
FEWER_ROWS = {"cka": "CKA", "knn_overlap": "neighbours", "procrustes": "Procrustes"}
DEPTH = "layer (0 = embeddings)"
CONTROL_COLORS = ("#A0A0A0", "#606060", "#000000")
NOT_DEFINED = "#D9D9D9"
MAX_STATES_WITH_VALUES = 7
MAX_LAYERS_WITH_VALUES = 13
MAX_DEPTH_LABELS = 13


def similarity_by_layer(table: pd.DataFrame, title: str) -> Figure:
    """Two states of one run: cosines with their controls above, CKA, neighbours and Procrustes below.

    Parameters
    ----------
    table
        One run and one pair of states; besides, rows of kind "reseeded" (any number of pairs of runs), drawn as
        the baseline.

    Raises
    ------
    ValueError
        If the rows that are not of kind "reseeded" are of several runs or pairs.
    """
    table = table.dropna(subset=["value"])
    pair, baseline = table[table["kind"] != "reseeded"], table[table["kind"] == "reseeded"]
    if pair.empty:  # only seeds: they are what the figure shows
        pair, baseline = baseline, pair
    else:
        _only(pair, ["run"])
    a, b = _only(pair, ["state_a", "state_b"])
    what = f"{state_name(a)} vs {state_name(b)}" if a != b else f"two runs, both {state_name(a)}"
    name_a, name_b = (state_name(s) for s in (a, b))
    if a == b:
        name_a, name_b = f"{name_a} of the first run", f"{name_b} of the second run"
    seeds = "two seeds of the same fine-tuning"
    if baseline["state_b"].nunique() == 1:
        seeds += f", both {state_name(baseline['state_b'].iloc[0])}"

    cosine_lines: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("cosine_random_pairs_a", f"control: random pairs, {name_a}", _control(0, "--")),
        ("cosine_random_pairs_b", f"control: random pairs, {name_b}", _control(1, ":")),
        ("cosine_mismatched", "control: mismatched pairs, one row of each state", _control(2, "-.")),
        ("cosine_centered", f"{what}: cosine, means subtracted", {"color": COLORS[1], "marker": "s"}),
        ("cosine", what, {"color": COLORS[0], "marker": "o", "linewidth": 2}),
    )
    cosine_baselines: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("cosine_centered", f"{seeds}: cosine, means subtracted", {"color": COLORS[2], "linestyle": (0, (2, 1))}),
        ("cosine", seeds, {"color": COLORS[2], "marker": "^"}),
    )
    upper = [r for r in ROWS if ((pair["rows"] == r) & (pair["measure"] == "cosine")).any()]
    content = pair[pair["rows"] == "content"]
    panels = (
        ("cka", "Linear CKA (debiased)", "CKA"),
        ("knn_overlap", "Shared nearest neighbours", "share of neighbours in common"),
        ("procrustes", "Procrustes distance", "distance, 0 to 2\n(0 = equal up to a rotation)"),
    )
    lower = [p for p in panels if p[0] in set(content["measure"])]
    figure = new_figure(11.5, 2.2 + 3.1 * (bool(upper) + bool(lower)), title)
    grid = _rows_of_panels(figure, [n for n in (len(upper), len(lower)) if n])

    for axes, rows in zip(grid[0] if upper else [], upper, strict=True):
        for lines, source in ((cosine_lines[:3], pair), (cosine_baselines, baseline), (cosine_lines[3:], pair)):
            for measure, label, style in lines:
                draw_pairs(axes, _select(source, rows, measure), label, **style)
        tidy(axes, f"Cosine: {ROWS[rows].lower()}", DEPTH, "cosine")
        layer_axis(axes, pair["layer"])
    if upper:
        _one_scale(grid[0])

    for axes, (measure, name, unit) in zip(grid[-1] if lower else [], lower, strict=True):
        if measure == "knn_overlap":
            draw_pairs(
                axes, _select(pair, "content", "knn_chance"), "control: neighbours by chance", **_control(2, ":")
            )
        draw_pairs(axes, _select(baseline, "content", measure), seeds, color=COLORS[2], marker="^")
        draw_pairs(axes, _select(pair, "content", measure), what, color=COLORS[0], marker="o", linewidth=2)
        tidy(axes, f"{name}: content tokens", DEPTH, unit)
        layer_axis(axes, pair["layer"])
        axes.set_ylim(bottom=min(0.0, axes.dataLim.y0) - 0.02 * axes.dataLim.y1)
        if measure != "procrustes":
            axes.set_ylim(top=1.03)
    order = [what, cosine_lines[3][1], seeds, cosine_baselines[0][1], *(label for _, label, _ in cosine_lines[:3])]
    legend_below(figure, order, columns=3 if baseline.empty else 2, note=sample_note(pair, FEWER_ROWS))
    return figure


def similarity_heatmaps(table: pd.DataFrame, states: Sequence[str], title: str) -> Figure:
    """Layer × state: how like each of `states` is to one and the same state, content tokens.

    Parameters
    ----------
    table
        One run; its rows of kind "states" with one `state_a`.
    states
        The `state_b` from left to right; those that are not in the table are left out.

    Raises
    ------
    ValueError
        If the table has several runs or several `state_a`.
    """
    rows = table[(table["kind"] == "states") & (table["rows"] == "content") & table["state_b"].isin(states)]
    _, start = _only(rows, ["run", "state_a"])
    names = {
        "cosine_centered": "Cosine, means subtracted",
        "cka": "Linear CKA (debiased)",
        "knn_overlap": "Shared nearest neighbours",
        "procrustes": "Procrustes distance (0 = equal up to a rotation)",
    }
    panels = present(names, rows)
    shown = [s for s in states if s in set(rows["state_b"])]
    figure = heatmap_figure(len(panels), rows["layer"].nunique(), f"{title}\nbrighter = more like {state_name(start)}")
    for axes, (measure, name) in zip(grid_of_panels(figure, len(panels), 2), panels, strict=True):
        values = by_layer_and_state(rows[rows["measure"] == measure], "state_b", sorted(rows["layer"].unique()), shown)
        distance = measure == "procrustes"
        layer_heatmap(
            axes,
            values,
            name,
            f"compared with {state_name(start)}",
            reverse=distance,
            **({"least": 0.0} if distance else {"most": 1.0}),
        )
    return figure


def similarity_over_runs(table: pd.DataFrame, title: str) -> Figure:
    """Several runs at the same pair of states, one colour each: cosines, their control, and CKA of content tokens.

    Over relative depth where the runs differ in their number of layers. Rows of kind "reseeded" are not drawn.

    Raises
    ------
    ValueError
        If the table has several pairs of states.
    """
    rows = table[(table["kind"] != "reseeded") & (table["rows"] == "content")].dropna(subset=["value"])
    a, b = _only(rows, ["state_a", "state_b"])
    depths = rows.groupby("run")["layer"].max()
    relative = depths.nunique() > 1
    names = {
        "cosine": f"Cosine, {state_name(a)} vs {state_name(b)}",
        "cosine_random_pairs_b": f"Control: cosine of random pairs, {state_name(b)}",
        "cosine_centered": "Cosine, means subtracted",
        "cka": "Linear CKA (debiased)",
    }
    panels = present(names, rows)
    figure = new_figure(11, 1.8 + 3.1 * (-(-len(panels) // 2)), title)
    grid = grid_of_panels(figure, len(panels), 2)
    runs = list(rows["run"].unique())
    for axes, (measure, name) in zip(grid, panels, strict=True):
        for i, run in enumerate(runs):
            of_run = rows[(rows["run"] == run) & (rows["measure"] == measure)]
            if relative:
                of_run = of_run.assign(layer=of_run["layer"] / depths[run])
            draw(axes, of_run, plain(run), color=COLORS[i % len(COLORS)], **line_style(i))
        tidy(
            axes,
            name,
            "relative depth (0 = embeddings, 1 = last layer)" if relative else DEPTH,
            "CKA" if measure == "cka" else "cosine",
        )
        if measure == "cosine_random_pairs_b":
            axes.set_facecolor("#F4F4F4")
        if not relative:
            layer_axis(axes, rows["layer"])
    _one_scale(grid)
    legend_below(figure, [plain(run) for run in runs], columns=min(5, len(runs)), note=interval_note(rows))
    return figure


# What the figures by layer share -------------------------------------------------------------------------------------


def state_name(state: str) -> str:
    """`epoch_003` → "epoch 3"."""
    head, _, number = state.rpartition("_")
    return plain(f"{head.replace('_', ' ')} {int(number)}" if head and number.isdigit() else state.replace("_", " "))


def spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of `values`, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


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


def draw_pairs(axes: Axes, rows: pd.DataFrame, label: str, **style: Any) -> None:
    """One line a run, all under one label; several runs show the spread themselves and have no bands."""
    runs = rows.groupby(["run", "state_a", "state_b"], sort=False)
    for i, (_, of_run) in enumerate(runs):
        draw(axes, of_run, label if i == 0 else "_", band=0.25 if runs.ngroups == 1 else 0, **style)


def line_style(i: int) -> dict[str, Any]:
    """Marker and dashes of the `i`-th line: a second sign besides the colour, and a new one once colours repeat."""
    return {"marker": "os^Dv<>P"[i % 8], "linestyle": ("-", "--", ":", "-.")[i // len(COLORS) % 4]}


def layer_axis(axes: Axes, layers: Iterable[int]) -> None:
    """Whole layers only, at most `MAX_DEPTH_LABELS` of them."""
    layers = sorted(set(layers))
    axes.set_xticks(layers[:: -(-len(layers) // MAX_DEPTH_LABELS)])


def present(names: Mapping[str, str], rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Those of the measures `names` that `rows` has a value of."""
    found = set(rows.dropna(subset=["value"])["measure"])
    return [(measure, name) for measure, name in names.items() if measure in found]


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
        digits = 2 if np.abs(finite).max(initial=0) < 10 else 0
        for (i, j), value in np.ndenumerate(data):
            if np.isfinite(value):
                value = round(value, digits) + 0.0  # no -0.00
                bright = image.cmap(image.norm(value))[1] > 0.5
                axes.text(
                    j,
                    i,
                    f"{value:.{digits}f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if bright else "white",
                )
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


def _one_scale(panels: Sequence[Axes]) -> None:
    """Cosines from 0, or below it where there are such, to 1."""
    bottom = min([-0.04, *(axes.dataLim.y0 - 0.03 for axes in panels)])
    for axes in panels:
        axes.set_ylim(bottom, 1.03)


def _control(i: int, dashes: str) -> dict[str, Any]:
    return {"color": CONTROL_COLORS[i], "linestyle": dashes, "linewidth": 1.5}


def _select(table: pd.DataFrame, rows: str, measure: str) -> pd.DataFrame:
    return table[(table["rows"] == rows) & (table["measure"] == measure)]


def _only(table: pd.DataFrame, columns: list[str]) -> tuple[str, ...]:
    """The one value of each of `columns`."""
    found = table[columns].drop_duplicates()
    if len(found) != 1:
        raise ValueError(f"The figure shows one {', '.join(columns)}; the table has {found.values.tolist()}")
    return tuple(found.iloc[0])


def _rows_of_panels(figure: Figure, counts: Sequence[int]) -> list[list[Axes]]:
    """Rows of `counts` panels each, all rows equally wide."""
    columns = int(np.lcm.reduce(counts)) if counts else 1
    grid = figure.add_gridspec(max(len(counts), 1), columns)
    return [
        [figure.add_subplot(grid[i, j * columns // n : (j + 1) * columns // n]) for j in range(n)]
        for i, n in enumerate(counts)
    ]
