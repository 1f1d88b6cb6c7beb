"""Comparing: extract runs in; how much of each layer's geometry every state keeps, and what that geometry is, out.

    stores → aligned rows → one layer after the other, measured → tables → figures and report

States of one run are compared with a reference. Of several runs, those on the same texts are also compared with each
other: runs that differ in their seed only are the baseline of everything that fine-tuning seems to change.
"""

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bertdyn.errors import InputError
from bertdyn.features.aligned import AlignedRows
from bertdyn.geometry.cosines import unit
from bertdyn.geometry.tsne import MAX_ROWS, joint_tsne
from bertdyn.steps.compare_report import AND, Comparison, write_report
from bertdyn.steps.config import CompareConfig
from bertdyn.steps.extract_runs import ExtractRun, chosen_layers, open_runs
from bertdyn.steps.measuring import LayerTables, measure_layer
from bertdyn.steps.sources import described
from bertdyn.tracking.locations import load_run_config
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

SAME_IN_SEEDS = {"seed", "seeds", "calibration_seed", "run_name", "register_as", "resume_run_id"}
"""Options of fine-tuning in which two seeds of one study may differ."""
HEATMAP_TOKENS = (8, 16)


class CompareResult(NamedTuple):
    """What a comparison found."""

    similarity: pd.DataFrame
    """One row per pair of states, layer, kind of rows and measure."""
    geometry: pd.DataFrame
    """One row per state, layer, kind of rows and measure."""
    summary: str
    """The run's report, Markdown."""


def compare(config: CompareConfig, tracker: Tracker, runs: Sequence[ExtractRun] | None = None) -> CompareResult:
    """Measure and compare the states of extract runs.

    Parameters
    ----------
    runs
        From `open_runs`, where that was called before.

    Raises
    ------
    InputError
        Whatever is wrong with the runs, their states, layers or texts.
    """
    runs = runs or open_runs(config)
    tracker.log_config(dataclasses.asdict(config))
    between, apart = [], []
    for one, other in itertools.combinations(runs, 2) if config.between_runs != "false" else ():
        try:
            between.append(compare_runs(one, other, config))
        except InputError as error:
            if config.between_runs == "true":
                raise
            apart.append(f"{one.label} and {other.label}: {error}")
            logger.info("not compared row by row: %s", apart[-1])
    parts = [compare_states(run, config) for run in runs]
    return CompareResult(*write_report(config, tracker, parts, between, apart))


def compare_states(run: ExtractRun, config: CompareConfig) -> Comparison:
    """Every state of a run with its reference, and the geometry of each."""
    pairs = reference_pairs(run.states, config)
    aligned = AlignedRows([(run.store, state) for state in run.states], config.part, config.max_examples)
    layers = chosen_layers(config.layers, aligned.layers)
    # What may be wrong with the options is said before the long part.
    cosines = token_cosines(run, config, layers)
    places = tsne(aligned, layers, config) if config.tsne else {}
    measured = measure(aligned, layers, pairs, config, run.label)
    names = dict(enumerate(run.states))
    about = {"run": run.label, "run_id": run.run_id, **described(run.config)}

    def table(rows: Sequence[dict[str, Any]] | pd.DataFrame, **more: Any) -> pd.DataFrame:
        frame = pd.DataFrame(rows).assign(**about, **more)
        for column in {"state", "state_a", "state_b"} & set(frame):
            frame[column] = frame[column].map(names)
        return frame

    return Comparison(
        label=run.label,
        run_id=run.run_id,
        states=run.states,
        similarity=table(_rows(measured, "similarity"), kind="states"),
        geometry=table(_rows(measured, "geometry")),
        histogram=table(_rows(measured, "histogram")),
        dimensions=table(
            pd.concat([frame.assign(layer=layer) for layer, t in measured.items() for frame in t.dimensions])
        ),
        bases={layer: tables.pca[0] for layer, tables in measured.items() if tables.pca},
        examples=aligned.examples,
        label_names=run.store.manifest.label_names,
        token_cosines=cosines,
        tsne=places,
    )


def compare_runs(one: ExtractRun, other: ExtractRun, config: CompareConfig) -> pd.DataFrame:
    """The last states of two runs on the same texts.

    Raises
    ------
    InputError
        If their rows or layers do not correspond.
    """
    sources = [(run.store, run.states[-1]) for run in (one, other)]
    aligned = AlignedRows(sources, config.part, config.max_examples)
    if one.store.manifest.depth != other.store.manifest.depth:
        raise InputError(
            f"{one.run_id} has {one.store.manifest.depth} layers, {other.run_id} has {other.store.manifest.depth}: "
            "layers do not correspond"
        )
    label = f"{one.label}{AND}{other.label}"
    measured = measure(aligned, chosen_layers(config.layers, aligned.layers), [(0, 1)], config, label, geometry=False)
    return pd.DataFrame(_rows(measured, "similarity")).assign(
        run=label,
        run_id=f"{one.run_id},{other.run_id}",
        dataset=described(one.config)["dataset"],
        model=" and ".join(dict.fromkeys(str(described(run.config)["model"]) for run in (one, other))),
        seed=-1,
        kind="reseeded" if only_seed_differs(one, other) else "models",
        state_a=one.states[-1],
        state_b=other.states[-1],
    )


def measure(
    aligned: AlignedRows,
    layers: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    config: CompareConfig,
    label: str,
    geometry: bool = True,
) -> dict[int, LayerTables]:
    """Layer → what was measured."""
    return {
        layer: measure_layer(
            aligned, layer, pairs, geometry=geometry, num_neighbours=config.num_neighbours, seed=config.seed
        )
        for layer in tqdm(layers, desc=f"compare {label}", unit="layer", disable=len(layers) < 2)
    }


def reference_pairs(states: Sequence[str], config: CompareConfig) -> list[tuple[int, int]]:
    """Which states are compared, by number.

    Raises
    ------
    InputError
        If the reference is no state.
    """
    if config.reference == "previous":
        return list(itertools.pairwise(range(len(states))))
    reference = config.reference or states[0]
    if reference not in states:
        raise InputError(f"--reference {reference!r}: accepted are previous, {', '.join(states)}")
    number = states.index(reference)
    return [(number, other) for other in range(len(states)) if other != number]


def only_seed_differs(one: ExtractRun, other: ExtractRun) -> bool:
    """Whether two runs are of the same fine-tuning with two seeds."""
    ids = [run.config.source_run_id for run in (one, other)]
    if not all(ids):
        return False
    configs = [load_run_config(run_id) for run_id in ids if run_id]
    differing = {name for name in configs[0].keys() | configs[1].keys() if configs[0].get(name) != configs[1].get(name)}
    return "seed" in differing and differing <= SAME_IN_SEEDS


def token_cosines(
    run: ExtractRun, config: CompareConfig, layers: Sequence[int]
) -> tuple[list[str], dict[str, dict[int, np.ndarray]]]:
    """The tokens of one text, and state → layer → their cosines [tokens, tokens]; of the first and last state."""
    if "tokens" not in run.store.manifest.arrays:
        return [], {}
    examples = run.store.examples()
    if config.example_id:
        chosen = examples[examples["example_id"] == config.example_id]
        if chosen.empty:
            raise InputError(f"--example_id {config.example_id!r}: run {run.run_id} has no such text")
    else:
        of_part = examples[examples["part"] == config.part]
        short = of_part[of_part["n_rows"].between(*HEATMAP_TOKENS)]
        chosen = (of_part if short.empty else short)[:1]
    first, count = chosen[["first_row", "n_rows"]].iloc[0]
    tokens = run.store.tokens(["token"], (first, first + count))["token"].tolist()
    cosines: dict[str, dict[int, np.ndarray]] = {}
    for state in dict.fromkeys([run.states[0], run.states[-1]]):
        units = {layer: unit(run.store.array("tokens", state, layer)[first : first + count]) for layer in layers}
        cosines[state] = {layer: rows @ rows.T for layer, rows in units.items()}
    return tokens, cosines


def tsne(aligned: AlignedRows, layers: Sequence[int], config: CompareConfig) -> dict[int, list[np.ndarray]]:
    """Layer → [rows, 2] by state, of first tokens; of the middle and the last layer."""
    if "first" not in aligned.kinds:
        raise InputError("--tsne true: needs first tokens; extract them with --rows tokens or first")
    places = {}
    for layer in sorted({layers[len(layers) // 2], layers[-1]} - {0}):
        blocks = [block["first"].states for block in aligned.blocks(layer, 0, min(len(aligned.examples), MAX_ROWS))]
        places[layer] = joint_tsne([np.concatenate(of) for of in zip(*blocks, strict=True)], seed=config.seed)
    return places


def _rows(measured: dict[int, LayerTables], name: str) -> list[dict[str, Any]]:
    return [row | {"layer": layer} for layer, tables in measured.items() for row in getattr(tables, name)]
