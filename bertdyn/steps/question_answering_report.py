"""What a fine-tuning on question answering found."""

import pandas as pd

from bertdyn.plots.question_answering import threshold_figure
from bertdyn.steps.findings import ROW_NAMES, Findings, Outcome
from bertdyn.tasks.question_answering import Answers, QuestionAnswering, baselines, official_predictions
from bertdyn.tasks.squad_metric import answer_scores, squad_scores

SCORED = ("validation", "test")
CURVES = {"f1": "F1", "has_ans_f1": "F1, answerable", "no_ans_f1": "F1, unanswerable"}
COLUMNS = {"exact": "EM", "f1": "F1", "has_ans_exact": "HasAns EM", "has_ans_f1": "HasAns F1", "no_ans_f1": "NoAns F1"}


def question_answering_outcome(found: Findings, title: str) -> Outcome:
    """EM and F1, total, HasAns and NoAns, with the null threshold of validation, beside always 'no answer'."""
    task = found.task
    assert isinstance(task, QuestionAnswering)
    thresholds = {
        state: task.metrics(found.predictions["validation", state], "validation")["null_threshold"]
        for state in ("best", "pretrained")
    }
    scores = score_table(found, task, thresholds)
    predictions = official_predictions(found.predictions["test", "best"], thresholds["best"])
    questions = found.data.parts["test"]
    golds = dict(zip(questions["example_id"], questions["answers"], strict=True))
    curve = pd.concat(
        [task.threshold_curve(found.predictions[part, "best"], part).assign(part=part) for part in SCORED],
        ignore_index=True,
    )
    return Outcome(
        scores=scores,
        tables={"predictions": predictions_table(found, thresholds["best"]), "threshold_curve": curve},
        records={"squad_predictions": predictions, "squad_scores": squad_scores(predictions, golds)},
        figures={"null_threshold": threshold_figure(curve, thresholds["best"], f"Epoch {found.best}: {title}")},
        final=final_metrics(found, scores, thresholds["best"]),
        headline=headline(scores, thresholds["best"], task.max_answer_length),
        curves={f"eval/{name}": title for name, title in CURVES.items() if f"eval/{name}" in found.history[0]},
        baselines={name: row["f1"] for name, row in baselines(found.data.parts["validation"]).items()},
    )


def score_table(found: Findings, task: QuestionAnswering, thresholds: dict[str, float]) -> pd.DataFrame:
    """One row per part, state and baseline; F1 with its 95 % bootstrap interval over contexts.

    Each state has the threshold that is best for its own answers on validation, on test as well.
    """
    rows = []
    for part in SCORED:
        for state, threshold in thresholds.items():
            answers: Answers = found.predictions[part, state]
            low, high = task.f1_interval(answers, part, threshold)
            scores = task.metrics(answers, part, threshold)
            rows.append({"part": part, "state": state, "baseline": "none", **scores, "f1_low": low, "f1_high": high})
        for baseline, scores in baselines(found.data.parts[part]).items():
            rows.append({"part": part, "state": "none", "baseline": baseline, **scores})
    table = pd.DataFrame(rows)
    return table.assign(num_examples=table["part"].map({part: len(found.data.parts[part]) for part in SCORED}))


def predictions_table(found: Findings, threshold: float) -> pd.DataFrame:
    """One row a question of validation and test: the best epoch's answer, "" for none, and how good it is."""
    frames = []
    for part in SCORED:
        table = found.predictions[part, "best"].table
        questions = found.data.parts[part]
        said = table["answer"].where(table["score_difference"] <= threshold, "")
        graded = [answer_scores(text, golds) for text, golds in zip(said, questions["answers"], strict=True)]
        frame = table.rename(columns={"answer": "best_span"}).assign(
            part=part,
            title=questions["title"].to_numpy(),
            question=questions["text"].to_numpy(),
            label=questions["label"].to_numpy(),
            answer=said,
        )
        frame[["exact", "f1"]] = graded
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def final_metrics(found: Findings, scores: pd.DataFrame, threshold: float) -> dict[str, float]:
    """The scalars by which runs are compared: `best/…`, `test/…` and the baseline on the test part."""
    rows = scores.set_index(["part", "state"])
    test = rows.loc["test", "best"]
    measured = [name for name in ("loss", *COLUMNS, "f1_low", "f1_high") if name in rows and pd.notna(test[name])]
    return {
        "best/epoch": found.best,
        "best/f1": float(rows.at[("validation", "best"), "f1"]),
        "best/null_threshold": threshold,
        **{f"test/{name}": float(test[name]) for name in measured},
        "test/baseline_always_null": float(rows.at[("test", "none"), "f1"]),
    }


def headline(scores: pd.DataFrame, threshold: float, max_answer_length: int) -> list[str]:
    """Scores on the test part beside the baseline, as a Markdown table, in percent as the field writes them."""
    columns = {name: title for name, title in COLUMNS.items() if name in scores}
    lines = [
        "| | validation F1 | " + " | ".join(f"test {title}" for title in columns.values()) + " | 95 % interval (F1) |",
        "|---|" + "---|" * (len(columns) + 2),
    ]
    for (state, baseline), name in ROW_NAMES.items():
        rows = scores[(scores["state"] == state) & (scores["baseline"] == baseline)].set_index("part")
        if rows.empty:
            continue
        test = rows.loc["test"]
        cells = [f"{100 * rows.at['validation', 'f1']:.2f}", *(_percent(test[column]) for column in columns)]
        interval = f"{100 * test['f1_low']:.2f} – {100 * test['f1_high']:.2f}" if pd.notna(test["f1_low"]) else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {interval} |")
    return [
        *lines,
        "",
        f"An answer is given where (null score − span score) ≤ {threshold:.3f}, the best threshold for F1 on "
        f"validation; it has at most {max_answer_length} tokens. The interval is a bootstrap over contexts. "
        "`squad_predictions.json` is in the official format, `squad_scores.json` the official script's view of it.",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}" if pd.notna(share) else "–"
