"""The splits of a classification source, read and checked: ids, texts, and labels as numbers.

Four kinds of source (synthetic, named, file, hub) end in one form, and every label is checked against the
accepted ones here, so that nothing further down meets a label that it does not know.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bertdyn.data import synthetic
from bertdyn.data.config import DataConfig
from bertdyn.data.files import SUFFIXES, as_label, as_text, choose_column, read_table, require_column
from bertdyn.data.sources import SOURCES, find_source
from bertdyn.errors import InputError

FILE_FLAGS = ("test_file", "text_column", "text_pair_column", "label_column")
"""Flags that say how to read a file of the user's own."""

Splits = tuple[dict[str, pd.DataFrame], list[str], str]
"""Part to rows (example_id, text, text_pair, label as id), label names, what was read."""


def read_splits(config: DataConfig, extra: str | None = None) -> Splits:
    """The splits that the source itself has, under the names of the parts they become.

    Parameters
    ----------
    extra
        A column of the source to keep as well, under the name "extra"; the synthetic texts have none.

    Raises
    ------
    InputError
        Unknown dataset; missing file, column or label; a label that is not accepted; not UTF-8.
    """
    name = config.dataset
    if name == "synthetic":
        refuse_flags(config, *FILE_FLAGS)
        return _read_synthetic(config)
    if name in SOURCES:
        refuse_flags(config, *FILE_FLAGS)
        return _read_named(config, extra)
    if Path(name).suffix.lower() in SUFFIXES or _resolve(name, config.data_dir).is_file():
        return _read_files(config, extra)
    refuse_flags(config, "test_file", "data_dir")
    return _read_hub(config, extra)


def read_column(config: DataConfig, column: str) -> pd.Series:
    """The values of any column of the source, for the rows of all splits that the source itself has.

    Parameters
    ----------
    column
        A column of the files as they are, whether or not it is the text or the label; for squad_v2 title, or
        another column of `TextData.parts` that holds no lists.

    Returns
    -------
    pd.Series
        Strings as `as_label` gives them, None where missing or blank; the index is the example_id of `load_data`.

    Raises
    ------
    InputError
        No such column (the message lists those there are); what `load_data` says of the source.
    """
    if config.dataset == "synthetic":
        raise InputError(f"--targets {column!r}: no such column in 'synthetic'; accepted: label")
    if config.task == "question-answering":
        from bertdyn.data.squad import load_squad  # which imports this module

        rows = pd.concat(load_squad(config).parts.values()).set_index("example_id")
        rows = rows.drop(columns=["answers", "answer_starts"])
        return rows[choose_column(rows, config.dataset, "targets", column)].map(as_label).rename(column)
    splits, _, _ = read_splits(config, column)
    return pd.concat(splits.values()).set_index("example_id")["extra"].rename(column)


def _read_synthetic(config: DataConfig) -> Splits:
    sizes = {part: max(size, config.max_samples(part) or 0) for part, size in synthetic.DEFAULT_SIZES.items()}
    parts = {part: synthetic.generate(size, config.data_seed, part) for part, size in sizes.items()}
    return parts, list(synthetic.LABEL_NAMES), "bertdyn.data.synthetic"


def _read_named(config: DataConfig, extra: str | None) -> Splits:
    source, folder = find_source(config.dataset, config.data_dir)
    parts = {}
    for part, file_name in source.files.items():
        path = folder / file_name
        table = read_table(path, source.header)
        text = require_column(table, str(path), source.text_column)
        label = require_column(table, str(path), source.label_column)
        ids = None
        if source.id_column is not None:
            ids = table[require_column(table, str(path), source.id_column)]
        split = "dev" if path.stem == "dev" else part
        rows = _select(table, split, str(path), text, None, label, ids, extra)
        parts[part] = _encode(rows, list(source.labels), str(path), label)
    return parts, list(source.labels.values()), str(folder)


def _read_files(config: DataConfig, extra: str | None) -> Splits:
    paths = {"train": _resolve(config.dataset, config.data_dir)}
    if config.test_file is not None:
        paths["test"] = _resolve(config.test_file, config.data_dir)
    tables = {split: read_table(path) for split, path in paths.items()}
    sources = {split: str(path) for split, path in paths.items()}
    parts, label_names = _read_tables(tables, sources, config, None, extra)
    return parts, label_names, str(paths["train"])


def _read_hub(config: DataConfig, extra: str | None) -> Splits:
    from bertdyn.data.hub import load_hub

    tables, label_names = load_hub(config.dataset, config.label_column)
    names = {split: f"{config.dataset} ({split})" for split in tables}
    parts, label_names = _read_tables(tables, names, config, label_names, extra)
    if "dev" in parts:  # the only labelled held-out split is what the final score is for
        parts["probe" if "test" in parts else "test"] = parts.pop("dev")
    return parts, label_names, config.dataset


def _read_tables(
    tables: dict[str, pd.DataFrame],
    sources: dict[str, str],
    config: DataConfig,
    label_names: list[str] | None,
    extra: str | None,
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Tables whose columns the user names; the classes are the declared ones, or else those of train."""
    rows, columns = {}, {}
    for split, table in tables.items():
        source = sources[split]
        text = choose_column(table, source, "text_column", config.text_column, ("text", "sentence"))
        pair = None
        if config.text_pair_column is not None:
            pair = choose_column(table, source, "text_pair_column", config.text_pair_column)
        columns[split] = choose_column(table, source, "label_column", config.label_column, ("label",))
        rows[split] = _select(table, split, source, text, pair, columns[split], None, extra)
    if label_names is None:
        label_names = sorted_labels(set(rows["train"]["label"]))
    encoded = {split: _encode(rows[split], label_names, sources[split], columns[split]) for split in rows}
    return encoded, label_names


def _select(
    table: pd.DataFrame,
    split: str,
    source: str,
    text: str,
    pair: str | None,
    label: str,
    ids: pd.Series | None,
    extra: str | None,
) -> pd.DataFrame:
    """The columns of interest under our names; label is still the string in the file.

    A source's own ids get the split in front, as in its folders: IMDb has a neg/7_1 in train and in test.
    """
    columns: dict[str, Any] = {
        "example_id": [
            f"{split}-{row:06d}" if ids is None else f"{split}/{ids.iloc[row]}" for row in range(len(table))
        ],
        "text": [as_text(value) for value in table[text]],
    }
    if pair is not None:
        columns["text_pair"] = [as_text(value) for value in table[pair]]
    columns["label"] = [as_label(value) for value in table[label]]
    for row, value in enumerate(columns["label"]):
        if value is None:
            raise InputError(
                f"{source}: column '{label}' is empty in data row {row + 1}; accepted: a label in every row"
            )
    if extra is not None:
        values = table[choose_column(table, source, "targets", extra)]
        columns["extra"] = pd.Series([as_label(value) for value in values], dtype=object)
    return pd.DataFrame(columns)


def _encode(rows: pd.DataFrame, accepted: Sequence[str], source: str, column: str) -> pd.DataFrame:
    """The rows with labels as ids 0..K-1, the positions in `accepted`."""
    ids = {label: number for number, label in enumerate(accepted)}
    for row, value in enumerate(rows["label"]):
        if value not in ids:
            shown = ", ".join(accepted[:20]) + (", ..." if len(accepted) > 20 else "")
            raise InputError(f"{source}: column '{column}' holds '{value}' in data row {row + 1}; accepted: {shown}")
    return rows.assign(label=pd.Series([ids[value] for value in rows["label"]], index=rows.index, dtype="int64"))


def refuse_flags(config: DataConfig, *fields: str) -> None:
    """Refuse flags that this kind of source would silently ignore.

    Raises
    ------
    InputError
        One of `fields` is given.
    """
    for field in fields:
        value = getattr(config, field)
        if value is not None:
            where = "named datasets and files" if field == "data_dir" else "datasets given as a file"
            if field.endswith("_column"):
                where = "datasets given as a file or hub id"
            raise InputError(
                f"--{field} {value!r}: it does not go with --dataset {config.dataset!r}; accepted: with {where} only"
            )


def _resolve(name: str, data_dir: str | None) -> Path:
    return Path(data_dir, name) if data_dir else Path(name)


def sorted_labels(labels: set[str]) -> list[str]:
    """By number where all are integers (9 before 10), else by letter."""
    try:
        return sorted(labels, key=int)
    except ValueError:
        return sorted(labels)
