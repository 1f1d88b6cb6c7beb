"""Sparse autoencoders: an extract run in; dictionaries, what became of their latents, and pages to read, out.

    store → dictionaries, many at once (sae_training) → measures beside baselines (sae_measures)
          → latents and fates (sae_latents) → pages (sae_pages) → tables, figures, report (sae_report)

Everything is measured and shown on a part that trained neither the encoder nor a dictionary.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch

from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore
from bertdyn.sae.config import COMPARISONS
from bertdyn.sae.dictionary import Dictionary
from bertdyn.sae.export import save_dictionary
from bertdyn.sae.fates import MIN_SEEDS
from bertdyn.sae.naming import Name
from bertdyn.sae.rows import standardisation_of
from bertdyn.steps.extract_runs import (
    ExtractRun,
    chosen_layers,
    in_training_order,
    load_run_texts,
    open_extract_run,
)
from bertdyn.steps.lists import choices
from bertdyn.steps.preparation import make_accelerator
from bertdyn.steps.random_twin import RANDOM_INIT, random_twin
from bertdyn.steps.sae_config import SaeConfig
from bertdyn.steps.sae_latents import latent_tables
from bertdyn.steps.sae_measures import NUM_FOLDS, Baselines, error_table, fidelity_table, sparse_probe_table
from bertdyn.steps.sae_pages import write_pages
from bertdyn.steps.sae_report import Studied, write_report
from bertdyn.steps.sae_rows import PartRows, array_of, part_rows
from bertdyn.steps.sae_training import TRAINING, Stores, check_size, train_all
from bertdyn.tracking.tracker import Tracker

BEFORE_TRAINING = "epoch_000"
"""The checkpoint of a fine-tune run whose head the task has not trained yet."""


class SaeResult(NamedTuple):
    """What was found."""

    metrics: pd.DataFrame
    """One row a dictionary or baseline, and kind of rows."""
    features: pd.DataFrame
    """One row a latent of each dictionary and state."""
    summary: str
    """The run's report, Markdown."""


def sae(config: SaeConfig, tracker: Tracker, run: ExtractRun | None = None) -> SaeResult:
    """Train and study sparse dictionaries of the layers and states of an extract run.

    With several processes, each calls this and trains some of the layers; the main one does the rest.

    Parameters
    ----------
    run
        From `open_extract_run`, where that was called before.

    Raises
    ------
    InputError
        Whatever is wrong with the run, its features or the options.
    """
    run = run or open_extract_run(str(config.source_run_id), config.states)
    accelerator = make_accelerator(config.mixed_precision)
    states = _ordered_states(config, run)
    config = dataclasses.replace(config, comparisons=",".join(_comparisons(config, states)))
    tracker.log_config(dataclasses.asdict(config) | {"resume_run_id": None})
    layers = _layers(config, run)
    measured = part_rows(run.store, states, layers, config.rows, [config.part], config.max_examples)
    standardisation_of(measured.dataset, [[f"layer {layer} of {state}" for layer in layers] for state in states])
    train = part_rows(run.store, states, layers[:1], config.rows, choices(config.train_parts, "train_parts"))
    check_size(config, train)  # before an encoder is run for the twin
    twin = _twin(config, run, layers) if config.random_init else None
    accelerator = make_accelerator(config.mixed_precision)  # again: the twin has the precision of its features
    dictionaries = train_all(config, tracker, accelerator, Stores(run.store, twin, states), layers)
    if not accelerator.is_main_process:
        return SaeResult(pd.DataFrame(), pd.DataFrame(), "")
    _save(tracker, run, dictionaries, config)
    dictionaries = {name: made.to(accelerator.device) for name, made in dictionaries.items()}
    result = _study(config, tracker, run, states, layers, measured, twin, dictionaries, accelerator.device)
    shutil.rmtree(tracker.folder / TRAINING)  # until here a resumed run needs no training again
    return result


def _ordered_states(config: SaeConfig, run: ExtractRun) -> list[str]:
    states = in_training_order(run)
    if not states:
        raise InputError(f"--states {config.states!r}: give them in the order of training, each checkpoint once")
    return states


def _comparisons(config: SaeConfig, states: Sequence[str]) -> list[str]:
    several = len(states) > 1
    wanted = choices(config.comparisons, "comparisons") if config.comparisons else None
    if wanted is None:
        return list(COMPARISONS) if several else ["independent"]
    if wanted != ["independent"] and not several:
        raise InputError(
            f"--comparisons {config.comparisons!r}: there is one state, {states[0]!r}; accepted is independent, or an "
            "extract run of several states"
        )
    return wanted


def _layers(config: SaeConfig, run: ExtractRun) -> list[int]:
    """The layers that are asked for; of all, not the embeddings' first token, which is the same in every text."""
    arrays, array = run.store.manifest.arrays, array_of(run.store, config.rows)
    there = run.store.layers(array) if array in arrays else [0]  # part_rows says what is missing
    layers = chosen_layers(config.layers, there)
    return [layer for layer in layers if layer > 0] if config.rows == "first" and config.layers == "all" else layers


def _twin(config: SaeConfig, run: ExtractRun, layers: Sequence[int]) -> FeatureStore:
    wanted = {*choices(config.train_parts, "train_parts"), config.part}
    parts = [part for part in run.store.examples()["part"].unique() if part in wanted]
    rows = [array_of(run.store, config.rows)]
    return random_twin(run, parts=parts, rows=rows, layers=layers, seed=config.seed_list()[0])


def _save(tracker: Tracker, run: ExtractRun, dictionaries: Mapping[Name, Dictionary], config: SaeConfig) -> None:
    for name, dictionary in dictionaries.items():
        metadata = name._asdict() | {"rows": config.rows, "extract_run_id": run.run_id, "model": run.label}
        metadata["depth"] = run.store.manifest.depth
        save_dictionary(tracker.folder / name.folder(), dictionary, metadata)
    tracker.publish("dictionaries")


def _study(
    config: SaeConfig,
    tracker: Tracker,
    run: ExtractRun,
    states: list[str],
    layers: list[int],
    measured: PartRows,
    twin: FeatureStore | None,
    dictionaries: Mapping[Name, Dictionary],
    device: torch.device,
) -> SaeResult:
    kind, part, parts = config.rows, config.part, choices(config.train_parts, "train_parts")
    seed, main = config.seed_list()[0], config.sparsities()[0]
    examples = measured.examples
    columns = [name for name in ("example_id", "text", "text_pair", "label") if name in examples]
    dataset, digest = run.config.dataset, run.store.manifest.fingerprints["data"][:8]
    tracker.log_dataset(examples[columns], f"{dataset}-{part}", dataset, digest, part, "label")

    def of_part(kind: str, parts: Sequence[str], max_examples: int | None = None) -> dict[str, PartRows]:
        rows = dict.fromkeys(states, part_rows(run.store, states, layers, kind, parts, max_examples))
        if twin is not None:
            rows[RANDOM_INIT] = part_rows(twin, [RANDOM_INIT], layers, kind, parts, max_examples)
        return rows

    rows = {of: of_part(of, [part], config.max_examples) for of in ([kind, "first"] if kind == "content" else [kind])}
    baselines = Baselines(of_part(kind, parts), seed)
    errors = error_table(dictionaries, rows, baselines, states[0], main)
    of_main = {name: made for name, made in dictionaries.items() if name.sparsity == main}
    label_names = run.store.manifest.label_names if run.config.task == "classification" else []
    probes = pd.DataFrame()
    can_probe = bool(label_names) and examples["label"].value_counts().min() >= NUM_FOLDS
    if can_probe:
        probes = sparse_probe_table(of_main, rows[kind], baselines, states[0], seed)
    comparisons = choices(str(config.comparisons), "comparisons")
    latents = latent_tables(of_main, rows[kind], states, layers, len(label_names), comparisons=comparisons)
    readable, left_out = _readable_states(config, run, states)
    texts = load_run_texts(run) if readable else None
    fidelity = pd.DataFrame()
    if config.fidelity and texts is not None and kind != "mean":
        # All seeds of one comparison show how much seeds matter.
        spliced = {of: made for of, made in of_main.items() if of.comparison == "independent" or of.seed == seed}
        kinds = ("content", "first") if measured.by_token else ("first",)
        by_kind = {of: part_rows(run.store, states, layers, of, parts) for of in kinds}
        pca = errors[errors["baseline"] == "pca"]
        components = {(row.state, row.layer): round(row.l0) for row in pca.itertuples() if row.sparsity == main}
        fidelity = fidelity_table(
            spliced, run, texts, readable, examples, part, baselines, by_kind, components, seed, device
        )
    found = Studied(
        label=run.label,
        rows=kind,
        part=part,
        states=states,
        layers=layers,
        seeds=config.seed_list(),
        sparsity=main,
        errors=errors,
        probes=probes,
        fidelity=fidelity,
        latents=latents,
        examples=pd.DataFrame(),
        shown_latents=pd.DataFrame(),
        pages=[],
        left_out=[*left_out, *_not_made(config, measured, states, bool(label_names) and not can_probe)],
    )
    if measured.by_token:
        shown, latents_shown, pages = write_pages(
            config, tracker, run, found, of_main, measured, texts, readable, device=device
        )
        found = found._replace(examples=shown, shown_latents=latents_shown, pages=pages)
    return SaeResult(errors, latents.features, write_report(tracker, found))


def _not_made(config: SaeConfig, measured: PartRows, states: Sequence[str], rare_class: bool) -> list[str]:
    """What these rows, states, seeds and classes cannot have."""
    found = []
    if rare_class:
        found.append(f"sparse probes of the label: a class has fewer than {NUM_FOLDS} texts of the part {config.part}.")
    if len(states) == 1:
        found.append("what became of latents: there is one state.")
    elif len(config.seed_list()) < MIN_SEEDS and "independent" in str(config.comparisons):
        found.append("fates of independent dictionaries' latents: they need three seeds (--seeds 0,1,2).")
    if not measured.by_token:
        found.append("pages of features: the features have no rows of single tokens (extract with --rows tokens).")
    if config.rows == "mean" and config.fidelity:
        found.append("what a classifier loses: the mean over a text has no place in the model.")
    if config.rows == "first" and config.layers == "all":
        found.append("layer 0: the first token of the embeddings is the same in every text.")
    return found


def _readable_states(config: SaeConfig, run: ExtractRun, states: Sequence[str]) -> tuple[list[str], list[str]]:
    """States whose classifier can be asked, and why others cannot."""
    if run.config.task != "classification" or not run.config.source_run_id or not run.store.manifest.num_classes:
        asked = ["what a classifier loses: the features are not those of a fine-tuned classifier."]
        return [], asked if config.fidelity else []
    folders = {info.name: info.folder for info in run.store.manifest.states}
    trained = [state for state in states if folders[state] != BEFORE_TRAINING]
    if not config.fidelity:
        return trained, []
    untrained = [state for state in states if state not in trained]
    return trained, [f"what the classifier of {state} loses: its head is that before training." for state in untrained]
