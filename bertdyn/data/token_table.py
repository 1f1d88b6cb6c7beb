"""Where every token comes from: its example, its window, its word and its characters.

Tokenised parts keep token ids alone; a reader of features wants to see the words behind them. So the texts are
tokenised once more, this time with what the tokenizer says of each token, and the ids must come out the same.

What a tokenizer added itself is special; what the text contains is content, whatever its id: an unknown word is
content, and so is a "[SEP]" that somebody typed (tokenizers parse it as the token of that name).

How exact words and characters are depends on the tokenizer:

- Fast: its own offsets without white space at either end, as in `make_windows`. The bytes of one character share
  its range, and the mark of a word's beginning that stands alone has an empty range (byte-level "Ġ") or, as
  SentencePiece counts it, that of the first character ("▁"). `word_id` counts the words of the pre-tokenizer.
- Slow (FlauBERT): ranges are whole words, those of `encode_words`. Where the tokenizer cuts a text otherwise than
  its words on their own, the two are compared and the tokens in between have the range of all words in between.
  `word_id` counts words between white space.
"""

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bertdyn.data.windows import BAR_FROM, CHUNK, encode_alone, encode_words, special_tokens_of, trim


class _Tokens(NamedTuple):
    """Tokens one after another; [tokens] each, -1 for what a special token has not."""

    token_id: np.ndarray
    segment: np.ndarray
    word_id: np.ndarray
    char_start: np.ndarray
    char_end: np.ndarray

    def cut(self, low: int, high: int) -> "_Tokens":
        return _Tokens(*(column[low:high] for column in self))


_Columns = list[list[str]]
"""The text of each row, and where there are pairs their second text."""
_Read = tuple[list[int], _Tokens]
"""The number of tokens of each row, and the tokens of all rows."""


def token_table(frame: pd.DataFrame, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """One row a token of `dataset`, in order.

    Parameters
    ----------
    frame
        A part of `TextData.parts`, or its first rows: example_id, text and, for pairs, text_pair.
    dataset
        What `tokenize_parts` made of these rows.
    tokenizer
        The one that made it.

    Returns
    -------
    tokens
        row (0, 1, ...; int64), example_id (category), window_id (0 but for question answering), segment (0: text,
        1: text_pair, -1: special; int8), position (in the row of `dataset`, from 0), token_id, token (the
        tokenizer's name of it; category), word_id (of its segment, from 0), char_start and char_end (half-open
        range of characters in the text of its segment), is_special (added by the tokenizer). Numbers are int32
        where nothing else is said; word_id, char_start and char_end of special tokens are -1.

    Raises
    ------
    ValueError
        `dataset` has rows of examples that `frame` does not have.
    RuntimeError
        The tokenizer gives other token ids for these texts than those of `dataset`.
    """
    answering = "window" in dataset.column_names
    example = np.asarray(dataset["example" if answering else "index"][:])
    if example.max() >= len(frame):
        raise ValueError(f"token ids of example {example.max()}, but texts of {len(frame)} examples")
    texts = [frame[name] for name in ("text", "text_pair") if name in frame]
    read: Callable[..., _Read] = _read_windows if answering else _read_fast if tokenizer.is_fast else _read_slow
    arrow = dataset.with_format("arrow")
    chunks, lengths = [], []
    for start in tqdm(
        range(0, len(dataset), CHUNK), desc="token table", unit="k rows", disable=len(dataset) < BAR_FROM
    ):
        rows = arrow[start : start + CHUNK]
        columns = [column.iloc[example[start : start + CHUNK]].tolist() for column in texts]
        found = read(columns, rows, tokenizer)
        _check(found, rows, frame["example_id"].iloc[example[start : start + CHUNK]])
        lengths += found[0]
        chunks.append(found[1])
    tokens = _Tokens(*map(np.concatenate, zip(*chunks, strict=True)))
    window = np.asarray(dataset["window"][:]) if answering else np.zeros(len(dataset))
    return pd.DataFrame(
        {
            "row": np.arange(len(tokens.token_id)),
            "example_id": _category(
                frame["example_id"].iloc[example.min() : example.max() + 1], np.repeat(example - example.min(), lengths)
            ),
            "window_id": np.repeat(window.astype(np.int32), lengths),
            "segment": tokens.segment,
            "position": _from_zero(lengths),
            "token_id": tokens.token_id,
            "token": _token_names(tokens.token_id, tokenizer),
            "word_id": tokens.word_id,
            "char_start": tokens.char_start,
            "char_end": tokens.char_end,
            "is_special": tokens.segment < 0,
        }
    )


def _check(found: _Read, rows: pa.Table, example_ids: pd.Series) -> None:
    lengths, ids = rows["length"].to_numpy(), _flat(rows["input_ids"])
    wrong = np.flatnonzero(lengths != found[0])
    if not len(wrong):
        tokens = np.flatnonzero(ids != found[1].token_id)
        wrong = np.searchsorted(np.cumsum(lengths), tokens, side="right")
    if len(wrong):
        raise RuntimeError(
            f"example {example_ids.iloc[wrong[0]]!r}: the tokenizer does not give the token ids of the tokenised part; "
            f"one of them, or the text, is not what it was"
        )


def _read_fast(columns: _Columns, rows: pa.Table, tokenizer: PreTrainedTokenizerBase) -> _Read:
    """Rows as the tokenizer makes them of whole texts and pairs."""
    encoded = tokenizer(
        *columns,
        truncation=True,
        max_length=_longest(rows),
        padding=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    return _of_encodings(encoded.encodings, columns)


def _longest(rows: pa.Table) -> int:
    """A length to cut all texts to: if any was cut, then to just this."""
    return max(rows["length"].to_pylist())


def _of_encodings(encodings: Sequence[Any], columns: _Columns) -> _Read:
    """What a fast tokenizer knows of its tokens; `columns` hold the texts of each encoding."""
    lengths = list(map(len, encodings))
    special = np.fromiter(chain.from_iterable(e.special_tokens_mask for e in encodings), dtype=bool)
    ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int32)
    segment = _optional_numbers(e.sequence_ids for e in encodings)
    word_id = _optional_numbers(e.word_ids for e in encodings)
    offsets = np.fromiter(chain.from_iterable(chain.from_iterable(e.offsets for e in encodings)), dtype=np.int64)
    # All texts of the chunk are trimmed as one; what is empty at the end of one must not move on into the next.
    texts = list(chain.from_iterable(zip(*columns, strict=True)))
    end_of = np.cumsum(list(map(len, texts)))
    text = np.repeat(np.arange(len(encodings)), lengths) * len(columns) + np.maximum(segment, 0)
    begin = end_of[text] - np.asarray(list(map(len, texts)))[text]
    trimmed = trim("".join(texts), offsets.reshape(-1, 2) + begin[:, None])
    char_start, char_end = (np.minimum(chars, end_of[text]) - begin for chars in trimmed)
    kept = (np.where(special, -1, column) for column in (segment, word_id, char_start, char_end))
    segment, word_id, char_start, char_end = kept
    numbers = (column.astype(np.int32) for column in (word_id, char_start, char_end))
    return lengths, _Tokens(ids, segment.astype(np.int8), *numbers)


def _optional_numbers(lists: Any) -> np.ndarray:
    """Numbers one after another, -1 for None."""
    return np.nan_to_num(np.asarray(list(chain.from_iterable(lists)), dtype=float), nan=-1).astype(np.int32)


def _read_slow(columns: _Columns, rows: pa.Table, tokenizer: PreTrainedTokenizerBase) -> _Read:
    """Texts on their own, cut and put together as the tokenizer does it."""
    alone = [_alone(tokenizer, texts, segment) for segment, texts in enumerate(columns)]
    room = _longest(rows) - tokenizer.num_special_tokens_to_add(pair=len(columns) > 1)
    made = []
    for texts in zip(*columns, strict=True):
        pieces = [tokens[text] for tokens, text in zip(alone, texts, strict=True)]
        marks = [_marks(pieces, segment).tolist() for segment in range(len(pieces))]
        kept = tokenizer.truncate_sequences(*marks, num_tokens_to_remove=sum(map(len, marks)) - room)
        made.append(_assemble(tokenizer.build_inputs_with_special_tokens(*kept[: len(pieces)]), pieces))
    return _joined(made)


def _read_windows(columns: _Columns, rows: pa.Table, tokenizer: PreTrainedTokenizerBase) -> _Read:
    """Windows put together as `make_windows` does it."""
    specials = special_tokens_of(tokenizer)
    questions = _alone(tokenizer, columns[0], 0)
    contexts = _alone(tokenizer, columns[1], 1, of_words=True)
    ids, char_start = _flat(rows["input_ids"]), _flat(rows["char_start"])
    starts = accumulate(rows["length"].to_pylist(), initial=0)
    ranges = zip(starts, rows["context_start"].to_pylist(), rows["context_end"].to_pylist(), strict=False)
    made = []
    for question, context, (start, low, high) in zip(*columns, ranges, strict=True):
        inside = slice(start + low, start + high)
        pieces = [questions[question], _window_of(contexts[context], ids[inside], char_start[inside])]
        order = (specials.before, _marks(pieces, 0), specials.between, _marks(pieces, 1), specials.after)
        made.append(_assemble(np.concatenate(order), pieces))
    return _joined(made)


def _window_of(context: _Tokens, ids: np.ndarray, char_start: np.ndarray) -> _Tokens:
    """The tokens of the context that a window holds; none where they are not to be found."""
    candidates = np.flatnonzero(context.char_start == char_start[0]).tolist() if len(ids) else []
    for low in candidates:
        window = context.cut(low, low + len(ids))
        if np.array_equal(window.token_id, ids) and np.array_equal(window.char_start, char_start):
            return window
    return context.cut(0, 0)


def _marks(pieces: list[_Tokens], segment: int) -> np.ndarray:
    """Numbers that are no tokens (-1, -2, ... over all pieces) and stand for those of one piece."""
    first = sum(len(piece.token_id) for piece in pieces[:segment])
    return -1 - np.arange(first, first + len(pieces[segment].token_id))


def _assemble(order: Sequence[int] | np.ndarray, pieces: list[_Tokens]) -> _Tokens:
    """A row of special tokens and, where `order` holds marks, of the tokens that they stand for."""
    order = np.asarray(order, dtype=np.int32)
    marked = np.flatnonzero(order < 0)
    together = _joined(pieces)[1]
    row = _Tokens(order.copy(), *(np.full(len(order), -1, dtype=column.dtype) for column in together[1:]))
    for column, values in zip(row, together, strict=True):
        column[marked] = values[-1 - order[marked]]
    return row


def _joined(rows: list[_Tokens]) -> _Read:
    return [len(row.token_id) for row in rows], _Tokens(*map(np.concatenate, zip(*rows, strict=True)))


def _alone(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], segment: int, *, of_words: bool = False
) -> dict[str, _Tokens]:
    """Each text with its tokens without special ones. A slow tokenizer may be given one word at a time."""
    texts = list(dict.fromkeys(texts))
    if tokenizer.is_fast:
        lengths, tokens = _of_encodings(encode_alone(tokenizer, texts, offsets=True).encodings, [texts])
        tokens = tokens._replace(segment=np.full_like(tokens.segment, segment))
        ends = np.cumsum(lengths)
        return {text: tokens.cut(end - n, end) for text, n, end in zip(texts, lengths, ends, strict=True)}
    whole = [None] * len(texts) if of_words else encode_alone(tokenizer, texts)["input_ids"]
    alone = {}
    for text, ids, (word_ids, ranges) in zip(texts, whole, encode_words(tokenizer, texts), strict=True):
        if ids is None:
            ids = word_ids
        ranges = _place(ids, word_ids, ranges)
        segments = np.full(len(ids), segment, dtype=np.int8)
        words = _words_between_spaces(text)[ranges[:, 0]]
        alone[text] = _Tokens(np.asarray(ids, dtype=np.int32), segments, words, ranges[:, 0], ranges[:, 1])
    return alone


def _place(ids: list[int], word_ids: list[int], ranges: np.ndarray) -> np.ndarray:
    """The ranges [tokens, 2] of `ids`, from those of the tokens `word_ids` of the same text word by word."""
    if ids == word_ids:
        return ranges
    placed = np.zeros((len(ids), 2), dtype=np.int32)
    comparison = SequenceMatcher(None, word_ids, ids, autojunk=False)
    for kind, low, high, first, end in comparison.get_opcodes():
        if kind == "equal":
            placed[first:end] = ranges[low:high]
        elif len(ranges):
            low = min(low, len(ranges) - 1)  # what no word has belongs to the one after it
            placed[first:end] = ranges[low, 0], ranges[max(high - 1, low), 1]
    return placed


def _words_between_spaces(text: str) -> np.ndarray:
    """[characters] → number of the word that the character is in."""
    space = np.fromiter(map(str.isspace, text), dtype=bool, count=len(text))
    begins = ~space & np.append(True, space)[:-1]
    return np.cumsum(begins, dtype=np.int32) - 1


def _flat(lists: pa.ChunkedArray) -> np.ndarray:
    return lists.combine_chunks().flatten().to_numpy()


def _from_zero(lengths: list[int]) -> np.ndarray:
    """0, 1, ... within every row."""
    starts = np.cumsum(lengths) - lengths
    return (np.arange(sum(lengths)) - np.repeat(starts, lengths)).astype(np.int32)


def _category(values: pd.Series, number: np.ndarray) -> pd.Categorical:
    """`values`, repeated as `number` says."""
    codes, distinct = pd.factorize(values)
    return pd.Categorical.from_codes(codes[number], distinct)


def _token_names(token_id: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> pd.Categorical:
    number, distinct = pd.factorize(token_id)
    # By way of a Series: two ids may have one name.
    return _category(pd.Series(tokenizer.convert_ids_to_tokens(distinct.tolist())), number)
