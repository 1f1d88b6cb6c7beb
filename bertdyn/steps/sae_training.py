"""Which dictionaries a run has, and their training: as many at once as memory takes, resumed where a run was cut."""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore
from bertdyn.files import write_json
from bertdyn.sae.dictionaries import Dictionaries
from bertdyn.sae.dictionary import Dictionary
from bertdyn.sae.naming import CONTROL, Name
from bertdyn.sae.rows import Standardisation, TrainingRows, standardisation_of
from bertdyn.sae.training import Recipe, exported, make_dictionaries, train_dictionaries
from bertdyn.steps.lists import choices
from bertdyn.steps.random_twin import RANDOM_INIT
from bertdyn.steps.sae_config import SaeConfig
from bertdyn.steps.sae_rows import PartRows, part_rows
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.loop import AtEpochEnd, Progress

logger = logging.getLogger(__name__)

TRAINING = "training"
"""Folder of what a resumed run goes on from; removed when all dictionaries are saved."""
ROWS_PER_LATENT = 10
"""A latent that is to be found needs rows on which it is on."""
SHARE_OF_MEMORY = 0.4
"""Of what is free, for weights, gradients, moments and activations of dictionaries trained at once."""
CONTINUED_RATE = 0.1
"""Learning rate of a dictionary that is continued on another state, in units of the first training's: enough to
follow the state, not so much that latents wander where nothing changed (see `control`)."""


class Stores(NamedTuple):
    """Where rows are read."""

    run: FeatureStore
    twin: FeatureStore | None
    """The same texts seen by random weights."""
    states: list[str]
    """In the order of training."""


def recipe_of(config: SaeConfig, width: int, sparsity: float) -> Recipe:
    """How dictionaries on rows of some width are trained.

    Raises
    ------
    InputError
        If k does not fit the number of latents.
    """
    latents = config.width or round(config.expansion_factor * width)
    if latents < 2:
        raise InputError(f"--expansion_factor {config.expansion_factor:g}: {latents} latents of {width} dimensions")
    if config.activation != "relu" and sparsity >= latents:
        flag = "k" if sparsity == config.k else "frontier"
        raise InputError(f"--{flag} {sparsity:g}: a dictionary has {latents} latents; accepted are 1 to {latents - 1}")
    relu = config.activation == "relu"
    return Recipe(
        activation=config.activation,
        num_latents=latents,
        k=1 if relu else int(sparsity),
        l1_coefficient=sparsity if relu else 0.0,
        num_epochs=config.num_train_epochs,
        batch_size=config.per_device_train_batch_size,
        learning_rate=config.learning_rate,
    )


def check_size(config: SaeConfig, rows: PartRows) -> None:
    """Raise an `InputError` if the rows are too few for the dictionaries, saying what fits."""
    width = rows.dataset.batch(np.zeros(1, dtype=int)).shape[-1]
    latents = [recipe_of(config, width, sparsity) for sparsity in config.sparsities()][0].num_latents
    there = len(rows.numbers)
    if there < ROWS_PER_LATENT * latents:
        raise InputError(
            f"--width: {there:,} rows of {config.train_parts} are too few for {latents:,} latents "
            f"({ROWS_PER_LATENT} rows each); --width {max(2, there // ROWS_PER_LATENT)} fits, or extract more texts"
        )
    if config.per_device_train_batch_size > there:
        raise InputError(
            f"--per_device_train_batch_size {config.per_device_train_batch_size}: there are {there:,} rows"
        )


def train_all(
    config: SaeConfig, tracker: Tracker, accelerator: Accelerator, stores: Stores, layers: Sequence[int]
) -> dict[Name, Dictionary]:
    """Train every dictionary of the run; a resumed one goes on from the last complete epoch of each training.

    Several processes share the layers. What the others have trained the main one finds in the run's folder, as a
    resumed run does; only it returns all dictionaries.

    Raises
    ------
    InputError
        If rows are not finite, or too few.
    """
    rows = part_rows(stores.run, stores.states, layers[:1], config.rows, choices(config.train_parts, "train_parts"))
    width = rows.dataset.batch(np.zeros(1, dtype=int)).shape[-1]
    folder = Path(broadcast_object_list([str(tracker.folder)])[0]) / TRAINING
    fit = _layers_at_once(config, stores, width, accelerator)
    if accelerator.is_main_process:
        fit = _as_before(folder, min(fit, math.ceil(len(layers) / accelerator.num_processes)))
    at_once = broadcast_object_list([fit])[0]
    chunks = [layers[start : start + at_once] for start in range(0, len(layers), at_once)]

    def train(chunk: Sequence[int]) -> dict[Name, Dictionary]:
        label = "" if len(chunk) == len(layers) else f"/layers_{'_'.join(map(str, chunk))}"
        return _Chunk(config, tracker, folder, accelerator, stores, chunk, label).train()

    share = range(accelerator.process_index, len(chunks), accelerator.num_processes)
    mine = {number: train(chunks[number]) for number in share}
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return {}
    found: dict[Name, Dictionary] = {}
    for number, chunk in enumerate(chunks):
        found |= mine[number] if number in mine else train(chunk)
    return found


def _as_before(folder: Path, layers: int) -> int:
    """How many layers an interrupted attempt trained at once, whatever memory is free now; `layers` for a new run."""
    file = folder / "layers_at_once.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, layers)
    return int(json.loads(file.read_text()))


def _layers_at_once(config: SaeConfig, stores: Stores, width: int, accelerator: Accelerator) -> int:
    """Layers whose dictionaries fit into memory together; at least one."""
    recipe = recipe_of(config, width, config.sparsities()[0])
    dictionaries = len(config.seed_list()) * max(2, len(stores.states) + (stores.twin is not None))
    of_weights = 2 * recipe.num_latents * width * 4  # weight, gradient, two moments
    of_step = 3 * recipe.batch_size * recipe.num_latents
    on_gpu = accelerator.device.type == "cuda"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's word for the processes of this machine
    free = torch.cuda.mem_get_info(accelerator.device)[0] if on_gpu else psutil.virtual_memory().available // here
    return max(1, int(SHARE_OF_MEMORY * free / (4 * dictionaries * (of_weights + of_step))))


class _Chunk:
    """Some layers, all of whose dictionaries are trained side by side."""

    def __init__(
        self,
        config: SaeConfig,
        tracker: Tracker,
        folder: Path,
        accelerator: Accelerator,
        stores: Stores,
        layers: Sequence[int],
        label: str,
    ) -> None:
        self.config, self.tracker, self.folder, self.accelerator = config, tracker, folder, accelerator
        self.states, self.layers, self.seeds = stores.states, layers, config.seed_list()
        self.label = label  # of the training's metrics
        self.main, *self.further = config.sparsities()
        parts = choices(config.train_parts, "train_parts")
        self.rows = part_rows(stores.run, stores.states, layers, config.rows, parts).dataset
        self.standard = standardisation_of(self.rows, self._names(stores.states))
        self.stores, self.twin = stores, None
        if stores.twin is not None:
            twin = part_rows(stores.twin, [RANDOM_INIT], layers, config.rows, parts).dataset
            self.twin = (twin, standardisation_of(twin, self._names([RANDOM_INIT])))

    def _names(self, states: Sequence[str]) -> list[list[str]]:
        return [[f"layer {layer} of {state}" for layer in self.layers] for state in states]

    def train(self) -> dict[Name, Dictionary]:
        comparisons = choices(self.config.comparisons or "", "comparisons")
        found: dict[Name, Dictionary] = {}
        # Also without "independent": a stage-wise dictionary starts as that of the first state, and every other kind
        # is measured beside one of its own state.
        device = self.accelerator.device
        rows = TrainingRows([self.rows], [self.standard], device=device)
        first = self._run("independent", rows, self.main, self.seeds)
        found |= self._named("independent", first, rows, self.main)
        both = self._with_twin(rows)
        for sparsity in self.further:
            model = self._run(f"independent_{sparsity:g}", both, sparsity, self.seeds[:1])
            found |= self._named("independent", model, both, sparsity)
        if self.twin:
            alone = TrainingRows([self.twin[0]], [self.twin[1]], device=device)
            model = self._run(RANDOM_INIT, alone, self.main, self.seeds[:1])
            found |= self._named(RANDOM_INIT, model, alone, self.main)
        if "shared" in comparisons:
            pooled = TrainingRows([self.rows], [self.standard], pooled=True, device=device)
            model = self._run("shared", pooled, self.main, self.seeds)
            found |= self._named("shared", model, pooled, self.main)
        if "stagewise" in comparisons:
            found |= self._stagewise(first, rows)
        return found

    def _stagewise(self, first: Dictionaries, rows: TrainingRows) -> dict[Name, Dictionary]:
        """From the first state's dictionaries on: through each later state, and as long on the first state again."""
        layers, found = len(self.layers), {}
        start = _at_groups(first, [*range(layers), *range(layers)], rows.num_groups)
        for place, dictionary in exported(first, rows).items():
            if place.state == 0:
                name = Name("stagewise", self.states[0], self.layers[place.layer], self.seeds[place.seed], self.main)
                found[name] = dictionary
        for number, state in enumerate(self.states[1:], start=1):
            both = self._rows_of([number, 0])
            start = self._run(f"stagewise_{state}", both, self.main, self.seeds, start)
            for place, dictionary in exported(start, both).items():
                kind = CONTROL if place.state else "stagewise"
                found[Name(kind, state, self.layers[place.layer], self.seeds[place.seed], self.main)] = dictionary
        return found

    def _rows_of(self, states: list[int]) -> TrainingRows:
        """Of some states, standardised as in all other comparisons."""
        parts = choices(self.config.train_parts, "train_parts")
        names = [self.states[state] for state in states]
        dataset = part_rows(self.stores.run, names, self.layers, self.config.rows, parts).dataset
        mean, deviation, variance = self.standard
        standard = Standardisation(mean[states], deviation, variance[states])
        return TrainingRows([dataset], [standard], device=self.accelerator.device)

    def _with_twin(self, rows: TrainingRows) -> TrainingRows:
        if not self.twin:
            return rows
        standards = [self.standard, self.twin[1]]
        return TrainingRows([self.rows, self.twin[0]], standards, device=self.accelerator.device)

    def _run(
        self, phase: str, rows: TrainingRows, sparsity: float, seeds: Sequence[int], start: Dictionaries | None = None
    ) -> Dictionaries:
        recipe = recipe_of(self.config, rows.width, sparsity)
        if start is not None:
            recipe = dataclasses.replace(recipe, learning_rate=CONTINUED_RATE * recipe.learning_rate)
        layers = ",".join(map(str, self.layers))
        logger.info(
            "%s: %d dictionaries of %s latents (layers %s) on %s rows of width %d",
            phase.replace("_", " "),
            len(seeds) * rows.num_groups,
            f"{recipe.num_latents:,}",
            layers,
            f"{len(rows):,}",
            rows.width,
        )
        model = start or make_dictionaries(rows, recipe, list(seeds))
        state_file = self.folder / f"{phase}-{layers}.safetensors"
        state_file.parent.mkdir(parents=True, exist_ok=True)

        def report(progress: Progress) -> None:
            for epoch, metrics in enumerate(progress.history[1:], start=1):  # those before this attempt, too
                self.tracker.log_metrics({f"train/fvu/{phase}{self.label}": metrics["train/fvu"]}, epoch)

        progress = train_dictionaries(
            self.accelerator,
            model,
            rows,
            recipe,
            seed=self.seeds[0],
            state_file=state_file,
            listeners=[AtEpochEnd(report)],
        )
        report(progress)  # of a training that another process, or an earlier attempt, has finished
        self.accelerator.free_memory()  # it keeps every model and optimiser that it prepared
        return model

    def _named(
        self, comparison: str, model: Dictionaries, rows: TrainingRows, sparsity: float
    ) -> dict[Name, Dictionary]:
        states = [RANDOM_INIT] if comparison == RANDOM_INIT else [*self.states, RANDOM_INIT]
        found = {}
        for place, dictionary in exported(model, rows).items():
            state = states[place.state]
            kind = RANDOM_INIT if state == RANDOM_INIT else comparison
            found[Name(kind, state, self.layers[place.layer], self.seeds[place.seed], sparsity)] = dictionary
        return found


def _at_groups(model: Dictionaries, groups: Sequence[int], num_groups: int) -> Dictionaries:
    """A model that starts at the dictionaries of some groups, of every seed."""
    numbers = [seed * num_groups + group for seed in range(model.num_seeds) for group in groups]
    _, latents, width = model.encoder.shape
    chosen = Dictionaries(model.num_seeds, len(groups), width, latents, activation=model.activation, k=model.k)
    chosen.load_state_dict({name: value[numbers] for name, value in model.state_dict().items()})
    chosen.idle.zero_()
    return chosen
