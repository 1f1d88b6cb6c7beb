"""What each model scores on validation and test, and how near it stays to the dense one."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from accelerate.utils import send_to_device
from transformers import PreTrainedModel

from bertdyn.data.batching import make_batches
from bertdyn.geometry.intervals import bootstrap_ratio
from bertdyn.models.unpadded import is_unpadded
from bertdyn.pruning.agreement import Referee
from bertdyn.steps.config import PruneConfig
from bertdyn.steps.preparation import Texts, make_accelerator
from bertdyn.tasks.classification import Predictions, accuracy_interval
from bertdyn.tasks.task import Task

PARTS = ("validation", "test")


class Verdict(NamedTuple):
    """Of one model on one part."""

    row: dict[str, Any]
    """Of the table of scores."""
    correct: np.ndarray | None
    """[texts], bool: of classification, whether the label is right."""


class Judge:
    """Scores models beside the dense one; each is scored once a stage.

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
        self.referees = {
            part: Referee(dense, [send_to_device(batch, dense.device) for batch in loader], task)
            for part, loader in loaders.items()
        }
        self.loaders = {part: self.accelerator.prepare(loader) for part, loader in loaders.items()}
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
            count = len(agreement.kl)
            low, high = bootstrap_ratio(agreement.kl, np.ones(count), seed=self.seed)
            row = {
                "model": name,
                "stage": stage,
                "part": part,
                **self.task.metrics(predictions, part),
                "kl": float(agreement.kl.mean()),
                "kl_low": float(low),
                "kl_high": float(high),
                "agreement": float(agreement.same.mean()),
                "num_rows": count,
            }
            correct = None
            if isinstance(predictions, Predictions):
                correct = predictions.predicted == predictions.labels
                row["accuracy_low"], row["accuracy_high"] = accuracy_interval(int(correct.sum()), len(correct))
            self.verdicts[name, stage, part] = Verdict(row, correct)

    def table(self) -> pd.DataFrame:
        """One row a model, stage and part."""
        return pd.DataFrame([verdict.row for verdict in self.verdicts.values()])

    def differences(self) -> pd.DataFrame:
        """The pruned model's accuracy less that of every other one at the same stage, and less the dense one's before
        any recovery: part, stage, other, other_stage, difference and its 95 % interval over texts, which are paired.

        Empty for questions, whose answers are not right or wrong.
        """
        rows = []
        for (name, stage, part), verdict in self.verdicts.items():
            own = [s for s in ("surgery", "recovery") if ("pruned", s, part) in self.verdicts]
            for mine in own if (name, stage) == ("dense", "surgery") else [stage]:
                pruned = self.verdicts.get(("pruned", mine, part))
                if name == "pruned" or pruned is None or pruned.correct is None or verdict.correct is None:
                    continue
                paired = pruned.correct.astype(float) - verdict.correct
                low, high = bootstrap_ratio(paired, np.ones(len(paired)), seed=self.seed)
                rows.append(
                    {
                        "part": part,
                        "stage": mine,
                        "other": name,
                        "other_stage": stage,
                        "difference": float(paired.mean()),
                        "difference_low": float(low),
                        "difference_high": float(high),
                    }
                )
        return pd.DataFrame(rows)
