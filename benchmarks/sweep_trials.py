"""The table `trials` of `benchmarks.sweep`: how long one trial takes, of bertdyn and of system 4's way.

    bertdyn    `PruningTrials`, with a study in memory and a folder for the run: the trial itself. What a worker does
               once stands apart (seconds_of_setup): data, tokens, models, the dense model's answers, and all statistics
               that the space can ask for, in a process that has imported everything
    system 4   `benchmarks.sweep_system4`; it does nothing once, and imports do not count for it either

Thresholds are those of system 4, as quantiles, interpolated to the layers of the checkpoint, for both. bertdyn makes up
for what goes and recovers in as many steps of as many texts, on the labels as system 4 does, or with the dense model as
a teacher; it validates before and after a recovery, system 4 after it. Ratios are of trials of one list and round, by
the clock on the wall and by the processor's for this process, which others on the same core disturb less. The benchmark
fails unless both cut the same model: same units, same logits.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch

from benchmarks.sweep_system4 import EVAL_BATCH, System4, Thresholds, above, cut, look, tokenise
from benchmarks.tables import Row, say
from bertdyn.data.batching import model_inputs
from bertdyn.data.loading import load_data
from bertdyn.pruning.plan import Plan, load_plan
from bertdyn.pruning.shape import shape_of
from bertdyn.pruning.surgery import prune
from bertdyn.steps.sweep_config import SweepPruningConfig
from bertdyn.steps.sweep_pruning_space import SYSTEM_4, directions, space_of
from bertdyn.steps.sweep_pruning_trials import PruningTrials
from bertdyn.sweeping.space import Space, interpolated
from bertdyn.sweeping.studies import noted
from bertdyn.sweeping.workers import quiet
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.optimization import updates_per_epoch

OURS, THEIRS = "bertdyn", "system 4"
NONE, LABELS = "none", "labels"
STUDY = 100
"""Trials of the study that a set-up is spread over."""
LARGEST_DIFFERENCE = 1e-4
"""Of logits of the same model, cut by either side."""


class Way(NamedTuple):
    """One kind of trial."""

    system: str
    recovery: str
    """`none`, `labels`, or what else is learned from."""
    seconds_of_setup: float
    trial: Callable[[str], Row]
    """From the name of a list."""


def trials(options: argparse.Namespace, folder: Path) -> Row:
    """The table of seconds a trial."""
    quiet()
    config = config_of(options)
    space = space_of(config)
    data = load_data(config)
    lists = {name: as_params(space, *SYSTEM_4[name], options) for name in list(SYSTEM_4)[: options.lists]}
    thresholds = {name: as_thresholds(space, params) for name, params in lists.items()}
    theirs = System4(options.checkpoint, data, options.batch_size)
    difference = difference_of_cuts(theirs, next(iter(thresholds.values())))
    ways = []
    for steps, name in ((0, NONE), (options.recovery_steps, LABELS)):
        ways.append(Way(THEIRS, name, 0.0, partial(their_trial, theirs, thresholds, steps)))
    for name, own in our_configs(config, options).items():
        ours = Ours(own, space, folder / name)
        say(f"{OURS}, recovery {name}: set up in {ours.seconds_of_setup:.1f} s")
        ways.append(Way(OURS, name, ours.seconds_of_setup, partial(our_trial, ours, lists)))
    rows = []
    for turn in range(options.rounds):
        for name in lists:
            for way in ways if turn % 2 == 0 else reversed(ways):
                rows.append({"system": way.system, "recovery": way.recovery, "list": name, "round": turn})
                rows[-1] |= timed(way, name)
                if rows[-1]["steps"] != (0 if way.recovery == NONE else options.recovery_steps):
                    raise SystemExit(f"{way.system}, recovery {way.recovery}: {rows[-1]['steps']} steps")
                said = f"{rows[-1]['seconds']:.1f} s, accuracy {rows[-1]['accuracy']:.4f}"
                say(f"round {turn + 1}, {name}: {way.system}, recovery {way.recovery}: {said}")
    stages = [
        {"recovery": row["recovery"], "list": row["list"], "round": row["round"]} | row.pop("stages")
        for row in rows
        if row["system"] == THEIRS
    ]
    return {
        "texts": {part: len(data.parts[part]) for part in ("train", "validation")},
        "thresholds": thresholds,
        "largest_difference_of_cuts": difference,
        "stages": stages,
        "rows": rows,
        "summary": [summary(way, rows) for way in ways],
    }


def config_of(options: argparse.Namespace, **others: Any) -> SweepPruningConfig:
    """The options of a sweep without recovery."""
    return SweepPruningConfig(
        model_name_or_path=options.checkpoint,
        dataset=options.dataset,
        data_dir=options.data_dir,
        max_train_samples=options.max_train_samples,
        max_validation_samples=options.max_validation_samples,
        calibration_examples=options.calibration_texts,
        per_device_train_batch_size=options.batch_size,
        **others,
    )


def our_configs(config: SweepPruningConfig, options: argparse.Namespace) -> dict[str, SweepPruningConfig]:
    """Name of a recovery → the options of a sweep with it."""
    texts = options.recovery_steps * options.batch_size
    found = {NONE: config}
    for weight in options.distillation:
        name = f"distillation {weight:g}" if weight else LABELS
        found[name] = replace(config, trial_epochs=1, trial_train_samples=texts, distillation=weight)
    return found


def as_params(space: Space, attention: list[float], ffn: list[float], options: argparse.Namespace) -> dict[str, Any]:
    """Optuna's params of a trial with these lists."""
    words = {"criterion": options.criterion, "compensation": options.compensation}
    params = space.scatter({"attention_thresholds": attention, "ffn_thresholds": ffn} | words)
    if params is None:
        raise SystemExit(f"{words} is not in the space, which has {space.to_dict()}")
    return params


def as_thresholds(space: Space, params: dict[str, Any]) -> Thresholds:
    """The same as the numbers of each layer, within the ranges of the space."""
    chosen = space.gather(params)
    layers = len(chosen["ffn_thresholds"])
    return {kind: interpolated(chosen[f"{kind}_thresholds"], layers) for kind in ("attention", "ffn")}


class Ours:
    """A worker of a sweep, without the process around it."""

    def __init__(self, config: SweepPruningConfig, space: Space, folder: Path) -> None:
        os.environ["BERTDYN_CACHE"] = str(folder / "cache")  # empty: tokenising is part of a set-up
        start = time.perf_counter()
        self.objective = ready(config, space)
        texts = self.objective.recovery_texts.tokens["train"] if config.trial_epochs else ()
        self.seconds_of_setup = time.perf_counter() - start
        self.steps = updates_per_epoch(len(texts), self.objective.base)
        self.study, self.folder = optuna.create_study(directions=directions(config)), folder

    def trial(self, params: dict[str, Any]) -> optuna.trial.FrozenTrial:
        self.study.enqueue_trial(params)
        trial = self.study.ask()
        values = self.objective(trial, Tracker(self.folder / str(trial.number)))
        return self.study.tell(trial, values)


def ready(config: SweepPruningConfig, space: Space) -> PruningTrials:
    """The objective after everything that its first trials would compute for all others."""
    objective = PruningTrials(config, space)
    for compensation in space.choices("compensation") or (config.compensation,):
        looked = objective.looked(compensation)
        for criterion in space.choices("criterion") or (config.criterion,):
            looked.scores(criterion)
        if compensation != "none":
            looked.moments  # noqa: B018  computed when it is asked for
    objective.validation  # noqa: B018
    return objective


def our_trial(ours: Ours, lists: dict[str, dict[str, Any]], name: str) -> Row:
    found = ours.trial(lists[name])
    shape = load_plan(ours.folder / str(found.number) / "plan.json").result
    scores = {key: noted(found)[key] for key in ("accuracy", "kl")}
    return scores | {"heads": list(shape.heads), "neurons": list(shape.neurons), "steps": ours.steps}


def their_trial(theirs: System4, thresholds: dict[str, Thresholds], steps: int, name: str) -> Row:
    return theirs.trial(thresholds[name], steps)


def timed(way: Way, name: str) -> Row:
    """One trial, by both clocks."""
    wall, processor = time.perf_counter(), time.process_time()
    found = way.trial(name)
    return {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor} | found


def summary(way: Way, rows: list[Row]) -> Row:
    """Medians over lists and rounds; of bertdyn, system 4's time for as many steps as a multiple of its own."""

    def of(system: str, recovery: str, column: str) -> list[Any]:
        found = [row for row in rows if (row["system"], row["recovery"]) == (system, recovery)]
        return [row[column] for row in sorted(found, key=lambda row: (row["list"], row["round"]))]

    seconds = of(way.system, way.recovery, "seconds")
    middle = statistics.median(seconds)
    study = way.seconds_of_setup + STUDY * middle
    line = {"system": way.system, "recovery": way.recovery, "trials": len(seconds)}
    line |= {"seconds": middle, "seconds_low": min(seconds), "seconds_high": max(seconds)}
    line |= {"trials_an_hour": 3600 / middle, "seconds_of_setup": way.seconds_of_setup}
    line |= {f"trials_an_hour_of_{STUDY}": 3600 * STUDY / study}
    line |= {"accuracy": statistics.mean(of(way.system, way.recovery, "accuracy"))}
    if way.system == THEIRS:
        return line
    peer = NONE if way.recovery == NONE else LABELS
    ratios = {}
    for clock in ("seconds", "processor_seconds"):
        pairs = zip(of(THEIRS, peer, clock), of(way.system, way.recovery, clock), strict=True)
        ratios[clock] = [theirs / ours for theirs, ours in pairs]
    times = "times_system_4"
    line |= {times: statistics.median(ratios["seconds"])}
    line |= {f"{times}_low": min(ratios["seconds"]), f"{times}_high": max(ratios["seconds"])}
    line |= {f"{times}_by_processor": statistics.median(ratios["processor_seconds"])}
    line[f"{times}_of_{STUDY}"] = STUDY * statistics.median(of(THEIRS, peer, "seconds")) / study
    return line


@torch.no_grad()
def difference_of_cuts(theirs: System4, thresholds: Thresholds) -> float:
    """The largest one between the logits of the model that system 4's way cuts and that bertdyn makes of it."""
    model, tokenizer = theirs.load()
    kept = above(look(model, tokenise(theirs.data.parts["train"], tokenizer)), thresholds)
    pruned = prune(model, Plan(shape_of(model), {site: tuple(units) for site, units in kept.items()}))
    cut(model, kept)
    batch = model_inputs(tokenise(theirs.data.parts["validation"][:EVAL_BATCH], tokenizer)[:])
    difference = float((model(**batch).logits - pruned(**batch).logits).abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise SystemExit(f"the same model cut by system 4's way and by bertdyn differs by {difference}")
    return difference
