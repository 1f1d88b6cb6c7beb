"""What the training core needs to know of a task."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from bertdyn.data.batching import Batch


class Task(Protocol):
    """A head, a loss, and how outputs become predictions and scores."""

    @property
    def name(self) -> str:
        """A key of `bertdyn.models.loading.AUTO_CLASSES`."""

    @property
    def selection_metric(self) -> str:
        """The metric, higher is better, by which the best epoch is chosen: `eval/<one of metrics>`."""

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """The training loss of one batch, a mean over its examples."""

    def log_probabilities(self, model: Callable[..., Any], batch: Batch) -> list[Tensor]:
        """What `model` says of one batch: [batch, options] for each choice that the head makes (one of classes, two of
        positions), what cannot be chosen at the lowest finite number."""

    def predict(self, accelerator: Accelerator, model: nn.Module, batches: Iterable[Batch], part: str) -> Any:
        """What `model` says of `part`, in the order of its examples; the same in every process."""

    def metrics(self, predictions: Any, part: str) -> dict[str, float]:
        """The scores of `predictions`, the mean `loss` among them."""


class Once:
    """A model that runs a batch once: what it returned answers all further calls."""

    def __init__(self, model: Callable[..., Any], **options: Any) -> None:
        self.model, self.options = model, options
        self.output: Any = None

    def __call__(self, **inputs: Any) -> Any:
        if self.output is None:
            self.output = self.model(**inputs, **self.options)
        return self.output
