"""A pipeline: steps as child runs of one run, each from those before it, with one report over all of them.

for each step: its recipe → a finished run of the same recipe, or a new child run → its id, for the steps behind it
at the end: the findings of all steps, each beside its baseline, and a figure of each
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from bertdyn.data.loading import load_data
from bertdyn.errors import InputError
from bertdyn.files import write_json
from bertdyn.steps.comparison import compare
from bertdyn.steps.dictionaries import sae
from bertdyn.steps.extract_runs import label_of_runs, open_runs
from bertdyn.steps.extract_runs import tags_of as tags_of_runs
from bertdyn.steps.extraction import extract
from bertdyn.steps.fine_tuning import fine_tune
from bertdyn.steps.pipeline_config import PipelineConfig
from bertdyn.steps.pipeline_file import REFERENCES, Pipeline, Step, load_pipeline
from bertdyn.steps.pipeline_report import Done, write_report
from bertdyn.steps.probing import probe
from bertdyn.steps.pruning import prune
from bertdyn.steps.pruning_seeds import prune_seeds
from bertdyn.steps.seeds import fine_tune_seeds
from bertdyn.steps.sources import label_of, tags_of, with_source_data
from bertdyn.steps.sweeps import SWEEPS, sweep_freezing, sweep_pruning
from bertdyn.tracking.recipes import RECIPE, find_made, recipe
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

UNDECIDING = ("run_name", "resume_run_id", "register_as", "data_dir", "storage", "study_name", "workers", *REFERENCES)
"""Options that decide nothing of what a step finds, or that its recipe has in another form."""


class PipelineResult(NamedTuple):
    """What a pipeline found."""

    runs: dict[str, str]
    """Step → the id of its run, or its folder without MLflow."""
    summary: str
    """The report, Markdown."""


def pipeline(config: PipelineConfig, tracker: Tracker, steps: Pipeline | None = None) -> PipelineResult:
    """Run steps one after the other, or take what is there of them, and report on all.

    Parameters
    ----------
    tracker
        Of the run that holds all others.
    steps
        From `load_pipeline`, where that was called before.

    Raises
    ------
    InputError
        What a step finds wrong with its options or data, with its name.
    """
    planned = steps or load_pipeline(config)
    tracker.log_config(dataclasses.asdict(config))
    done: dict[str, Done] = {}
    for number, step in enumerate(planned.steps, start=1):
        start = time.monotonic()
        try:
            options = step.configure({name: one.run_id for name, one in done.items()})
            made_by = _recipe(step, options, done)
            run_id = find_made(made_by, step.stage) if config.reuse and tracker.run_id else None
            logger.info("step %d of %d: %s%s", number, len(planned.steps), step.name, " (reused)" if run_id else "")
            reused = run_id is not None
            run_id = run_id or _run(step, options, made_by, tracker)
        except InputError as error:
            raise InputError(f"step {step.name!r}: {error}") from error
        done[step.name] = Done(step.name, step.stage, run_id, made_by, reused, time.monotonic() - start)
        tracker.set_tags({f"bertdyn.step.{step.name}": run_id})
        write_json(tracker.folder / "runs.json", {name: one.run_id for name, one in done.items()})
        tracker.publish("runs.json")
    about = tags_of_pipeline(planned)
    subject = f"`{about['bertdyn.model']}` on `{about['bertdyn.dataset']}`"
    summary = write_report(planned, subject, list(done.values()), tracker)
    return PipelineResult({name: one.run_id for name, one in done.items()}, summary)


def tags_of_pipeline(planned: Pipeline) -> dict[str, str]:
    """What a pipeline's run is searched by in MLflow: the models and datasets of its fine-tunings."""
    found = [step.configure({}) for step in planned.steps if not any(step.options.get(name) for name in REFERENCES)]
    names = {"bertdyn.model": "model_name_or_path", "bertdyn.dataset": "dataset"}
    return {tag: ",".join(dict.fromkeys(str(getattr(one, name)) for one in found)) for tag, name in names.items()}


def _recipe(step: Step, options: Any, done: dict[str, Done]) -> str:
    deciding = {name: value for name, value in dataclasses.asdict(options).items() if name not in UNDECIDING}
    sources = {}
    for name in REFERENCES:
        words = [word for word in str(step.options.get(name) or "").split(",") if word]
        if words:  # a run that is no step of the pipeline stands for itself
            sources[name] = ",".join(done[word].recipe if word in done else word for word in words)
    data = "" if sources else load_data(options).fingerprint
    return recipe(step.stage, deciding, data, sources)


def _run(step: Step, options: Any, made_by: str, tracker: Tracker) -> str:
    """A new child run of this step; its id, or its folder without MLflow."""
    work = _WORK[step.stage]
    if step.stage == "extract":
        options = with_source_data(options)
    label, tags = work.about(options)
    # Folders have to differ, where MLflow's runs may have one name.
    name = options.run_name or f"{step.name}-{label}" if tracker.run_id else step.name
    with tracker.child(name, tags | {"bertdyn.stage": step.stage, RECIPE: made_by}) as child:
        work.run(options, child)
    return child.run_id or str(child.folder)


class _Work(NamedTuple):
    """How a step is done, from its options."""

    about: Callable[[Any], tuple[str, dict[str, str]]]
    """What to call its model on its data, and what its run is searched by."""
    run: Callable[[Any, Tracker], Any]


def _from_model(run: Callable[[Any, Tracker], Any]) -> _Work:
    return _Work(lambda options: (label_of(options), tags_of(options)), run)


def _from_features(run: Callable[[Any, Tracker], Any]) -> _Work:
    def about(options: Any) -> tuple[str, dict[str, str]]:
        runs = open_runs(options)
        return label_of_runs(runs), tags_of_runs(runs)

    return _Work(about, run)


def _study(kind: str, run: Callable[[Any, Tracker], Any]) -> _Work:
    return _Work(lambda options: (SWEEPS[kind].label(options), SWEEPS[kind].tags(options)), run)


_WORK = {
    "fine-tune": _Work(
        lambda options: (options.label(), options.tags()),
        lambda options, tracker: (fine_tune_seeds if options.seeds else fine_tune)(options, tracker),
    ),
    "extract": _from_model(extract),
    "compare": _from_features(compare),
    "probe": _from_features(probe),
    "sae": _from_features(sae),
    "prune": _from_model(lambda options, tracker: (prune_seeds if options.seeds else prune)(options, tracker)),
    "sweep-pruning": _study("pruning", sweep_pruning),
    "sweep-freezing": _study("freezing", sweep_freezing),
}
"""Stage → how it is done."""
