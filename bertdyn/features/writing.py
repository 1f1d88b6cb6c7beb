"""Writing a feature store: rows known in advance, in place, by any number of processes, resumable.

    store = create_store(folder, manifest, examples, tokens)      # the main process
    begin_state(store, "epoch_003", model=…, resume=True)         # the main process
    writer = StateWriter(store, "epoch_003")                      # every process, each its own chunks
    writer.write(kind, layer, first_row, rows); writer.finished(chunk)
    finish_state(store, "best", "epoch_003", model=…)             # the main process, when all are done

A state grows under a temporary name. A chunk of rows counts as written when its mark is there, and the mark is set
only after its rows are on the disk, so that after a kill the missing chunks, and they only, are computed again.
Neighbouring chunks share a page of a file: processes must be of one host (NFS does not merge pages of two).
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from bertdyn.features.store import FeatureStore, Manifest, StateInfo, array_path
from bertdyn.files import replacing

MODEL = "model"
"""The file beside the marks that says whose rows they are."""
SECONDS_BETWEEN_SYNCS = 5.0
"""How much work a kill can cost; a sync makes the disk the pace."""


def create_store(
    folder: Path, manifest: Manifest, examples: pd.DataFrame, tokens: Iterable[pd.DataFrame] = ()
) -> FeatureStore:
    """A new store without states; one that is there already is replaced.

    Parameters
    ----------
    examples
        One row an example, in row order: example_id, part, label, text, first_row, n_rows.
    tokens
        One row a token, in row order, in pieces that fit into memory; needed for arrays by tokens.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    store = FeatureStore(folder, manifest)
    _write_examples(store, examples)
    if manifest.num_tokens:
        _write_pieces(folder / "tokens.parquet", tokens)
    store.save_manifest()
    return store


def begun_with(store: FeatureStore, folder: str) -> str | None:
    """Fingerprint of the model of an interrupted attempt at a state; None without one."""
    path = _marks(store, folder) / MODEL
    return path.read_text() if path.exists() else None


def begin_state(store: FeatureStore, folder: str, model: str, *, resume: bool) -> None:
    """Allocate the arrays of a state; those of an interrupted attempt are kept where `resume` says so.

    Parameters
    ----------
    model
        Fingerprint of what makes the state.
    """
    growing, marks = _growing(store, folder), _marks(store, folder)
    if resume and marks.exists():
        if not growing.exists():  # cut short while finishing
            (store.folder / folder).rename(growing)
        return
    shutil.rmtree(growing, ignore_errors=True)
    shutil.rmtree(marks, ignore_errors=True)
    for name, (shape, dtype) in store.manifest.files().items():
        path = growing / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a SIGBUS while writing
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    with replacing(marks) as temporary:  # last: without it the allocation was cut short
        temporary.mkdir()
        (temporary / MODEL).write_text(model)


class StateWriter:
    """One process's hand on a state that was begun.

    Attributes
    ----------
    done
        The chunks that were written before.
    """

    def __init__(self, store: FeatureStore, folder: str) -> None:
        self._marks = _marks(store, folder)
        self.done = {path.name for path in self._marks.iterdir()}
        growing = _growing(store, folder)
        self._arrays = {name: np.load(growing / name, mmap_mode="r+") for name in store.manifest.files()}
        self._unmarked: list[str] = []
        self._synced = time.monotonic()

    def write(self, kind: str, layer: int, first_row: int, rows: np.ndarray) -> None:
        """Put consecutive rows in their place."""
        self._write(array_path(kind, layer), first_row, rows)

    def write_logits(self, first_row: int, rows: np.ndarray) -> None:
        """The logits of consecutive examples."""
        self._write(Path("logits.npy"), first_row, rows)

    def finished(self, chunk: str) -> None:
        """All rows of `chunk` are written; its mark follows when they are on the disk."""
        self._unmarked.append(chunk)
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            self.sync()

    def sync(self) -> None:
        """Wait until all rows are on the disk, and mark their chunks."""
        for array in self._arrays.values():
            array.flush()
        for chunk in self._unmarked:
            (self._marks / chunk).touch()
        self._unmarked.clear()
        self._synced = time.monotonic()

    def _write(self, name: Path, first_row: int, rows: np.ndarray) -> None:
        self._arrays[name][first_row : first_row + len(rows)] = rows


def finish_state(store: FeatureStore, state: str, folder: str, model: str) -> None:
    """Let a state whose chunks are all written appear under its name; one of that name is replaced."""
    complete = store.folder / folder
    if complete.exists():
        shutil.rmtree(complete)
    _growing(store, folder).rename(complete)
    shutil.rmtree(_marks(store, folder))
    name_state(store, state, folder, model)


def name_state(store: FeatureStore, state: str, folder: str, model: str) -> None:
    """Make a complete folder known as `state`, and its predicted classes a column of the examples."""
    if store.manifest.num_classes:
        examples = store.examples()
        logits = np.load(store.folder / folder / "logits.npy", mmap_mode="r")
        examples[f"prediction_{state}"] = logits.argmax(axis=1)
        _write_examples(store, examples)
    others = [info for info in store.manifest.states if info.name != state]
    store.manifest.states = [*others, StateInfo(state, folder, model)]
    store.save_manifest()


def _write_examples(store: FeatureStore, examples: pd.DataFrame) -> None:
    with replacing(store.folder / "examples.parquet") as temporary:
        examples.to_parquet(temporary, index=False)


def _write_pieces(path: Path, pieces: Iterable[pd.DataFrame]) -> None:
    tables = (pyarrow.Table.from_pandas(piece, preserve_index=False) for piece in pieces)
    with replacing(path) as temporary:
        first = next(tables)
        with pyarrow.parquet.ParquetWriter(temporary, first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)


def _growing(store: FeatureStore, folder: str) -> Path:
    return store.folder / f".{folder}.growing"


def _marks(store: FeatureStore, folder: str) -> Path:
    return store.folder / f".{folder}.done"
