"""Going on with a run that was interrupted."""

import dataclasses
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator

from bertdyn.errors import InputError
from bertdyn.steps.config import ExtractConfig, FineTuneConfig
from bertdyn.steps.sae_config import SaeConfig
from bertdyn.tracking.locations import check_unfinished, load_run_config
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.checkpoints import (
    TRAINING_STATE,
    checkpoint_path,
    load_progress,
)
from bertdyn.training.loop import Progress

Config = TypeVar("Config", FineTuneConfig, ExtractConfig, SaeConfig)


def resumed_config(config: Config, given: set[str]) -> Config:
    """The options with which the run `config.resume_run_id` was started.

    Raises
    ------
    InputError
        If there is no such run, it has ended well, or an option that was given now says something else.
    """
    run_id = config.resume_run_id or ""
    stored = load_run_config(run_id)
    for name in sorted(given - {"resume_run_id"}):
        if name not in stored or getattr(config, name) != stored[name]:
            raise InputError(
                f"--{name} {getattr(config, name)!r}: run {run_id} was started with {stored.get(name)!r}; "
                "a resumed run keeps its options, so leave the flag out"
            )
    check_unfinished(run_id)
    fields = {field.name for field in dataclasses.fields(config)}
    if set(stored) != fields:
        raise InputError(
            f"--resume_run_id {run_id}: that run was made by another version of bertdyn, or another command"
        )
    return type(config)(**stored | {"resume_run_id": run_id})


def earlier_progress(
    config: FineTuneConfig, tracker: Tracker, folder: Path, accelerator: Accelerator
) -> Progress | None:
    """How far an interrupted attempt at this run came, with all its files in `folder`; None for a new run."""
    if not config.resume_run_id:
        return None
    if accelerator.is_main_process:
        try:
            progress = load_progress(tracker.fetch(TRAINING_STATE))
        except FileNotFoundError:  # it did not come to the end of epoch 0
            pass
        else:
            if progress.num_processes != accelerator.num_processes:
                raise InputError(
                    f"--resume_run_id {config.resume_run_id}: started with {progress.num_processes} process(es), now "
                    f"{accelerator.num_processes}; another number would be another training"
                )
            for path in ("dynamics.parquet", checkpoint_path(0), checkpoint_path(progress.epoch)):
                tracker.fetch(path)
            if config.store_features:
                tracker.fetch("features")
            # What was reached is perhaps not all on the server; points that it has are not sent again.
            for epoch, metrics in enumerate(progress.history):
                tracker.log_metrics(metrics, epoch)
    accelerator.wait_for_everyone()
    state = folder / TRAINING_STATE
    return load_progress(state) if state.exists() else None
