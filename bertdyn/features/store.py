"""The feature store: activations on disk that NumPy and pandas alone can read.

    features/
        manifest.json                          arrays, rows, states, fingerprints
        examples.parquet                       example_id, part, label, text, first_row, n_rows,
                                               prediction_<state> where there is a head
        tokens.parquet                         row, example_id, window_id, segment, position, token_id, token,
                                               word_id, char_start, char_end, is_special (only with token rows)
        epoch_001/first/layer_03.npy           [examples, width]: the first token
        epoch_001/mean/layer_03.npy            [examples, width]: the mean over the real tokens
        epoch_001/tokens/layer_03.npy          [tokens, width]: every real token
        epoch_001/ffn_post_tokens/layer_03.npy [tokens, neurons]: likewise of another site, see `kind_of`
        epoch_001/attention/layer_03.npy       [tokens]: first-token attention, averaged over heads
        epoch_001/logits.npy                   [examples, classes], where there is a head

A state appears under its name only when it is complete, and the manifest lists it only after that. All states
share one row index. Padding never enters. A text that was split into windows has the tokens of all of them, one
window after the other; its `first` and `mean` are those of its first window.

This module reads; `writing` writes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet

from bertdyn.errors import InputError
from bertdyn.files import write_json

FORMAT = "bertdyn.features/2"


@dataclass(frozen=True)
class ArrayInfo:
    """What is alike in all states of one kind of array."""

    site: str
    """What it is of a layer: one of `models.config.SITES`."""
    rows: str
    """"tokens": a row a token; "first", "mean": a row an example."""
    dtype: str
    layers: list[int]
    """Stored layers; 0 is the output of the embeddings."""
    widths: list[int]
    """Values a row in each of these layers; 0: a row is one number, and the array flat."""


@dataclass(frozen=True)
class StateInfo:
    """One state of the model."""

    name: str
    folder: str
    """Two states that are the same epoch share a folder."""
    model: str
    """What made it: a fingerprint of the weights, or a name."""


@dataclass
class Manifest:
    """What a store holds; `manifest.json` as it is."""

    arrays: dict[str, ArrayInfo]
    """By kind."""
    depth: int
    """Layers of the model, L; not all need be stored."""
    num_examples: int
    num_tokens: int
    """Rows of token arrays; 0 when there are none."""
    num_classes: int
    """Width of the logits; 0: no head."""
    label_names: list[str]
    """Name of label k of the examples at position k."""
    fingerprints: dict[str, str]
    """What the rows were made from: data, tokenizer, and whatever else decides them."""
    states: list[StateInfo] = field(default_factory=list)
    """The complete ones, in the order in which they were written."""
    format: str = FORMAT

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Manifest":
        arrays = {kind: ArrayInfo(**info) for kind, info in content["arrays"].items()}
        states = [StateInfo(**info) for info in content["states"]]
        return cls(**content | {"arrays": arrays, "states": states})

    def files(self) -> dict[Path, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every array of a state, by its path in the state's folder."""
        files: dict[Path, tuple[tuple[int, ...], str]] = {}
        for kind, info in self.arrays.items():
            rows = self.num_tokens if info.rows == "tokens" else self.num_examples
            for layer, width in zip(info.layers, info.widths, strict=True):
                files[array_path(kind, layer)] = ((rows, width) if width else (rows,), info.dtype)
        if self.num_classes:
            files[Path("logits.npy")] = ((self.num_examples, self.num_classes), "float32")
        return files

    def tables(self) -> list[str]:
        """The files beside the states; the manifest, which makes them a store, last."""
        return ["examples.parquet", *(["tokens.parquet"] if self.num_tokens else []), "manifest.json"]

    def bytes_per_state(self) -> int:
        """Disk space of one state's arrays."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.files().values())


def kind_of(site: str, rows: str) -> str:
    """The name of an array: hidden states are called by their rows, other sites `ffn_post_first`, …

    `rows` is "first", "mean" or "tokens"; first-token attention has one value a token whatever the rows.
    """
    if site == "attention":
        return site
    return rows if site == "hidden" else f"{site}_{rows}"


def array_path(kind: str, layer: int) -> Path:
    """Where an array lies in the folder of its state."""
    return Path(kind, f"layer_{layer:02d}.npy")


class FeatureStore:
    """A complete or growing store in `folder`. Read one with `open`; `writing.create_store` makes one."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path, only: Sequence[str] | None = None) -> "FeatureStore":
        """The store in `folder`, after its manifest, its tables and the sizes of its arrays were checked.

        Parameters
        ----------
        only
            Forget all states but these, before anything is checked: those that a resumed run has
            completed, while it may have left others half-written on their way to a remote store.

        Raises
        ------
        InputError
            If this is no store, one of another format, or an incomplete one.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is not a feature store: no readable manifest.json ({error})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{folder} is not a feature store of format {FORMAT!r}")
        try:
            store = cls(folder, Manifest.from_json(content))
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"feature store is damaged: {folder}/manifest.json lacks a part ({error})") from error
        if only is not None:
            store.manifest.states = [info for info in store.manifest.states if info.name in only]
            store.save_manifest()
        store._check()
        return store

    @property
    def states(self) -> list[str]:
        """The complete states, in the order in which they were written."""
        return [info.name for info in self.manifest.states]

    def layers(self, kind: str) -> list[int]:
        """The layers of one kind of array."""
        return self._info(kind).layers

    def examples(self) -> pd.DataFrame:
        """One row an example, in row order."""
        return pd.read_parquet(self.folder / "examples.parquet")

    def tokens(self, columns: list[str] | None = None, rows: tuple[int, int] | None = None) -> pd.DataFrame:
        """One row a token, in row order; of all or from `rows[0]` to before `rows[1]`."""
        filters = None if rows is None else [("row", ">=", int(rows[0])), ("row", "<", int(rows[1]))]
        return pd.read_parquet(self.folder / "tokens.parquet", columns=columns, filters=filters)

    def array(self, kind: str, state: str, layer: int) -> np.ndarray:
        """The rows of one kind, state and layer, memory-mapped and read-only.

        Raises
        ------
        InputError
            If the store does not have them.
        """
        self._require("layer", layer, self._info(kind).layers)
        return np.load(self._state_folder(state) / array_path(kind, layer), mmap_mode="r")

    def example(self, example_id: str, kind: str, state: str, layer: int) -> np.ndarray:
        """The row of one example, [1, width], or the rows of its tokens, [n_rows, width]; a view, nothing is copied.

        Raises
        ------
        InputError
            If the store does not have the example, or the array.
        """
        array = self.array(kind, state, layer)
        ids = pd.read_parquet(self.folder / "examples.parquet", columns=["example_id", "first_row", "n_rows"])
        found = np.flatnonzero(ids["example_id"] == example_id)
        if not len(found):
            raise InputError(f"{self.folder} has no example {example_id!r}; its first is {ids['example_id'][0]!r}")
        row = int(found[0])
        if self._info(kind).rows == "tokens":
            first, count = ids.loc[row, ["first_row", "n_rows"]]
            return array[first : first + count]
        return array[row : row + 1]

    def logits(self, state: str) -> np.ndarray:
        """What the head said in one state, [examples, classes], read-only.

        Raises
        ------
        InputError
            If the store has no such state, or none of its states has a head.
        """
        if not self.manifest.num_classes:
            raise InputError(f"{self.folder} has no logits: its model has no classification head")
        return np.load(self._state_folder(state) / "logits.npy", mmap_mode="r")

    def save_manifest(self) -> None:
        """Write `manifest.json` as it is now."""
        write_json(self.folder / "manifest.json", asdict(self.manifest))

    def _info(self, kind: str) -> ArrayInfo:
        self._require("kind", kind, list(self.manifest.arrays))
        return self.manifest.arrays[kind]

    def _state_folder(self, state: str) -> Path:
        self._require("state", state, self.states)
        return self.folder / self.manifest.states[self.states.index(state)].folder

    def _require(self, name: str, value: object, accepted: Sequence[object]) -> None:
        if value not in accepted:
            raise InputError(f"{self.folder} has no {name} {value!r}: accepted are {', '.join(map(str, accepted))}")

    def _check(self) -> None:
        tables = {"examples": self.manifest.num_examples, "tokens": self.manifest.num_tokens}
        for name, expected in tables.items():
            path = self.folder / f"{name}.parquet"
            if not expected:
                continue
            try:
                found = pyarrow.parquet.read_metadata(path).num_rows
            except (OSError, pyarrow.lib.ArrowException) as error:
                raise InputError(f"feature store is damaged: {path} cannot be read ({error})") from error
            if found != expected:
                raise InputError(f"feature store is damaged: {path} has {found} rows, not {expected}")
        for folder in {info.folder for info in self.manifest.states}:
            for file, (shape, dtype) in self.manifest.files().items():
                path = self.folder / folder / file
                try:
                    array = np.load(path, mmap_mode="r")
                except (OSError, ValueError) as error:
                    raise InputError(f"feature store is damaged: {path} cannot be read ({error})") from error
                if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
                    raise InputError(
                        f"feature store is damaged: {path} is {array.dtype} {array.shape}, not {dtype} {shape}"
                    )


def same_rows(one: FeatureStore, other: FeatureStore) -> None:
    """Raise `InputError` unless both stores have the same examples (and tokens) in the same order."""
    names = f"{one.folder} and {other.folder}"
    texts = [store.examples()[["example_id", "text"]] for store in (one, other)]
    if set(texts[0]["example_id"]) != set(texts[1]["example_id"]):
        raise InputError(f"{names} hold different examples: nothing of them can be compared row by row")
    if not texts[0]["example_id"].equals(texts[1]["example_id"]):
        raise InputError(f"{names} hold the same examples in another order: rows do not correspond")
    if not texts[0]["text"].equals(texts[1]["text"]):
        raise InputError(f"{names} have other texts under the same example ids: is one of them cleaned?")
    if one.manifest.num_tokens and other.manifest.num_tokens:
        ids = [store.tokens(["token_id"])["token_id"] for store in (one, other)]
        if not ids[0].equals(ids[1]):
            raise InputError(f"{names} were tokenised differently: their tokens do not correspond")
