"""What a fine-tuning on text classification found."""

from collections.abc import Mapping

import pandas as pd

from bertdyn.plots.training import confusion_figure
from bertdyn.steps.findings import ROW_NAMES, Findings, Outcome
from bertdyn.tasks import classification

Baselines = Mapping[str, Mapping[str, float]]
"""Baseline → part → accuracy."""


def classification_outcome(found: Findings, title: str) -> Outcome:
    """Scores with intervals and baselines, the report by class, the confusion matrix."""
    parts, labels = found.data.parts, found.data.label_names
    baselines = classification.baselines(parts["train"], {part: parts[part] for part in ("validation", "test")})
    test = found.predictions["test", "best"]
    confusion = classification.confusion(test, labels)
    scores = score_table(found, baselines)
    return Outcome(
        scores=scores,
        tables={
            "predictions": predictions_table(found),
            "class_report": classification.class_report(test, labels),
            "confusion": confusion,
        },
        records={},
        figures={"confusion_matrix": confusion_figure(confusion, labels, f"Test part, epoch {found.best}: {title}")},
        final=final_metrics(found, scores, baselines),
        headline=headline(scores),
        curves={"eval/accuracy": "accuracy", "eval/macro_f1": "macro F1"},
        baselines={name: accuracy["validation"] for name, accuracy in baselines.items()},
    )


def score_table(found: Findings, baselines: Baselines) -> pd.DataFrame:
    """One row per part, state and baseline, with the 95 % Wilson interval of the accuracy over examples."""
    rows = []
    for part in ("validation", "test"):
        for state in ("best", "pretrained"):
            scores = found.task.metrics(found.predictions[part, state], part)
            rows.append({"part": part, "state": state, "baseline": "none", **scores})
        for baseline, accuracy in baselines.items():
            rows.append({"part": part, "state": "none", "baseline": baseline, "accuracy": accuracy[part]})
    table = pd.DataFrame(rows)
    table["num_examples"] = table["part"].map({p: len(found.data.parts[p]) for p in ("validation", "test")})
    intervals = [
        classification.accuracy_interval(round(accuracy * n), n)
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


def final_metrics(found: Findings, scores: pd.DataFrame, baselines: Baselines) -> dict[str, float]:
    """The scalars by which runs are compared: `best/…`, `test/…` and the baselines on the test part."""
    rows = scores[scores["state"] == "best"].set_index("part")
    final = rows.loc["test"]
    measured = ("loss", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "weighted_f1")
    return (
        {"best/epoch": found.best, "best/accuracy": float(rows.at["validation", "accuracy"])}
        | {f"test/{name}": float(final[name]) for name in measured}
        | {f"test/baseline_{name}": accuracy["test"] for name, accuracy in baselines.items()}
    )


def headline(scores: pd.DataFrame) -> list[str]:
    """Accuracy on validation and test beside the baselines, as a Markdown table."""
    lines = [
        "| | validation accuracy | test accuracy | 95 % interval (test, over examples) | test macro F1 |",
        "|---|---|---|---|---|",
    ]
    for (state, baseline), name in ROW_NAMES.items():
        rows = scores[(scores["state"] == state) & (scores["baseline"] == baseline)].set_index("part")
        if rows.empty:
            continue
        test = rows.loc["test"]
        f1 = f"{test['macro_f1']:.3f}" if pd.notna(test["macro_f1"]) else "–"
        lines.append(
            f"| {name} | {rows.at['validation', 'accuracy']:.3f} | {test['accuracy']:.3f} "
            f"| {test['accuracy_low']:.3f} – {test['accuracy_high']:.3f} | {f1} |"
        )
    return lines
