"""What a pruning starts with: the model, its data as tokens, and the texts to look at units with."""

import logging
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel

from bertdyn.data.batching import Batch, make_batches
from bertdyn.data.loading import load_data
from bertdyn.data.text_data import TextData
from bertdyn.data.tokenization import tokenize_parts
from bertdyn.errors import InputError
from bertdyn.files import cache_folder
from bertdyn.models.anatomy import max_length
from bertdyn.models.loading import HEADS, check_max_length, check_tokenizer, load_config, load_model, load_tokenizer
from bertdyn.models.unpadded import can_run_unpadded, run_unpadded
from bertdyn.pruning.agreement import Referee
from bertdyn.pruning.calibration import calibration_rows
from bertdyn.pruning.search import Calibration
from bertdyn.steps.preparation import Texts, class_names, make_accelerator, make_task
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.steps.sources import State, find_states, label_of, load_source_data
from bertdyn.tasks.task import Task
from bertdyn.tracking.locations import resolve_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What is pruned, and on what texts."""

    location: str
    """What `from_pretrained` takes."""
    reference: str | None
    """The same of the state that `state_change` compares with."""
    label: str
    """What to call the model on its texts."""
    texts: Texts
    task: Task
    device: torch.device


def open_source(config: PruneConfig) -> Source:
    """Data, tokens and the place of the model to prune.

    Raises
    ------
    InputError
        Whatever is wrong with them, or if several processes run this.
    """
    accelerator = make_accelerator(config.mixed_precision)
    if accelerator.num_processes > 1:
        raise InputError(
            f"{accelerator.num_processes} processes: pruning runs in one; start it without torchrun, on one GPU"
        )
    device, reference = accelerator.device, None
    if config.source_run_id:
        data = load_source_data(config.source_run_id)
        [state] = find_states(config.source_run_id, config.state, flag="state")
        location = state.location
        if config.criterion in ("state_change", "auto"):
            reference = reference_state(config, state)
        if any((config.max_samples(part) or len(table)) < len(table) for part, table in data.parts.items()):
            data = load_data(config)
    else:
        data, location = load_data(config), resolve_model(str(config.model_name_or_path))
    model_config = load_config(location, trust_remote_code=config.trust_remote_code)
    check_max_length(model_config, config.max_length)
    check_prunable(model_config)
    check_timed_lengths(config, max_length(model_config))
    if HEADS[data.task] not in (model_config.architectures or [""])[0]:
        raise InputError(
            f"--model_name_or_path {config.model_name_or_path!r} has no head for {data.task}: give a fine-tuned model"
        )
    tokenizer = load_tokenizer(location, trust_remote_code=config.trust_remote_code)
    tokens = tokenize_parts(data, tokenizer, config.max_length, cache_folder("tokens"), config.doc_stride)
    texts = Texts(data, tokenizer, tokens)
    return Source(location, reference, label_of(config), texts, make_task(config, texts, device), device)


def reference_state(config: PruneConfig, state: State) -> str | None:
    """Where the state is that `state_change` compares `state` with; None where auto can do without.

    Raises
    ------
    InputError
        If the criterion is `state_change` and there is no such state, or it is `state` itself.
    """
    try:
        [reference] = find_states(str(config.source_run_id), config.reference_state, flag="reference_state")
        if reference.checkpoint == state.checkpoint:
            raise InputError(
                f"--reference_state {config.reference_state!r} is the same model as --state {config.state!r} "
                f"({state.checkpoint}): nothing changed between the two"
            )
        return reference.location
    except InputError as error:
        if config.criterion == "state_change":
            raise
        logger.info("criterion auto leaves state_change out: %s", error)
        return None


def check_prunable(config: PretrainedConfig) -> None:
    """Raise `InputError` for configurations of a known family that statistics and heads here are not made for."""
    if getattr(config, "inner_group_num", 1) > 1:
        raise InputError("an ALBERT with several layers in a group (inner_group_num) cannot be pruned: accepted is 1")
    if getattr(config, "summary_type", "first") != "first":
        raise InputError(
            f"a FlauBERT with summary_type {config.summary_type!r} cannot be pruned: accepted is 'first', whose head "
            "reads the first token"
        )


def check_timed_lengths(config: PruneConfig, most: int) -> None:
    """Raise `InputError` if batches that are to be timed have more than `most` tokens a text."""
    lengths = {"latency_shapes": [tokens for _, tokens in config.shapes()]}
    lengths["cost_length"] = [config.cost_length] if config.budget_of == "latency" else []
    for flag, tokens in lengths.items():
        if max(tokens, default=0) > most:
            raise InputError(
                f"--{flag}: this model has no positions for {max(tokens)} tokens; accepted are at most {most}"
            )


def load_dense(config: PruneConfig, source: Source) -> PreTrainedModel:
    """The model to prune, computing its padding: gates are one a text."""
    model = load_state(source.location, config, source.texts.data, source.device)
    check_tokenizer(source.texts.tokenizer, model)
    if config.unpadded == "true" and not can_run_unpadded(model):
        run_unpadded(model)  # says why not
    return model


def load_state(
    location: str, config: PruneConfig, data: TextData, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """A model with its head, in evaluation mode."""
    model = load_model(location, data.task, label_names=class_names(data), trust_remote_code=config.trust_remote_code)
    return model.to(device).eval()  # type: ignore[arg-type]


def calibrate(config: PruneConfig, source: Source, dense: PreTrainedModel) -> Calibration:
    """The texts to look at units with, on the device."""
    rows = calibration_rows(
        source.texts.tokens["train"],
        config.calibration_examples,
        config.calibration_min_length,
        config.calibration_seed,
    )

    def batches(dataset: Dataset, *, in_order: bool = False) -> list[Batch]:
        # Partners are neighbours, and pairs come longest first already.
        size = max(2, config.per_device_eval_batch_size // 2 * 2)
        loader = make_batches(dataset, source.texts.tokenizer, size, shuffle=False, by_length=not in_order)
        return [send_to_device(batch, source.device) for batch in loader]

    other = None
    if source.reference:
        other = load_state(source.reference, config, source.texts.data, source.device)
    referee = Referee(dense, batches(rows.referee), source.task)
    return Calibration(batches(rows.fit), batches(rows.pairs, in_order=True), referee, source.task, other, config.seed)
