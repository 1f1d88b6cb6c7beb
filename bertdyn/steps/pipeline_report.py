"""What a pipeline says at its end: the findings of all steps, their figures, and the way to each run."""

import shutil
from collections import Counter
from typing import NamedTuple

from bertdyn.errors import NoArtifact
from bertdyn.steps.pipeline_file import Pipeline
from bertdyn.steps.pipeline_findings import TOLD, findings_of
from bertdyn.tracking.locations import run_folder
from bertdyn.tracking.store import connect, find_run, run_link
from bertdyn.tracking.tracker import Tracker


class Done(NamedTuple):
    """A step with its run."""

    name: str
    stage: str
    run_id: str
    """Or its folder."""
    recipe: str
    reused: bool
    """Whether the run was there already."""
    seconds: float


def write_report(pipeline: Pipeline, subject: str, done: list[Done], tracker: Tracker) -> str:
    """Write the report and the figures into `tracker`; return the report, Markdown."""
    figures = [name for number, one in enumerate(done, start=1) if (name := _copy_figure(number, one, tracker))]
    lines = [f"## {pipeline.title}", "", f"{subject}.", "", "| question | found | beside |", "|---|---|---|"]
    alike = Counter(one.stage for one in done)
    for one in done:
        of = f"{one.name}: " if alike[one.stage] > 1 else ""
        for question, found, baseline, values in findings_of(one.stage, one.run_id):
            lines.append(f"| {_cell(of + question)} | {_cell(found)} | {_cell(baseline)} |")
            tracker.log_metrics({f"{one.name}/{name}": value for name, value in values.items()}, 0)
    lines += ["", "Brackets: 95 % intervals, each as its run's report says.", "", "### The runs", ""]
    lines += ["| step | run | took |", "|---|---|---|"]
    for one in done:
        took = "reused" if one.reused else f"{one.seconds:.0f} s"
        lines.append(f"| {one.name} | {_link(one.run_id) if tracker.run_id else f'`{one.run_id}`'} | {took} |")
    lines += [
        "",
        f"Figures (artifacts, `figures/`): {', '.join(f'`{name}`' for name in figures)}. `runs.json`: step → run id.",
        "",
    ]
    summary = "\n".join(lines)
    tracker.note(summary)
    return summary


def _link(run_id: str) -> str:
    run = find_run(connect(), run_id)
    return f"{run.info.run_name}, {run_link(run_id, run.info.experiment_id)}"


def _copy_figure(number: int, one: Done, tracker: Tracker) -> str | None:
    """Put the figure that stands for a step beside those of the others; its name."""
    patterns = TOLD[one.stage].figures
    try:
        folder = run_folder(one.run_id, "figures")
    except NoArtifact:
        return None
    found = [path for pattern in patterns for path in sorted(folder.glob(f"{pattern}.png"))]
    if not found:
        return None
    name = f"{number}_{one.name}_{found[0].stem}"
    target = tracker.folder / "figures" / f"{name}.png"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(found[0], target)
    tracker.publish(f"figures/{name}.png")
    return name


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
