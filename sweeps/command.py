"""What both sweeps do around the study: lead it in a run, join it, or go on with it."""

import os
from typing import TYPE_CHECKING

from bertdyn.errors import InputError
from entrypoints.command import open_tracker
from entrypoints.fine_tune import see_it

if TYPE_CHECKING:
    from bertdyn.steps.sweep_worker import Config


def launch(name: str, config: "Config") -> None:
    """Run the sweep called `pruning` or `freezing`, and say what came out and what can follow."""
    from bertdyn.steps.sweep import find, join, lead
    from bertdyn.steps.sweeps import SWEEPS
    from bertdyn.sweeping import studies
    from bertdyn.sweeping.storage import without_password
    from bertdyn.tracking.locations import require_source
    from bertdyn.tracking.logged_models import check_register_as
    from bertdyn.tracking.runs import point_launcher

    sweep = SWEEPS[name]
    if config.register_as:
        check_register_as(config.register_as)
    if source := getattr(config, "source_run_id", None):
        from bertdyn.steps.sources import MODEL_STAGES

        require_source(source, MODEL_STAGES)
    space = sweep.space(config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a sweep starts its own processes: give --workers, and start it without torchrun")
    study = find(sweep, config, space)
    if study and studies.led_by_another(study):
        result = join(sweep, config, space, study)
        point_launcher(study.user_attrs[studies.PARENT], sweep.stage)
        print(result.summary)
        return
    parent = study.user_attrs.get(studies.PARENT) if study else None
    run_name, tags = config.run_name or f"{sweep.stage}-{sweep.label(config)}", sweep.tags(config)
    with open_tracker(sweep.stage, run_name=run_name, tags=tags, resume_run_id=parent) as tracker:
        result = lead(sweep, config, space, tracker, study)
    again = f"--storage {without_password(config.storage)} --study_name {result.study_name}"
    print(f"\n{result.summary}\n\nrun id   {tracker.run_id}\nresults  {tracker.folder}\n{see_it(tracker.uri)}")
    print(f"go on    the same command with {again} --n_trials {2 * config.n_trials}")
