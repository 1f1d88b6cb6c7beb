"""What the parts of a report pass to each other."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bertdyn.data.text_data import TextData
from bertdyn.features.store import FeatureStore
from bertdyn.steps.config import FineTuneConfig
from bertdyn.tasks.task import Task

ROW_NAMES = {
    ("best", "none"): "fine-tuned, best epoch",
    ("pretrained", "none"): "before training",
    ("none", "tfidf"): "TF-IDF + logistic regression",
    ("none", "majority"): "always the most frequent class",
    ("none", "always_null"): "always 'no answer'",
}
"""(state, baseline) of a table of scores → what a reader sees, in the order of a report."""


class Findings(NamedTuple):
    """Everything that the report of a fine-tuning is made from."""

    config: FineTuneConfig
    data: TextData
    task: Task
    history: list[dict[str, float]]
    """Metrics by epoch, epoch 0 first."""
    best: int
    """The selected epoch."""
    predictions: Mapping[tuple[str, str], Any]
    """(part, state) → predictions; parts validation and test, states pretrained and best."""
    dynamics: pd.DataFrame
    store: FeatureStore | None


class Outcome(NamedTuple):
    """What a task makes of the findings."""

    scores: pd.DataFrame
    """One row per part, state and baseline."""
    tables: dict[str, pd.DataFrame]
    """Further tables by name."""
    records: dict[str, Any]
    """Contents of JSON files by name."""
    figures: dict[str, Figure]
    final: dict[str, float]
    """The scalars by which runs are compared: `best/…`, `test/…`."""
    headline: list[str]
    """The main table and what has to be said about it, Markdown lines."""
    curves: dict[str, str]
    """Metric → its name in the figure of the training curves."""
    baselines: dict[str, float]
    """Baseline → validation score, drawn beside the first of `curves`."""
