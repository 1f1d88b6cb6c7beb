"""A task whose loss also asks for the answers, and the hidden states, of a teacher.

    loss = (1 - α) · task loss + α · T² · KL(teacher ‖ student, softened by T)
         + β · mean over layers of ‖student's - teacher's hidden states‖² / ‖teacher's‖²

Teacher and student have the same depth and hidden size, as a dense model and one pruned from it, so that hidden states
need no projection. Of questions, the divergences of start and end are averaged, as their losses are. Everything but the
loss is the task's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertdyn.data.batching import Batch
from bertdyn.models.unpadded import Packing, is_unpadded, packing_of
from bertdyn.tasks.task import Once, Task


@dataclass(frozen=True)
class Distillation:
    """`task`, learned from a teacher, too (Hinton et al. 2015; hidden states: Sun et al. 2019)."""

    task: Task
    teacher: PreTrainedModel
    """In evaluation mode, on the device of the student; computing padding or not, as the student does."""
    weight: float
    """α, from 0 to 1."""
    temperature: float
    """T"""
    hidden_weight: float = 0.0
    """β; above 0, a student that computes no padding computes all tokens of its last layer."""

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def selection_metric(self) -> str:
        return self.task.selection_metric

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """The task's loss of one batch and the distances from the teacher, means over its texts."""
        options = self._options(batch)
        student, teacher = Once(model, **options), Once(self.teacher, **options)
        loss = self.task.loss(student, batch)
        with torch.no_grad():
            expected = self.task.log_probabilities(teacher, batch)
        if self.weight:
            found = self.task.log_probabilities(student, batch)
            pairs = zip(expected, found, strict=True)
            distance = torch.stack([divergence(p, q, self.temperature) for p, q in pairs]).mean()
            loss = (1 - self.weight) * loss + self.weight * self.temperature**2 * distance
        if self.hidden_weight:
            states = zip(teacher.output.hidden_states[1:], student.output.hidden_states[1:], strict=True)
            real = options.get("packing", batch["attention_mask"].bool())
            loss = loss + self.hidden_weight * torch.stack([_relative_error(*pair, real) for pair in states]).mean()
        return loss

    def _options(self, batch: Batch) -> dict[str, Any]:
        """What both models are called with besides the batch, to have hidden states of the same tokens."""
        if not self.hidden_weight:
            return {}
        options: dict[str, Any] = {"output_hidden_states": True}
        if is_unpadded(self.teacher):
            options["packing"] = packing_of(batch["attention_mask"], batch.get("token_rows"))
        return options

    def log_probabilities(self, model: Callable[..., Any], batch: Batch) -> list[Tensor]:
        """The task's."""
        return self.task.log_probabilities(model, batch)

    def predict(self, accelerator: Accelerator, model: nn.Module, batches: Iterable[Batch], part: str) -> Any:
        """The task's."""
        return self.task.predict(accelerator, model, batches, part)

    def metrics(self, predictions: Any, part: str) -> dict[str, float]:
        """The task's."""
        return self.task.metrics(predictions, part)


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Mean over texts of KL(teacher ‖ student) of log-probabilities [batch, options], both softened."""
    # Below 1, what cannot be chosen would become infinite.
    p, q = (F.log_softmax((x / temperature).clamp(min=torch.finfo(x.dtype).min), dim=-1) for x in (teacher, student))
    return (p.exp() * (p - q)).sum(dim=-1).mean()


def _relative_error(teacher: Tensor, student: Tensor, real: Packing | Tensor) -> Tensor:
    """Squared error over the teacher's square, of real tokens: [1, tokens, hidden], or padded with a mask."""
    if isinstance(real, Tensor):
        teacher, student = teacher[real], student[real]
    return (student - teacher).square().sum() / teacher.square().sum()
