"""Reading a table of texts: CSV, TSV, JSON lines or Parquet, every cell of interest as a string.

Text files are decoded here, not by pandas, so that a byte that is not UTF-8 is reported with its offset.
TSV is read without quoting (the SST-2 files contain lone quotation marks), and nothing is taken for a missing
value but an absent cell: a review that says "None" or "NA" is a review.
"""

import csv
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bertdyn.errors import InputError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8; accepted: UTF-8"
        ) from None


def _delimited(text: str, suffix: str, header: tuple[str, ...] | None) -> pd.DataFrame:
    if not text.strip():
        return pd.DataFrame()
    with warnings.catch_warnings():
        # With only a warning, pandas would throw away the cells beyond the header.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            io.StringIO(text),
            sep="\t" if suffix == ".tsv" else ",",
            quoting=csv.QUOTE_NONE if suffix == ".tsv" else csv.QUOTE_MINIMAL,
            names=header,
            index_col=False,
            dtype=str,
            keep_default_na=False,
        )


def _json_lines(path: Path, text: str) -> pd.DataFrame:
    records = []
    # str.splitlines would also cut at line separators inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            record = str(error)
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is {str(record)[:60]!r}; accepted: one JSON object a line")
        records.append(record)
    return pd.DataFrame(records, dtype=object)


def read_table(path: Path, header: tuple[str, ...] | None = None) -> pd.DataFrame:
    """The rows of a file, index 0..n-1.

    Parameters
    ----------
    path
        A file with one of `SUFFIXES`.
    header
        Column names of a CSV or TSV file that has none.

    Raises
    ------
    InputError
        No such file, another suffix, not UTF-8, not parsable, or no rows.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: suffix '{suffix}'; accepted: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; accepted: an existing {suffix} file")
    try:
        if suffix == ".parquet":
            frame = pd.read_parquet(path)
        elif suffix in (".csv", ".tsv"):
            frame = _delimited(_decode(path), suffix, header)
        else:
            frame = _json_lines(path, _decode(path))
    except InputError:
        raise
    except (pd.errors.ParserError, pd.errors.ParserWarning, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as {suffix[1:]} ({reason}); accepted: a well-formed file") from None
    if frame.empty:
        raise InputError(f"{path}: empty; accepted: at least one row")
    return frame.reset_index(drop=True)


def require_column(frame: pd.DataFrame, path: str, name: str) -> str:
    """`name`, a column that the source itself promises.

    Raises
    ------
    InputError
        It does not exist; the message lists the columns found.
    """
    if name not in frame.columns:
        raise InputError(f"{path}: no column '{name}', found: {_names(frame)}; accepted: the dataset's own file")
    return name


def choose_column(frame: pd.DataFrame, path: str, field: str, wanted: str | None, defaults: Sequence[str] = ()) -> str:
    """Name of the column for the option `field`: `wanted`, or else the first of `defaults` that exists.

    Raises
    ------
    InputError
        It does not exist; the message lists the columns found.
    """
    for name in [wanted] if wanted else defaults:
        if name in frame.columns:
            return name
    if wanted:
        raise InputError(f"--{field} {wanted!r}: no such column in {path}; accepted: one of {_names(frame)}")
    asked = " or ".join(map(repr, defaults))
    raise InputError(f"--{field} is not given, and {path} has no column {asked}; accepted: one of {_names(frame)}")


def _names(frame: pd.DataFrame) -> str:
    return ", ".join(map(str, frame.columns))


def as_label(value: Any) -> str | None:
    """A cell as the name of a label: 1, 1.0, "1" and " 1 " are all "1"; None where it is missing or blank."""
    if _is_missing(value):
        return None
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value).strip() or None


def as_text(value: Any) -> str:
    """A cell as text without surrounding whitespace; "" where it is missing."""
    return "" if _is_missing(value) else str(value).strip()


def _is_missing(value: Any) -> bool:
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))
