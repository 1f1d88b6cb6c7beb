"""Fine-tuning: an encoder and a dataset in; checkpoints, dynamics, features and a report out.

This module wires the parts together and holds no science: data → model → the training loop with
its listeners → the best epoch's scores, once, on the test part → report.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, broadcast_object_list, set_seed
from datasets import Dataset
from safetensors.torch import load_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.data.batching import make_batches
from bertdyn.data.loading import load_data
from bertdyn.data.text_data import TextData
from bertdyn.data.tokenization import tokenize_parts
from bertdyn.errors import InputError
from bertdyn.features.extraction import example_rows, extract_pooled, pooled_layers, token_rows
from bertdyn.features.store import FeatureStore, Manifest
from bertdyn.files import cache_folder, write_json
from bertdyn.models.loading import check_max_length, load_config, load_model, load_tokenizer
from bertdyn.steps.config import FineTuneConfig
from bertdyn.steps.fine_tune_report import Findings, seeds_report, write_report
from bertdyn.tasks import classification as task
from bertdyn.tracking.locations import check_unfinished, load_run_config, require_source, resolve_model
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.checkpoints import (
    TRAINING_STATE,
    Checkpoints,
    checkpoint_path,
    load_progress,
    load_training_state,
)
from bertdyn.training.dynamics import Dynamics
from bertdyn.training.freezing import Freezing, make_schedule
from bertdyn.training.loop import AtEpochEnd, Listener, Progress, train
from bertdyn.training.optimization import make_optimizer, make_scheduler, updates_per_epoch
from bertdyn.training.progress_bar import ProgressBar
from bertdyn.training.resources import Resources
from bertdyn.training.selection import EarlyStopping, best_epoch


@dataclass(frozen=True)
class FineTuneResult:
    """What a fine-tuning run found."""

    best_epoch: int
    scores: pd.DataFrame
    """One row per part, state and baseline: accuracy with its interval, macro and weighted F1, loss."""
    summary: str
    """The run's report, Markdown."""


class Texts(NamedTuple):
    """The data as text and as tokens."""

    data: TextData
    tokenizer: PreTrainedTokenizerBase
    tokens: dict[str, Dataset]
    """Part → tokenised rows."""


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
    accelerator = make_accelerator(config)
    folder = Path(broadcast_object_list([str(tracker.folder)])[0])
    texts = load_texts(config, accelerator)
    if accelerator.is_main_process:
        record_inputs(config, texts, tracker)
    progress = earlier_progress(config, tracker, folder, accelerator)
    model = start_model(config, texts, folder, progress).to(accelerator.device)
    optimizer = make_optimizer(model, config)
    updates = updates_per_epoch(len(texts.tokens["train"]), config, accelerator.num_processes)
    scheduler = make_scheduler(optimizer, config, config.num_train_epochs * updates)
    if progress:
        load_training_state(folder / TRAINING_STATE, model, optimizer, scheduler)
    batches = {part: batches_of(part, config, texts, accelerator) for part in texts.tokens}
    job = Job(config, tracker, folder, accelerator, texts, batches, model, optimizer, scheduler)

    progress = train(
        accelerator,
        model,
        batches["train"],
        task.loss,
        optimizer,
        scheduler,
        num_epochs=config.num_train_epochs,
        seed=config.seed,
        max_grad_norm=config.max_grad_norm,
        listeners=make_listeners(job, progress),
        progress=progress,
    )
    accelerator.wait_for_everyone()
    return finish(job, progress)


def fine_tune_seeds(config: FineTuneConfig, tracker: Tracker) -> FineTuneResult:
    """One child run per seed of `config.seeds`, and what they have in common.

    Data and parts are the same for all seeds; new weights, order of batches and dropout differ.
    """
    tracker.log_config(dataclasses.asdict(config))
    results = {}
    for seed in config.seed_list():
        child_config = dataclasses.replace(config, seed=seed, seeds=None, run_name=None)
        with tracker.child(child_config.default_run_name(), {}) as child:
            results[seed] = fine_tune(child_config, child)
    table = pd.concat([result.scores.assign(seed=seed) for seed, result in results.items()], ignore_index=True)
    summary, intervals = seeds_report(config, table)
    tracker.log_table(table, "seeds")
    tracker.log_metrics(intervals, config.num_train_epochs)
    tracker.note(summary)
    return FineTuneResult(0, table, summary)


def resumed_config(config: FineTuneConfig, given: set[str]) -> FineTuneConfig:
    """The options with which the run `config.resume_run_id` was started.

    Raises
    ------
    InputError
        If there is no such fine-tuning run, it has ended well, or an option that was given now says
        something else.
    """
    run_id = config.resume_run_id or ""
    require_source(run_id, ("fine-tune",))
    stored = load_run_config(run_id)
    for name in sorted(given - {"resume_run_id"}):
        if name not in stored or getattr(config, name) != stored[name]:
            raise InputError(
                f"--{name} {getattr(config, name)!r}: run {run_id} was started with {stored.get(name)!r}; "
                "a resumed run keeps its options, so leave the flag out"
            )
    check_unfinished(run_id)
    fields = {field.name for field in dataclasses.fields(FineTuneConfig)}
    if set(stored) != fields:
        raise InputError(f"--resume_run_id {run_id}: that run was made by another version of bertdyn")
    return FineTuneConfig(**stored | {"resume_run_id": run_id})


def make_accelerator(config: FineTuneConfig) -> Accelerator:
    """Device, precision and processes, as accelerate or torchrun set them up."""
    partly_frozen = bool(config.freeze_layers or config.freeze_embeddings)
    try:
        return Accelerator(
            cpu=not torch.accelerator.is_available(),  # said outright, else accelerate ignores torchrun on a CPU
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=partly_frozen)],
        )
    except ValueError as error:
        raise InputError(f"--mixed_precision {config.mixed_precision}: {error}") from error


def load_texts(config: FineTuneConfig, accelerator: Accelerator) -> Texts:
    """All parts of the data, tokenised (once, by the main process; the others read its cache)."""
    name = resolve_model(config.model_name_or_path)
    model_config = load_config(name, trust_remote_code=config.trust_remote_code)
    check_max_length(model_config, config.max_length)
    tokenizer = load_tokenizer(config.tokenizer_name or name, trust_remote_code=config.trust_remote_code)
    data = load_data(config)
    with accelerator.main_process_first():
        tokens = tokenize_parts(data, tokenizer, config.max_length, cache_folder("tokens"))
    return Texts(data, tokenizer, tokens)


def record_inputs(config: FineTuneConfig, texts: Texts, tracker: Tracker) -> None:
    """Write down what goes in; refuse to resume on data that changed.

    Raises
    ------
    InputError
        If an earlier attempt at this run saw other data.
    """
    data = texts.data
    if config.resume_run_id:
        seen = json.loads(tracker.fetch("data.json").read_text())["fingerprint"]
        if seen != data.fingerprint:
            raise InputError(f"the data of run {config.resume_run_id} changed since it was started: {data.source}")
    tracker.log_config(dataclasses.asdict(config) | {"resume_run_id": None})
    write_json(tracker.folder / "data.json", {"fingerprint": data.fingerprint, "source": data.source, **data.report})
    tracker.publish("data.json")
    for part, table in data.parts.items():
        context = {"train": "training"}.get(part, part)
        tracker.log_dataset(table, f"{data.name}-{part}", data.source, data.fingerprint[:8], context, "label")


def earlier_progress(
    config: FineTuneConfig, tracker: Tracker, folder: Path, accelerator: Accelerator
) -> Progress | None:
    """How far an interrupted attempt at this run came, with all its files in `folder`; None for a new run."""
    if not config.resume_run_id:
        return None
    if accelerator.is_main_process:
        try:
            progress = load_progress(tracker.fetch(TRAINING_STATE))
        except FileNotFoundError:  # it did not come to the end of epoch 0
            pass
        else:
            for path in ("dynamics.parquet", checkpoint_path(0), checkpoint_path(progress.epoch)):
                tracker.fetch(path)
            if config.store_features:
                tracker.fetch("features")
            # What was reached is perhaps not all on the server; points that it has are not sent again.
            for epoch, metrics in enumerate(progress.history):
                tracker.log_metrics(metrics, epoch)
    accelerator.wait_for_everyone()
    state = folder / TRAINING_STATE
    return load_progress(state) if state.exists() else None


def start_model(config: FineTuneConfig, texts: Texts, folder: Path, progress: Progress | None) -> PreTrainedModel:
    """The model to train: as the options say, or from the checkpoint of the epoch that was reached."""
    set_seed(config.seed)
    labels = texts.data.label_names
    if progress:
        return load_model(str(folder / checkpoint_path(progress.epoch)), task.NAME, label_names=labels)
    model = load_model(
        resolve_model(config.model_name_or_path),
        task.NAME,
        label_names=labels,
        from_scratch=config.from_scratch,
        config_overrides=config.config_overrides,
        trust_remote_code=config.trust_remote_code,
    )
    if len(texts.tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(texts.tokenizer)} tokens, the model embeds {model.config.vocab_size}: "
            "they do not belong together (--tokenizer_name, --model_name_or_path)"
        )
    return model


def batches_of(part: str, config: FineTuneConfig, texts: Texts, accelerator: Accelerator) -> DataLoader:
    """Batches of one part: shuffled by epoch for training, by length and prepared for everything else."""
    training = part == "train"
    size = config.per_device_train_batch_size if training else config.per_device_eval_batch_size
    loader = make_batches(texts.tokens[part], texts.tokenizer, size, shuffle=training, seed=config.seed)
    return loader if training else accelerator.prepare(loader)


def make_listeners(job: Job, progress: Progress | None) -> list[Listener]:
    """All that happens around the training, in the order in which it happens at an epoch's end."""
    config, tracker, model = job.config, job.tracker, job.model
    on_main = job.accelerator.is_main_process
    schedule = make_schedule(
        model, config.freeze_layers, config.freeze_embeddings, config.freeze_epochs, config.gradual_unfreezing
    )
    dynamics = make_dynamics(job, progress)

    def evaluate(progress: Progress) -> None:
        scores = task.metrics(task.predict(job.accelerator, model, job.batches["validation"]))
        progress.metrics.update({f"eval/{name}": value for name, value in scores.items()})

    listeners: list[Listener] = [Freezing(model, schedule)]
    if on_main:
        listeners += [Resources(job.accelerator.device, job.accelerator.num_processes)]
    listeners += [AtEpochEnd(evaluate)]
    if on_main:
        listeners += [dynamics, AtEpochEnd(lambda progress: tracker.log_table(dynamics.table, "dynamics"))]
    if config.store_features:
        listeners += [make_extraction(job, progress)]
    listeners += [EarlyStopping(task.SELECTION_METRIC, config.early_stopping_patience)]
    if on_main:
        listeners += [
            Checkpoints(
                job.folder,
                model,
                job.texts.tokenizer,
                job.optimizer,
                job.scheduler,
                metric=task.SELECTION_METRIC,
                keep=config.keep_checkpoints,
                log_spaced=config.log_spaced_checkpoints,
                saved=tracker.publish,
            ),
            AtEpochEnd(lambda progress: tracker.log_metrics(progress.metrics, progress.epoch)),
            ProgressBar(len(job.batches["train"]) // job.accelerator.num_processes, config.num_train_epochs),
        ]
    return listeners


def make_dynamics(job: Job, progress: Progress | None) -> Dynamics:
    """The dynamics from epoch 0, or with the rows and the initial weights of an earlier attempt."""
    if not progress:
        return Dynamics(job.model)
    table = pd.read_parquet(job.folder / "dynamics.parquet")
    initial = load_file(job.folder / checkpoint_path(0) / "model.safetensors")
    return Dynamics(job.model, initial, table[table["epoch"] <= progress.epoch])


def make_extraction(job: Job, progress: Progress | None) -> Listener:
    """Pooled features of the probe part after every epoch."""
    folder, part, tokens = job.folder / "features", "probe", job.texts.tokens["probe"]
    table = job.texts.data.parts[part]
    if job.accelerator.is_main_process and not progress:
        lengths = np.array(tokens["length"])
        with_tokens = job.config.store_attention
        manifest = Manifest(
            width=job.model.config.hidden_size,
            layers=pooled_layers(job.model),
            num_examples=len(table),
            num_tokens=int(lengths.sum()) if with_tokens else 0,
            kinds=["first", "mean"] + (["attention"] if with_tokens else []),
            dtype="float32",
            fingerprints={"data": job.texts.data.fingerprint, "model": job.config.model_name_or_path},
        )
        FeatureStore.create(
            folder,
            example_rows(table, part, lengths),
            manifest,
            token_rows(table["example_id"], tokens["input_ids"], job.texts.tokenizer) if with_tokens else None,
        )
    job.accelerator.wait_for_everyone()
    store = FeatureStore.open(folder)
    if progress:
        store.keep_states([f"epoch_{epoch:03d}" for epoch in range(progress.epoch + 1)])

    def extract(progress: Progress) -> None:
        state = f"epoch_{progress.epoch:03d}"
        extract_pooled(job.accelerator, job.model, job.batches[part], store, state)
        if job.accelerator.is_main_process:
            job.tracker.publish("features")

    return AtEpochEnd(extract)


def finish(job: Job, progress: Progress) -> FineTuneResult:
    """Score the best epoch (and the start) on the test part, once; write tables, figures, model and report."""
    config, tracker, labels = job.config, job.tracker, job.texts.data.label_names
    best = best_epoch(progress.history, task.SELECTION_METRIC)
    predictions = {}
    for state, epoch in (("pretrained", 0), ("best", best)):
        if job.accelerator.is_main_process:
            tracker.fetch(checkpoint_path(epoch))
        job.accelerator.wait_for_everyone()
        model = load_model(str(job.folder / checkpoint_path(epoch)), task.NAME, label_names=labels)
        model.to(job.accelerator.device)
        for part in ("validation", "test"):
            predictions[part, state] = task.predict(job.accelerator, model, job.batches[part])
    if not job.accelerator.is_main_process:
        return FineTuneResult(best, pd.DataFrame(), "")
    scored = {part: job.texts.data.parts[part] for part in ("validation", "test")}
    findings = Findings(
        config,
        job.texts.data,
        progress.history,
        predictions,
        task.baselines(job.texts.data.parts["train"], scored),
        pd.read_parquet(job.folder / "dynamics.parquet"),
        FeatureStore.open(job.folder / "features") if config.store_features else None,
    )
    scores, summary = write_report(findings, tracker)
    final = scores[(scores["part"] == "test") & (scores["state"] == "best")].iloc[0]
    measured = {"test/accuracy": float(final["accuracy"]), "test/macro_f1": float(final["macro_f1"])}
    tracker.log_model(model, job.texts.tokenizer, "text-classification", measured, config.register_as)
    return FineTuneResult(best, scores, summary)
