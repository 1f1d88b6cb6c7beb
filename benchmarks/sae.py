"""Rows a second of training a dictionary, and seconds to a quality, against the trainers of other libraries.

    python -m benchmarks.sae --peers_python <interpreter> --store <features/ of an extract run with rows tokens>

The others have requirements of their own; their interpreter needs sae-lens, eai-sparsify and dictionary_learning, best
with the same torch, and no bertdyn. Every measurement is a process of its own on one core and one thread, in float32;
the systems take turns, their order reversed from round to round. All see the same rows in the same batches, from
memory: content tokens of one layer and state, and synthetic ones of another width. The clock runs from a trainer's
asking for its first batch to the end of its last step, without evaluations. Each trains by its own loop:

    saelens               `SAETrainer.fit` with a `TopKTrainingSAE`
    sparsify              `Trainer.fit` on a model that looks rows up, PyTorch's decoder (its Triton kernels need a GPU)
    dictionary_learning   `trainSAE` with a `TopKTrainer`. Version 0.1.0, the last on PyPI; what is newer is in git only
    bertdyn               `train_dictionaries` with one dictionary; it alone standardises inside its steps, and
                          has malloc keep freed memory

Two tables:

    speed     TopK of equal size, batch and steps, without AuxK: the median step after a few that are not counted
    quality   whole trainings: held-out FVU (fraction of variance unexplained; raw, and with all dimensions counted
              alike), dead latents, peak memory; and when bertdyn was where another ended. The others by their
              defaults, on raw rows, and tuned for few rows, at several learning rates; see `benchmarks.sae_peers`.
              bertdyn by its only recipe

Seconds are on the wall, and the processor's, which others on the same core disturb less. Linux only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sae_feed import SEED, Job
from bertdyn.features.aligned import AlignedRows
from bertdyn.features.store import FeatureStore

PEERS = ("saelens", "sparsify", "dictionary_learning")
WARMUP_STEPS = 3
"""Not counted by the table of speed."""
CLOCKS = {"wall": "seconds", "processor": "processor_seconds"}
PATHS = ("output", "peers_python", "store")
"""Options that say nothing on another machine."""
MEASURES = ("fvu", "fvu_standardised")

Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers_python", required=True, help="interpreter that has the other libraries")
    parser.add_argument("--store", type=Path, required=True, help="its parts train and validation are used")
    parser.add_argument("--state", default="best")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--width", type=int, default=768, help="of the synthetic rows")
    parser.add_argument("--expansion", type=int, default=8, help="latents, in widths")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each system's speed")
    parser.add_argument("--steps", type=int, default=20, help="counted by the table of speed")
    parser.add_argument("--speed_batch_size", type=int, default=2048)
    parser.add_argument("--trainings", type=int, default=1, help="rounds of the table of quality")
    parser.add_argument("--num_epochs", type=int, default=10, help="of the table of quality")
    parser.add_argument("--batch_size", type=int, default=1024, help="of the table of quality")
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[2e-3, 4e-3], help="of the others, tuned")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sae.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_rows(Path(folder), options)
        speed_runs = measure_speed(Path(folder), options)
        quality_runs = measure_quality(Path(folder), options)
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "accelerate")}
    result = {
        "rows": sizes,
        "speed": {data: speed_table(runs, options.speed_batch_size) for data, runs in speed_runs.items()},
        "quality": quality_table(quality_runs),
        "options": {name: value for name, value in vars(options).items() if name not in PATHS},
        "threads": 1,
        "load_average": os.getloadavg()[0],
        "versions": versions,
        "versions_of_others": {name: runs[0]["versions"] for name, runs in quality_runs.items() if name != "bertdyn"},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1, default=str) + "\n")
    print(json.dumps(result, indent=1, default=str))


def write_rows(folder: Path, options: argparse.Namespace) -> dict[str, list[int]]:
    """Matrices of rows as .npy; their shapes."""
    needed = (WARMUP_STEPS + options.steps) * options.speed_batch_size
    train = content_rows(options.store, options.state, options.layer, "train")
    if len(train) < needed:
        raise SystemExit(f"{options.store} has {len(train)} content rows for training; --steps need {needed}")
    matrices = {
        "train": train,
        "held_out": content_rows(options.store, options.state, options.layer, "validation"),
        "store": train[:needed],
        "synthetic": superposition(needed, options.width),
    }
    for name, rows in matrices.items():
        np.save(folder / f"{name}.npy", rows)
    return {name: list(rows.shape) for name, rows in matrices.items()}


def content_rows(folder: Path, state: str, layer: int, part: str) -> np.ndarray:
    """[rows, width] float32 of one part, shuffled."""
    store = FeatureStore.open(folder)
    numbers, _ = AlignedRows([(store, state)], part).content_rows(store.manifest.num_tokens, SEED)
    rows = store.array("tokens", state, layer)[numbers].astype(np.float32)
    return np.random.default_rng(SEED).permutation(rows)


def superposition(rows: int, width: int) -> np.ndarray:
    """Sums of some of 4 × width directions, 16 a row on average, frequent and rare ones; a mean and two outliers."""
    random = np.random.default_rng(SEED)
    directions = random.normal(size=(4 * width, width)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rates = np.arange(1, 4 * width + 1) ** -0.5
    rates *= 16 / rates.sum()
    mean, scale = random.normal(size=width), np.ones(width)
    scale[:2], mean[:2] = 20, 50
    found = np.empty((rows, width), dtype=np.float32)
    for start in range(0, rows, 4096):
        block = found[start : start + 4096]
        on = random.random((len(block), len(rates))) < rates
        block[:] = (on * random.exponential(size=on.shape)).astype(np.float32) @ directions * scale + mean
    return found


def measure_speed(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, list[Run]]]:
    """By data and system."""
    jobs = {}
    for data in ("store", "synthetic"):
        width = np.load(folder / f"{data}.npy", mmap_mode="r").shape[1]
        for system in (*PEERS, "bertdyn"):
            jobs[data, system] = Job(
                system=system,
                recipe="speed",
                learning_rate=options.learning_rates[0],
                train=str(folder / f"{data}.npy"),
                held_out="",
                num_latents=options.expansion * width,
                k=options.k,
                batch_size=options.speed_batch_size,
                num_epochs=1,
            )
    found = in_turns(jobs, options.rounds, options.peers_python)
    return {data: {s: found[data, s] for s in (*PEERS, "bertdyn")} for data in ("store", "synthetic")}


def measure_quality(folder: Path, options: argparse.Namespace) -> dict[str, list[Run]]:
    """By system and recipe."""
    width = np.load(folder / "train.npy", mmap_mode="r").shape[1]
    common = {
        "train": str(folder / "train.npy"),
        "held_out": str(folder / "held_out.npy"),
        "num_latents": options.expansion * width,
        "k": options.k,
        "batch_size": options.batch_size,
        "num_epochs": options.num_epochs,
    }
    jobs = {"bertdyn": Job("bertdyn", "tuned", 0.0, **common)}
    for system in PEERS:
        jobs[f"{system}, default"] = Job(system, "default", 0.0, **common)
        for rate in options.learning_rates:
            jobs[f"{system}, tuned, {rate:g}"] = Job(system, "tuned", rate, **common)
    return in_turns(jobs, options.trainings, options.peers_python)


def in_turns(jobs: dict[Any, Job], rounds: int, peers_python: str) -> dict[Any, list[Run]]:
    """Every job in every round."""
    found: dict[Any, list[Run]] = {name: [] for name in jobs}
    for turn in range(rounds):
        for name in jobs if turn % 2 == 0 else reversed(jobs):
            run = in_own_process(jobs[name], peers_python)
            found[name].append(run)
            last = run["curve"][-1] if run["curve"] else ""
            print(f"round {turn + 1}  {name}  {sum(run['step_seconds']):.1f} s  {last}", file=sys.stderr, flush=True)
    return found


def in_own_process(job: Job, peers_python: str) -> Run:
    """One training in a fresh process on one core."""
    own = job.system == "bertdyn"
    python, module = (sys.executable, "benchmarks.sae_bertdyn") if own else (peers_python, "benchmarks.sae_peers")
    command = [python, "-m", module, job.to_json()]
    one_core = {max(os.sched_getaffinity(0))}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"SPARSIFY_DISABLE_TRITON": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, one_core),
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def speed_table(runs: dict[str, list[Run]], batch_size: int) -> dict[str, Any]:
    """By system; ratios are of measurements of one round."""
    table: dict[str, Any] = {}
    steps = {
        clock: {
            system: [statistics.median(run[f"step_{key}"][WARMUP_STEPS:]) for run in of_system]
            for system, of_system in runs.items()
        }
        for clock, key in CLOCKS.items()
    }
    for system, of_system in runs.items():
        best = min(min(run["step_seconds"][WARMUP_STEPS:]) for run in of_system)
        table[system] = {
            "rows_per_second": round(batch_size / statistics.median(steps["wall"][system])),
            "rows_per_second_of_best_step": round(batch_size / best),
            "rows_per_processor_second": round(batch_size / statistics.median(steps["processor"][system])),
            "peak_mb": round(statistics.median(run["peak_mb"] for run in of_system)),
            "mb_before": round(statistics.median(run["mb_before"] for run in of_system)),
        }
        for clock, of_clock in steps.items():
            ratios = [theirs / ours for theirs, ours in zip(of_clock[system], of_clock["bertdyn"], strict=True)]
            if system != "bertdyn":
                table[system][f"bertdyn_times_{clock}"] = spread(ratios)
    return table


def quality_table(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """By system and recipe, of the last evaluation; seconds are medians over the rounds."""
    table = {}
    for name, of_name in runs.items():
        ends = [run["curve"][-1] for run in of_name]
        row = {key: round(ends[0][key], 4) for key in (*MEASURES, "l0", "dead_share")}
        row |= {key: round(statistics.median(end[key] for end in ends), 1) for key in CLOCKS.values()}
        row["seconds_before_first_step"] = round(of_name[0]["seconds_before_first_step"], 2)
        row |= {key: round(of_name[0][key]) for key in ("peak_mb", "mb_before")}
        if name != "bertdyn":
            row["bertdyn_was_there_after"] = {
                measure: when_as_good(runs["bertdyn"], measure, ends[0][measure]) for measure in MEASURES
            }
        table[name] = row | {"curve": of_name[0]["curve"]}
    return table


def when_as_good(runs: list[Run], measure: str, value: float) -> dict[str, float] | None:
    """Seconds to the first evaluation that is as good, medians over the rounds; None: it never was."""
    found = [next((point for point in run["curve"] if point[measure] <= value), None) for run in runs]
    reached = [point for point in found if point is not None]
    if not reached:
        return None
    return {key: round(statistics.median(point[key] for point in reached), 1) for key in CLOCKS.values()}


def spread(values: list[float]) -> dict[str, float]:
    """Their median and their range."""
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, 2) for name, value in found.items()}


if __name__ == "__main__":
    main()
