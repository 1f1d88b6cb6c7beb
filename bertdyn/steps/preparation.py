"""What a training starts with: processes, texts and tokens, a model, batches, and the record of all that."""

import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    set_seed,
)
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.data.batching import make_batches
from bertdyn.data.loading import load_data
from bertdyn.data.text_data import TextData
from bertdyn.data.tokenization import TokenizedParts, tokenize_parts
from bertdyn.errors import InputError
from bertdyn.files import cache_folder, write_json
from bertdyn.models.loading import check_max_length, check_tokenizer, load_config, load_model, load_tokenizer
from bertdyn.models.unpadded import can_run_unpadded, is_unpadded, run_unpadded
from bertdyn.steps.config import FineTuneConfig
from bertdyn.tasks.classification import Classification, weights_of_classes
from bertdyn.tasks.question_answering import QuestionAnswering
from bertdyn.tasks.task import Task
from bertdyn.tracking.locations import resolve_model
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.checkpoints import checkpoint_path
from bertdyn.training.config import TrainingConfig
from bertdyn.training.loop import Progress

logger = logging.getLogger(__name__)


class Texts(NamedTuple):
    """The data as text and as tokens."""

    data: TextData
    tokenizer: PreTrainedTokenizerBase
    tokens: TokenizedParts
    """Part → tokenised rows."""


PATIENCE = timedelta(days=7)
"""How long a process waits for the others. One that is gone is torchrun's to notice; by default whoever has less to do
would give up after minutes."""


def make_accelerator(
    mixed_precision: str, *, gradient_accumulation_steps: int = 1, with_frozen: bool = False
) -> Accelerator:
    """Device, precision and processes, as accelerate or torchrun set them up.

    Parameters
    ----------
    with_frozen
        Whether parts of the model are frozen, and so get no gradient.

    Raises
    ------
    InputError
        If this machine cannot compute in that precision.
    """
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and mixed_precision == "fp16":  # accelerate would train in float32 and not say so
        raise InputError("--mixed_precision fp16: there is no GPU here; accepted on a CPU are no, bf16")
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    try:
        return Accelerator(
            cpu=on_cpu,  # said outright, else accelerate ignores torchrun on a CPU
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=with_frozen),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
    except ValueError as error:  # a GPU without bfloat16
        raise InputError(f"--mixed_precision {mixed_precision}: {error}") from error


def load_texts(config: FineTuneConfig, accelerator: Accelerator) -> Texts:
    """All parts of the data, tokenised (once, by the main process; the others read its cache)."""
    name = resolve_model(config.model_name_or_path)
    model_config = load_config(name, **config.load_options())
    check_max_length(model_config, config.max_length)
    tokenizer = load_tokenizer(config.tokenizer_name or name, trust_remote_code=config.trust_remote_code)
    data = load_data(config)
    with accelerator.main_process_first():
        tokens = tokenize_parts(data, tokenizer, config.max_length, cache_folder("tokens"), config.doc_stride)
    return Texts(data, tokenizer, tokens)


def make_task(config: TrainingConfig, texts: Texts, device: torch.device) -> Task:
    """The task of the data.

    Raises
    ------
    InputError
        If `--class_weights` do not fit its classes.
    """
    data = texts.data
    if data.task == "question-answering":
        return QuestionAnswering(data.parts, texts.tokens)
    weights = weights_of_classes(config.class_weights, data.parts["train"]["label"], data.label_names)
    return Classification(None if weights is None else weights.to(device))


def check_unchanged(config: FineTuneConfig, data: TextData, tracker: Tracker) -> None:
    """Refuse to resume on data that changed.

    Raises
    ------
    InputError
        If an earlier attempt at this run saw other data.
    """
    if config.resume_run_id:
        try:
            seen = json.loads(tracker.fetch("data.json").read_text())["fingerprint"]
        except FileNotFoundError:  # that attempt did not come so far
            seen = data.fingerprint
        if seen != data.fingerprint:
            raise InputError(f"the data of run {config.resume_run_id} changed since it was started: {data.source}")


def record_inputs(texts: Texts, tracker: Tracker) -> None:
    """Write down what goes in."""
    data = texts.data
    longer = "questions_in_windows" if data.task == "question-answering" else "texts_cut"
    content = {"fingerprint": data.fingerprint, **data.report, longer: texts.tokens.truncated}
    write_json(tracker.folder / "data.json", content)
    tracker.publish("data.json")
    for part, table in data.parts.items():
        context = {"train": "training"}.get(part, part)
        columns = [name for name in ("example_id", "text", "text_pair", "label") if name in table]
        name = f"{data.name}-{part}"
        tracker.log_dataset(table[columns], name, data.source, data.fingerprint[:8], context, "label")


def start_model(config: FineTuneConfig, texts: Texts, folder: Path, progress: Progress | None) -> PreTrainedModel:
    """The model to train: as the options say, or from the checkpoint of the epoch that was reached."""
    set_seed(config.seed)
    if progress:
        return load_checkpoint(config, texts.data, folder, progress.epoch)
    model = load_model(
        resolve_model(config.model_name_or_path),
        texts.data.task,
        label_names=class_names(texts.data),
        from_scratch=config.from_scratch,
        **config.load_options(),
    )
    check_tokenizer(texts.tokenizer, model)
    if config.unpadded == "auto" and not can_run_unpadded(model):
        logger.info("padding is computed: this %s cannot run without", model.config.model_type)
    return without_padding(model, config)


def load_checkpoint(config: FineTuneConfig, data: TextData, folder: Path, epoch: int) -> PreTrainedModel:
    """The model as it was at the end of `epoch` of the run in `folder`."""
    model = load_model(
        str(folder / checkpoint_path(epoch)),
        data.task,
        label_names=class_names(data),
        trust_remote_code=config.trust_remote_code,
    )
    return without_padding(model, config)


def class_names(data: TextData) -> list[str] | None:
    """What the outputs of the head are called; those of question answering are no classes."""
    return data.label_names if data.task == "classification" else None


def without_padding(model: PreTrainedModel, config: TrainingConfig) -> PreTrainedModel:
    """`model`, made to compute no padding where `--unpadded` says so and it can."""
    if config.unpadded == "true" or (config.unpadded == "auto" and can_run_unpadded(model)):
        run_unpadded(model)
    return model


def batches_of(
    part: str, config: TrainingConfig, texts: Texts, model: PreTrainedModel, accelerator: Accelerator
) -> DataLoader:
    """Batches of one part: shuffled by epoch for training, by length and prepared for everything else."""
    training = part == "train"
    loader = make_batches(
        texts.tokens[part],
        texts.tokenizer,
        config.per_device_train_batch_size if training else config.per_device_eval_batch_size,
        shuffle=training,
        seed=config.seed,
        token_rows=is_unpadded(model),
    )
    return loader if training else accelerator.prepare(loader)
