"""The table `workers` of `benchmarks.sweep`: a study by one worker process and by two, one thread each.

The same trials, drawn beforehand, without recovery, through what the command `sweep-pruning` runs (`lead`), but into a
folder and without the winner's training at the end. `study_seconds` are from the start of the first trial to the end of
the last; what comes before (interpreters, models, tokens, and the statistics, which a worker computes before its first
trial here, and within it otherwise) are `seconds_of_startup`, and `whole_seconds` both. `speedup` is how much less time
two workers take. The driver, a third process, looks after both once a second.
"""

import argparse
import os
import statistics
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from benchmarks.sweep_trials import config_of, ready
from benchmarks.tables import Row, say
from bertdyn.steps.sweep import lead
from bertdyn.steps.sweep_config import SweepPruningConfig
from bertdyn.steps.sweep_pruning_space import space_of
from bertdyn.steps.sweep_pruning_trials import PruningTrials
from bertdyn.steps.sweep_worker import Config, Sweep
from bertdyn.steps.sweeps import SWEEPS
from bertdyn.sweeping import studies
from bertdyn.sweeping.space import Space
from bertdyn.sweeping.storage import open_storage
from bertdyn.tracking.tracker import Tracker

WORKERS = (1, 2)


def workers(options: argparse.Namespace, folder: Path) -> Row:
    """The table of a study's time."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # of worker processes
    rows = []
    for turn in range(options.worker_rounds):
        for count in WORKERS if turn % 2 == 0 else reversed(WORKERS):
            rows.append({"round": turn} | study_by(count, options, folder / f"{turn}-{count}"))
            say(f"round {turn + 1}, {count} workers: {rows[-1]['study_seconds']:.1f} s")
    return {"rows": rows, "summary": summary(rows)}


def study_by(count: int, options: argparse.Namespace, folder: Path) -> Row:
    """One study by so many workers."""
    folder.mkdir(parents=True)
    os.environ["BERTDYN_CACHE"] = str(folder / "cache")
    config = config_of(options, n_trials=options.worker_trials, workers=count, storage=str(folder / "optuna.journal"))
    begun = datetime.now()  # as Optuna says when
    result = lead(sweep(), config, space_of(config), Tracker(folder / "run"))
    study = optuna.load_study(study_name=result.study_name, storage=open_storage(config.storage))
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) != config.n_trials:
        raise SystemExit(f"{len(done)} of {config.n_trials} trials came to an end: {study.get_trials()}")
    first, last = min(trial.datetime_start for trial in done), max(trial.datetime_complete for trial in done)
    return {
        "workers": count,
        "trials": len(done),
        "study_seconds": (last - first).total_seconds(),
        "seconds_of_startup": (first - begun).total_seconds(),
        "whole_seconds": (last - begun).total_seconds(),
        "seconds_a_trial": statistics.median(trial.duration.total_seconds() for trial in done),
        "trials_by_worker": sorted(Counter(trial.user_attrs[studies.WORKER] for trial in done).values()),
    }


def sweep() -> Sweep:
    """`sweep-pruning` with trials that are known beforehand, statistics before the first trial, and no end."""
    return replace(SWEEPS["pruning"], first_trials=drawn, objective=ready_objective, conclude=nothing)


def drawn(config: SweepPruningConfig, space: Space) -> dict[str, dict[str, Any]]:
    """As many random trials as the study has, the same in every call."""
    study = optuna.create_study(sampler=RandomSampler(seed=config.seed))
    found = {}
    for number in range(config.n_trials):
        trial = study.ask()
        space.suggest(trial)
        found[f"drawn {number}"] = trial.params
    return found


def ready_objective(config: SweepPruningConfig, space: Space, study: Study) -> PruningTrials:
    return ready(config, space)


def nothing(config: Config, space: Space, study: Study, tracker: Tracker) -> str:
    return ""


def summary(rows: list[Row]) -> list[Row]:
    """Medians by number of workers, and one worker's time as a multiple."""
    lines = []
    for count in WORKERS:
        own = [row for row in rows if row["workers"] == count]
        line = {"workers": count, "studies": len(own), "trials": own[0]["trials"]}
        for name in ("study_seconds", "seconds_of_startup", "whole_seconds", "seconds_a_trial"):
            line[name] = statistics.median(row[name] for row in own)
        line["trials_by_worker"] = [row["trials_by_worker"] for row in own]
        for name, of in (("speedup", "study_seconds"), ("speedup_of_the_whole", "whole_seconds")):
            one = {row["round"]: row[of] for row in rows if row["workers"] == 1}
            ratios = [one[row["round"]] / row[of] for row in own]
            line |= {name: statistics.median(ratios), f"{name}_low": min(ratios), f"{name}_high": max(ratios)}
        lines.append(line)
    return lines
