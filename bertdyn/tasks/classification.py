"""Text classification: loss, evaluation in the order of the examples, metrics and reports."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
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

NAME = "classification"
SELECTION_METRIC = "eval/accuracy"


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


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of one batch."""
    return model(**model_inputs(batch), labels=batch["labels"]).loss


@torch.inference_mode()
def predict(accelerator: Accelerator, model: nn.Module, batches: Iterable[Batch]) -> Predictions:
    """Logits and labels of all of `batches`, whatever their order, sorted by row index.

    `batches` must have gone through `accelerator.prepare`; every process gets everything.
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


def metrics(predictions: Predictions) -> dict[str, float]:
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
