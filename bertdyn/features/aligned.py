"""The same texts in several states, read block by block: what is compared with what.

Three kinds of rows, each the same rows in every state:

    content   every token that the text contains (special tokens are the tokenizer's), of a text's first window
    first     the first token
    mean      the mean over the content tokens

Stores that hold no token rows have `first` and `mean` as they were stored (that mean includes special tokens). Of
pairs with the same second text, such as the questions of one context, only the first takes part: their tokens would
not be independent, and not of different texts.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore, same_rows

BYTES_PER_BLOCK = 64 * 2**20


class Rows(NamedTuple):
    """Some rows in every state."""

    states: list[np.ndarray]
    """[rows, width] by state, float64."""
    offsets: np.ndarray
    """[texts + 1]: text t has the rows offsets[t] to offsets[t + 1], at least one."""
    examples: np.ndarray
    """[texts]: number of its example in `AlignedRows.examples`."""


class AlignedRows:
    """Texts of one part in several states.

    Parameters
    ----------
    sources
        (store, state) for each state; stores of different runs must have the same rows.
    part
        Part of the data.
    max_examples
        At most so many, the first ones, which are a random sample. Default: all.

    Attributes
    ----------
    examples
        The examples, in order.
    numbers
        [examples], the number of each in the store.
    kinds
        Which kinds of rows there are: of "content", "first", "mean".

    Raises
    ------
    InputError
        If the stores are of different texts or tokens, or have nothing to compare.
    """

    def __init__(self, sources: Sequence[tuple[FeatureStore, str]], part: str, max_examples: int | None = None) -> None:
        self._sources = sources
        store = sources[0][0]
        for other in {other.folder: other for other, _ in sources}.values():
            if other.folder != store.folder:
                same_rows(store, other)
        table = store.examples()
        chosen = np.flatnonzero(table["part"] == part)
        if "text_pair" in table:
            chosen = chosen[~table["text_pair"].iloc[chosen].duplicated()]
        self.numbers = chosen[:max_examples]
        if len(self.numbers) < 2:
            parts = ", ".join(table["part"].unique())
            raise InputError(
                f"{store.folder} has {len(self.numbers)} texts of the part {part!r}; its parts are {parts}"
            )
        self.examples = table.iloc[self.numbers].reset_index(drop=True)
        shared = set.intersection(*(set(other.manifest.arrays) for other, _ in sources))
        self._by_token = "tokens" in shared
        self.kinds = ("content", "first", "mean") if self._by_token else tuple(sorted(shared & {"first", "mean"}))
        if not self.kinds:
            raise InputError(f"{store.folder} has no hidden states (tokens, first or mean): extract them, by --rows")
        self._first_row = self.examples["first_row"].to_numpy()
        self._n_rows = self.examples["n_rows"].to_numpy()
        if self._by_token:
            span = slice(int(self._first_row[0]), int(self._first_row[-1] + self._n_rows[-1]))
            tokens = store.tokens(["is_special", "window_id"]).iloc[span]
            rows = np.arange(span.start, span.stop)
            before = np.searchsorted(self._first_row, rows, side="right") - 1
            chosen = rows < (self._first_row + self._n_rows)[before]  # not of an example that is left out
            self._content = (~tokens["is_special"] & (tokens["window_id"] == 0)).to_numpy(dtype=bool) & chosen

    @property
    def num_states(self) -> int:
        return len(self._sources)

    @property
    def layers(self) -> list[int]:
        """Layers that all states have."""
        kinds = ["tokens"] if self._by_token else list(self.kinds)
        of = [set(store.layers(kind)) for store, _ in self._sources for kind in kinds]
        return sorted(set.intersection(*of))

    @property
    def labels(self) -> np.ndarray:
        """[examples], class ids."""
        return self.examples["label"].to_numpy()

    def blocks(self, layer: int, first: int = 0, last: int | None = None) -> Iterator[dict[str, Rows]]:
        """The rows of the examples `first` to `last`, by kind, some megabytes at a time."""
        last = len(self.examples) if last is None else last
        ends = np.cumsum(self._n_rows[first:last] if self._by_token else np.ones(last - first, dtype=int))
        arrays = self._arrays(layer)
        widths = sum(array.shape[1] for array in next(iter(arrays.values())))
        per_block = max(1, BYTES_PER_BLOCK // (8 * widths))
        cuts = first + 1 + np.flatnonzero(np.diff(ends // per_block))
        for start, end in zip([first, *cuts], [*cuts, last], strict=True):
            if end > start:
                yield self._read(arrays, int(start), int(end))

    def content_rows(self, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """At most `size` content rows, in order: their numbers in the store, and the example of each."""
        rows = np.flatnonzero(self._content)
        if len(rows) > size:
            rows = np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))
        rows = rows + self._first_row[0]
        return rows, np.searchsorted(self._first_row, rows, side="right") - 1

    def content_sample(self, layer: int, size: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The content rows that `content_rows` chooses: [rows, width] by state, and the example of each."""
        rows, examples = self.content_rows(size, seed)
        return [array[rows].astype(np.float64) for array in self._arrays(layer)["tokens"]], examples

    def _arrays(self, layer: int) -> dict[str, list[np.ndarray]]:
        kinds = ["tokens"] if self._by_token else self.kinds
        return {kind: [store.array(kind, state, layer) for store, state in self._sources] for kind in kinds}

    def _read(self, arrays: dict[str, list[np.ndarray]], start: int, end: int) -> dict[str, Rows]:
        texts = np.arange(start, end)
        single = np.arange(len(texts) + 1)
        if not self._by_token:
            stored = self.numbers[start:end]
            return {
                kind: Rows([array[stored].astype(np.float64) for array in of], single, texts)
                for kind, of in arrays.items()
            }
        low, high = self._first_row[start], self._first_row[end - 1] + self._n_rows[end - 1]
        mask = self._content[low - self._first_row[0] : high - self._first_row[0]]
        firsts = self._first_row[start:end] - low
        counts = np.add.reduceat(mask, firsts, dtype=np.int64)
        texts_with, counts = texts[counts > 0], counts[counts > 0]
        blocks = [array[low:high] for array in arrays["tokens"]]
        rows = {}
        if len(counts):
            offsets = np.concatenate([[0], np.cumsum(counts)])
            content = [block[mask].astype(np.float64) for block in blocks]
            means = [np.add.reduceat(states, offsets[:-1], axis=0) / counts[:, None] for states in content]
            rows["content"] = Rows(content, offsets, texts_with)
            rows["mean"] = Rows(means, np.arange(len(counts) + 1), texts_with)
        rows["first"] = Rows([block[firsts].astype(np.float64) for block in blocks], single, texts)
        return rows
