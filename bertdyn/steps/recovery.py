"""Training after surgery, on the one training core: of the pruned model and, by the same recipe, of its controls."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from bertdyn.steps.preparation import Texts, batches_of, make_accelerator
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.tasks.distillation import Distillation
from bertdyn.tasks.task import Task
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.checkpoints import Checkpoints
from bertdyn.training.loop import AtEpochEnd, Listener, Progress, train
from bertdyn.training.optimization import make_optimizer, make_scheduler, updates_per_epoch
from bertdyn.training.progress_bar import ProgressBar
from bertdyn.training.selection import EarlyStopping, best_epoch


class Recovery(NamedTuple):
    """What is the same for all models that are trained after surgery."""

    config: PruneConfig
    texts: Texts
    task: Task
    teacher: PreTrainedModel
    """The dense model."""


def recover(
    recovery: Recovery,
    model: PreTrainedModel,
    tracker: Tracker,
    *,
    keep_checkpoints: bool,
    score: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    listeners: Sequence[Listener] = (),
) -> int:
    """Train `model` in place, with the dense model as a teacher where the options say so; go back to its best epoch.

    Parameters
    ----------
    model
        On the device of the teacher, computing padding or not as the teacher does.
    tracker
        Receives the metrics of every epoch, and with `keep_checkpoints` the checkpoints.
    score
        The metrics of a model on validation. Default: those of the task.
    listeners
        Told last at the end of every epoch.

    Returns
    -------
    best
        The epoch, by the task's validation score.
    """
    config, texts, task = recovery.config, recovery.texts, recovery.task
    learned: Task = task
    if config.distillation or config.hidden_distillation:
        learned = Distillation(
            task, recovery.teacher, config.distillation, config.temperature, config.hidden_distillation
        )
    accelerator = make_accelerator(
        config.mixed_precision, gradient_accumulation_steps=config.gradient_accumulation_steps
    )
    optimizer = make_optimizer(model, config)
    updates = updates_per_epoch(len(texts.tokens["train"]), config)
    scheduler = make_scheduler(optimizer, config, config.num_train_epochs * updates)
    batches = batches_of("train", config, texts, model, accelerator)
    score = score or task_scores(recovery, model, accelerator)
    best = _BestWeights(model, task.selection_metric)

    def evaluate(progress: Progress) -> None:
        progress.metrics.update({f"eval/{name}": value for name, value in score(model).items()})

    around: list[Listener] = [AtEpochEnd(evaluate), best]
    around += [EarlyStopping(task.selection_metric, config.early_stopping_patience)]
    if keep_checkpoints:
        around += [checkpoints(recovery, model, tracker, optimizer, scheduler)]
    around += [
        AtEpochEnd(lambda progress: tracker.log_metrics(progress.metrics, progress.epoch)),
        ProgressBar(len(batches), config.num_train_epochs, (task.selection_metric,)),
        *listeners,
    ]
    progress = train(
        accelerator,
        model,
        batches,
        learned.loss,
        optimizer,
        scheduler,
        num_epochs=config.num_train_epochs,
        seed=config.seed,
        max_grad_norm=config.max_grad_norm,
        listeners=around,
    )
    best.restore()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # else its forward would stay in mixed precision
    model.eval()
    return best_epoch(progress.history, task.selection_metric)


def task_scores(
    recovery: Recovery, model: PreTrainedModel, accelerator: Accelerator
) -> Callable[[PreTrainedModel], dict[str, float]]:
    """The scores of the task on validation, whose batches are for models that compute padding as `model` does."""
    task = recovery.task
    batches = batches_of("validation", recovery.config, recovery.texts, model, accelerator)
    return lambda trained: task.metrics(task.predict(accelerator, trained, batches, "validation"), "validation")


def checkpoints(
    recovery: Recovery, model: PreTrainedModel, tracker: Tracker, optimizer: Optimizer, scheduler: LRScheduler
) -> Checkpoints:
    """What writes the checkpoints of a run, as those of fine-tuning are written."""
    config = recovery.config
    return Checkpoints(
        tracker.folder,
        model,
        recovery.texts.tokenizer,
        optimizer,
        scheduler,
        metric=recovery.task.selection_metric,
        keep=config.keep_checkpoints,
        log_spaced=config.log_spaced_checkpoints,
        dtype=getattr(torch, config.checkpoint_dtype),
        saved=tracker.publish,
    )


class _BestWeights(Listener):
    """Keeps the weights of the best epoch so far, to go back to."""

    def __init__(self, model: PreTrainedModel, metric: str) -> None:
        self.model, self.metric = model, metric
        self.weights: dict[str, Tensor] = {}

    def on_epoch_end(self, progress: Progress) -> None:
        if progress.epoch and best_epoch(progress.history, self.metric) == progress.epoch:
            self.weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def restore(self) -> None:
        self.model.load_state_dict(self.weights)
