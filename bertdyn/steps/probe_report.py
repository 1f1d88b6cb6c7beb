"""What a probe run says at its end: tables, figures, metrics and the page (`probe_words`)."""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bertdyn.plots.probe_differences import association_figure, paired_figure, stages_figure, transfer_by_layer
from bertdyn.plots.probe_panels import ROWS
from bertdyn.plots.probing import code_lengths, score_heatmaps, scores_by_layer, selectivity_by_layer
from bertdyn.steps.probe_words import MAIN, Probed, main_scores, report_lines, shown_associations
from bertdyn.tracking.tracker import Tracker

MAX_SCALAR_KEYS = 100


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
    summary = "\n".join([*report_lines(found), *_files(tables, figures)])
    tracker.note(summary)
    return summary


def _figures(found: Probed) -> Iterator[tuple[str, Figure]]:
    probes, states, label = found.probes, found.states, found.label
    metrics = set(probes["metric"])
    targets = list(dict.fromkeys(probes["target"]))
    for target in targets:
        title = f"What each layer knows of {target}: {label}"
        yield f"{file_name(target)}_by_layer", scores_by_layer(probes, states, target, title)
    yield "probe_heatmaps", score_heatmaps(probes, states, f"What each layer knows, state by state: {label}")
    if "selectivity" in metrics:
        yield "selectivity", selectivity_by_layer(probes, states, f"Selectivity of probes: {label}")
    if "compression" in metrics:
        yield "code_length", code_lengths(probes, states, f"How easily the labels are read off: {label}")
    if (found.paired["kind"] == "states").any() if len(found.paired) else False:
        for target in targets:
            title = f"What fine-tuning changes in each layer, {target}: {label}"
            yield f"paired_{file_name(target)}", paired_figure(found.paired[found.paired["target"] == target], title)
    if len(found.transfer):
        yield "transfer", transfer_by_layer(found.transfer, states, f"Probes of one state on another: {label}")
    for (target, rows, probe, _), stages in found.stages.items():
        scores = main_scores(probes, target, rows, probe)[["state", "layer", "value"]]
        title = f"Stages of training, {target}, {ROWS[rows]}: {label}"
        drift = " (a steady drift explains it as well)" if stages.drift else ""
        yield (
            f"stages_{file_name(target)}_{rows}",
            stages_figure(
                scores, found.stage_states, stages.change_points, stages.support, stages.intervals, title + drift
            ),
        )
    for target, rows, probe, table in shown_associations(found):
        title = f"Geometry and {target} ({ROWS[rows]}, {probe}) over layers and states: {label}"
        yield f"association_{file_name(target)}_{rows}_{probe}", association_figure(table, title)


def _stages_table(found: Probed) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "target": target,
                "rows": rows,
                "probe": probe,
                "state": found.stage_states[point],
                "support": support,
                "low_state": _state_at(found.stage_states, low),
                "high_state": _state_at(found.stage_states, high),
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
            f"probe/{file_name(row.target)}/{row.probe}_{row.rows}/layer_{row.layer:02d}": row.value
            for row in rows.itertuples()
        }
        tracker.log_metrics(dict(list(values.items())[:MAX_SCALAR_KEYS]), step)


def _files(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Figure]) -> Iterator[str]:
    yield ""
    yield (
        f"Figures (`figures/`): {', '.join(f'`{name}`' for name in figures)}. "
        f"Tables (parquet): {', '.join(f'`{name}`' for name in tables)}. Held-out predictions: `predictions/`; "
        "weights of the probes: `probes/`."
    )
    yield ""


def file_name(target: str) -> str:
    """The name of a target in those of files and metrics: letters, digits and `_.-` only."""
    return re.sub(r"[^\w.-]+", "_", target).lstrip(".")
