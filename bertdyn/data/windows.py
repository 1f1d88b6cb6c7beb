"""The windows of a question-answering part: question and context as token ids, and where each token stands.

A context that does not fit is cut into windows that overlap by `doc_stride` tokens; the ids are those that a
Hugging Face tokenizer gives for (question, context) with truncation="only_second" and that stride. But here every
context is tokenised once, not once a question (SQuAD asks ten questions of each), and the parts are put together
with the special tokens that the tokenizer itself puts between two texts. Which tokens are context is thus known
from the assembly: token types, which half of the families do not have, are never asked.

The character range of a token never begins or ends with white space, so that a cut answer does not either. A
tokenizer without offsets (FlauBERT) is given one word at a time, and each of a word's tokens has the word's range.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bertdyn.errors import InputError

CHUNK = 1000
BAR_FROM = 20_000
"""Parts with fewer rows take a second or two and show no progress bar."""
WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:-\w+)*(?:['\N{RIGHT SINGLE QUOTATION MARK}](?=\w))?|\.\.+|[^\w\s]")
"""A word as the Moses tokenizer cuts French (99.8 % of its words in film reviews and in SQuAD): elided articles keep
their apostrophe, compounds their hyphens, numbers their commas."""

NUMBERS = (
    *("index", "example", "window", "length"),
    *("start_position", "end_position", "context_start", "context_end"),
)
LISTS = ("input_ids", "token_type_ids", "char_start", "char_end")


class SpecialTokens(NamedTuple):
    """The special tokens before, between and after two texts, and the token types of these five pieces."""

    before: np.ndarray
    between: np.ndarray
    after: np.ndarray
    types: list[int]


class _Context(NamedTuple):
    """One tokenised context, [tokens] each; the ranges of characters never step back."""

    ids: np.ndarray
    char_start: np.ndarray
    char_end: np.ndarray


def make_windows(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int) -> Dataset:
    """The windows of one part.

    Parameters
    ----------
    frame
        Columns example_id, text (question), text_pair (context), answers, answer_starts.
    tokenizer
        Fast or slow.
    max_length
        Most tokens of a window with question and special tokens.
    doc_stride
        Tokens of the context that a window shares with the one before it.

    Returns
    -------
    windows
        One row a window, those of an example one after another, with the columns
        index (row number), example (row in `frame`), window (0, 1, ... within the example), length (tokens);
        input_ids, char_start, char_end and, where the tokenizer names them as a model input, token_type_ids
        [length]: char_start and char_end are the half-open range of characters of a context token in the
        context, -1 elsewhere;
        start_position, end_position: first and last token of the first gold answer, both 0 (the first token
        stands for "no answer") where there is none or the window does not hold all of it;
        context_start, context_end: half-open range of the context's tokens.

    Raises
    ------
    InputError
        A question leaves no room for more of its context than windows have in common.
    """
    specials = special_tokens_of(tokenizer)
    num_special = len(specials.before) + len(specials.between) + len(specials.after)
    lists = [name for name in LISTS if name != "token_type_ids" or name in tokenizer.model_input_names]
    questions = [
        np.asarray(ids, dtype=np.int32) for ids in encode_alone(tokenizer, frame["text"].tolist())["input_ids"]
    ]
    contexts = _tokenize_contexts(tokenizer, list(dict.fromkeys(frame["text_pair"])))
    chunks, num_windows = [], 0
    starts = range(0, len(frame), CHUNK)
    for start in tqdm(starts, desc="windows", unit="k questions", disable=len(frame) < BAR_FROM):
        numbers: list[tuple[int, ...]] = []
        pieces: list[dict[str, np.ndarray]] = []
        for example, row in enumerate(frame.iloc[start : start + CHUNK].itertuples(index=False), start=start):
            question, context = questions[example], contexts[row.text_pair]
            room = max_length - num_special - len(question)
            if room < 1 or (room < len(context.ids) and room <= doc_stride):
                raise InputError(
                    f"--max_length {max_length}: question {row.example_id!r} and the special tokens take "
                    f"{max_length - room} of them and leave no room for windows that overlap by --doc_stride "
                    f"{doc_stride}; accepted: --max_length of at least {max_length - room + doc_stride + 1}"
                )
            gold = _gold_tokens(context, row.answers, row.answer_starts)
            first = len(specials.before) + len(question) + len(specials.between)
            for window, (low, high) in enumerate(_cuts(len(context.ids), room, doc_stride)):
                piece = _assemble(specials, question, context, low, high)
                held = gold is not None and low <= gold[0] and gold[1] < high
                position = (first + gold[0] - low, first + gold[1] - low) if gold and held else (0, 0)
                end = first + high - low
                numbers.append((num_windows, example, window, len(piece["input_ids"]), *position, first, end))
                pieces.append(piece)
                num_windows += 1
        columns: dict[str, Any] = dict(zip(NUMBERS, zip(*numbers, strict=True), strict=True))
        columns |= {name: _list_column([piece[name] for piece in pieces]) for name in lists}
        types: dict[str, Any] = {name: Value("int64") for name in NUMBERS}
        types |= {name: List(Value("int32")) for name in lists}
        chunks.append(Dataset.from_dict(columns, features=Features(types)))
    return datasets.concatenate_datasets(chunks)


def _cuts(tokens: int, room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Half-open token ranges of the windows of one context, as the tokenizers library cuts them."""
    low = 0
    while low + room < tokens:
        yield low, low + room
        low += room - overlap
    yield low, tokens


def _assemble(
    specials: SpecialTokens, question: np.ndarray, context: _Context, low: int, high: int
) -> dict[str, np.ndarray]:
    """The list columns of one window."""
    ids = (specials.before, question, specials.between, context.ids[low:high], specials.after)
    sizes = [len(piece) for piece in ids]
    outside = np.full(sum(sizes[:3]), -1, dtype=np.int32), np.full(sizes[4], -1, dtype=np.int32)
    return {
        "input_ids": np.concatenate(ids),
        "token_type_ids": np.repeat(specials.types, sizes),
        "char_start": np.concatenate((outside[0], context.char_start[low:high], outside[1])),
        "char_end": np.concatenate((outside[0], context.char_end[low:high], outside[1])),
    }


def _list_column(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(rows).astype(np.int32))


def _gold_tokens(context: _Context, answers: list[str], starts: list[int]) -> tuple[int, int] | None:
    """First and last token that have a character of the first gold answer; None where there is none."""
    if not answers:
        return None
    first = int(np.searchsorted(context.char_end, starts[0], side="right"))
    last = int(np.searchsorted(context.char_start, starts[0] + len(answers[0]), side="left")) - 1
    return (first, last) if first <= last else None


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """What the tokenizer puts around two texts, seen from an example."""
    if tokenizer.is_fast:
        pair = tokenizer("a", "b", padding=False, truncation=False, return_token_type_ids=True)
        ids, types, text_of = pair["input_ids"], pair["token_type_ids"], pair.sequence_ids()
    else:
        # These only join lists, so that two numbers which are no tokens can mark the places of the texts.
        ids = tokenizer.build_inputs_with_special_tokens([-1], [-2])
        types = tokenizer.create_token_type_ids_from_sequences([-1], [-2])
        text_of = [{-1: 0, -2: 1}.get(token) for token in ids]
    first, second = text_of.index(0), text_of.index(1)
    between = len(text_of) - text_of[::-1].index(0)
    after = len(text_of) - text_of[::-1].index(1)
    array = np.asarray(ids, dtype=np.int32)
    # Where a piece is empty its type is never used, but it must not lie beyond the end.
    pieces = (0, first, between, second, min(after, len(ids) - 1))
    return SpecialTokens(array[:first], array[between:second], array[after:], [types[piece] for piece in pieces])


def encode_alone(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, offsets: bool = False) -> Any:
    """Token ids of texts that stand alone, without special tokens."""
    return tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **({"return_offsets_mapping": True} if offsets else {}),
    )


def _tokenize_contexts(tokenizer: PreTrainedTokenizerBase, contexts: list[str]) -> dict[str, _Context]:
    """Each context with its tokens and their trimmed ranges of characters."""
    tokenize = _with_offsets if tokenizer.is_fast else encode_words
    tokenized = {}
    for context, (ids, ranges) in zip(contexts, tokenize(tokenizer, contexts), strict=True):
        char_start, char_end = trim(context, ranges)
        tokenized[context] = _Context(np.asarray(ids, dtype=np.int32), char_start, char_end)
    return tokenized


Ranges = Iterator[tuple[list[int], np.ndarray]]
"""Of each context the token ids and their ranges of characters [tokens, 2]."""


def _with_offsets(tokenizer: PreTrainedTokenizerBase, contexts: list[str]) -> Ranges:
    for start in range(0, len(contexts), CHUNK):
        encoded = encode_alone(tokenizer, contexts[start : start + CHUNK], offsets=True)
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield ids, np.asarray(offsets, dtype=np.int32).reshape(-1, 2)


def encode_words(tokenizer: PreTrainedTokenizerBase, contexts: list[str]) -> Ranges:
    words = list(dict.fromkeys(word for context in contexts for word in WORD.findall(context)))
    ids_of = dict(zip(words, encode_alone(tokenizer, words)["input_ids"], strict=True))
    for context in contexts:
        matches = list(WORD.finditer(context))
        pieces = [ids_of[match.group()] for match in matches]
        spans = np.asarray([match.span() for match in matches], dtype=np.int32).reshape(-1, 2)
        yield [token for piece in pieces for token in piece], np.repeat(spans, [len(piece) for piece in pieces], axis=0)


def trim(context: str, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges without white space at either end; one of white space alone is empty and stands at the next text."""
    space = np.fromiter(map(str.isspace, context), dtype=bool, count=len(context))
    number = np.arange(len(context), dtype=np.int32)
    text_from = np.minimum.accumulate(np.append(np.where(space, len(context), number), len(context))[::-1])[::-1]
    text_until = np.maximum.accumulate(np.append(0, np.where(space, 0, number + 1)))
    char_start = text_from[ranges[:, 0]].astype(np.int32)
    return char_start, np.maximum(text_until[ranges[:, 1]], char_start).astype(np.int32)
