"""What span probing says at its end: a table of scores beside their baselines, files, figures, a page of Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bertdyn.files import replacing, write_json
from bertdyn.plots.span_probes import convergence_curves, span_heatmaps, span_scores_by_layer, threshold_curves_by_layer
from bertdyn.probing.spans import FittedSpans, save_directions
from bertdyn.steps.extract_runs import ExtractRun
from bertdyn.steps.lists import numbers
from bertdyn.steps.probe_config import ProbeConfig
from bertdyn.steps.random_twin import RANDOM_INIT
from bertdyn.tasks.question_answering import Answers, cluster_interval, official_predictions
from bertdyn.tracking.tracker import Tracker

SCORES = ("exact", "f1", "has_ans_exact", "has_ans_f1", "no_ans_f1", "best_span_f1")
COLUMNS = ["layer", "state", "rows", "target", "probe", "baseline", "metric", "value", "low", "high", "n", "fold_std",
           "num_folds"]  # fmt: skip


class StateProbes(NamedTuple):
    """The probes of one state and what they answer."""

    fitted: FittedSpans
    thresholds: list[float]
    """Of each layer: best for F1 on validation."""
    validation_f1: list[float]
    answers: list[Answers]
    """Of each layer, on the scored part."""
    scores: list[pd.DataFrame]
    """Of each layer: one row a question of the scored part, with `SCORES`; NaN where a score is not of that kind of
    question."""
    curves: pd.DataFrame
    """layer, part, threshold and the scores with it."""


def never_answering(frame: pd.DataFrame) -> pd.DataFrame:
    """`score_questions` of one who always says that there is no answer."""
    unanswerable = (frame["label"] == 0).astype(float)
    has_answer = frame["label"] == 1
    scores = {"exact": unanswerable, "f1": unanswerable}
    scores |= {name: unanswerable.where(has_answer) for name in ("has_ans_exact", "has_ans_f1")}
    return pd.DataFrame(scores | {"no_ans_f1": unanswerable.where(~has_answer)})


def interval(values: pd.Series, frame: pd.DataFrame, seed: int) -> tuple[float, float, float, int]:
    """Mean, 95 % bootstrap interval over contexts, and number of questions; NaN without any."""
    known = values.notna().to_numpy()
    if not known.any():
        return math.nan, math.nan, math.nan, 0
    of_questions = values.to_numpy()[known]
    low, high = cluster_interval(of_questions, frame["text_pair"].to_numpy()[known], seed)
    return float(of_questions.mean()), low, high, int(known.sum())


def probe_table(probed: Mapping[str, StateProbes], frame: pd.DataFrame, num_validation: int, seed: int) -> pd.DataFrame:
    """The scores of all probes and baselines; those of layer 0 are there a second time, as a baseline of their state.

    Parameters
    ----------
    frame
        The questions of the scored part.
    num_validation
        Questions of the validation part.
    """
    rows: list[dict[str, Any]] = []

    def add(scores: pd.DataFrame, more: Mapping[str, float], **about: Any) -> None:
        for metric in SCORES:
            if metric in scores and scores[metric].notna().any():
                value, low, high, n = interval(scores[metric], frame, seed)
                rows.append(about | {"metric": metric, "value": value, "low": low, "high": high, "n": n})
        rows.extend(about | {"metric": name, "value": value, "n": num_validation} for name, value in more.items())

    for state, probes in probed.items():
        for i, layer in enumerate(probes.fitted.layers):
            tuned = {"null_threshold": probes.thresholds[i], "validation_loss": probes.fitted.validation_losses[i]}
            baseline = "random_init" if state == RANDOM_INIT else "none"
            add(probes.scores[i], tuned, layer=layer, state=state, baseline=baseline)
            if layer == 0 and baseline == "none":
                add(probes.scores[i], tuned, layer=layer, state=state, baseline="layer_0")
    add(never_answering(frame), {}, layer=None, state="", baseline="majority")
    table = pd.DataFrame(rows).assign(rows="content", target="span", probe="span", fold_std=np.nan, num_folds=0)
    return table.astype({"layer": "Int64", "low": float, "high": float})[COLUMNS]


def write_report(
    config: ProbeConfig,
    tracker: Tracker,
    run: ExtractRun,
    table: pd.DataFrame,
    probed: Mapping[str, StateProbes],
    frame: pd.DataFrame,
) -> str:
    """Write tables, predictions, probes, figures and metrics into `tracker`; return the report, Markdown."""
    curves = pd.concat([p.curves.assign(state=state) for state, p in probed.items()], ignore_index=True)
    convergence = pd.concat([p.fitted.record.assign(state=state) for state, p in probed.items()], ignore_index=True)
    tables = {"probes": table, "threshold_curves": curves, "span_convergence": convergence}
    for name, frame_of in tables.items():
        tracker.log_table(frame_of, name)
    for state, probes in probed.items():
        _write_state(tracker, state, probes)
    for step, state in enumerate(run.states):
        of_state = table[(table["state"] == state) & (table["baseline"] == "none") & (table["metric"] == "f1")]
        layers = of_state.set_index("layer")["value"]
        tracker.log_metrics({f"probe/span_f1/layer_{layer:02d}": value for layer, value in layers.items()}, step)
    label = run.label
    on_part = curves[curves["part"] == config.part]
    thresholds = {(state, layer): t for state, p in probed.items() for layer, t in _by_layer(p, p.thresholds)}
    figures = {
        "span_scores_by_layer": span_scores_by_layer(table, f"Span probes on the {config.part} part: {label}"),
        "span_heatmaps": span_heatmaps(table, list(probed), f"Span probes, layer by state: {label}"),
        "threshold_curves": threshold_curves_by_layer(
            on_part, thresholds, f"Answers over the null threshold, {config.part}: {label}"
        ),
        "span_convergence": convergence_curves(convergence, f"How the span probes converged: {label}"),
    }
    for name, figure in figures.items():
        tracker.log_figure(figure, name)
    summary = markdown(config, run, probed, frame, list(figures), list(tables))
    tracker.note(summary)
    return summary


def _write_state(tracker: Tracker, state: str, probes: StateProbes) -> None:
    """Answers in the official format, and the directions."""
    for i, layer in enumerate(probes.fitted.layers):
        path = f"predictions/{state}/layer_{layer:02d}.json"
        write_json(tracker.folder / path, official_predictions(probes.answers[i], probes.thresholds[i]))
        tracker.publish(path)
    path = f"probes/{state}.safetensors"
    with replacing(tracker.folder / path) as temporary:
        save_directions(temporary, probes.fitted.layers, probes.fitted.directions)
    tracker.publish(path)


def _by_layer(probes: StateProbes, values: Sequence[Any]) -> list[tuple[int, Any]]:
    return list(zip(probes.fitted.layers, values, strict=True))


def markdown(
    config: ProbeConfig,
    run: ExtractRun,
    probed: Mapping[str, StateProbes],
    frame: pd.DataFrame,
    figures: Sequence[str],
    tables: Sequence[str],
) -> str:
    """In words and in a table a state: where the answer can be read off, and how sure that is."""
    never = never_answering(frame)
    random = probed.get(RANDOM_INIT)
    lines = [
        f"## Span probes of `{run.label}`, part `{config.part}`: {len(frame):,} questions, "
        f"{frame['text_pair'].nunique():,} contexts",
        "",
        *(f"- {_in_words(config, state, probes, random, frame)}" for state, probes in probed.items()),
        "",
        f"Never answering: F1 {_percent(interval(never['f1'], frame, config.seed))}.",
        "",
    ]
    for state, probes in probed.items():
        lines += [f"### {state}", "", *_state_lines(config, state, probes, random, frame), ""]
    rates = numbers(config.learning_rates, "learning_rates")
    epochs = pd.concat([p.fitted.record.query("chosen")["epoch"] for p in probed.values()])
    late = int((epochs == config.num_train_epochs).sum())
    return "\n".join(
        [
            *lines,
            "Percent; brackets: 95 % bootstrap intervals over contexts, not corrected for the number of layers; "
            "differences are of the same questions. Best span: F1 where there is an answer, with the best span "
            "whatever the null score. The null threshold of each layer is the best for F1 on validation. The probes "
            "are trained on questions that a fine-tuned encoder was trained on, too: their training losses are low, "
            f"and the probe of each layer is the best on validation of {len(rates)} learning rates and "
            f"{config.num_train_epochs} epochs. {late} of {len(epochs)} were best in the last epoch: "
            "if these are many, more --num_train_epochs may raise them.",
            "",
            f"Figures (`figures/`): {', '.join(f'`{name}`' for name in figures)}. Tables (parquet): "
            f"{', '.join(f'`{name}`' for name in tables)}. Answers: `predictions/<state>/layer_03.json`, as the "
            "official script reads them. Directions: `probes/<state>.safetensors`.",
            "",
        ]
    )


def _in_words(
    config: ProbeConfig, state: str, probes: StateProbes, random: StateProbes | None, frame: pd.DataFrame
) -> str:
    """One state: the best layer, chosen on validation, and the layers above the baselines."""
    layers, never = probes.fitted.layers, never_answering(frame)["f1"]
    best = int(np.argmax(probes.validation_f1))
    scores = probes.scores[best]
    over_never = [interval(of_layer["f1"] - never, frame, config.seed) for of_layer in probes.scores]
    above = [layer for layer, gain in zip(layers, over_never, strict=True) if gain[1] > 0]
    text = (
        f"**{state}**: F1 is above never answering in {_layers(above)}; best on validation is layer {layers[best]}: "
        f"F1 {_percent(interval(scores['f1'], frame, config.seed))}, {_gain(over_never[best])} against never answering"
    )
    if random is None or probes is random or scores["has_ans_f1"].isna().all():
        return text + "."
    # The hardest control: of all layers of the random encoder the best on validation.
    control = random.scores[int(np.argmin(random.fitted.validation_losses))]
    gains = [interval(s["best_span_f1"] - control["best_span_f1"], frame, config.seed) for s in probes.scores]
    above = [layer for layer, gain in zip(layers, gains, strict=True) if gain[1] > 0]
    has_answer = interval(scores["has_ans_f1"] - control["has_ans_f1"], frame, config.seed)
    number = random.fitted.layers[int(np.argmin(random.fitted.validation_losses))]
    return (
        f"{text}, HasAns F1 {_gain(has_answer)} against the random encoder (its layer {number}, best on validation). "
        f"Where there is an answer, the best span beats the random encoder's in {_layers(above)} "
        f"(layer {layers[best]}: {_gain(gains[best])})."
    )


def _state_lines(
    config: ProbeConfig, state: str, probes: StateProbes, random: StateProbes | None, frame: pd.DataFrame
) -> list[str]:
    names = {"f1": "F1", "exact": "EM", "has_ans_f1": "HasAns F1", "no_ans_f1": "NoAns F1", "best_span_f1": "best span"}
    names = {name: title for name, title in names.items() if probes.scores[0][name].notna().any()}
    compared = random is not None and probes is not random and "best_span_f1" in names
    titles = [*names.values(), "F1 − never answering", *(["best span − random, same layer"] if compared else [])]
    lines = [f"| layer | {' | '.join(titles)} | learning rate, epoch |", "|---" * (len(titles) + 2) + "|"]
    never = never_answering(frame)["f1"]
    chosen = probes.fitted.record.query("chosen").set_index("layer")
    for i, (layer, scores) in enumerate(_by_layer(probes, probes.scores)):
        cells = [_percent(interval(scores[name], frame, config.seed)) for name in names]
        cells.append(_gain(interval(scores["f1"] - never, frame, config.seed)))
        if compared and random is not None:
            gain = scores["best_span_f1"] - random.scores[i]["best_span_f1"]
            cells.append(_gain(interval(gain, frame, config.seed)))
        rate, epoch = chosen.loc[layer, ["learning_rate", "epoch"]]
        lines.append(f"| {layer} | {' | '.join(cells)} | {rate:g}, {int(epoch)} |")
    return lines


def _layers(layers: Sequence[int]) -> str:
    if not layers:
        return "no layer"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _percent(found: tuple[float, float, float, int]) -> str:
    value, low, high, _ = found
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _gain(found: tuple[float, float, float, int]) -> str:
    value, low, high, _ = found
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
