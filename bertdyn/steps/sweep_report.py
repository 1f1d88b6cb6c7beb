"""What every sweep leaves behind: its trials as a table, figures over them, and lines of a report."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from optuna import Study
from optuna.trial import FrozenTrial

from bertdyn.plots.sweeps import front_history, history, importance, parallel_coordinates
from bertdyn.sweeping import studies
from bertdyn.sweeping.outcome import area_history, importances, trials_table
from bertdyn.sweeping.storage import without_password
from bertdyn.tracking.tracker import Tracker

COUNTED = {"complete": "came to their end", "pruned": "stopped early", "fail": "failed", "running": "still going"}
LABELS = {
    "kl": "KL(dense ‖ pruned) on validation, nats",
    "score": "score on validation",
    "loss": "lowest validation loss of an epoch",
    "flops": "encoder FLOPs, share",
    "parameters": "encoder parameters, share",
    "latency": "encoder latency, share",
}


def record_trials(
    study: Study, values: Sequence[str], higher_is_better: bool, title: str, tracker: Tracker
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write trials and importances with their figures; return both tables.

    Parameters
    ----------
    values
        Of a trial, the first the main one.
    """
    table = trials_table(study, values)
    tracker.log_table(table, "trials")
    main, label = values[0], LABELS[values[0]]
    done = table[table["state"] == "complete"].sort_values("number")
    if len(values) == 1:
        figure = history(table, main, higher_is_better, label, f"Trials: {title}")
    else:
        points = done[list(values)].to_numpy(dtype=np.float64)
        # The worst of the first ten: the same when more trials come.
        area = area_history(points, points[:10].max(axis=0)) if len(points) else np.array([])
        figure = front_history(done.assign(area=area), values, f"Trials: {title}")
        for number, share in zip(done["number"], area, strict=True):
            tracker.log_metrics({"sweep/hypervolume": share}, number)
    tracker.log_figure(figure, "history")
    if any(done[name].nunique() > 1 for name in done if name.startswith("param/")):
        figure = parallel_coordinates(table, main, higher_is_better, label, f"What trials chose: {title}")
        tracker.log_figure(figure, "parallel_coordinates")
    sampled = (table["origin"] == "sampler").any()
    found = importances(study, values) if sampled else pd.DataFrame()  # of given trials nothing can be said
    if len(found):
        tracker.log_table(found, "importances")
        tracker.log_figure(importance(found, f"What matters: {title}"), "importances")
    best = np.inf
    for row in done[done["feasible"]].to_dict("records") if len(values) == 1 else ():
        best = min(best, -row[main] if higher_is_better else row[main])
        tracker.log_metrics({f"sweep/best_{main}": -best if higher_is_better else best}, row["number"])
    return table, found


def options_digest(config: Any) -> str:
    """Four letters that stand for all options of a training: a child run of another training is not taken for it."""
    return hashlib.sha256(repr(dataclasses.asdict(config)).encode()).hexdigest()[:4]


def trial_lines(table: pd.DataFrame, study: Study, config) -> list[str]:
    """How many trials there were, by what, and where they are."""
    counts = table["state"].value_counts()
    said = ", ".join(f"{counts[state]} {words}" for state, words in COUNTED.items() if state in counts)
    infeasible = int((~table.loc[table["state"].isin(["complete", "pruned"]), "feasible"]).sum())
    said += f"; {infeasible} of these are above the budget" if infeasible else ""
    if len(study.directions) > 1:
        said += "; none can be stopped early: Optuna does not with two objectives"
    again = int(table["retry_of"].notna().sum())
    said += f"; {again} took the place of trials whose process died" if again else ""
    sampled = int((table["origin"] == "sampler").sum())
    by = f"{len(table) - sampled} tried first, {sampled} by {config.sampler}"
    return [
        f"Study `{study.study_name}` in `{without_password(config.storage)}`: {len(table)} trials, {by} "
        f"({said}). Each is a child run; `trials.parquet` lists them all.",
        "",
    ]


def importance_lines(found: pd.DataFrame, values: Sequence[str]) -> list[str]:
    """The three parameters that decide most, for each value, of the table of importances."""
    if found.empty:
        return ["Nothing can be said: the sampler chose no trials, too few within the budget, or all alike.", ""]
    lines = []
    for name in values:
        of = found[found["value"] == name].nlargest(3, "importance")
        if len(of):
            said = ", ".join(f"{row.parameter} {row.importance:.0%}" for row in of.itertuples())
            lines.append(f"- {LABELS[name]}: {said}")
    return ["What decides whether a trial is among the best (PED-ANOVA):", "", *lines, ""]


def chosen_lines(trial: FrozenTrial) -> list[str]:
    """What a trial chose, as a list."""
    origin = trial.user_attrs.get(studies.ORIGIN)
    came = f"tried first as *{origin}*" if origin else "chosen by the sampler"
    said = ", ".join(f"`{name}` {_shown(value)}" for name, value in trial.params.items())
    return [f"Trial {trial.number} ({came}): {said}.", ""]


def _shown(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
