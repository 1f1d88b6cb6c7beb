"""Sparse autoencoders: an extract run in; dictionaries, what became of their latents, and pages to read, out.

    store → dictionaries, many at once (sae_training) → measures beside baselines (sae_measures)
          → latents and fates (sae_latents) → pages (sae_pages) → tables, figures, report (sae_report)

Everything is measured and shown on a part that trained neither the encoder nor a dictionary.
"""

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore
from bertdyn.sae.config import COMPARISONS
from bertdyn.sae.dictionary import Dictionary
from bertdyn.sae.export import save_dictionary
from bertdyn.steps.config import SaeConfig, choices
from bertdyn.steps.extract_runs import (
    ExtractRun,
    chosen_layers,
    in_training_order,
    load_run_texts,
    open_extract_run,
)
from bertdyn.steps.preparation import make_accelerator
from bertdyn.steps.random_twin import RANDOM_INIT, random_twin
from bertdyn.steps.sae_latents import latent_tables
from bertdyn.steps.sae_measures import Baselines, error_table, fidelity_table, sparse_probe_table
from bertdyn.steps.sae_pages import write_pages
from bertdyn.steps.sae_report import Studied, write_report
from bertdyn.steps.sae_rows import PartRows, part_rows
from bertdyn.steps.sae_training import TRAINING, Name, Stores, train_all
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

UNTRAINED_HEAD = "epoch_000"
"""The checkpoint of a fine-tune run whose head is random."""


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
    if accelerator.num_processes > 1:
        raise InputError(
            f"{accelerator.num_processes} processes: dictionaries are trained side by side in one; start it without "
            "accelerate launch"
        )
    states = _ordered_states(config, run)
    config = dataclasses.replace(config, comparisons=",".join(_comparisons(config, states)))
    tracker.log_config(dataclasses.asdict(config) | {"resume_run_id": None})
    kinds = [config.rows, *(["first"] if config.rows == "content" else [])]
    array = {"content": "tokens", "first": "first", "mean": "mean"}[config.rows]
    array = array if array in run.store.manifest.arrays else "tokens"
    there = run.store.layers(array) if array in run.store.manifest.arrays else []
    layers = chosen_layers(config.layers, there) if there else []
    measured = {kind: part_rows(run.store, states, layers, kind, [config.part], config.max_examples) for kind in kinds}
    twin = _twin(config, run, layers) if config.random_init else None
    dictionaries = train_all(config, tracker, accelerator, Stores(run.store, twin, states), layers)
    _save(tracker, run, dictionaries, config)
    result = _study(config, tracker, run, states, layers, measured, twin, dictionaries)
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


def _twin(config: SaeConfig, run: ExtractRun, layers: Sequence[int]) -> FeatureStore:
    kind = "tokens" if "tokens" in run.store.manifest.arrays and config.rows != "mean" else config.rows
    wanted = {*choices(config.train_parts, "train_parts"), config.part}
    parts = [part for part in run.store.examples()["part"].unique() if part in wanted]
    return random_twin(run, parts=parts, rows=[kind], layers=layers, seed=config.seed_list()[0])


def _save(tracker: Tracker, run: ExtractRun, dictionaries: Mapping[Name, Dictionary], config: SaeConfig) -> None:
    for name, dictionary in dictionaries.items():
        metadata = name._asdict() | {"rows": config.rows, "extract_run_id": run.run_id, "model": run.label}
        save_dictionary(tracker.folder / name.folder(), dictionary, metadata)
    tracker.publish("dictionaries")


def _study(
    config: SaeConfig,
    tracker: Tracker,
    run: ExtractRun,
    states: Sequence[str],
    layers: Sequence[int],
    measured: Mapping[str, PartRows],
    twin: FeatureStore | None,
    dictionaries: Mapping[Name, Dictionary],
) -> SaeResult:
    parts, kind = choices(config.train_parts, "train_parts"), config.rows
    seed, main = config.seed_list()[0], config.sparsities()[0]
    train = part_rows(run.store, states, layers, kind, parts)
    rows = {of: dict.fromkeys(states, part) for of, part in measured.items()}
    trained = dict.fromkeys(states, train)
    if twin is not None:
        for of in rows:
            rows[of][RANDOM_INIT] = part_rows(twin, [RANDOM_INIT], layers, of, [config.part], config.max_examples)
        trained[RANDOM_INIT] = part_rows(twin, [RANDOM_INIT], layers, kind, parts)
    examples = measured[kind].examples
    columns = [name for name in ("example_id", "text", "text_pair", "label") if name in examples]
    dataset, digest = run.config.dataset, run.store.manifest.fingerprints["data"][:8]
    tracker.log_dataset(examples[columns], f"{dataset}-{config.part}", dataset, digest, config.part, "label")
    label_names = run.store.manifest.label_names if run.config.task == "classification" else []
    baselines = Baselines(trained, seed)
    errors = error_table(dictionaries, rows, baselines, states[0], main)
    of_main = {name: made for name, made in dictionaries.items() if name.sparsity == main}
    probes = sparse_probe_table(of_main, rows[kind], baselines, states[0], seed) if label_names else pd.DataFrame()
    latents = latent_tables(of_main, rows[kind], states, layers, len(label_names))
    readable, left_out = _readable_states(config, run, states)
    texts = load_run_texts(run) if readable else None
    fidelity = pd.DataFrame()
    if config.fidelity and texts is not None and kind != "mean" and "tokens" in run.store.manifest.arrays:
        by_kind = {of: part_rows(run.store, states, layers, of, parts) for of in ("content", "first")}
        # All seeds of one comparison show how much seeds matter.
        spliced = {of: made for of, made in of_main.items() if of.comparison == "independent" or of.seed == seed}
        fidelity = fidelity_table(spliced, run, texts, readable, examples, config.part, baselines, by_kind, seed)
    if len(states) == 1:
        left_out.append("what became of the latents: there is one state.")
    if len(states) > 1 and len(config.seed_list()) == 1 and "independent" in str(config.comparisons):
        left_out.append("what became of independent dictionaries' latents: their floor is a second seed (--seeds 0,1).")
    found = Studied(
        label=run.label,
        rows=kind,
        part=config.part,
        states=states,
        layers=layers,
        seeds=config.seed_list(),
        sparsity=main,
        errors=errors,
        probes=probes,
        fidelity=fidelity,
        latents=latents,
        examples=pd.DataFrame(),
        pages=[],
        left_out=left_out,
    )
    if measured[kind].by_token and kind != "mean":
        examples_shown, pages = write_pages(config, tracker, run, found, of_main, measured[kind], texts, readable)
        found = found._replace(examples=examples_shown, pages=pages)
    return SaeResult(errors, latents.features, write_report(tracker, found))


def _readable_states(config: SaeConfig, run: ExtractRun, states: Sequence[str]) -> tuple[list[str], list[str]]:
    """States whose classifier can be asked, and why others cannot."""
    if run.config.task != "classification" or not run.config.source_run_id or not run.store.manifest.num_classes:
        return [], ["what a classifier loses: the features are not those of a fine-tuned classifier."]
    folders = {info.name: info.folder for info in run.store.manifest.states}
    trained = [state for state in states if folders[state] != UNTRAINED_HEAD]
    return trained, [
        f"what the classifier of {state} loses: its head is random." for state in states if state not in trained
    ]
