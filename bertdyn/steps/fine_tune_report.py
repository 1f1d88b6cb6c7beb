"""What a fine-tuning run says at its end: tables, figures and a page of Markdown with baselines."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bertdyn.data.text_data import TextData
from bertdyn.features.store import FeatureStore
from bertdyn.geometry.pca import fixed_basis
from bertdyn.plots.features import pca_grid
from bertdyn.plots.training import component_curves, confusion_figure, dynamics_heatmaps, training_curves
from bertdyn.steps.config import FineTuneConfig
from bertdyn.tasks import classification as task
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.dynamics import by_group
from bertdyn.training.selection import best_epoch

NAMES = {
    ("best", "none"): "fine-tuned, best epoch",
    ("pretrained", "none"): "before training",
    ("none", "tfidf"): "TF-IDF + logistic regression",
    ("none", "majority"): "always the most frequent class",
}


class Findings(NamedTuple):
    """Everything that the report is made from."""

    config: FineTuneConfig
    data: TextData
    history: list[dict[str, float]]
    """Metrics by epoch, epoch 0 first."""
    predictions: Mapping[tuple[str, str], task.Predictions]
    """(part, state) → predictions; parts validation and test, states pretrained and best."""
    baselines: Mapping[str, Mapping[str, float]]
    """Baseline → part → accuracy."""
    dynamics: pd.DataFrame
    store: FeatureStore | None


def write_report(found: Findings, tracker: Tracker) -> tuple[pd.DataFrame, str]:
    """Write tables, figures and final metrics into `tracker`; return scores and the report, Markdown."""
    scores = score_table(found)
    best = best_epoch(found.history, task.SELECTION_METRIC)
    tracker.log_table(scores, "scores")
    tracker.log_table(pd.DataFrame(found.history).rename_axis("epoch").reset_index(), "history")
    tracker.log_table(predictions_table(found), "predictions")
    test, labels = found.predictions["test", "best"], found.data.label_names
    tracker.log_table(task.class_report(test, labels), "class_report")
    tracker.log_table(task.confusion(test, labels), "confusion")
    write_figures(found, best, tracker)
    tracker.log_metrics(final_metrics(found, scores, best), len(found.history) - 1)
    return scores, markdown(found, scores, best)


def score_table(found: Findings) -> pd.DataFrame:
    """One row per part, state and baseline, with the 95 % Wilson interval of the accuracy over examples."""
    rows = []
    for part in ("validation", "test"):
        for state in ("best", "pretrained"):
            predictions = found.predictions[part, state]
            rows.append({"part": part, "state": state, "baseline": "none", **task.metrics(predictions)})
        for baseline, accuracy in found.baselines.items():
            rows.append({"part": part, "state": "none", "baseline": baseline, "accuracy": accuracy[part]})
    table = pd.DataFrame(rows)
    table["num_examples"] = table["part"].map({p: len(found.data.parts[p]) for p in ("validation", "test")})
    intervals = [
        task.accuracy_interval(round(accuracy * n), n)
        for accuracy, n in zip(table["accuracy"], table["num_examples"], strict=True)
    ]
    table["accuracy_low"], table["accuracy_high"] = zip(*intervals, strict=True)
    return table


def predictions_table(found: Findings) -> pd.DataFrame:
    """One row an example of validation and test: id, label, the best epoch's prediction and its probability."""
    frames = []
    for part in ("validation", "test"):
        predictions = found.predictions[part, "best"]
        frames.append(
            pd.DataFrame(
                {
                    "part": part,
                    "example_id": found.data.parts[part]["example_id"].to_numpy(),
                    "label": predictions.labels,
                    "predicted": predictions.predicted,
                    "probability": predictions.probabilities.max(axis=1),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def final_metrics(found: Findings, scores: pd.DataFrame, best: int) -> dict[str, float]:
    """The scalars by which runs are compared: `best/…`, `test/…` and the baselines on the test part."""
    final = scores[(scores["part"] == "test") & (scores["state"] == "best")].iloc[0]
    measured = ("loss", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "weighted_f1")
    return (
        {"best/epoch": best, "best/accuracy": found.history[best][task.SELECTION_METRIC]}
        | {f"test/{name}": float(final[name]) for name in measured}
        | {f"test/baseline_{name}": accuracy["test"] for name, accuracy in found.baselines.items()}
    )


def write_figures(found: Findings, best: int, tracker: Tracker) -> None:
    """Training curves, dynamics, confusion matrix, and PCA of the features where they were stored."""
    name = found.config.default_run_name().removesuffix("-fine-tune")
    history = pd.DataFrame(found.history).rename_axis("epoch").reset_index()
    baselines = {n: accuracy["validation"] for n, accuracy in found.baselines.items()}
    groups, labels = by_group(found.dynamics), found.data.label_names
    confusion = task.confusion(found.predictions["test", "best"], labels)
    figures = {
        "training_curves": training_curves(history, baselines, best, name),
        "dynamics_by_layer": dynamics_heatmaps(groups, f"What moved, by layer and epoch: {name}"),
        "dynamics_by_component": component_curves(found.dynamics, f"What moved, by component: {name}"),
        "confusion_matrix": confusion_figure(confusion, labels, f"Test part, epoch {best}: {name}"),
    }
    if found.store:
        title = f"First-token features of the probe part, one PCA basis a layer: {name}"
        figures["features_pca"] = features_figure(found.store, labels, title)
    for figure_name, figure in figures.items():
        tracker.log_figure(figure, figure_name)


def features_figure(store: FeatureStore, label_names: list[str], title: str) -> Figure:
    """PCA of first-token features, layer × epoch; at layer 0 the first token is the same in all texts."""
    bases = {
        layer: fixed_basis([store.array("first", state, layer) for state in store.states])
        for layer in store.manifest.layers
        if layer > 0
    }
    return pca_grid(bases, store.states, store.examples()["label"].to_numpy(), label_names, title)


def markdown(found: Findings, scores: pd.DataFrame, best: int) -> str:
    """The page that the run carries in the MLflow UI."""
    config, data = found.config, found.data
    start = "from scratch" if config.from_scratch else "pretrained"
    lines = [
        f"## Fine-tuning `{config.model_name_or_path}` ({start}) on `{data.name}`, seed {config.seed}",
        "",
        "| | validation accuracy | test accuracy | 95 % interval (test, over examples) | test macro F1 |",
        "|---|---|---|---|---|",
    ]
    for (state, baseline), name in NAMES.items():
        rows = scores[(scores["state"] == state) & (scores["baseline"] == baseline)].set_index("part")
        test = rows.loc["test"]
        f1 = f"{test['macro_f1']:.3f}" if pd.notna(test["macro_f1"]) else "–"
        lines.append(
            f"| {name} | {rows.at['validation', 'accuracy']:.3f} | {test['accuracy']:.3f} "
            f"| {test['accuracy_low']:.3f} – {test['accuracy_high']:.3f} | {f1} |"
        )
    lines += ["", f"Best epoch by validation accuracy: **{best}** of {len(found.history) - 1}.", ""]
    lines += [moved(found.dynamics), "", "### Data", "", *data_lines(data), "", *figure_lines(found)]
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


def figure_lines(found: Findings) -> list[str]:
    """Where to look next."""
    features = ", `features_pca`" if found.store else ""
    return [
        "### Figures (artifacts, `figures/`)",
        "",
        f"`training_curves`, `dynamics_by_layer`, `dynamics_by_component`, `confusion_matrix`{features}. "
        "Tables: `scores`, `history`, `dynamics`, `class_report`, `confusion`, `predictions` (parquet).",
    ]
