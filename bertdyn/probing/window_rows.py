"""Token rows of windows, read from a feature store a batch at a time, all layers of a state side by side.

Which row belongs to which token of which window is never assumed: the token ids of windows and store are compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from bertdyn.data.batching import RENAMED, Batch, EpochShuffle
from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore

ROWS_AT_ONCE = 2**12
"""Of a layer, while they are checked: a block that the processor's cache holds."""
NUMBERS = ("index", "start_position", "end_position", "context_start", "context_end")


class StoredWindows(NamedTuple):
    """The questions of one part whose tokens a store has."""

    frame: pd.DataFrame
    """The questions (`TextData.parts`), or the first ones of them."""
    windows: Dataset
    """Their windows (`make_windows`)."""
    first_rows: np.ndarray
    """[windows]: row of each window's first token in the store; the others follow."""


def stored_windows(
    store: FeatureStore, part: str, frame: pd.DataFrame, windows: Dataset, max_examples: int | None = None
) -> StoredWindows:
    """The windows that the token rows of one part are of, checked id by id.

    Parameters
    ----------
    frame, windows
        All questions of the part and their windows; a store may hold the first ones only.
    max_examples
        At most so many questions.

    Raises
    ------
    InputError
        If the store has no token rows or nothing of the part, or the windows are of other questions or other tokens.
    """
    if "tokens" not in store.manifest.arrays:
        raise InputError(f"{store.folder} has no token rows of hidden states: extract with --rows tokens")
    examples = store.examples()
    examples = examples[examples["part"] == part][:max_examples].reset_index(drop=True)
    if examples.empty:
        raise InputError(
            f"{store.folder} has nothing of the part {part!r}: extract with --parts train,validation,{part}"
        )
    frame = frame[: len(examples)].reset_index(drop=True)
    other = InputError(f"{store.folder}: its rows of the part {part!r} are of other questions or tokens; extract anew")
    if not frame["example_id"].equals(examples["example_id"].astype(frame["example_id"].dtype)):
        raise other
    windows = windows.select(range(int(np.searchsorted(windows["example"][:], len(frame)))))
    lengths, owner = np.array(windows["length"][:]), np.array(windows["example"][:])
    begin, num_rows = int(examples["first_row"][0]), int(lengths.sum())
    first_rows = begin + np.cumsum(lengths) - lengths
    ids = windows.with_format("arrow")[:]["input_ids"].combine_chunks().flatten().to_numpy()
    stored = store.tokens(["token_id"], (begin, begin + num_rows))["token_id"].to_numpy()
    counts = np.bincount(owner, weights=lengths, minlength=len(frame))
    if not np.array_equal(counts, examples["n_rows"]) or not np.array_equal(ids, stored):
        raise other
    return StoredWindows(frame, windows, first_rows)


@dataclass
class WindowRows(TorchDataset[Batch]):
    """The token rows of some windows in one state, all layers of them; read from the store a batch at a time."""

    store: FeatureStore
    state: str
    layers: Sequence[int]
    windows: StoredWindows
    weights: Tensor | None = None
    """[2, windows]: of the losses of start and end; 1 where not given."""

    def __post_init__(self) -> None:
        numbers = self.windows.windows.select_columns([*NUMBERS, "length"]).with_format("numpy")[:]
        self.arrays = [self.store.array("tokens", self.state, layer) for layer in self.layers]
        self.lengths = numbers.pop("length")
        self.numbers = {RENAMED.get(name, name): torch.from_numpy(numbers[name]) for name in NUMBERS}
        weights = torch.ones(2, len(self)) if self.weights is None else self.weights
        self.numbers |= {"start_weights": weights[0], "end_weights": weights[1]}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, window: int) -> Batch:
        return self.__getitems__([window])

    def __getitems__(self, chosen: list[int]) -> Batch:
        """The numbers of the windows [batch]; features [layers, tokens, width], without padding; place [batch, seq],
        which of these tokens stands where (in the padding, any)."""
        first, lengths = self.windows.first_rows[chosen], self.lengths[chosen]
        rows = [
            np.concatenate([array[f : f + n] for f, n in zip(first, lengths, strict=True)]) for array in self.arrays
        ]
        position = np.arange(lengths.max())
        place = np.where(position < lengths[:, None], (np.cumsum(lengths) - lengths)[:, None] + position, 0)
        batch = {name: column[chosen] for name, column in self.numbers.items()}
        return batch | {"place": torch.from_numpy(place), "features": torch.from_numpy(np.stack(rows))}

    def batches(self, batch_size: int, order: EpochShuffle | None = None) -> DataLoader:
        """Batches in the given order, or one window after the other."""
        return DataLoader(
            self,
            batch_size=batch_size,
            sampler=order,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # what __getitems__ returns, no list of rows
            generator=torch.Generator(),  # its own: else every pass would change torch's global random state
            pin_memory=torch.cuda.is_available(),
        )

    def finite_rows(self, layer: int) -> Iterator[np.ndarray]:
        """All rows of the layer with this number in the store, [rows, width] float64, some thousands at a time.

        Raises
        ------
        InputError
            If a value is NaN or infinite.
        """
        array = self.arrays[list(self.layers).index(layer)]
        begin, end = self.windows.first_rows[0], self.windows.first_rows[-1] + self.lengths[-1]
        for start in range(begin, end, ROWS_AT_ONCE):
            rows = array[start : min(start + ROWS_AT_ONCE, end)].astype(np.float64)
            if not np.isfinite(rows).all():
                row = start + np.flatnonzero(~np.isfinite(rows).all(axis=1))[0]
                raise InputError(
                    f"{self.store.folder}: state {self.state!r}, layer {layer}: row {row} of the tokens has values "
                    "that are NaN or infinite; extract anew"
                )
            yield rows


def _as_it_is(batch: Batch) -> Batch:
    return batch


def check_finite(rows: WindowRows) -> None:
    """Raise `InputError` if a feature is NaN or infinite."""
    for layer in rows.layers:
        for _ in rows.finite_rows(layer):
            pass


def mean_and_scale(rows: WindowRows) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [layers, width] of each dimension over all tokens of the windows.

    As in scikit-learn's `StandardScaler`, the scale of a dimension that is constant is 1.

    Raises
    ------
    InputError
        If a feature is NaN or infinite.
    """
    found = []
    for layer in rows.layers:
        scaler = StandardScaler()
        for block in rows.finite_rows(layer):
            scaler.partial_fit(block)
        found.append((scaler.mean_, scaler.scale_))
    mean, scale = torch.from_numpy(np.stack(found, axis=1)).to(torch.get_default_dtype())
    return mean, scale
