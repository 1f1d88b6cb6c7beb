"""The feature store: activations on disk that NumPy and pandas alone can read.

    features/
        manifest.json                          rows, layers, width, dtype, states, fingerprints
        examples.parquet                       example_id, part, label, text, first_row, n_rows,
                                               prediction_<state> where there is a head
        tokens.parquet                         row, example_id, position, token_id, token, is_special
                                               (only with token rows)
        epoch_001/first/layer_03.npy           [examples, width]: the first token
        epoch_001/mean/layer_03.npy            [examples, width]: the mean over the real tokens
        epoch_001/attention/layer_03.npy       [tokens]: first-token attention, averaged over heads
        epoch_001/logits.npy                   [examples, classes]

All rows are known after tokenising, so the arrays are allocated first and written in place. A
state appears under its name only when it is complete, and the manifest lists it only after that.
All states share one row index. Padding never enters.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from bertdyn.errors import InputError
from bertdyn.files import replacing, write_json

FORMAT = "bertdyn.features/1"
EXAMPLE_KINDS = ("first", "mean")
TOKEN_KINDS = ("attention",)


@dataclass
class Manifest:
    """What a store holds; `manifest.json` as it is."""

    width: int
    """Size of a hidden state."""
    layers: list[int]
    """Stored layers; 0 is the output of the embeddings."""
    num_examples: int
    num_tokens: int
    """Rows of token arrays; 0 when there are none."""
    kinds: list[str]
    """Which arrays each state has: of `EXAMPLE_KINDS` and `TOKEN_KINDS`."""
    dtype: str
    fingerprints: dict[str, str]
    """What the rows were made from: data, tokenizer, model."""
    states: list[str] = field(default_factory=list)
    format: str = FORMAT


class FeatureStore:
    """A store in `folder`. Make one with `create`, read one with `open`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def create(
        cls,
        folder: Path,
        examples: pd.DataFrame,
        manifest: Manifest,
        tokens: pd.DataFrame | None = None,
    ) -> "FeatureStore":
        """A new store without states; one that is there already is replaced.

        Parameters
        ----------
        examples
            One row an example, in row order: example_id, part, label, text, first_row, n_rows.
        tokens
            One row a token, in row order; needed for `TOKEN_KINDS`.
        """
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        store = cls(folder, manifest)
        store._write_table("examples", examples)
        if tokens is not None:
            store._write_table("tokens", tokens)
        store._write_manifest()
        return store

    @classmethod
    def open(cls, folder: Path, only: list[str] | None = None) -> "FeatureStore":
        """The store in `folder`, after its manifest and the sizes of its arrays were checked.

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
        try:
            content = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is not a feature store: no readable manifest.json ({error})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{folder} is not a feature store of format {FORMAT!r}")
        store = cls(folder, Manifest(**content))
        if only is not None:
            store.manifest.states = [state for state in store.states if state in only]
            store._write_manifest()
        store._check_sizes()
        return store

    @property
    def states(self) -> list[str]:
        """The complete states, in the order in which they were written."""
        return self.manifest.states

    def examples(self) -> pd.DataFrame:
        """One row an example, in row order."""
        return pd.read_parquet(self.folder / "examples.parquet")

    def tokens(self) -> pd.DataFrame:
        """One row a token, in row order."""
        return pd.read_parquet(self.folder / "tokens.parquet")

    def array(self, kind: str, state: str, layer: int) -> np.ndarray:
        """The rows of one kind, state and layer, memory-mapped and read-only.

        Raises
        ------
        InputError
            If the store does not have them.
        """
        for name, value, accepted in (
            ("kind", kind, self.manifest.kinds),
            ("state", state, self.states),
            ("layer", layer, self.manifest.layers),
        ):
            if value not in accepted:
                raise InputError(f"{self.folder} has no {name} {value!r}: accepted are {', '.join(map(str, accepted))}")
        return np.load(self._array_path(state, kind, layer), mmap_mode="r")

    def logits(self, state: str) -> np.ndarray:
        """What the head said in one state, [examples, classes], read-only."""
        return np.load(self.folder / state / "logits.npy", mmap_mode="r")

    @contextmanager
    def write_state(self, state: str) -> Iterator[dict[tuple[str, int], np.ndarray]]:
        """Arrays to fill, by (kind, layer); the state appears when the block ends without an error.

        A state of that name is replaced.
        """
        with replacing(self.folder / state) as temporary:
            arrays = self._allocate(temporary)
            yield arrays
            for array in arrays.values():
                array.flush()  # type: ignore[attr-defined]  # np.memmap
        if state not in self.states:
            self.states.append(state)
        self._write_manifest()

    def write_predictions(self, state: str, logits: np.ndarray) -> None:
        """Keep the logits [examples, classes] of a complete state, and its predicted class ids in the examples."""
        with replacing(self.folder / state / "logits.npy") as temporary, temporary.open("wb") as file:
            np.save(file, logits.astype(np.float32))
        examples = self.examples()
        examples[f"prediction_{state}"] = logits.argmax(axis=1)
        self._write_table("examples", examples)

    def _allocate(self, folder: Path) -> dict[tuple[str, int], np.ndarray]:
        arrays: dict[tuple[str, int], np.ndarray] = {}
        for kind in self.manifest.kinds:
            (folder / kind).mkdir(parents=True)
            for layer in self._layers(kind):
                path = folder / kind / f"layer_{layer:02d}.npy"
                array = np.lib.format.open_memmap(path, mode="w+", dtype=self.manifest.dtype, shape=self._shape(kind))
                with path.open("r+b") as file:  # a full disk is an error now, not a SIGBUS while writing
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
                arrays[kind, layer] = array
        return arrays

    def _layers(self, kind: str) -> list[int]:
        # The embeddings attend to nothing.
        return [layer for layer in self.manifest.layers if layer > 0 or kind in EXAMPLE_KINDS]

    def _shape(self, kind: str) -> tuple[int, ...]:
        if kind in TOKEN_KINDS:
            return (self.manifest.num_tokens,)
        return (self.manifest.num_examples, self.manifest.width)

    def _array_path(self, state: str, kind: str, layer: int) -> Path:
        return self.folder / state / kind / f"layer_{layer:02d}.npy"

    def _check_sizes(self) -> None:
        for state in self.states:
            for kind in self.manifest.kinds:
                for layer in self._layers(kind):
                    path = self._array_path(state, kind, layer)
                    try:
                        shape = np.load(path, mmap_mode="r").shape
                    except (OSError, ValueError) as error:
                        raise InputError(f"feature store is damaged: {path} cannot be read ({error})") from error
                    if shape != self._shape(kind):
                        raise InputError(f"feature store is damaged: {path} is {shape}, not {self._shape(kind)}")

    def _write_table(self, name: str, table: pd.DataFrame) -> None:
        with replacing(self.folder / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)

    def _write_manifest(self) -> None:
        write_json(self.folder / "manifest.json", asdict(self.manifest))


def same_rows(one: FeatureStore, other: FeatureStore) -> None:
    """Raise `InputError` unless both stores have the same examples (and tokens) in the same order."""
    if one.examples()["example_id"].tolist() != other.examples()["example_id"].tolist():
        raise InputError(f"{one.folder} and {other.folder} hold different examples, or in another order")
    both_have_tokens = one.manifest.num_tokens and other.manifest.num_tokens
    if both_have_tokens and one.tokens()["token_id"].tolist() != other.tokens()["token_id"].tolist():
        raise InputError(f"{one.folder} and {other.folder} were tokenised differently")
