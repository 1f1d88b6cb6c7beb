"""Text classification: loss, evaluation in the order of the examples, metrics and reports."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn

from bertdyn.data.batching import Batch, model_inputs
from bertdyn.errors import InputError


class Predictions(NamedTuple):
    """What a model says of one part, in the order of its examples."""

    logits: np.ndarray
    """[examples, classes], float32."""
    labels: np.ndarray
    """[examples]"""

    @property
    def predicted(self) -> np.ndarray:
        """[examples], class ids."""
        return self.logits.argmax(axis=1)

    @property
    def probabilities(self) -> np.ndarray:
        """[examples, classes]"""
        return softmax(self.logits.astype(np.float64), axis=1)


@dataclass(frozen=True)
class Classification:
    """One label a text: softmax over the classes."""

    class_weights: Tensor | None = None
    """[classes], on the device of the model, of mean 1 over the training rows: the training loss (`train/loss`, too)
    weighs by them. Scores and `eval/loss` are never weighted."""

    name = "classification"
    selection_metric = "eval/accuracy"

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Mean cross-entropy of one batch; with class weights, each example's times the weight of its class.

        Not PyTorch's weighted mean: that divides by the weights of the batch, and so takes them back the more,
        the smaller the batch.
        """
        logits, labels = model(**model_inputs(batch)).logits.float(), batch["labels"]
        if self.class_weights is None:
            return F.cross_entropy(logits, labels)
        return (F.cross_entropy(logits, labels, reduction="none") * self.class_weights[labels]).mean()

    def log_probabilities(self, model: Callable[..., Any], batch: Batch) -> list[Tensor]:
        """Of the classes: one tensor [batch, classes]."""
        return [F.log_softmax(model(**model_inputs(batch)).logits.float(), dim=-1)]

    @torch.inference_mode()
    def predict(
        self, accelerator: Accelerator, model: nn.Module, batches: Iterable[Batch], part: str = ""
    ) -> Predictions:
        """Logits and labels of all of `batches`, whatever their order, sorted by row index.

        `batches` must have gone through `accelerator.prepare`; every process gets everything. Which
        `part` they are of makes no difference here.
        """
        was_training = model.training
        model.eval()
        parts = []
        for batch in batches:
            with accelerator.autocast():
                logits = model(**model_inputs(batch)).logits.float()
            parts.append(accelerator.gather_for_metrics((batch["index"], logits, batch["labels"])))
        model.train(was_training)
        index, logits, labels = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        order = index.argsort()
        return Predictions(logits[order], labels[order])

    def metrics(self, predictions: Predictions, part: str = "") -> dict[str, float]:
        """Loss, accuracy, macro and weighted F1, macro and weighted precision, macro recall."""
        logits, labels = predictions
        report = classification_report(labels, predictions.predicted, output_dict=True, zero_division=0)
        nll = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
        return {
            "loss": float(nll.mean()),
            "accuracy": float(accuracy_score(labels, predictions.predicted)),
            "macro_f1": report["macro avg"]["f1-score"],
            "weighted_f1": report["weighted avg"]["f1-score"],
            "macro_precision": report["macro avg"]["precision"],
            "weighted_precision": report["weighted avg"]["precision"],
            "macro_recall": report["macro avg"]["recall"],
        }


def weights_of_classes(option: str | None, labels: pd.Series, label_names: list[str]) -> Tensor | None:
    """What `--class_weights` says: [classes], float32, scaled to mean 1 over the rows.

    Parameters
    ----------
    option
        None (all alike); `balanced`, inversely proportional to the class's share of `labels`; or one positive
        number a class, in the order of `label_names`.
    labels
        Class ids of the train part.

    Raises
    ------
    InputError
        If `option` says something else, or is `balanced` and a class has no row.
    """
    if option is None:
        return None
    counts = np.bincount(labels, minlength=len(label_names))
    if option == "balanced":
        if not counts.all():
            absent = label_names[int(counts.argmin())]
            raise InputError(f"--class_weights 'balanced': no training row has the label {absent!r}; accepted: numbers")
        return torch.tensor(len(labels) / (len(counts) * counts), dtype=torch.float32)
    try:
        weights = [float(weight) for weight in option.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(label_names) or not all(0 < weight < math.inf for weight in weights):
        raise InputError(
            f"--class_weights {option!r}: accepted are 'balanced' or {len(label_names)} numbers above 0, "
            f"for {', '.join(label_names)}"
        )
    return torch.tensor(np.array(weights) * len(labels) / (counts @ weights), dtype=torch.float32)


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of an accuracy, over examples: what another test set would give."""
    interval = binomtest(correct, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def class_report(predictions: Predictions, label_names: list[str]) -> pd.DataFrame:
    """One row a class: precision, recall, f1, support."""
    report = classification_report(
        predictions.labels,
        predictions.predicted,
        labels=range(len(label_names)),
        target_names=label_names,
        output_dict=True,
        zero_division=0,
    )
    rows = [{"label": name, **report[name]} for name in label_names]
    return pd.DataFrame(rows).rename(columns={"f1-score": "f1"}).astype({"support": int})


def confusion(predictions: Predictions, label_names: list[str]) -> pd.DataFrame:
    """Tidy confusion matrix: true label, predicted label, count."""
    matrix = confusion_matrix(predictions.labels, predictions.predicted, labels=range(len(label_names)))
    return pd.DataFrame(
        [
            {"true": true, "predicted": predicted, "count": int(matrix[i, j])}
            for i, true in enumerate(label_names)
            for j, predicted in enumerate(label_names)
        ]
    )


def baselines(train: pd.DataFrame, scored: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    """Baseline → part → accuracy without any encoder, fitted on the rows that the encoder trains on.

    `majority`: always the most frequent class; `tfidf`: word and bigram TF-IDF with logistic
    regression. All tables have the columns text (text_pair) and label.
    """
    models = {
        "majority": DummyClassifier(),
        "tfidf": make_pipeline(
            # punctuation counts as words, so that no text is empty
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"),
            LogisticRegression(C=10, max_iter=1000),
        ),
    }
    for model in models.values():
        model.fit(_joined(train), train["label"])
    return {
        name: {part: float(model.score(_joined(table), table["label"])) for part, table in scored.items()}
        for name, model in models.items()
    }


def _joined(table: pd.DataFrame) -> pd.Series:
    return table["text"] + " " + table["text_pair"] if "text_pair" in table else table["text"]
