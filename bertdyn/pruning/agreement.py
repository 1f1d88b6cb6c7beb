"""How near a model's answers are to those of the dense one, text by text.

Accuracy cannot rank ways of pruning on some hundred sentences; the Kullback-Leibler divergence of the probabilities
can, since every text has its say.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertdyn.data.batching import Batch
from bertdyn.models.modes import evaluating
from bertdyn.tasks.task import Task


class Agreement(NamedTuple):
    """Of a model with the dense one, in the order of the texts' rows."""

    kl: np.ndarray
    """[texts]: KL(dense ‖ model) in nats; of questions, the sum over start and end."""
    same: np.ndarray
    """[texts], bool: whether every choice is the same."""


class Referee:
    """Texts and what the dense model says of them. Both stay where the batches are; one at a time goes to the model."""

    def __init__(self, dense: PreTrainedModel, batches: Sequence[Batch], task: Task) -> None:
        self.batches, self.task = batches, task
        self._dense = [self._answers(dense, batch) for batch in batches]

    def kl(self, model: PreTrainedModel) -> float:
        """Mean over the texts of KL(dense ‖ model), nats."""
        return float(self.agreement(model).kl.mean())

    def agreement(self, model: PreTrainedModel) -> Agreement:
        """How near `model` is to the dense one, for each text."""
        return self._compared(self._answers(model, batch) for batch in self.batches)

    def _compared(self, answers: Iterable[list[Tensor]]) -> Agreement:
        kl, same, index = [], [], []
        for batch, expected, found in zip(self.batches, self._dense, answers, strict=True):
            # In float64: differences of nearly equal numbers.
            pairs = [(p.double(), q.to(p.device).double()) for p, q in zip(expected, found, strict=True)]
            kl.append(sum((p.exp() * (p - q)).sum(dim=-1) for p, q in pairs))
            same.append(torch.stack([p.argmax(-1) == q.argmax(-1) for p, q in pairs]).all(dim=0))
            index.append(batch["index"])
        order = torch.cat(index).argsort()
        divergence, agreed = torch.cat(kl)[order].clamp(min=0), torch.cat(same)[order]  # type: ignore[arg-type]
        return Agreement(divergence.cpu().numpy(), agreed.cpu().numpy())

    def scored(
        self, accelerator: Accelerator, model: PreTrainedModel, batches: Iterable[Batch], part: str
    ) -> tuple[Any, Agreement]:
        """The task's predictions and the agreement, from one pass of `model`.

        Parameters
        ----------
        batches
            Those of the referee, prepared by `accelerator`, for one process.

        Returns
        -------
        predictions, agreement
        """
        again, found = _LastOutput(model), []

        def watched() -> Iterator[Batch]:
            for batch in batches:
                again.output = None
                yield batch
                found.append(self.task.log_probabilities(again, batch))

        predictions = self.task.predict(accelerator, again, watched(), part)
        return predictions, self._compared(found)

    @torch.inference_mode()
    def _answers(self, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
        here = batch["index"].device
        with evaluating(model):
            answers = self.task.log_probabilities(model, send_to_device(batch, model.device))
        return [answer.to(here) for answer in answers]


class _LastOutput(nn.Module):
    """A model that answers a second call with what it returned to the first, until `output` is taken back."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.output: Any = None

    def forward(self, **inputs: Any) -> Any:
        if self.output is None:
            self.output = self.model(**inputs)
        return self.output
