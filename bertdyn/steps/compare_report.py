"""What a comparison says at its end: tables, figures, and a page of Markdown in which every cosine has its control."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bertdyn.plots.features import pca_grid, point_grid
from bertdyn.plots.geometry import (
    class_geometry,
    cosine_distributions,
    geometry_by_layer,
    geometry_heatmaps,
    token_cosine_heatmaps,
)
from bertdyn.plots.norms import norm_figure
from bertdyn.plots.similarity import main_rows, similarity_by_layer, similarity_heatmaps, similarity_over_runs
from bertdyn.steps.config import CompareConfig
from bertdyn.steps.measuring import Projection
from bertdyn.tracking.tracker import Tracker

AND = " and "
"""Between the labels of two runs."""
SCALARS = ("cosine", "cosine_centered", "cka", "knn_overlap")
"""Measures that are also metrics of the run, by layer."""
COLUMNS = {
    "cosine": "cosine",
    "cosine_mismatched": "cosine, mismatched",
    "cosine_centered": "cosine, means subtracted",
    "cka": "CKA",
    "knn_overlap": "neighbours kept",
    "procrustes": "Procrustes distance",
}
ROW_NAMES = {"content": "content tokens", "first": "first tokens", "mean": "mean over each text"}


class Comparison(NamedTuple):
    """Everything that was measured of one extract run."""

    label: str
    run_id: str
    states: list[str]
    similarity: pd.DataFrame
    geometry: pd.DataFrame
    histogram: pd.DataFrame
    dimensions: pd.DataFrame
    bases: dict[int, Projection]
    """Layer → first tokens of all states in one basis."""
    examples: pd.DataFrame
    label_names: list[str]
    token_cosines: tuple[list[str], dict[str, dict[int, np.ndarray]]]
    """Tokens of one text; state → layer → their cosines."""
    tsne: dict[int, list[np.ndarray]]
    """Layer → places of first tokens by state; empty if not asked for."""


def write_report(
    config: CompareConfig,
    tracker: Tracker,
    parts: Sequence[Comparison],
    between: Sequence[pd.DataFrame],
    apart: Sequence[str],
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Write tables, figures and metrics into `tracker`; return similarity, geometry and the report, Markdown.

    Parameters
    ----------
    between
        Similarity of pairs of runs.
    apart
        Pairs of runs that could not be compared row by row, and why.
    """
    tables = {
        "similarity": _joined([*(part.similarity for part in parts), *between]),
        "geometry": _joined([part.geometry for part in parts]),
        "cosine_histogram": _joined([part.histogram for part in parts]),
        "dimensions": _joined([part.dimensions for part in parts]),
        "pca": _joined([_pca_table(part) for part in parts]),
    }
    for name, table in tables.items():
        if not table.empty:
            tracker.log_table(table, name)
    similarity = tables["similarity"]
    figures = _figures_of_one(parts[0]) if len(parts) == 1 else _figures_of_several(parts, similarity)
    for name, figure in figures.items():
        tracker.log_figure(figure, name)
    if len(parts) == 1:
        _log_scalars(parts[0], tracker)
    summary = _markdown(config, parts, similarity, apart, list(figures), [n for n, t in tables.items() if not t.empty])
    tracker.note(summary)
    return similarity, tables["geometry"], summary


def _figures_of_one(part: Comparison, seeds: pd.DataFrame | None = None) -> dict[str, Figure]:
    """All figures of one run; `seeds` are rows that compare it with its other seeds."""
    states, label = part.states, part.label
    figures: dict[str, Figure] = {}
    pair = _last_pair(part.similarity)
    if not pair.empty:
        figures["similarity_by_layer"] = similarity_by_layer(_joined([pair, seeds]), f"What each layer keeps: {label}")
    if len(states) > 2:
        figures["similarity_heatmaps"] = _heatmaps(part)
    rows, measures = part.geometry["rows"], part.geometry["measure"]
    if (
        len(states) > 2
        and ((rows == "content") | ((rows == "first") & (measures == "nearest_centroid_accuracy"))).any()
    ):
        figures["geometry_heatmaps"] = geometry_heatmaps(part.geometry, states, f"Geometry, layer by state: {label}")
    if (part.geometry["rows"] == "content").any():
        figures["geometry_by_layer"] = geometry_by_layer(part.geometry, states, f"Geometry of content tokens: {label}")
    if (part.geometry["measure"] == "fisher_ratio").any():
        figures["class_geometry"] = class_geometry(part.geometry, states, f"How far the classes are apart: {label}")
    if not part.histogram.empty:
        title = f"Cosines between tokens of one text: {label}"
        figures["cosine_distributions"] = cosine_distributions(part.histogram, states, title)
    figures["norms"] = norm_figure(part.geometry, part.dimensions, states, f"Norms and outlier dimensions: {label}")
    if part.bases:
        rows = next(iter(part.bases.values())).examples
        labels = part.examples["label"].to_numpy()[rows]
        bases = {layer: projection.basis for layer, projection in part.bases.items()}
        title = f"First-token features, one PCA basis a layer: {label}"
        figures["pca"] = pca_grid(bases, states, labels, part.label_names, title)
    if part.tsne:
        labels = part.examples["label"].to_numpy()[: len(next(iter(part.tsne.values()))[0])]
        title = f"First-token features, one t-SNE a layer: {label}"
        figures["tsne"] = point_grid(part.tsne, states, labels, part.label_names, title)
    tokens, cosines = part.token_cosines
    if tokens:
        figures["token_cosines"] = token_cosine_heatmaps(cosines, tokens, f"Cosines of the tokens of one text: {label}")
    return figures


def _heatmaps(part: Comparison) -> Figure:
    """Against the reference; against the state before, where that was asked for, with each pair at its later state."""
    table = part.similarity
    later = [state for state in part.states if state in set(table["state_b"])]
    if table["state_a"].nunique() > 1:
        table = table.assign(state_a="previous")
    return similarity_heatmaps(table, later, f"What each layer keeps, state by state: {part.label}")


def _figures_of_several(parts: Sequence[Comparison], similarity: pd.DataFrame) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    pairs = [pair for part in parts if not (pair := _last_pair(part.similarity)).empty]
    if len({(pair["state_a"].iloc[0], pair["state_b"].iloc[0]) for pair in pairs}) == 1 and len(pairs) > 1:
        figures["similarity_over_runs"] = similarity_over_runs(pd.concat(pairs), "What each layer keeps, by run")
    others = similarity[similarity["kind"] != "states"] if len(similarity) else similarity
    for part in parts:
        seeds = [
            pair
            for runs, pair in (others.groupby("run", sort=False) if len(others) else ())
            if pair["kind"].iloc[0] == "reseeded" and part.label in str(runs).split(AND)
        ]
        figures |= {f"{name}_{part.label}": figure for name, figure in _figures_of_one(part, _joined(seeds)).items()}
    for label, pair in others.groupby("run", sort=False) if len(others) else ():
        name = str(label).replace(AND, "_and_")
        figures[f"between_{name}"] = similarity_by_layer(pair, f"The same text in two runs: {label}")
    return figures


def _last_pair(similarity: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last pair of states."""
    if similarity.empty:
        return similarity
    a, b = similarity[["state_a", "state_b"]].drop_duplicates().iloc[-1]
    return similarity[(similarity["state_a"] == a) & (similarity["state_b"] == b)]


def _joined(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame:
    """One table; empty ones would turn numbers of layers into floats."""
    filled = [table for table in tables if table is not None and not table.empty]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def _pca_table(part: Comparison) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "run": part.label,
                "run_id": part.run_id,
                "state": state,
                "layer": layer,
                "example_id": part.examples["example_id"].to_numpy()[projection.examples],
                "component_1": points[:, 0],
                "component_2": points[:, 1],
            }
        )
        for layer, projection in part.bases.items()
        for state, points in zip(part.states, projection.basis.projections, strict=True)
    ]
    return pd.concat(frames) if frames else pd.DataFrame()


def _log_scalars(part: Comparison, tracker: Tracker) -> None:
    """The main measures by layer; the step is the number of the state."""
    table, main = part.similarity, main_rows(part.similarity)
    if table.empty:
        return
    for step, state in enumerate(part.states):
        rows = table[(table["state_b"] == state) & (table["rows"] == main) & table["measure"].isin(SCALARS)]
        values = {f"similarity/{row.measure}/layer_{row.layer:02d}": row.value for row in rows.itertuples()}
        if values:
            tracker.log_metrics(values, step)


def _markdown(
    config: CompareConfig,
    parts: Sequence[Comparison],
    similarity: pd.DataFrame,
    apart: Sequence[str],
    figures: Sequence[str],
    tables: Sequence[str],
) -> str:
    if similarity.empty:
        lines = [f"## One state of {', '.join(f'`{part.label}`' for part in parts)}: nothing to compare", ""]
    elif len(parts) > 1:
        lines = _runs_lines(similarity)
    else:
        lines = _pair_lines(_last_pair(parts[0].similarity), parts[0].label)
    if apart:
        lines += ["### Not compared row by row", "", *(f"- {reason}" for reason in apart), ""]
    lines += [
        f"Texts of the part `{config.part}`. Brackets: 95 % over texts. Mismatched: a token before and one of "
        "another text after, what a cosine is worth where nothing corresponds. CKA, neighbours and Procrustes "
        "do not change under a rotation; cosine does.",
        "",
        f"Figures (`figures/`): {', '.join(f'`{name}`' for name in figures)}. "
        f"Tables (parquet): {', '.join(f'`{name}`' for name in tables)}.",
        "",
    ]
    return "\n".join(lines)


def _pair_lines(pair: pd.DataFrame, label: str) -> list[str]:
    """One pair of states: a row a layer, a column a measure, with intervals."""
    main = main_rows(pair)
    rows = pair[pair["rows"] == main].set_index(["measure", "layer"])
    known = [measure for measure in COLUMNS if measure in rows.index.get_level_values(0)]
    first, last = pair["state_a"].iloc[0], pair["state_b"].iloc[0]
    lines = [f"## `{label}`: {first} → {last}, {ROW_NAMES[main]}", ""]
    lines += ["| layer | " + " | ".join(COLUMNS[measure] for measure in known) + " |", "|---|" + "---|" * len(known)]
    for layer in sorted(pair["layer"].unique()):
        lines.append(f"| {layer} | " + " | ".join(_cell(rows.loc[(measure, layer)]) for measure in known) + " |")
    return [*lines, ""]


def _runs_lines(similarity: pd.DataFrame) -> list[str]:
    """Several runs and pairs of runs: a table a measure, a row a run, a column a layer."""
    main = main_rows(similarity)
    ends = [_last_pair(of_run) for _, of_run in similarity.groupby(["kind", "run"], sort=False)]
    lines = [f"## {similarity['run'].nunique()} runs and pairs of runs, {ROW_NAMES.get(main, '')}", ""]
    if not ends:
        return lines
    table = pd.concat(ends).query("rows == @main")
    what = table["run"] + ": " + table["state_a"] + " → " + table["state_b"]
    seeds = table["kind"].map({"states": "", "reseeded": " (two seeds)", "models": " (two models)"})
    table = table.assign(what=what + seeds)
    layers = sorted(table["layer"].unique())
    for measure, name_of_measure in COLUMNS.items():
        values = table[table["measure"] == measure].pivot(index="what", columns="layer", values="value")
        if values.empty:
            continue
        lines += [f"**{name_of_measure}**, by layer", ""]
        lines += ["| | " + " | ".join(map(str, layers)) + " |", "|---|" + "---|" * len(layers)]
        for name in dict.fromkeys(table["what"]):
            if name in values.index:
                cells = ["–" if np.isnan(value) else f"{value:.3f}" for value in values.loc[name].reindex(layers)]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _cell(row: Mapping[str, float]) -> str:
    if np.isnan(row["value"]):
        return "–"
    interval = "" if np.isnan(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{interval}"
