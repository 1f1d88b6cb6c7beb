"""What each model scores on validation and test, and how near it stays to the dense one."""

import logging
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from bertdyn.data.batching import make_batches
from bertdyn.geometry.intervals import bootstrap_ratio
from bertdyn.models.unpadded import is_unpadded
from bertdyn.pruning.agreement import Referee
from bertdyn.steps.preparation import Texts, make_accelerator
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.tasks.classification import Predictions, accuracy_interval
from bertdyn.tasks.question_answering import QuestionAnswering, cluster_interval
from bertdyn.tasks.task import Task

logger = logging.getLogger(__name__)

PARTS = ("validation", "test")
"""In this order: the threshold for "no answer" is that of validation."""


class Verdict(NamedTuple):
    """Of one model on one part."""

    row: dict[str, Any]
    """Of the table of scores."""
    scored: np.ndarray
    """[examples]: 1 where the label is right; of questions, F1."""


class Judge:
    """Scores models beside the dense one; each is scored once a stage.

    Scores are computed in the precision of the run, the distance from the dense model in float32.

    Parameters
    ----------
    dense
        What the others are compared with.
    """

    def __init__(self, config: PruneConfig, texts: Texts, task: Task, dense: PreTrainedModel) -> None:
        self.accelerator, self.task, self.seed = make_accelerator(config.mixed_precision), task, config.seed
        loaders = {
            part: make_batches(
                texts.tokens[part],
                texts.tokenizer,
                config.per_device_eval_batch_size,
                shuffle=False,
                token_rows=is_unpadded(dense),
            )
            for part in PARTS
        }
        self.referees = {part: Referee(dense, list(loader), task) for part, loader in loaders.items()}
        self.loaders = {part: self.accelerator.prepare(loader) for part, loader in loaders.items()}
        self.frames = texts.data.parts
        self.verdicts: dict[tuple[str, str, str], Verdict] = {}
        """(model, stage, part) → what was found."""

    def score(self, name: str, stage: str, model: PreTrainedModel) -> None:
        """Score `model` on both parts.

        Parameters
        ----------
        name
            `dense`, `pruned`, or the control that it is.
        stage
            `surgery` or `recovery`: after which of the two.
        model
            Computing padding or not as the dense one does.
        """
        for part in PARTS:
            predictions = self.task.predict(self.accelerator, model, self.loaders[part], part)
            agreement = self.referees[part].agreement(model)
            low, high = bootstrap_ratio(agreement.kl, np.ones(len(agreement.kl)), seed=self.seed)
            metrics, scored = self._scored(predictions, name, stage, part)
            row = {
                "model": name,
                "stage": stage,
                "part": part,
                **metrics,
                "kl": float(agreement.kl.mean()),
                "kl_low": float(low),
                "kl_high": float(high),
                "agreement": float(agreement.same.mean()),
                "num_examples": len(scored),
            }
            self.verdicts[name, stage, part] = Verdict(row, scored)
        logger.info(
            "%s after %s: %s of the test part %.4f, KL from the dense model %.4f",
            name,
            stage,
            "accuracy" if "accuracy" in row else "f1",
            scored.mean(),
            row["kl"],
        )

    def _scored(self, predictions: Any, name: str, stage: str, part: str) -> tuple[dict[str, float], np.ndarray]:
        """Metrics with the interval of the main one, and what each example counts."""
        if isinstance(predictions, Predictions):
            correct = predictions.predicted == predictions.labels
            low, high = accuracy_interval(int(correct.sum()), len(correct))
            found = self.task.metrics(predictions, part) | {"accuracy_low": low, "accuracy_high": high}
            return found, correct.astype(np.float64)
        assert isinstance(self.task, QuestionAnswering)
        known = self.verdicts.get((name, stage, "validation"))
        found = self.task.metrics(predictions, part, known and known.row["null_threshold"])
        threshold = found["null_threshold"]
        low, high = self.task.f1_interval(predictions, part, threshold, self.seed)
        scored = self.task.question_scores(predictions, part, threshold)["f1"].to_numpy(dtype=np.float64)
        return found | {"f1_low": low, "f1_high": high}, scored

    def table(self) -> pd.DataFrame:
        """One row a model, stage and part."""
        return pd.DataFrame([verdict.row for verdict in self.verdicts.values()])

    def differences(self) -> pd.DataFrame:
        """The pruned model's score less that of every other one at the same stage, and less the dense one's before any
        recovery: part, stage, other, other_stage, difference and its 95 % interval over examples, which are paired
        (questions: whole contexts are drawn).
        """
        rows = []
        for (name, stage, part), verdict in self.verdicts.items():
            own = [s for s in ("surgery", "recovery") if ("pruned", s, part) in self.verdicts]
            for mine in own if (name, stage) == ("dense", "surgery") else [stage]:
                pruned = self.verdicts.get(("pruned", mine, part))
                if name == "pruned" or pruned is None:
                    continue
                paired = pruned.scored - verdict.scored
                low, high = self._interval(paired, part)
                rows.append(
                    {
                        "part": part,
                        "stage": mine,
                        "other": name,
                        "other_stage": stage,
                        "difference": float(paired.mean()),
                        "difference_low": low,
                        "difference_high": high,
                    }
                )
        return pd.DataFrame(rows)

    def _interval(self, values: np.ndarray, part: str) -> tuple[float, float]:
        if isinstance(self.task, QuestionAnswering):
            return cluster_interval(values, self.frames[part]["text_pair"].to_numpy(), self.seed)
        low, high = bootstrap_ratio(values, np.ones(len(values)), seed=self.seed)
        return float(low), float(high)
