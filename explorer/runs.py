"""Which runs there are, and which of them belong together, so that one chosen run fills all pages.

Runs know what they started from (tag `bertdyn.source_run_id`), a pipeline knows its steps (tags `bertdyn.step.<name>`),
and a run of several seeds has them as children (MLflow's parent tag).
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from bertdyn.errors import InputError
from bertdyn.tracking.store import connect, find_run, first_line

NEEDS = {
    "pipeline": "",
    "fine-tune": "",
    "extract": "fine-tune",
    "compare": "extract",
    "probe": "extract",
    "sae": "extract",
    "prune": "fine-tune",
    "sweep-pruning": "fine-tune",
    "sweep-freezing": "",
}
"""Stages that can be looked at → the stage of the run that theirs start from."""
MANY = ("sweep-pruning-trial", "sweep-freezing-trial", "prune-control")
"""Stages of which one run can have hundreds; they are reached through it."""
MAX_RUNS = 1000
STEP = "bertdyn.step."


class RunInfo(NamedTuple):
    """What is known of a run before anything of it is read."""

    run_id: str
    name: str
    stage: str
    status: str
    dataset: str
    model: str
    started: datetime
    experiment_id: str
    experiment: str
    sources: tuple[str, ...]
    """Ids of the runs that it started from; of a trial, the sweep."""
    parent: str
    """Id of the run that it is a part of; "" for none."""
    steps: tuple[str, ...]
    """Ids of the runs of a pipeline's steps, in their order."""

    @property
    def is_over(self) -> bool:
        """Whether it ended well, so that what it wrote stays as it is."""
        return self.status == "FINISHED"


class Family(NamedTuple):
    """A chosen run, and all that belong to it."""

    chosen: RunInfo
    runs: list[RunInfo]
    """The chosen one first; then what came of it, and then what it came from with all that came of that."""

    def of(self, *stages: str) -> list[RunInfo]:
        """Those of some stages; those that are over first, and what only holds other seeds last."""
        found = [run for run in self.runs if run.stage in stages]
        parents = {run.parent for run in found}
        return sorted(found, key=lambda run: (run.run_id in parents, not run.is_over))


def list_runs() -> list[RunInfo]:
    """The newest `MAX_RUNS` runs of all experiments, the newest first, without those of `MANY`.

    Raises
    ------
    InputError
        If MLflow does not answer.
    """
    client = connect()
    query = " and ".join(f"tags.`bertdyn.stage` != '{stage}'" for stage in MANY)
    try:
        experiments = {each.experiment_id: each.name for each in client.search_experiments()}
        order = ["attributes.start_time DESC"]
        found = client.search_runs(list(experiments), query, max_results=MAX_RUNS, order_by=order)
    except MlflowException as error:
        raise InputError(f"the runs cannot be listed: {first_line(error)}") from error
    runs = [run_info(run, experiments[run.info.experiment_id]) for run in found]
    return [run for run in runs if run.stage in NEEDS]


def load_run(run_id: str) -> RunInfo:
    """One run, of whatever stage.

    Raises
    ------
    InputError
        If there is no such run, or MLflow does not answer.
    """
    client = connect()
    run = find_run(client, run_id)
    return run_info(run, client.get_experiment(run.info.experiment_id).name)


def run_info(run: Run, experiment: str) -> RunInfo:
    """What MLflow knows of a run."""
    tags = run.data.tags
    parent, stage = tags.get("mlflow.parentRunId", ""), tags.get("bertdyn.stage", "")
    sources = tags.get("bertdyn.source_run_id") or (parent if stage in MANY else "")
    return RunInfo(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        stage=stage,
        status=run.info.status,
        dataset=tags.get("bertdyn.dataset", ""),
        model=tags.get("bertdyn.model", ""),
        started=datetime.fromtimestamp((run.info.start_time or 0) / 1000),
        experiment_id=run.info.experiment_id,
        experiment=experiment,
        sources=tuple(filter(None, sources.split(","))),
        parent=parent,
        steps=tuple(value for name, value in tags.items() if name.startswith(STEP)),
    )


def family_of(chosen: RunInfo, runs: Sequence[RunInfo]) -> Family:
    """The runs that came of `chosen`, those it came from, and what came of these; nearest first.

    Another seed of the same run, or another run of the same pipeline on another fine-tuning, is no relative.
    """
    by_id = {run.run_id: run for run in (*runs, chosen)}
    below: dict[str, list[str]] = defaultdict(list)
    for run in by_id.values():
        below[run.run_id] += run.steps
        for above in (*run.sources, run.parent):
            below[above].append(run.run_id)
    found: dict[str, None] = {}
    tops = [chosen.run_id]
    while tops:
        level = tops
        while level:
            found |= dict.fromkeys(level)
            level = [run_id for above in level for run_id in below[above] if run_id not in found]
        tops = [above for run_id in tops if run_id in by_id for above in by_id[run_id].sources if above not in found]
    return Family(chosen, [by_id[run_id] for run_id in found if run_id in by_id])


def how_to_make(stage: str, family: Family) -> list[str]:
    """The commands that make a run of a stage for this family, each from the run of the one before."""
    needed = NEEDS[stage]
    if not needed:
        return [f"mlflow run . -e {stage} --env-manager local"]
    sources = [run for run in family.of(needed) if run.is_over]
    before = [] if sources else how_to_make(needed, family)
    source = sources[0].run_id if sources else f"<{needed} run>"
    return [*before, f"mlflow run . -e {stage} --env-manager local -P source_run_id={source}"]
