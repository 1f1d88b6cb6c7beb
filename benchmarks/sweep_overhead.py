"""The table `overhead` of `benchmarks.sweep`: what Optuna and MLflow take of a trial, by where they keep things.

Trials compute nothing: they choose from the space of `sweep-pruning` by its default sampler, and record what a trial of
it records (params, 20 kB of JSON, two costs, nine scores, notes to Optuna), in a child run each, through the functions
that worker processes run. Measured is from the start of one trial to that of the next. The cost of records is what is
above that of a folder with a study in memory; the latter holds the sampler, whose part grows with the trials.

    folder     a `Tracker`                       memory       Optuna's study in this process
    sqlite     MLflow on an SQLite file          journal      Optuna's journal file, the default
    server     an MLflow server on PostgreSQL    postgresql   Optuna's study in a PostgreSQL of its own

All kinds take turns. Servers run on this machine and were idle before; PostgreSQL is without fsync, as tests have it.
"""

import argparse
import io
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import psutil
from optuna import Study, Trial
from optuna.storages import BaseStorage, InMemoryStorage

from benchmarks.sweep_trials import config_of
from benchmarks.tables import Row, say
from bertdyn.files import write_json
from bertdyn.steps.sweep_config import SweepPruningConfig
from bertdyn.steps.sweep_pruning_space import directions, space_of
from bertdyn.steps.sweep_worker import run_trial, run_trials
from bertdyn.sweeping import studies
from bertdyn.sweeping.samplers import make_sampler
from bertdyn.sweeping.space import Space
from bertdyn.sweeping.storage import open_storage
from bertdyn.sweeping.workers import quiet
from bertdyn.tracking.provenance import git_state, source_folder
from bertdyn.tracking.runs import EXPERIMENT, children_opener, end_abandoned, open_run
from bertdyn.tracking.tracker import Tracker
from tests.servers import POSTGRES_BIN, mlflow_server, postgresql

STAGE = "sweep-pruning"
TURNS = 6
TICK, IDLE_SHARE, LONGEST_WAIT = 3.0, 0.1, 300.0
"""Seconds between looks at the servers, the share of a core that idle ones take at most, seconds until they do."""
BASE = ("folder", "memory")
KINDS = (BASE, ("sqlite", "memory"), ("sqlite", "journal"), ("folder", "postgresql"), ("server", "postgresql"))
"""Where runs are, and where the study is."""
UNITS = 4_000
"""Numbers in the JSON file, some 20 kB."""
SCORES = (
    "loss", "accuracy", "macro_f1", "weighted_f1", "macro_precision", "weighted_precision", "macro_recall", "kl",
    "agreement",
)  # fmt: skip


class Place(NamedTuple):
    """One kind of keeping runs and studies."""

    kind: tuple[str, str]
    study: Study
    trial: Callable[[Trial], float | tuple[float, ...]]
    seconds: list[float]
    """Of each trial so far."""
    medians: list[float]
    """Of each turn so far."""


def overhead(options: argparse.Namespace, folder: Path) -> Row:
    """The table of seconds that records take of a trial."""
    quiet()
    config = config_of(options)
    git = git_state(source_folder())
    space, size = space_of(config), math.ceil(options.overhead_trials / TURNS)
    kinds = [kind for kind in KINDS if POSTGRES_BIN or "postgresql" not in kind]
    with ExitStack() as stack:
        stack.enter_context(environment_of_its_own(folder))
        places = [open_place(stack, kind, config, space, folder / "-".join(kind)) for kind in kinds]
        for place in places:
            more_trials(place, 1)  # not counted: imports, connections
        wait_for_idle_servers()
        for turn in range(TURNS):
            for place in places if turn % 2 == 0 else reversed(places):
                found = more_trials(place, size)
                place.seconds.extend(found)
                place.medians.append(statistics.median(found))
                say(f"turn {turn + 1} of {TURNS}, {' and '.join(place.kind)}: {place.medians[-1]:.3f} s a trial")
        rows = [row(place, places[0]) for place in places]
    found = {
        "parameters": len(space.free),
        "postgresql": str(POSTGRES_BIN) if POSTGRES_BIN else "not installed: server and postgresql are left out",
        "dirty_tree": git is not None and git.dirty,  # then each run has the uncommitted code, too
    }
    return found | {"rows": rows, "summary": rows}


def more_trials(place: Place, count: int) -> list[float]:
    """Seconds from the start of each of `count` more trials to that of the next, which makes one more than these."""
    starts: list[float] = []
    wanted = studies.finished(place.study) + count + 1

    def watched(trial: Trial) -> float | tuple[float, ...]:
        starts.append(time.perf_counter())
        return place.trial(trial)

    with redirect_stdout(io.StringIO()):  # of a server, MLflow prints two addresses a run
        run_trials(place.study, lambda: studies.taken(place.study) >= wanted, watched)
    if len(starts) != count + 1 or studies.finished(place.study) != wanted:
        raise SystemExit(f"{' and '.join(place.kind)}: trials failed; their errors stand above")
    return np.diff(starts).tolist()


def row(place: Place, base: Place) -> Row:
    """Median and 95th percentile, and what is above those of `base`."""
    found = {"runs": place.kind[0], "study": place.kind[1], "trials": len(place.seconds)}
    for name, share in (("median", 0.5), ("p95", 0.95)):
        own, others = (float(np.quantile(each.seconds, share)) for each in (place, base))
        found |= {f"seconds_{name}": own, f"overhead_{name}": own - others}
    return found | {"medians_by_turn": [round(seconds, 4) for seconds in place.medians]}


def compute_nothing(space: Space, trial: Trial, tracker: Tracker) -> tuple[float, float]:
    """What a trial of `sweep-pruning` records, made up from its thresholds."""
    chosen = space.suggest(trial)
    tracker.log_config(trial.params)
    cut = float(np.mean([np.mean(value) for value in chosen.values() if isinstance(value, list)]))
    kl, cost = cut**2, 1 - cut
    write_json(tracker.folder / "plan.json", {"units": " ".join(map(str, range(1000, 1000 + UNITS)))})
    tracker.publish("plan.json")
    tracker.log_metrics({"cost/flops": cost, "cost/parameters": cost}, 0)
    studies.note(trial, cost=cost, parameters=cost)
    tracker.log_metrics({f"eval/{name}": kl for name in SCORES}, 0)
    studies.note(trial, kl=kl, agreement=kl, accuracy=kl)
    return kl, cost


def open_place(
    stack: ExitStack, kind: tuple[str, str], config: SweepPruningConfig, space: Space, folder: Path
) -> Place:
    """A new study and a new run for its trials, which end with `stack`."""
    runs, study_in = kind
    folder.mkdir(parents=True)
    storage: BaseStorage = InMemoryStorage()
    if study_in != "memory":
        name = str(folder / "optuna.journal")
        if study_in == "postgresql":
            name = stack.enter_context(postgresql(folder / "optuna"))
        storage = open_storage(name, partial(studies.retry, end_abandoned))
    parent: Tracker = Tracker(folder / "run")
    open_child: Callable[[str, Mapping[str, str]], Tracker] = parent.child
    if runs != "folder":
        uri = f"sqlite:///{folder}/mlflow.db"
        if runs == "server":
            (folder / "mlflow").mkdir()
            uri = stack.enter_context(mlflow_server(folder / "mlflow", "postgresql")).uri
        else:  # else its artifacts would go to the current folder
            mlflow.MlflowClient(uri).create_experiment(EXPERIMENT, artifact_location=f"file://{folder}/artifacts")
        mlflow.set_tracking_uri(uri)
        parent = stack.enter_context(open_run(STAGE, run_name="benchmark"))
        open_child = children_opener(str(parent.run_id))
    study = studies.begin_study(storage, "benchmark", directions(config), {})
    assert study is not None
    study.sampler = make_sampler(config.sampler, space, config.seed)
    return Place(kind, study, partial(run_trial, STAGE, partial(compute_nothing, space), open_child), [], [])


def wait_for_idle_servers() -> None:
    """MLflow's server answers before its processes for jobs have imported all that they need."""
    deadline, spent = time.monotonic() + LONGEST_WAIT, math.inf
    while time.monotonic() < deadline:
        before, spent = spent, 0.0
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                spent += sum(process.cpu_times()[:2])
        if spent - before < IDLE_SHARE * TICK and before < math.inf:
            return
        time.sleep(TICK)
    raise SystemExit(f"the servers are still busy after {LONGEST_WAIT} s")


@contextmanager
def environment_of_its_own(folder: Path) -> Iterator[None]:
    """No MLflow setting of the caller's; afterwards all of them again."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",  # the driver's run has them, in another process
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "BERTDYN_CACHE": str(folder / "cache"),
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
        mlflow.set_tracking_uri(before.get("MLFLOW_TRACKING_URI"))
