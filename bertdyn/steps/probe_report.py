"""What a probe run says at its end: tables, figures, and a page that says in words where the information is."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bertdyn.plots.probe_differences import association_figure, paired_figure, stages_figure, transfer_by_layer
from bertdyn.plots.probe_panels import ROWS
from bertdyn.plots.probing import code_lengths, score_heatmaps, scores_by_layer, selectivity_by_layer
from bertdyn.probing.stages import Stages
from bertdyn.steps.probe_tables import Probe
from bertdyn.tracking.tracker import Tracker

MAIN = ("accuracy", "r2")
CONVERGENCE = ("within_text_cosine", "within_text_variance_normalised", "effective_rank", "iso_score",
               "random_pair_cosine", "total_variance_normalised", "norm_q50", "fisher_ratio", "silhouette",
               "cosine", "cosine_centered", "cka", "procrustes", "knn_overlap")  # fmt: skip
"""Measures of a compare run that are shown beside accuracy; the table has all of them."""
SYSTEM_2 = "within_text_cosine (content)"
"""The convergence of tokens whose relation to accuracy was looked at, and never measured."""
MAX_SCALAR_KEYS = 100
SIGNIFICANT = 0.05


class Probed(NamedTuple):
    """Everything that was found of one extract run."""

    label: str
    states: list[str]
    layers: list[int]
    num_texts: int
    part: str
    probes: pd.DataFrame
    paired: pd.DataFrame
    transfer: pd.DataFrame
    stages: dict[Probe, Stages]
    """Change points; empty with too few states."""
    association: pd.DataFrame


def write_report(tracker: Tracker, found: Probed) -> str:
    """Write tables, figures and metrics into `tracker`; return the report, Markdown."""
    tables = {
        "probes": found.probes,
        "paired_tests": found.paired,
        "transfer": found.transfer,
        "stages": _stages_table(found),
        "associations": found.association,
    }
    tables = {name: table for name, table in tables.items() if not table.empty}
    for name, table in tables.items():
        tracker.log_table(table, name)
    figures = dict(_figures(found))
    for name, figure in figures.items():
        tracker.log_figure(figure, name)
    _log_scalars(tracker, found)
    summary = "\n".join([*_lines(found), *_files(tables, figures)])
    tracker.note(summary)
    return summary


def _figures(found: Probed) -> Iterator[tuple[str, Figure]]:
    probes, states, label = found.probes, found.states, found.label
    metrics = set(probes["metric"])
    targets = list(dict.fromkeys(probes["target"]))
    for target in targets:
        title = f"What each layer knows of {target}: {label}"
        yield f"{_file(target)}_by_layer", scores_by_layer(probes, states, target, title)
    yield "probe_heatmaps", score_heatmaps(probes, states, f"What each layer knows, state by state: {label}")
    if "selectivity" in metrics:
        yield "selectivity", selectivity_by_layer(probes, states, f"Selectivity of probes: {label}")
    if "compression" in metrics:
        yield "code_length", code_lengths(probes, states, f"How easily the labels are read off: {label}")
    if (found.paired["kind"] == "states").any() if len(found.paired) else False:
        for target in targets:
            title = f"What fine-tuning changes in each layer, {target}: {label}"
            yield f"paired_{_file(target)}", paired_figure(found.paired[found.paired["target"] == target], title)
    if len(found.transfer):
        yield "transfer", transfer_by_layer(found.transfer, states, f"Probes of one state on another: {label}")
    for (target, rows, probe, _), stages in found.stages.items():
        scores = _of(probes, target, rows, probe)[["state", "layer", "value"]]
        title = f"Stages of training, {target}, {ROWS[rows]}: {label}"
        drift = " (a steady drift explains it as well)" if stages.drift else ""
        yield (
            f"stages_{_file(target)}_{rows}",
            stages_figure(scores, states, stages.change_points, stages.support, stages.intervals, title + drift),
        )
    for target, rows, probe, table in _shown_associations(found):
        title = f"Geometry and {target} ({ROWS[rows]}, {probe}) over layers and states: {label}"
        yield f"association_{_file(target)}_{rows}_{probe}", association_figure(table, title)


def _shown_associations(found: Probed) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """(target, rows, probe, table): the main measures of the rows that were probed, and of the tokens of a text."""
    if found.association.empty:
        return
    for (target, rows, probe), table in found.association.groupby(["target", "rows", "probe"], sort=False):
        kinds = dict.fromkeys([str(rows), "content"])
        shown = [f"{name} ({kind})" for kind in kinds for name in CONVERGENCE]
        chosen = table[table["measure"].isin(shown)]
        if len(chosen):
            yield str(target), str(rows), str(probe), chosen


def _stages_table(found: Probed) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "target": target,
                "rows": rows,
                "probe": probe,
                "state": found.states[point],
                "support": support,
                "low_state": _state_at(found.states, low),
                "high_state": _state_at(found.states, high),
                "drift": stages.drift,
            }
            for (target, rows, probe, _), stages in found.stages.items()
            for point, support, (low, high) in zip(stages.change_points, stages.support, stages.intervals, strict=True)
        ]
    )


def _state_at(states: Sequence[str], number: float) -> str | None:
    return None if np.isnan(number) else states[round(number)]


def _log_scalars(tracker: Tracker, found: Probed) -> None:
    """The main metric of every target by layer, no more keys than one can look at; the step is the state's number."""
    main = found.probes[found.probes["metric"].isin(MAIN) & (found.probes["baseline"] == "none")]
    for step, state in enumerate(found.states):
        rows = main[main["state"] == state]
        values = {
            f"probe/{row.target.replace(':', '_')}/{row.probe}_{row.rows}/layer_{row.layer:02d}": row.value
            for row in rows.itertuples()
        }
        tracker.log_metrics(dict(list(values.items())[:MAX_SCALAR_KEYS]), step)


def _of(probes: pd.DataFrame, target: str, rows: str, probe: str, baseline: str = "none") -> pd.DataFrame:
    """The main metric by layer and state."""
    return probes[
        (probes["target"] == target)
        & (probes["rows"] == rows)
        & (probes["probe"] == probe)
        & (probes["baseline"] == baseline)
        & probes["metric"].isin(MAIN)
    ]


def _lines(found: Probed) -> Iterator[str]:
    probes = found.probes
    yield f"## What the layers of `{found.label}` know"
    yield ""
    yield (
        f"{found.num_texts:,} texts of the part `{found.part}`; brackets: 95 % over texts. Penalties were chosen by "
        "inner folds; no text is scored by a probe that has seen it."
    )
    own = probes[(probes["baseline"] == "none") & probes["metric"].isin(MAIN)]
    for target in dict.fromkeys(own["target"]):
        unit = "R²" if (own[own["target"] == target]["metric"] == "r2").any() else "accuracy"
        yield from ["", f"### {target} ({unit})", ""]
        texts = probes[(probes["target"] == target) & probes["baseline"].isin(("majority", "tfidf"))]
        texts = texts[texts["metric"].isin(MAIN)].set_index("baseline")
        yield (
            f"Without an encoder: {'the mean' if unit == 'R²' else 'majority class'} {_cell(texts.loc['majority'])}, "
            f"TF-IDF {_cell(texts.loc['tfidf'])}."
        )
        for rows, probe in own[own["target"] == target][["rows", "probe"]].drop_duplicates().itertuples(index=False):
            yield ""
            yield from _words(found, target, rows, probe)
            yield ""
            yield from _table(found, target, rows, probe)
    yield from _stage_lines(found)
    yield from _association_lines(found)


def _words(found: Probed, target: str, rows: str, probe: str) -> Iterator[str]:
    """Where the information is, and how sure that is."""
    scores = _of(found.probes, target, rows, probe)
    yield f"**{ROWS[rows]}, {probe}**"
    for state in found.states if len(found.states) <= 4 else (found.states[0], found.states[-1]):
        of_state = scores[scores["state"] == state].sort_values("layer")
        best = of_state.loc[of_state["value"].idxmax()]
        # Layers whose interval reaches the best value cannot be told from it.
        near = of_state[of_state["high"] >= best["value"]]["layer"].tolist()
        others = f"; layers {', '.join(map(str, near))} are not told apart from it" if len(near) > 1 else ""
        parts = [f"- `{state}`: most at layer {best['layer']}, {_cell(best)}{others}"]
        against = found.paired
        if len(against):
            against = against[(against["target"] == target) & (against["rows"] == rows) & (against["probe"] == probe)]
            twin = against[(against["kind"] == "random_init") & (against["state_b"] == state)]
            twin = twin[twin["layer_b"] == best["layer"]]
            if len(twin):
                parts.append(f"there {_difference(twin.iloc[0])} a random encoder's")
            first = against[(against["kind"] == "states") & (against["state_b"] == state)]
            if len(first):
                changed = first[first["q_value"] < SIGNIFICANT]
                first_state = first["state_a"].iloc[0]
                parts.append(
                    f"against `{first_state}` changed at layers {', '.join(map(str, changed['layer_b']))}"
                    if len(changed)
                    else f"no layer changed against `{first_state}` beyond chance"
                )
        yield "; ".join(parts) + "."


def _difference(row: pd.Series) -> str:
    if row["q_value"] >= SIGNIFICANT:
        return "not distinguishable from"
    better = row["difference"] < 0 if row["metric"] == "squared_error" else row["difference"] > 0
    return "better than" if better else "worse than"


def _table(found: Probed, target: str, rows: str, probe: str) -> Iterator[str]:
    """A row a layer, a column a state and a control."""
    columns: dict[str, pd.DataFrame] = {}
    shown = found.states if len(found.states) <= 4 else [found.states[0], found.states[-1]]
    scores = _of(found.probes, target, rows, probe)
    for state in shown:
        columns[state] = scores[scores["state"] == state]
    twin = _of(found.probes, target, rows, probe, "random_init")
    if len(twin):
        columns["random encoder"] = twin
    shuffled = _of(found.probes, target, rows, probe, "shuffled")
    columns[f"{shown[-1]}, shuffled"] = shuffled[shuffled["state"] == shown[-1]]
    yield "| layer | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for layer in found.layers:
        cells = [_cell(table[table["layer"] == layer].iloc[0]) for table in columns.values()]
        yield f"| {layer} | " + " | ".join(cells) + " |"


def _stage_lines(found: Probed) -> Iterator[str]:
    if found.stages:
        yield from ["", "### Stages of training", ""]
    for (target, rows, probe, _), stages in found.stages.items():
        name = f"{target}, {ROWS[rows]}, {probe}"
        points = [
            f"`{found.states[point]}` (in {support:.0%} of resamples)"
            for point, support in zip(stages.change_points, stages.support, strict=True)
        ]
        drift = "; a straight line explains it as well, so these are no stages" if stages.drift else ""
        yield f"- {name}: " + (f"a new stage begins at {', '.join(points)}{drift}." if points else "no change point.")


def _association_lines(found: Probed) -> Iterator[str]:
    """Whether tokens that converge go with accuracy, and which measures do with layer and state held."""
    shown = list(_shown_associations(found))
    if not shown:
        return
    yield from ["", "### Does the geometry go with what probes find?", ""]
    yield (
        "Rank correlations over layers × states; brackets leave out one layer at a time. Starred: below a false "
        "discovery rate of 5 % over all measures of the table. Neighbouring layers are alike and all layers share each "
        "state, which these brackets know in part only: unrelated quantities are starred too often."
    )
    yield ""
    for target, rows, probe, table in shown:
        of_measure = table[table["measure"] == SYSTEM_2].set_index("coefficient")
        tokens = ", ".join(
            f"{words} {_correlation(of_measure.loc[name])}"
            for name, words in (("spearman", "Spearman"), ("partial_layer_state", "with layer and state held"))
            if name in of_measure.index
        )
        held = table[(table["coefficient"] == "partial_layer_state") & (table["q_value"] < SIGNIFICANT)]
        held = held.sort_values("value", key=np.abs, ascending=False)
        named = "; ".join(f"{row['measure']} {_correlation(row)}" for _, row in held[:5].iterrows())
        yield (
            f"- {target}, {ROWS[rows]}, {probe}: cosine between the tokens of a text: {tokens or 'not measured'}. "
            f"With layer and state held, of all shown: {named or 'none'}."
        )


def _correlation(row: pd.Series) -> str:
    star = "*" if row["q_value"] < SIGNIFICANT else ""
    return f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]{star}"


def _files(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Figure]) -> Iterator[str]:
    yield ""
    yield (
        f"Figures (`figures/`): {', '.join(f'`{name}`' for name in figures)}. "
        f"Tables (parquet): {', '.join(f'`{name}`' for name in tables)}. Held-out predictions: `predictions/`; "
        "weights of the probes: `probes/`."
    )
    yield ""


def _cell(row: Mapping[str, float]) -> str:
    if np.isnan(row["value"]):
        return "–"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _file(target: str) -> str:
    return target.replace(":", "_")
