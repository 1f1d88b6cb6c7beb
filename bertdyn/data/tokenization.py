"""Tokenise once: token ids of every part, on disk as Arrow under the fingerprint of what made them.

The cache key covers the texts, the tokenizer's own files, the maximal length and for question answering the
overlap of windows, never a path or a name, so a hit is always right. Padding is not stored, and neither is an
attention mask (it would be all ones): both are made per batch. An entry is written under a temporary name and
renamed when complete; its checksums are compared on every load, and an entry that does not match is built anew.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bertdyn.data.config import DEFAULT_DOC_STRIDE
from bertdyn.data.text_data import TextData
from bertdyn.data.windows import BAR_FROM, CHUNK, make_windows
from bertdyn.errors import InputError
from bertdyn.files import new_folder

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when the columns change, so that entries of an older version are not taken for new ones."""
INFO_FILE = "info.json"


class TokenizedParts(dict[str, Dataset]):
    """Part name to memory-mapped Dataset, with how many texts did not fit and where the cache entry lies."""

    truncated: dict[str, int]
    """Part name to number of examples that were longer than max_length: cut, or split into windows."""
    path: Path
    """Folder of the cache entry."""


def tokenize_parts(
    data: TextData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: Path,
    doc_stride: int = DEFAULT_DOC_STRIDE,
) -> TokenizedParts:
    """Token ids of all parts, tokenised now or taken from the cache.

    Parameters
    ----------
    data
        The texts.
    tokenizer
        Fast or slow.
    max_length
        Longest input in tokens with special tokens; of a pair the longer text is cut first.
    cache_dir
        Folder of all cache entries; made if missing. Several processes may share it.
    doc_stride
        Question answering: tokens that a window shares with the one before it.

    Returns
    -------
    parts
        For each part a Dataset with the columns index (row in the part's DataFrame), input_ids,
        token_type_ids (where the tokenizer names them as a model input), label and length (tokens).
        For question answering what `make_windows` returns.

    Raises
    ------
    InputError
        `max_length` is more than the model takes, or leaves no room beside a question.
    """
    longest = tokenizer.model_max_length
    if max_length > longest:
        raise InputError(f"--max_length {max_length}: more than this tokenizer takes; accepted: at most {longest}")
    answering = data.task == "question-answering"
    key_parts = [FORMAT, data.fingerprint, tokenizer_fingerprint(tokenizer), max_length]
    key_parts += [data.task, doc_stride if answering else None]
    entry = Path(cache_dir) / hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()
    cached = _load(entry)
    if cached is None:
        _build(entry, data, tokenizer, max_length, doc_stride)
        cached = _load(entry)
    if cached is None:
        raise OSError(f"{entry}: a cache entry written just now does not match its own checksums")
    what = "questions split into windows of at most" if answering else "texts cut to"
    for part, count in cached.truncated.items():
        if count:
            logger.info("%s: %d of %d %s %d tokens", part, count, len(data.parts[part]), what, max_length)
    return cached


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the files that `save_pretrained` writes, less what does not change the token ids.

    A fast tokenizer writes the truncation and padding of its *last call* into tokenizer.json, and its
    configuration says whether it came from the hub or a folder: neither may make a second entry.
    """
    digest = hashlib.sha256(json.dumps(tokenizer.model_input_names).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if not path.is_file():
                continue
            content = path.read_bytes()
            if path.suffix == ".json":
                content = _without_state(content)
            digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _without_state(content: bytes) -> bytes:
    settings = json.loads(content)
    if isinstance(settings, dict):
        for name in ("truncation", "padding", "is_local", "local_files_only", "name_or_path"):
            settings.pop(name, None)
    return json.dumps(settings, sort_keys=True).encode()


def _build(entry: Path, data: TextData, tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int) -> None:
    """Makes a cache entry; where another process was faster, its entry (with the same content) stays."""
    with new_folder(entry) as scratch:
        truncated = {}
        for part, frame in data.parts.items():
            if data.task == "question-answering":
                dataset = make_windows(frame, tokenizer, max_length, doc_stride)
                truncated[part] = dataset["window"][:].count(1)
            else:
                dataset, truncated[part] = _tokenize(frame, tokenizer, max_length, part)
            with _bars(len(dataset) >= BAR_FROM):
                dataset.save_to_disk(str(scratch / part))
        info = {"checksums": _checksums(scratch), "parts": list(data.parts), "truncated": truncated}
        (scratch / INFO_FILE).write_text(json.dumps(info, indent=1))
        if entry.exists() and _load(entry) is None:
            _remove(entry)


def _remove(entry: Path) -> None:
    """Takes a broken entry away in one step: half removed, it would be in the way of the next."""
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}.", dir=entry.parent) as aside, suppress(FileNotFoundError):
        os.rename(entry, Path(aside, "broken"))


def _tokenize(
    frame: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int, part: str
) -> tuple[Dataset, int]:
    """The Dataset of one part and the number of its texts that were cut."""
    inputs = [name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names]
    types: dict[str, Any] = {"index": Value("int64"), "label": Value("int64"), "length": Value("int32")}
    features = Features(types | {name: List(Value("int32")) for name in inputs})
    chunks, truncated = [], 0
    starts = range(0, len(frame), CHUNK)
    for start in tqdm(starts, desc=f"tokenise {part}", unit="k texts", disable=len(frame) < BAR_FROM):
        rows = frame.iloc[start : start + CHUNK]
        encoded = _encode(rows, tokenizer, max_length)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        full = rows[[length == max_length for length in lengths]]
        if len(full):
            truncated += sum(len(ids) > max_length for ids in _encode(full, tokenizer, None)["input_ids"])
        columns: dict[str, Any] = {
            "index": list(range(start, start + len(rows))),
            "label": rows["label"].tolist(),
        }
        columns |= {"length": lengths} | {name: encoded[name] for name in inputs}
        chunks.append(Dataset.from_dict(columns, features=features))
    return datasets.concatenate_datasets(chunks), truncated


def _encode(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Any:
    return tokenizer(
        rows["text"].tolist(),
        rows["text_pair"].tolist() if "text_pair" in rows else None,
        truncation=max_length is not None,
        max_length=max_length,
        padding=False,  # said aloud: some tokenizer files bring a fixed padding of their own
        return_attention_mask=False,
        verbose=False,
    )


def _load(entry: Path) -> TokenizedParts | None:
    """The cache entry, or None where there is none or it is not what was written."""
    try:
        info = json.loads((entry / INFO_FILE).read_text())
        if info["checksums"] != _checksums(entry):
            logger.warning("%s: the cache entry is damaged and will be built anew", entry)
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    loaded = TokenizedParts({part: datasets.load_from_disk(str(entry / part)) for part in info["parts"]})
    loaded.truncated, loaded.path = info["truncated"], entry
    return loaded


def _checksums(entry: Path) -> dict[str, str]:
    checksums = {}
    for path in sorted(entry.rglob("*")):
        if path.is_file() and path.name != INFO_FILE:
            with path.open("rb") as file:
                checksums[str(path.relative_to(entry))] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


@contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    """Saving shows a progress bar for each part, however small; only large parts deserve one."""
    shown = not datasets.are_progress_bars_disabled()
    if shown and not wanted:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
