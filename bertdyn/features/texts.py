"""Which texts features are taken from, and which rows they get."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from bertdyn.data.text_data import TextData
from bertdyn.data.token_table import token_table

SEQUENCES_AT_ONCE = 1024
"""Of the token table, so that it never is in memory as a whole."""


@dataclass(frozen=True)
class TokenisedTexts:
    """Examples, and the token sequences they became: one each, or several where a text was cut into windows."""

    frames: list[pd.DataFrame]
    """The examples of each part: example_id, part, label, text, [text_pair]."""
    datasets: list[Dataset]
    """Their sequences: input_ids, [token_type_ids], length, and index or, with windows, example: the row in the
    frame. The sequences of an example are neighbours."""

    @cached_property
    def examples(self) -> pd.DataFrame:
        """All examples, in row order."""
        return pd.concat(self.frames, ignore_index=True)

    @cached_property
    def sequences(self) -> Dataset:
        """All sequences, in row order."""
        return concatenate_datasets(self.datasets)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[sequences], in tokens, special ones included."""
        return np.concatenate([np.array(dataset["length"][:]) for dataset in self.datasets])

    @cached_property
    def owner(self) -> np.ndarray:
        """[sequences]: row of its example."""
        before = np.cumsum([0, *map(len, self.frames)])
        return np.concatenate([_owner(d) + start for d, start in zip(self.datasets, before, strict=False)])

    @cached_property
    def is_first(self) -> np.ndarray:
        """[sequences]: whether it is the first (or only) window of its example."""
        return np.diff(self.owner, prepend=-1) > 0

    def example_table(self) -> pd.DataFrame:
        """The examples with their range of token rows."""
        n_rows = np.bincount(self.owner, weights=self.lengths, minlength=len(self.examples)).astype(np.int64)
        first_row = np.concatenate([[0], np.cumsum(n_rows)[:-1]])
        return self.examples.assign(first_row=first_row, n_rows=n_rows)

    def token_pieces(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[pd.DataFrame]:
        """One row a token, in row order, some thousands of sequences at a time."""
        first_row = 0
        for frame, dataset in zip(self.frames, self.datasets, strict=True):
            for start in range(0, len(dataset), SEQUENCES_AT_ONCE):
                chosen = dataset.select(range(start, min(start + SEQUENCES_AT_ONCE, len(dataset))))
                piece = token_table(frame, chosen, tokenizer)
                # Categories are those of a piece, a file has one schema.
                names = {name: piece[name].astype("str") for name in ("example_id", "token")}
                yield piece.assign(row=piece["row"] + first_row, **names)
                first_row += len(piece)


def texts_of(
    data: TextData, tokens: Mapping[str, Dataset], parts: list[str], limits: Mapping[str, int | None] | None = None
) -> TokenisedTexts:
    """The texts of some parts, one part after the other.

    Parameters
    ----------
    tokens
        From `tokenize_parts`.
    limits
        Part → at most so many of its examples: its first ones, which are a random sample.
    """
    frames, datasets = [], []
    for part in parts:
        frame = data.parts[part][: (limits or {}).get(part)].reset_index(drop=True)
        columns = [name for name in ("example_id", "label", "text", "text_pair") if name in frame]
        frames.append(frame[columns].assign(part=part))
        dataset = tokens[part]
        count = int(np.searchsorted(_owner(dataset), len(frame)))
        datasets.append(dataset if count == len(dataset) else dataset.select(range(count)))
    return TokenisedTexts(frames, datasets)


def _owner(dataset: Dataset) -> np.ndarray:
    return np.array(dataset["example" if "example" in dataset.column_names else "index"][:])
