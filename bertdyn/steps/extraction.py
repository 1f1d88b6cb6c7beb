"""Extraction: a run's checkpoints (or any model) and texts in, a feature store out.

source run → data, states → tokens → one pass of the model a state → features/ → report
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.data.loading import load_data
from bertdyn.data.text_data import TextData
from bertdyn.data.tokenization import tokenize_parts, tokenizer_fingerprint
from bertdyn.errors import InputError
from bertdyn.features.extraction import extract_state, make_manifest
from bertdyn.features.store import FeatureStore, Manifest
from bertdyn.features.texts import TokenisedTexts, texts_of
from bertdyn.features.writing import begun_with, create_store, name_state
from bertdyn.files import cache_folder
from bertdyn.models.anatomy import anatomy_of
from bertdyn.models.fingerprint import weights_fingerprint
from bertdyn.models.loading import (
    check_max_length,
    check_tokenizer,
    load_config,
    load_encoder,
    load_model,
    load_tokenizer,
)
from bertdyn.models.unpadded import can_run_unpadded, run_unpadded
from bertdyn.steps.config import ExtractConfig
from bertdyn.steps.lists import choices, layer_numbers
from bertdyn.steps.preparation import class_names, make_accelerator
from bertdyn.steps.sources import State, find_states, load_source_data, with_source_data
from bertdyn.tracking.locations import resolve_model
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

STORE = "features"


class ExtractResult(NamedTuple):
    """What an extraction made."""

    store: FeatureStore
    summary: str
    """The run's report, Markdown; empty for all but the main process."""


def extract(config: ExtractConfig, tracker: Tracker) -> ExtractResult:
    """Write the features of one run's states, or of one model, into a store; go on with an interrupted one.

    With several processes, each calls this; only the main one uses its `tracker`.

    Raises
    ------
    InputError
        Whatever is wrong with the source, its states, the texts, the options or the disk.
    """
    accelerator = make_accelerator(config.mixed_precision)
    folder = Path(broadcast_object_list([str(tracker.folder)])[0]) / STORE
    config = with_source_data(config)
    if accelerator.is_main_process:
        tracker.log_config(dataclasses.asdict(config) | {"resume_run_id": None})
    data = load_source_data(config.source_run_id) if config.source_run_id else load_data(config)
    states = _states(config)
    check_max_length(load_config(states[0].location, trust_remote_code=config.trust_remote_code), config.max_length)
    tokenizer = load_tokenizer(config.tokenizer_name or states[0].location, trust_remote_code=config.trust_remote_code)
    with accelerator.main_process_first():
        tokens = tokenize_parts(data, tokenizer, config.max_length, cache_folder("tokens"), config.doc_stride)
    texts = texts_of(
        data, tokens, choices(config.parts, "parts"), {part: config.max_samples(part) for part in data.parts}
    )
    model = load_state(config, states[0], data)
    check_tokenizer(tokenizer, model)
    manifest = make_manifest(
        model,
        texts,
        sites=choices(config.activations, "activations"),
        rows=choices(config.rows, "rows"),
        layers=layer_numbers(config.layers, anatomy_of(model).depth),
        dtype=config.dtype,
        label_names=data.label_names,
        fingerprints={"data": data.fingerprint, "tokenizer": tokenizer_fingerprint(tokenizer)},
    )
    if not all(info.layers for info in manifest.arrays.values()):
        raise InputError(
            f"--layers {config.layers!r} with --activations {config.activations!r}: embeddings have hidden states only"
        )
    if accelerator.is_main_process:
        _begin_store(config, tracker, manifest, texts, tokenizer, states)
    accelerator.wait_for_everyone()
    store = FeatureStore.open(folder)
    seconds, computed = 0.0, 0
    for state in states:
        if state.name in store.states:
            continue
        if state is not states[0]:
            model = load_state(config, state, data)
        fingerprint = weights_fingerprint(model)
        if state.checkpoint in [info.folder for info in store.manifest.states]:  # `last`, where that is `best`
            if accelerator.is_main_process:
                name_state(store, state.name, state.checkpoint, fingerprint)
        else:
            if config.resume_run_id and begun_with(store, state.checkpoint) not in (None, fingerprint):
                raise InputError(
                    f"--resume_run_id {config.resume_run_id}: {state.name} was begun with another model; start anew"
                )
            started = time.perf_counter()
            extract_state(
                accelerator,
                model.to(accelerator.device),
                texts,
                tokenizer,
                store,
                state.name,
                folder=state.checkpoint,
                fingerprint=fingerprint,
                batch_size=config.per_device_eval_batch_size,
                resume=bool(config.resume_run_id),
            )
            if not config.resume_run_id:  # a resumed state is computed in part only
                seconds += time.perf_counter() - started
                computed += int(texts.lengths.sum())
        accelerator.wait_for_everyone()
        store = FeatureStore.open(folder)
        if accelerator.is_main_process:
            for path in (state.checkpoint, "examples.parquet", "manifest.json"):  # the manifest, which names it, last
                tracker.publish(f"{STORE}/{path}")
    if not accelerator.is_main_process:
        return ExtractResult(store, "")
    rate = computed / seconds if computed else 0.0
    return ExtractResult(store, _report(config, tracker, store, data, states, rate))


def _states(config: ExtractConfig) -> list[State]:
    if config.source_run_id:
        return find_states(config.source_run_id, config.states)
    assert config.model_name_or_path is not None
    return [State("model", "model", resolve_model(config.model_name_or_path))]


def load_state(config: ExtractConfig, state: State, data: TextData) -> PreTrainedModel:
    """With its head where it is a run's, an encoder alone otherwise; computing no padding where it can."""
    torch.manual_seed(0)  # what a checkpoint lacks, a pooler that nothing reads, is drawn alike every time
    if config.source_run_id:
        model = load_model(
            state.location, data.task, label_names=class_names(data), trust_remote_code=config.trust_remote_code
        )
    else:
        model = load_encoder(state.location, trust_remote_code=config.trust_remote_code)
    if can_run_unpadded(model):
        run_unpadded(model)
    return model


def _begin_store(
    config: ExtractConfig,
    tracker: Tracker,
    manifest: Manifest,
    texts: TokenisedTexts,
    tokenizer: PreTrainedTokenizerBase,
    states: Sequence[State],
) -> None:
    """Make the store, after a look at the disk; or check that an earlier attempt's is of the same rows."""
    folder = tracker.folder / STORE
    if config.resume_run_id:
        with suppress(FileNotFoundError):
            tracker.fetch(STORE)
        if (folder / "manifest.json").exists():
            begun = FeatureStore.open(folder).manifest
            if dataclasses.replace(begun, states=[]) != manifest:
                raise InputError(
                    f"--resume_run_id {config.resume_run_id}: its store was begun with other texts or another model; "
                    "start a new run"
                )
            # What was complete when the run was cut may not have been delivered.
            for path in [*dict.fromkeys(info.folder for info in begun.states), "examples.parquet", "manifest.json"]:
                tracker.publish(f"{STORE}/{path}")
            return
    needed = manifest.bytes_per_state() * len({state.checkpoint for state in states})
    free = shutil.disk_usage(tracker.folder).free
    rows = f"{manifest.num_tokens:,} tokens of " if manifest.num_tokens else ""
    logger.info(
        "features: %d states, %s%s texts: %.2f GB in %s",
        len(states),
        rows,
        f"{len(texts.examples):,}",
        needed / 1e9,
        folder,
    )
    if needed > free:
        raise InputError(
            f"the features take {needed / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB left: take fewer --layers, "
            "--states, --parts or examples (--max_train_samples), --rows first, or --dtype float16"
        )
    create_store(folder, manifest, texts.example_table(), texts.token_pieces(tokenizer))
    for path in manifest.tables():
        tracker.publish(f"{STORE}/{path}")


def _report(
    config: ExtractConfig, tracker: Tracker, store: FeatureStore, data: TextData, states: Sequence[State], rate: float
) -> str:
    """Datasets, metrics and the page of the run."""
    examples, manifest = store.examples(), store.manifest
    for part, table in examples.groupby("part", sort=False):
        columns = [name for name in ("example_id", "text", "text_pair", "label") if name in table]
        tracker.log_dataset(
            table[columns], f"{data.name}-{part}", data.source, data.fingerprint[:8], str(part), "label"
        )
    size = manifest.bytes_per_state() * len({info.folder for info in manifest.states})
    figures = {"extract/gigabytes": size / 1e9, "extract/rows": manifest.num_tokens or manifest.num_examples}
    if rate:
        figures["extract/tokens_per_second"] = rate
    tracker.log_metrics(figures, 0)
    parts = list(dict.fromkeys(examples["part"]))
    columns = ["state", "checkpoint", *(f"accuracy, {part}" for part in parts if manifest.num_classes)]
    lines = [
        f"## Features of `{config.source_run_id or config.model_name_or_path}` on `{data.name}`",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for state in states:
        cells = [state.name, f"`{state.checkpoint}`"]
        if manifest.num_classes:
            right = examples[f"prediction_{state.name}"] == examples["label"]
            cells += [f"{right[examples['part'] == part].mean():.3f}" for part in parts]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| arrays | rows | layers | type |", "|---|---|---|---|"]
    for kind, info in manifest.arrays.items():
        rows = manifest.num_tokens if info.rows == "tokens" else manifest.num_examples
        widths = "/".join(str(width or 1) for width in dict.fromkeys(info.widths))
        layers = ", ".join(map(str, info.layers))
        lines.append(f"| `{kind}` | {rows:,} × {widths} | {layers} | {info.dtype} |")
    counts = examples["part"].value_counts()
    lines += [
        "",
        f"{', '.join(f'{counts[part]:,} texts of {part}' for part in parts)}; {size / 1e9:.2f} GB in `{STORE}/`, which "
        "NumPy and pandas alone can read; `bertdyn.features.store.FeatureStore.open` checks it.",
        "",
    ]
    summary = "\n".join(lines)
    tracker.note(summary)
    return summary
