"""How near a model's answers are to those of the dense one, text by text.

Accuracy cannot rank ways of pruning on some hundred sentences; the Kullback-Leibler divergence of the probabilities
can, since every text has its say.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor
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
        kl, same, index = [], [], []
        for batch, expected in zip(self.batches, self._dense, strict=True):
            found = self._answers(model, batch)  # where the batch is
            # In float64: differences of nearly equal numbers.
            pairs = [(p.double(), q.double()) for p, q in zip(expected, found, strict=True)]
            kl.append(sum((p.exp() * (p - q)).sum(dim=-1) for p, q in pairs))
            same.append(torch.stack([p.argmax(-1) == q.argmax(-1) for p, q in pairs]).all(dim=0))
            index.append(batch["index"])
        order = torch.cat(index).argsort()
        divergence, agreed = torch.cat(kl)[order].clamp(min=0), torch.cat(same)[order]  # type: ignore[arg-type]
        return Agreement(divergence.cpu().numpy(), agreed.cpu().numpy())

    @torch.inference_mode()
    def _answers(self, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
        here = batch["index"].device
        with evaluating(model):
            answers = self.task.log_probabilities(model, send_to_device(batch, model.device))
        return [answer.to(here) for answer in answers]
