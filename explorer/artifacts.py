"""Files of runs, brought to this machine one by one when a page asks for them.

Where artifacts lie in this machine's file system they are read in place. Others come to `$BERTDYN_CACHE/explorer`: a
place of its own, because steps take a folder of `$BERTDYN_CACHE/runs` that is there for whole.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from bertdyn.features.store import FeatureStore, Manifest, array_path
from bertdyn.files import cache_folder
from bertdyn.tracking.artifacts import artifact_folder, download, download_once
from bertdyn.tracking.store import connect, find_run
from explorer.runs import RunInfo

MAX_TABLES = 100


def fetch(run: RunInfo, path: str) -> Path:
    """A file or folder of a run on this machine. Of a run that is not over it is brought anew every time.

    Raises
    ------
    FileNotFoundError
        If the run has no such artifact.
    InputError
        If it cannot be read now.
    """
    found = find_run(connect(), run.run_id)
    local = artifact_folder(found)
    if local is not None and local.is_dir():
        if not (local / path).exists():
            raise FileNotFoundError(f"run {run.run_id} has no artifact {path!r}")
        return local / path
    if run.is_over:
        return download_once(found, path, cache_folder("explorer", run.run_id))
    return download(found, path, cache_folder("explorer", f"{run.run_id}-{run.status.lower()}"))


@st.cache_data(show_spinner=False, max_entries=MAX_TABLES)
def table(run: RunInfo, name: str) -> pd.DataFrame | None:
    """A table of a run; None if it has none of that name (yet).

    Raises
    ------
    InputError
        If it cannot be read now.
    """
    try:
        return pd.read_parquet(fetch(run, f"{name}.parquet"))
    except FileNotFoundError:
        return None


@st.cache_data(show_spinner=False, max_entries=MAX_TABLES)
def text(run: RunInfo, path: str) -> str | None:
    """A text file of a run; None if it has none of that name (yet).

    Raises
    ------
    InputError
        If it cannot be read now.
    """
    try:
        return fetch(run, path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


@st.cache_data(show_spinner=False, max_entries=MAX_TABLES)
def figure(run: RunInfo, name: str) -> bytes | None:
    """A figure that a run drew itself, PNG; None if it has none of that name (yet).

    Raises
    ------
    InputError
        If it cannot be read now.
    """
    try:
        return fetch(run, f"figures/{name}.png").read_bytes()
    except FileNotFoundError:
        return None


def record(run: RunInfo, path: str) -> dict[str, Any]:
    """A JSON file of a run; empty if it has none of that name (yet)."""
    content = text(run, path)
    return json.loads(content) if content else {}


def open_store(run: RunInfo) -> FeatureStore | None:
    """The feature store of a run with its table of examples, its arrays not yet; None if it has none (yet)."""
    try:
        manifest = fetch(run, "features/manifest.json")
        fetch(run, "features/examples.parquet")
    except FileNotFoundError:
        return None
    return FeatureStore(manifest.parent, Manifest.from_json(json.loads(manifest.read_text(encoding="utf-8"))))


def store_array(run: RunInfo, store: FeatureStore, kind: str, state: str, layer: int) -> np.ndarray:
    """An array of a run's store, memory-mapped; the only one that is brought here."""
    folders = {info.name: info.folder for info in store.manifest.states}
    fetch(run, f"features/{folders[state]}/{array_path(kind, layer)}")
    return store.array(kind, state, layer)
