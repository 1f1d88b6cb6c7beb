"""What a fine-tuning run says at its end: tables, figures and a page of Markdown with baselines.

What depends on the task comes from its own report as an `Outcome`; all the rest is here.
"""

import pandas as pd

from bertdyn.data.text_data import TextData
from bertdyn.features.store import FeatureStore
from bertdyn.files import write_json
from bertdyn.geometry.pca import FixedBasis, fixed_basis
from bertdyn.plots.features import pca_grid, pca_of_state
from bertdyn.plots.layers import spread, state_name
from bertdyn.plots.training import component_curves, dynamics_heatmaps, training_curves
from bertdyn.steps.classification_report import classification_outcome
from bertdyn.steps.findings import Findings, Outcome
from bertdyn.steps.question_answering_report import question_answering_outcome
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.groups import by_group

MAX_FRAMES = 16
"""Epochs that the film of the features has."""
OUTCOMES = {"classification": classification_outcome, "question-answering": question_answering_outcome}


def write_report(found: Findings, tracker: Tracker) -> tuple[Outcome, str]:
    """Write tables, figures and final metrics into `tracker`; return the outcome and the report, Markdown."""
    title = found.config.label()
    outcome = OUTCOMES[found.task.name](found, title)
    history = pd.DataFrame(found.history).rename_axis("epoch").reset_index()
    for name, table in {"scores": outcome.scores, "history": history, **outcome.tables}.items():
        tracker.log_table(table, name)
    for name, record in outcome.records.items():
        write_json(tracker.folder / f"{name}.json", record)
        tracker.publish(f"{name}.json")
    figures = {
        "training_curves": training_curves(history, outcome.curves, outcome.baselines, found.best, title),
        "dynamics_by_layer": dynamics_heatmaps(by_group(found.dynamics), f"What moved, by layer and epoch: {title}"),
        "dynamics_by_component": component_curves(found.dynamics, f"What moved, by component: {title}"),
        **outcome.figures,
    }
    if found.store:
        names, labels = found.data.label_names, found.store.examples()["label"].to_numpy()
        bases = pca_bases(found.store)
        features = f"First-token features of the probe part, one PCA basis a layer: {title}"
        figures["features_pca"] = pca_grid(bases, found.store.states, labels, names, features)
        for number in spread(range(len(found.store.states)), MAX_FRAMES):
            frame = f"First-token features: {title}\n{state_name(found.store.states[number])}"
            tracker.log_frame(pca_of_state(bases, number, labels, names, frame), "features_pca_by_epoch", number)
    for name, figure in figures.items():
        tracker.log_figure(figure, name)
    tracker.log_metrics(outcome.final, len(found.history) - 1)
    return outcome, markdown(found, outcome, list(figures))


def pca_bases(store: FeatureStore) -> dict[int, FixedBasis]:
    """Layer → first-token features of all epochs in one basis; at layer 0 the first token is the same in all texts."""
    return {
        layer: fixed_basis([store.array("first", state, layer) for state in store.states])
        for layer in store.layers("first")
        if layer > 0
    }


def markdown(found: Findings, outcome: Outcome, figures: list[str]) -> str:
    """The page that the run carries in the MLflow UI."""
    config, data = found.config, found.data
    start = "from scratch" if config.from_scratch else "pretrained"
    metric = found.task.selection_metric.removeprefix("eval/")
    tables = ["scores", "history", "dynamics", *outcome.tables]
    films = ["features_pca_by_epoch/"] if found.store else []
    lines = [
        f"## Fine-tuning `{config.model_name_or_path}` ({start}) on `{data.name}`, seed {config.seed}",
        "",
        *outcome.headline,
        "",
        f"Best epoch by validation {metric}: **{found.best}** of {len(found.history) - 1}.",
        "",
        moved(found.dynamics),
        "",
        "### Data",
        "",
        *data_lines(data),
        "",
        "### Figures (artifacts, `figures/`)",
        "",
        f"{', '.join(f'`{name}`' for name in [*figures, *films])}. "
        f"Tables: {', '.join(f'`{name}`' for name in tables)} (parquet).",
    ]
    return "\n".join(lines)


def moved(dynamics: pd.DataFrame) -> str:
    """One sentence: which group of parameters moved most and least, relative to its own norm."""
    groups = by_group(dynamics)
    last = groups[groups["epoch"] == groups["epoch"].max()].set_index("group")
    start = groups[groups["epoch"] == 0].set_index("group")["norm"]
    relative = (last["distance_from_init"] / start).drop("head", errors="ignore").sort_values()
    least, most = relative.index[0], relative.index[-1]
    return (
        f"Moved most (distance from the start / norm at the start, the new head aside): **{most}** "
        f"({relative.iloc[-1]:.2%}); least: **{least}** ({relative.iloc[0]:.2%})."
    )


def data_lines(data: TextData) -> list[str]:
    """Rows by part and class as a Markdown table."""
    counts = data.class_counts().pivot(index="part", columns="label", values="rows")[data.label_names]
    lines = ["| part | rows | " + " | ".join(data.label_names) + " |", "|---|---|" + "---|" * len(data.label_names)]
    for part in data.parts:
        row = counts.loc[part]
        lines.append(f"| {part} | {row.sum()} | " + " | ".join(str(n) for n in row) + " |")
    return lines
