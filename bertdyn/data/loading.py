"""`load_data`: from the data flags to four disjoint parts of texts.

Every source of classification data goes the same way: read its splits, clean if asked, drop repeats, carve
the parts that are missing, take the subsets. What was dropped and counted stands in the report. Question
answering has a way of its own, in `squad`.
"""

import logging
from pathlib import Path

import pandas as pd

from bertdyn.data.config import DEFAULT_DOC_STRIDE, PARTS, DataConfig
from bertdyn.data.files import SUFFIXES
from bertdyn.data.parts import carve, count_labels, drop_repeats, subset
from bertdyn.data.reading import read_splits
from bertdyn.data.squad import load_squad
from bertdyn.data.text_data import TextData, fingerprint_parts
from bertdyn.errors import InputError

logger = logging.getLogger(__name__)


def load_data(config: DataConfig) -> TextData:
    """Read, check, split and subset the dataset that the flags name.

    Raises
    ------
    InputError
        For squad_v2 what `load_squad` says. Otherwise: unknown dataset; missing file, column or label; a label
        outside the accepted ones or seen in no training row that is left; one class only; no rows; not UTF-8;
        too few rows for four parts.
    """
    if config.task == "question-answering":
        return load_squad(config)
    if config.doc_stride != DEFAULT_DOC_STRIDE:
        raise InputError(f"--doc_stride {config.doc_stride}: {config.dataset!r} has no windows; accepted with squad_v2")
    splits, label_names, source = read_splits(config)
    rows_read = {part: len(frame) for part, frame in splits.items()}
    if config.clean_text:
        from bertdyn.data.cleaning import clean_text

        for part, frame in splits.items():
            cleaned = {name: frame[name].map(clean_text) for name in ("text", "text_pair") if name in frame}
            splits[part] = frame.assign(**cleaned)
    splits = {part: frame[frame["text"] != ""] for part, frame in splits.items()}
    rows_with_text = sum(map(len, splits.values()))
    if rows_with_text == 0:
        raise InputError(f"{source}: no row has a text; accepted: at least one in each part")
    splits, repeats = drop_repeats(splits)
    whole, origins = carve(splits, config.data_seed, source)
    _check_classes(whole, label_names, source)
    parts = {part: subset(whole[part], config.max_samples(part), config.data_seed) for part in PARTS}
    _check_subset(whole, parts, label_names, config.data_seed)
    counts = {part: count_labels(parts[part], label_names) for part in PARTS}
    report = {
        "dataset": config.dataset,
        "source": source,
        "data_seed": config.data_seed,
        "clean_text": config.clean_text,
        "rows_read": rows_read,
        "empty_texts_dropped": sum(rows_read.values()) - rows_with_text,
        **repeats,
        "parts_from": origins,
        "rows": {part: len(parts[part]) for part in PARTS},
        "class_counts": counts,
    }
    for part in PARTS:
        logger.info("%s: %d rows, %s (%s)", part, len(parts[part]), counts[part], origins[part])
    return TextData(
        parts=parts,
        label_names=label_names,
        name=Path(config.dataset).name if Path(config.dataset).suffix in SUFFIXES else config.dataset,
        source=source,
        fingerprint=fingerprint_parts(parts, label_names),
        report=report,
    )


def _check_classes(parts: dict[str, pd.DataFrame], label_names: list[str], source: str) -> None:
    """A class that training never sees cannot be scored; one class only cannot be learned."""
    trained = set(parts["train"]["label"])
    if len(trained) < 2:
        only = label_names[trained.pop()]
        raise InputError(f"{source}: every training row has the label '{only}'; accepted: two classes or more")
    for part in PARTS:
        unseen = sorted(set(parts[part]["label"]) - trained)
        if unseen:
            raise InputError(
                f"{source}: the label '{label_names[unseen[0]]}' occurs in {part} but in no row of train, and a "
                f"class that is never trained cannot be scored; accepted: labels with training rows"
            )


def _check_subset(
    whole: dict[str, pd.DataFrame], parts: dict[str, pd.DataFrame], label_names: list[str], data_seed: int
) -> None:
    """The same of the subsets of parts that passed `_check_classes`: the size of train is what can be mended."""
    train = parts["train"]["label"]
    scored = {label: part for part in reversed(PARTS) for label in parts[part]["label"]}
    unseen = sorted(set(scored) - set(train))
    if train.nunique() > 1 and not unseen:
        return
    # Subsets are prefixes of one order, so the smallest size that does is known.
    first = subset(whole["train"], None, data_seed)["label"].drop_duplicates()
    row_of = {label: row for row, label in first.items()}
    least = max(first.index[1], *(row_of[label] for label in scored)) + 1
    if train.nunique() < 2:
        problem = f"every training row left has the label '{label_names[train.iloc[0]]}'"
    else:
        problem = (
            f"the label '{label_names[unseen[0]]}' occurs in {scored[unseen[0]]} but in none of the training rows "
            f"left, and a class that is never trained cannot be scored"
        )
    raise InputError(f"--max_train_samples {len(train)}: {problem}; accepted: {least} or more")
