"""What a training starts with: processes, texts and tokens, a model, batches, and the record of all that."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, set_seed
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.data.batching import make_batches
from bertdyn.data.loading import load_data
from bertdyn.data.text_data import TextData
from bertdyn.data.tokenization import TokenizedParts, tokenize_parts
from bertdyn.errors import InputError
from bertdyn.files import cache_folder, write_json
from bertdyn.models.loading import check_max_length, load_config, load_model, load_tokenizer
from bertdyn.steps.config import FineTuneConfig
from bertdyn.tasks import classification as task
from bertdyn.tracking.locations import resolve_model
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.checkpoints import (
    checkpoint_path,
)
from bertdyn.training.loop import Progress


class Texts(NamedTuple):
    """The data as text and as tokens."""

    data: TextData
    tokenizer: PreTrainedTokenizerBase
    tokens: TokenizedParts
    """Part → tokenised rows."""


def make_accelerator(config: FineTuneConfig) -> Accelerator:
    """Device, precision and processes, as accelerate or torchrun set them up.

    Raises
    ------
    InputError
        If this machine cannot train in that precision.
    """
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and config.mixed_precision == "fp16":  # accelerate would train in float32 and not say so
        raise InputError("--mixed_precision fp16: there is no GPU here; accepted on a CPU are no, bf16")
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    try:
        return Accelerator(
            cpu=on_cpu,  # said outright, else accelerate ignores torchrun on a CPU
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    find_unused_parameters=bool(config.freeze_layers or config.freeze_embeddings)
                )
            ],
        )
    except ValueError as error:  # a GPU without bfloat16
        raise InputError(f"--mixed_precision {config.mixed_precision}: {error}") from error


def load_texts(config: FineTuneConfig, accelerator: Accelerator) -> Texts:
    """All parts of the data, tokenised (once, by the main process; the others read its cache)."""
    name = resolve_model(config.model_name_or_path)
    model_config = load_config(name, config.config_overrides, trust_remote_code=config.trust_remote_code)
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
        try:
            seen = json.loads(tracker.fetch("data.json").read_text())["fingerprint"]
        except FileNotFoundError:  # that attempt did not come so far
            seen = data.fingerprint
        if seen != data.fingerprint:
            raise InputError(f"the data of run {config.resume_run_id} changed since it was started: {data.source}")
    content = {"fingerprint": data.fingerprint, **data.report, "texts_cut": texts.tokens.truncated}
    write_json(tracker.folder / "data.json", content)
    tracker.publish("data.json")
    for part, table in data.parts.items():
        context = {"train": "training"}.get(part, part)
        tracker.log_dataset(table, f"{data.name}-{part}", data.source, data.fingerprint[:8], context, "label")


def start_model(config: FineTuneConfig, texts: Texts, folder: Path, progress: Progress | None) -> PreTrainedModel:
    """The model to train: as the options say, or from the checkpoint of the epoch that was reached."""
    set_seed(config.seed)
    labels = texts.data.label_names
    if progress:
        return load_checkpoint(config, folder, progress.epoch, labels)
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


def load_checkpoint(config: FineTuneConfig, folder: Path, epoch: int, label_names: list[str]) -> PreTrainedModel:
    """The model as it was at the end of `epoch` of the run in `folder`."""
    return load_model(
        str(folder / checkpoint_path(epoch)),
        task.NAME,
        label_names=label_names,
        trust_remote_code=config.trust_remote_code,
    )


def batches_of(part: str, config: FineTuneConfig, texts: Texts, accelerator: Accelerator) -> DataLoader:
    """Batches of one part: shuffled by epoch for training, by length and prepared for everything else."""
    training = part == "train"
    size = config.per_device_train_batch_size if training else config.per_device_eval_batch_size
    loader = make_batches(texts.tokens[part], texts.tokenizer, size, shuffle=training, seed=config.seed)
    return loader if training else accelerator.prepare(loader)
