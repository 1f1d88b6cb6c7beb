"""Sweeps over pruning thresholds: trials an hour against system 4, what records cost a trial, two workers against one.

    BERTDYN_DATA=… python -m benchmarks.sweep --checkpoint <folder of a fine-tuned BERT> --dataset sst2

One thread a process. Three tables, which `--tables` selects, are put into `--output` beside those that are there; each
has the conditions of its run:

    trials      seconds of a trial and trials an hour, of bertdyn and of system 4's way, with the same thresholds, rows
                and batch size; both take turns (see `benchmarks.sweep_trials` and `benchmarks.sweep_system4`)
    overhead    seconds of a trial that computes nothing, by where runs and studies are kept: sampling and records
                (see `benchmarks.sweep_overhead`)
    workers     the same study by one worker process and by two (see `benchmarks.sweep_workers`)

Caches are the program's own and empty at first. Linux only; the servers of `overhead` need PostgreSQL's programs
(`apt-get install postgresql`) and are left out without.
"""

import argparse
import logging
import os
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.sweep_overhead import overhead
from benchmarks.sweep_system4 import LOOK_BATCH
from benchmarks.sweep_trials import trials
from benchmarks.sweep_workers import workers
from benchmarks.tables import conditions, show, write_table
from bertdyn.pruning.config import COMPENSATIONS
from bertdyn.steps.sweep_pruning_space import OWN_CRITERIA, SYSTEM_4

TABLES = {"trials": trials, "overhead": overhead, "workers": workers}
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "optuna", "mlflow", "sqlalchemy", "numpy")
PATHS = ("output", "checkpoint", "data_dir", "tables")
"""Options that say nothing on another machine, or nothing of a single table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of a fine-tuned BertForSequenceClassification")
    parser.add_argument("--dataset", default="sst2", help="of single texts")
    parser.add_argument("--data_dir")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--max_train_samples", type=int, default=2000)
    parser.add_argument("--max_validation_samples", type=int, help="default: all")
    parser.add_argument("--calibration_texts", type=int, default=512, help="of bertdyn")
    parser.add_argument("--lists", type=int, default=3, help="table trials: the first so many of system 4's")
    parser.add_argument("--rounds", type=int, default=2, help="table trials: measurements of each list")
    parser.add_argument("--recovery_steps", type=int, default=60, help="table trials")
    parser.add_argument("--batch_size", type=int, default=32, help="of recovery")
    parser.add_argument("--distillation", type=float, nargs="+", default=[0.0, 0.5], help="of bertdyn's recovery")
    parser.add_argument("--criterion", choices=OWN_CRITERIA, default="fisher", help="of bertdyn; of the space")
    parser.add_argument("--compensation", choices=COMPENSATIONS, default="least_squares", help="the same")
    parser.add_argument("--overhead_trials", type=int, default=60, help="table overhead, of each kind")
    parser.add_argument("--worker_trials", type=int, default=24, help="table workers, of each study")
    parser.add_argument("--worker_rounds", type=int, default=1, help="table workers, studies of each kind")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sweep.json"))
    options = parser.parse_args()
    check(parser, options)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("alembic", "mlflow", "httpx", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.tables.split(","):
            os.environ["BERTDYN_CACHE"] = f"{folder}/{name}/cache"
            begun = [conditions(options, PACKAGES, PATHS)]
            table = {"conditions": begun} | TABLES[name](options, Path(folder, name))
            write_table(options.output, name, table)
            show(name, table["summary"])
            if "stages" in table:
                show(f"{name}: seconds of system 4's stages", table["stages"])


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program where options do not go together."""
    unknown = set(options.tables.split(",")) - set(TABLES)
    if unknown:
        parser.error(f"--tables {', '.join(sorted(unknown))}: there are {', '.join(TABLES)}")
    if "trials" not in options.tables.split(","):
        return
    if not 1 <= options.lists <= len(SYSTEM_4):
        parser.error(f"--lists {options.lists}: system 4 has 1 to {len(SYSTEM_4)}")
    if options.recovery_steps < 1:
        parser.error(f"--recovery_steps {options.recovery_steps}: one or more")
    least = max(options.recovery_steps * options.batch_size, LOOK_BATCH)
    if options.max_train_samples < least:
        parser.error(f"--max_train_samples {options.max_train_samples}: one pass over {least} texts is needed")


if __name__ == "__main__":
    main()
