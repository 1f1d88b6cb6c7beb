"""Fine-tuning: an encoder and a dataset in; checkpoints, dynamics, features and a report out.

This module wires the parts together and holds no science: data → model → the training loop with
its listeners → the best epoch's scores, once, on the test part → report.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from bertdyn.data.tokenization import tokenizer_fingerprint
from bertdyn.features.extraction import extract_state, make_manifest
from bertdyn.features.store import FeatureStore
from bertdyn.features.texts import texts_of
from bertdyn.features.writing import create_store
from bertdyn.models.anatomy import anatomy_of
from bertdyn.steps.config import FineTuneConfig
from bertdyn.steps.findings import Findings
from bertdyn.steps.fine_tune_report import write_report
from bertdyn.steps.preparation import (
    Texts,
    batches_of,
    check_unchanged,
    load_checkpoint,
    load_texts,
    make_accelerator,
    make_task,
    record_inputs,
    start_model,
)
from bertdyn.steps.resuming import earlier_progress
from bertdyn.tasks.task import Task
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.checkpoints import (
    TRAINING_STATE,
    Checkpoints,
    checkpoint_path,
    load_training_state,
)
from bertdyn.training.dynamics import Dynamics
from bertdyn.training.freezing import FreezeSchedule, Freezing, make_schedule
from bertdyn.training.loop import AtEpochEnd, Listener, Progress, train
from bertdyn.training.optimization import make_optimizer, make_scheduler, updates_per_epoch
from bertdyn.training.progress_bar import ProgressBar
from bertdyn.training.resources import Resources
from bertdyn.training.selection import EarlyStopping, best_epoch

PIPELINES = {"classification": "text-classification", "question-answering": "question-answering"}
"""Task → the name that Hugging Face pipelines and MLflow's model types give it."""


@dataclass(frozen=True)
class FineTuneResult:
    """What a fine-tuning run found."""

    best_epoch: int | None
    """By the task's validation score; None for several seeds, of which each has its own."""
    scores: pd.DataFrame
    """One row per part, state and baseline: the task's metrics, the main one with its interval."""
    summary: str
    """The run's report, Markdown."""


@dataclass(frozen=True)
class Job:
    """Everything that one fine-tuning works with."""

    config: FineTuneConfig
    tracker: Tracker
    """Used by the main process only."""
    folder: Path
    """Where the run's files are written; the same for all processes."""
    accelerator: Accelerator
    texts: Texts
    task: Task
    batches: dict[str, DataLoader]
    """Part → batches; all but train's are prepared by the accelerator."""
    model: PreTrainedModel
    optimizer: Optimizer
    scheduler: LRScheduler


def fine_tune(config: FineTuneConfig, tracker: Tracker) -> FineTuneResult:
    """Fine-tune one encoder with one seed; go on with an earlier attempt where `config` says so.

    With several processes, each calls this; only the main one uses its `tracker`.

    Raises
    ------
    InputError
        Whatever is wrong with data, model or options.
    """
    job, progress = make_job(config, tracker)
    progress = train_job(job, make_listeners(job, progress), progress)
    job.accelerator.wait_for_everyone()
    return finish(job, progress)


def make_job(config: FineTuneConfig, tracker: Tracker) -> tuple[Job, Progress | None]:
    """Everything as it is before the first step, or where an interrupted attempt left it, and how far that came.

    Raises
    ------
    InputError
        Whatever is wrong with data, model or options.
    """
    accelerator = make_accelerator(
        config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        with_frozen=bool(config.freeze_layers or config.freeze_embeddings),
    )
    folder = Path(broadcast_object_list([str(tracker.folder)])[0])
    if accelerator.is_main_process:
        tracker.log_config(dataclasses.asdict(config) | {"resume_run_id": None})
    texts = load_texts(config, accelerator)
    if accelerator.is_main_process:
        check_unchanged(config, texts.data, tracker)
        record_inputs(texts, tracker)
    task = make_task(config, texts, accelerator.device)
    progress = earlier_progress(config, tracker, folder, accelerator)
    job = assemble(config, tracker, folder, accelerator, texts, task, progress)
    if progress:
        load_training_state(folder / TRAINING_STATE, job.model, job.optimizer, job.scheduler, accelerator.scaler)
    return job, progress


def assemble(
    config: FineTuneConfig,
    tracker: Tracker,
    folder: Path,
    accelerator: Accelerator,
    texts: Texts,
    task: Task,
    progress: Progress | None = None,
) -> Job:
    """Model, optimiser and batches, for texts that are there already."""
    model = start_model(config, texts, folder, progress).to(accelerator.device)
    optimizer = make_optimizer(model, config)
    updates = updates_per_epoch(len(texts.tokens["train"]), config, accelerator.num_processes)
    scheduler = make_scheduler(optimizer, config, config.num_train_epochs * updates)
    batches = {part: batches_of(part, config, texts, model, accelerator) for part in ("train", "validation", "test")}
    return Job(config, tracker, folder, accelerator, texts, task, batches, model, optimizer, scheduler)


def train_job(job: Job, listeners: Sequence[Listener], progress: Progress | None = None) -> Progress:
    """Run the training loop of `job` from `progress` to its last epoch."""
    return train(
        job.accelerator,
        job.model,
        job.batches["train"],
        job.task.loss,
        job.optimizer,
        job.scheduler,
        num_epochs=job.config.num_train_epochs,
        seed=job.config.seed,
        max_grad_norm=job.config.max_grad_norm,
        listeners=listeners,
        progress=progress,
    )


def make_listeners(job: Job, progress: Progress | None) -> list[Listener]:
    """All that happens around the training, in the order in which it happens at an epoch's end."""
    config, tracker, task, model = job.config, job.tracker, job.task, job.model
    on_main = job.accelerator.is_main_process
    listeners: list[Listener] = [Freezing(model, freeze_schedule(config, model))]
    if on_main:
        listeners += [Resources(job.accelerator.device, job.accelerator.num_processes)]
    listeners += [evaluation(job)]
    if on_main:
        dynamics = make_dynamics(job, progress)
        listeners += [dynamics, AtEpochEnd(lambda progress: tracker.log_table(dynamics.table, "dynamics"))]
    if config.store_features:
        listeners += [make_extraction(job, progress)]
    listeners += [EarlyStopping(task.selection_metric, config.early_stopping_patience)]
    if on_main:
        listeners += [
            Checkpoints(
                job.folder,
                model,
                job.texts.tokenizer,
                job.optimizer,
                job.scheduler,
                scaler=job.accelerator.scaler,
                metric=task.selection_metric,
                keep=config.keep_checkpoints,
                log_spaced=config.log_spaced_checkpoints,
                dtype=getattr(torch, config.checkpoint_dtype),
                saved=tracker.publish,
            ),
            AtEpochEnd(lambda progress: tracker.log_metrics(progress.metrics, progress.epoch)),
            ProgressBar(
                len(job.batches["train"]) // job.accelerator.num_processes,
                config.num_train_epochs,
                (task.selection_metric,),
            ),
        ]
    return listeners


def freeze_schedule(config: FineTuneConfig, model: PreTrainedModel) -> FreezeSchedule:
    """The schedule that the options ask for."""
    return make_schedule(
        model, config.freeze_layers, config.freeze_embeddings, config.freeze_epochs, config.gradual_unfreezing
    )


def evaluation(job: Job) -> Listener:
    """The task's scores on validation after every epoch, as `eval/…`."""

    def evaluate(progress: Progress) -> None:
        predictions = job.task.predict(job.accelerator, job.model, job.batches["validation"], "validation")
        scores = job.task.metrics(predictions, "validation")
        progress.metrics.update({f"eval/{name}": value for name, value in scores.items()})

    return AtEpochEnd(evaluate)


def make_dynamics(job: Job, progress: Progress | None) -> Dynamics:
    """The dynamics from epoch 0, or with the rows and the initial weights of an earlier attempt."""
    if not progress:
        return Dynamics(job.model, folder=job.folder)
    table = pd.read_parquet(job.folder / "dynamics.parquet")
    initial = load_file(job.folder / checkpoint_path(0) / "model.safetensors")
    return Dynamics(job.model, initial, table[table["epoch"] <= progress.epoch], job.folder)


def make_extraction(job: Job, progress: Progress | None) -> Listener:
    """Pooled features of the probe part after every epoch."""
    folder, config, model = job.folder / "features", job.config, job.model
    texts = texts_of(job.texts.data, job.texts.tokens, ["probe"])
    if job.accelerator.is_main_process and progress:
        FeatureStore.open(folder, only=[f"epoch_{epoch:03d}" for epoch in range(progress.epoch + 1)])
    elif job.accelerator.is_main_process:
        manifest = make_manifest(
            model,
            texts,
            sites=["hidden", "attention"] if config.store_attention else ["hidden"],
            rows=["first", "mean"],
            layers=range(anatomy_of(model).depth + 1),
            dtype="float32",
            label_names=job.texts.data.label_names,
            fingerprints={
                "data": job.texts.data.fingerprint,
                "tokenizer": tokenizer_fingerprint(job.texts.tokenizer),
                "run_id": job.tracker.run_id or "",
            },
        )
        create_store(folder, manifest, texts.example_table(), texts.token_pieces(job.texts.tokenizer))
        for path in manifest.tables():
            job.tracker.publish(f"features/{path}")
    job.accelerator.wait_for_everyone()
    store = FeatureStore.open(folder)

    def extract(progress: Progress) -> None:
        state = f"epoch_{progress.epoch:03d}"
        extract_state(
            job.accelerator,
            model,
            texts,
            job.texts.tokenizer,
            store,
            state,
            fingerprint=f"{config.model_name_or_path}, seed {config.seed}, epoch {progress.epoch}",
            batch_size=config.per_device_eval_batch_size,
        )
        if job.accelerator.is_main_process:
            for path in (state, "examples.parquet", "manifest.json"):  # the manifest, which names the state, last
                job.tracker.publish(f"features/{path}")

    return AtEpochEnd(extract)


def finish(job: Job, progress: Progress) -> FineTuneResult:
    """Score the best epoch (and the start) on the test part, once; write tables, figures, model and report."""
    config, tracker, task, data = job.config, job.tracker, job.task, job.texts.data
    best = best_epoch(progress.history, task.selection_metric)
    models, predictions = {}, {}
    for state, epoch in (("pretrained", 0), ("best", best)):
        if job.accelerator.is_main_process:
            tracker.fetch(checkpoint_path(epoch))
        job.accelerator.wait_for_everyone()
        models[state] = load_checkpoint(config, data, job.folder, epoch).to(job.accelerator.device)
        for part in ("validation", "test"):
            predictions[part, state] = task.predict(job.accelerator, models[state], job.batches[part], part)
    if not job.accelerator.is_main_process:
        return FineTuneResult(best, pd.DataFrame(), "")
    findings = Findings(
        config,
        data,
        task,
        progress.history,
        best,
        predictions,
        pd.read_parquet(job.folder / "dynamics.parquet"),
        FeatureStore.open(job.folder / "features") if config.store_features else None,
    )
    outcome, summary = write_report(findings, tracker)
    measured = {name: value for name, value in outcome.final.items() if name.startswith("test/")}
    tracker.log_model(models["best"], job.texts.tokenizer, PIPELINES[task.name], measured, config.register_as)
    tracker.note(summary)
    return FineTuneResult(best, outcome.scores, summary)
