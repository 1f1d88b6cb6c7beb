"""Which rows of a store dictionaries are trained on and measured on, and what text each row is of."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bertdyn.errors import InputError
from bertdyn.features.aligned import AlignedRows
from bertdyn.features.rows import RowDataset
from bertdyn.features.store import FeatureStore

ROWS_PER_BLOCK = 4096
EVERY = 2**62
"""More rows than there are."""


class PartRows(NamedTuple):
    """The rows of one kind of some parts of a store."""

    store: FeatureStore
    array: str
    """The kind of array of the store that has them."""
    dataset: RowDataset
    """[states, layers, rows, width]"""
    numbers: np.ndarray
    """[rows]: the number of each in its array of the store"""
    text: np.ndarray
    """[rows]: which of `examples` each is of, in order"""
    examples: pd.DataFrame
    """One row a text."""

    @property
    def by_token(self) -> bool:
        """The numbers are those of tokens, not of examples."""
        return self.array == "tokens"

    def blocks(self, state: str, layer: int, step: int = 1) -> Iterator[Tensor]:
        """The rows of one state and layer, float32, some thousands at a time; of every `step`-th row only."""
        array, numbers = self.store.array(self.array, state, layer), self.numbers[::step]
        for start in range(0, len(numbers), ROWS_PER_BLOCK):
            yield torch.from_numpy(array[numbers[start : start + ROWS_PER_BLOCK]]).float()


def part_rows(
    store: FeatureStore,
    states: Sequence[str],
    layers: Sequence[int],
    kind: str,
    parts: Sequence[str],
    max_examples: int | None = None,
) -> PartRows:
    """Rows of a store.

    Parameters
    ----------
    kind
        content (every token of a text's first window, without special ones), first (token) or mean.
    parts
        In this order.
    max_examples
        Of each part.

    Raises
    ------
    InputError
        If the store has no such rows, layer or part.
    """
    arrays = store.manifest.arrays
    if kind != "first" and {"content": "tokens", "mean": "mean"}[kind] not in arrays:
        wanted = "tokens" if kind == "content" else kind
        raise InputError(
            f"--rows {kind!r}: the features in {store.folder} have no rows of that kind; they have "
            f"{', '.join(arrays)}; extract with --rows {wanted}"
        )
    array = array_of(store, kind)
    if array not in arrays:
        raise InputError(f"--rows first: the features in {store.folder} have no rows of it; extract with --rows tokens")
    _check_layers(store, layers, array)
    numbers, texts = [], []
    tables: list[pd.DataFrame] = []
    for part in parts:
        aligned = AlignedRows([(store, state) for state in states], part, max_examples)
        if kind == "content":
            of_part, text = aligned.content_rows(EVERY, seed=0)
        else:
            text = np.arange(len(aligned.examples))
            of_part = aligned.examples["first_row"].to_numpy() if array == "tokens" else aligned.numbers
        texts.append(text + sum(len(table) for table in tables))
        numbers.append(of_part)
        tables.append(aligned.examples)
    at = np.concatenate(numbers)
    dataset = RowDataset(store, array, states, layers, at)
    return PartRows(store, array, dataset, at, np.concatenate(texts), pd.concat(tables, ignore_index=True))


def array_of(store: FeatureStore, kind: str) -> str:
    """The kind of array that has rows of a kind; first tokens are taken from all tokens, where those are stored."""
    if kind == "first":
        return "tokens" if "tokens" in store.manifest.arrays else "first"
    return {"content": "tokens", "mean": "mean"}[kind]


def _check_layers(store: FeatureStore, layers: Sequence[int], array: str) -> None:
    missing = [layer for layer in layers if layer not in store.layers(array)]
    if missing:
        there = ", ".join(map(str, store.layers(array)))
        raise InputError(f"--layers: layer {missing[0]} of the {array} rows was not extracted; there are {there}")
