"""What is probed, and how it is judged: a target with its folds, rows of a state, what held-out rows say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bertdyn.errors import InputError
from bertdyn.features.aligned import AlignedRows
from bertdyn.features.store import FeatureStore
from bertdyn.probing.targets import Target, control_labels

MAX_TOKENS = 20_000
"""Content tokens that probes are fitted to and judged on; a seeded sample where there are more."""
FOR_CLASSES = ("logistic", "nearest_centroid", "mean_difference")
"""Linear probes that predict classes; ridge predicts numbers, and the mlp both."""


NOTHING = np.array([])


class Task(NamedTuple):
    """A target with the folds that judge it."""

    target: Target
    folds: np.ndarray
    """[texts]"""

    @property
    def num_classes(self) -> int:
        """0 for numbers."""
        return len(self.target.class_names or ())


class Cell(NamedTuple):
    """One probe of one layer of one state."""

    target: str
    rows: str
    probe: str
    baseline: str
    """"none" for the probe itself; "shuffled" and "control" for the same probe of other labels."""
    state: str
    layer: int


class Judged(NamedTuple):
    """What held-out rows say of a probe."""

    sums: dict[str, np.ndarray]
    """Metric → [texts]: summed over the rows of each text; R² as squared errors."""
    counts: dict[str, np.ndarray]
    """Metric → [texts]: what the sums are divided by."""
    fitted: np.ndarray
    """[folds]: accuracy or R² on the rows that the probe was fitted to; empty if not known."""
    predictions: np.ndarray
    """[rows]: class ids or numbers."""
    confidence: np.ndarray
    """[rows]: probability of the true class; NaN for probes without probabilities."""
    penalties: np.ndarray = NOTHING
    """[folds]: the inverse penalty that was chosen without each fold."""

    def without_rows(self) -> "Judged":
        """For what nobody looks at row by row."""
        return self._replace(predictions=NOTHING, confidence=NOTHING)


class Sample(NamedTuple):
    """The rows of one kind that are probed: of the same texts in every state."""

    kind: str
    examples: np.ndarray
    """[rows]: number of each row's text."""
    words: np.ndarray | None
    """[rows]: the token of each row; None for rows that are texts."""


class Source(NamedTuple):
    """One state of one store."""

    state: str
    store: FeatureStore
    aligned: AlignedRows


def sample_of(source: Source, kind: str, seed: int) -> Sample:
    """Which rows are probed.

    Raises
    ------
    InputError
        If the store does not have that kind of rows.
    """
    if kind not in source.aligned.kinds:
        there = ", ".join(source.aligned.kinds)
        raise InputError(f"--rows {kind!r}: {source.store.folder} has {there}; extract with --rows tokens for all")
    if kind == "content":
        rows, examples = source.aligned.content_rows(MAX_TOKENS, seed)
        return Sample(kind, examples, source.store.tokens(["token"])["token"].to_numpy()[rows])
    layer = source.aligned.layers[0]
    blocks = [block[kind].examples for block in source.aligned.blocks(layer) if kind in block]
    return Sample(kind, np.concatenate(blocks), None)


def features_of(source: Source, layer: int, samples: Sequence[Sample], seed: int) -> dict[str, np.ndarray]:
    """Kind → [rows, width], float32.

    Raises
    ------
    InputError
        If a value is not finite.
    """
    found: dict[str, np.ndarray] = {}
    pooled = [sample.kind for sample in samples if sample.kind != "content"]
    if pooled:
        parts: dict[str, list[np.ndarray]] = {kind: [] for kind in pooled}
        for block in source.aligned.blocks(layer):
            for kind in set(pooled) & set(block):
                parts[kind].append(block[kind].states[0].astype(np.float32))
        found |= {kind: np.concatenate(blocks) for kind, blocks in parts.items()}
    if "content" in [sample.kind for sample in samples]:
        found["content"] = source.aligned.content_sample(layer, MAX_TOKENS, seed)[0][0].astype(np.float32)
    for sample in samples:
        wrong = np.flatnonzero(~np.isfinite(found[sample.kind]).all(axis=1))
        if len(wrong):
            text = source.aligned.examples["example_id"].iloc[sample.examples[wrong[0]]]
            raise InputError(
                f"{source.store.folder}: features of state {source.state!r}, layer {layer} are not finite in row "
                f"{wrong[0]} of {sample.kind!r} (text {text!r}); extract anew, with --dtype float32"
            )
    return found


def fits_target(probe: str, task: Task) -> bool:
    """Whether a probe predicts classes, or numbers, as the target is."""
    return probe == "mlp" or (probe in FOR_CLASSES) == bool(task.num_classes)


def targets_of_rows(task: Task, sample: Sample, seed: int) -> dict[str, np.ndarray]:
    """Baseline → target of every row: the target itself, a shuffled copy, for tokens a control task."""
    values = task.target.values
    # Shuffled over texts, so that all tokens of a text keep one value.
    shuffled = values[np.random.default_rng([seed, 1]).permutation(len(values))]
    columns = {"none": values[sample.examples], "shuffled": shuffled[sample.examples]}
    if sample.words is not None and task.num_classes:
        shares = np.bincount(columns["none"], minlength=task.num_classes) / len(sample.examples)
        columns["control"] = control_labels(sample.words.tolist(), shares, seed)
    return columns


def judge(
    scores: np.ndarray, values: np.ndarray, sample: Sample, task: Task, fitted: np.ndarray, probabilities: bool
) -> Judged:
    """From scores [rows, outputs] of held-out rows to sums over texts."""
    num_texts = len(task.folds)
    if np.isnan(scores).any():
        raise FloatingPointError(f"a probe of {task.target.name!r} ({sample.kind}) says no numbers")

    def per_text(of_rows: np.ndarray) -> np.ndarray:
        return np.bincount(sample.examples, of_rows, minlength=num_texts)

    rows = per_text(np.ones(len(values)))
    confidence = np.full(len(values), np.nan)
    if not task.num_classes:
        predictions, folds = scores[:, 0], task.folds[sample.examples]
        # What predicting the mean of the other folds leaves: 0 is no better than that.
        means = np.array([values[folds != fold].mean() for fold in range(folds.max() + 1)])
        sums = {"r2": per_text((values - predictions) ** 2), "mae": per_text(np.abs(values - predictions))}
        counts = {"r2": per_text((values - means[folds]) ** 2), "mae": rows}
        return Judged(sums, counts, fitted, predictions, confidence)
    predictions = scores.argmax(axis=1)
    sums = {"accuracy": per_text(predictions == values)}
    if probabilities:
        logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        of_truth = logs[np.arange(len(values)), values]
        confidence = np.exp(of_truth)
        sums["cross_entropy_bits"] = per_text(-of_truth / np.log(2))
    return Judged(sums, dict.fromkeys(sums, rows), fitted, predictions, confidence)
