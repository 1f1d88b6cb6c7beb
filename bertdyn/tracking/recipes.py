"""What a run was made by, as one fingerprint: a step that was done is found again by it."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from bertdyn.errors import NoArtifact
from bertdyn.tracking.locations import run_folder
from bertdyn.tracking.provenance import source_folder

RECIPE = "bertdyn.recipe"
"""Tag of a run: the fingerprint of what it was made by."""
_CHANGE_NUMBERS = ("torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy", "optuna")


def recipe(step: str, options: Mapping[str, Any], data: str, sources: Mapping[str, str]) -> str:
    """A fingerprint of everything that decides what a step finds.

    Parameters
    ----------
    step
        What is done.
    options
        The resolved configuration, without names and ids of runs.
    data
        Fingerprint of the texts that it reads itself; empty if they come from its sources.
    sources
        Option → the recipe of the run that it names.
    """
    content = {"step": step, "options": dict(options), "data": data, "sources": dict(sources), "code": code_version()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


@cache
def code_version() -> str:
    """A fingerprint of this package, the spaces of its sweeps, and the libraries that can change a number."""
    found, project = hashlib.sha256(), source_folder()
    for path in sorted([*project.glob("bertdyn/**/*.py"), *project.glob("sweeps/*.yaml")]):
        found.update(f"{path.relative_to(project)}\n".encode() + path.read_bytes())
    for name in _CHANGE_NUMBERS:
        found.update(f"{name} {metadata.version(name)}\n".encode())
    return found.hexdigest()


def find_made(fingerprint: str, stage: str) -> str | None:
    """The newest finished run of a recipe whose artifacts are still there, by its id."""
    from bertdyn.tracking.runs import EXPERIMENT
    from bertdyn.tracking.store import connect, find_experiment

    client = connect()
    query = f"tags.`{RECIPE}` = '{fingerprint}' and tags.`bertdyn.stage` = '{stage}' and attributes.status = 'FINISHED'"
    experiment = find_experiment(client, EXPERIMENT)
    for run in client.search_runs([experiment], query, order_by=["attributes.start_time DESC"]):
        try:
            run_folder(run.info.run_id, "summary.md")  # the last thing that a run writes
            return run.info.run_id
        except NoArtifact:
            continue
    return None
