"""What a probe is asked to predict: the label, a property of the text, a column of the data, or a control task.

Every target is checked here, before any probe is fitted: it varies, it is known for every text, and every class
has a row in each fold.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from bertdyn.data.reading import sorted_labels
from bertdyn.errors import InputError

MAX_NUMERIC_CLASSES = 20
"""A column of numbers with no more distinct values than this holds classes (ratings, years)."""
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Target(NamedTuple):
    """One thing to predict of every text."""

    name: str
    """As the user wrote it, with the number of bins."""
    values: np.ndarray
    """[texts]: class ids 0..K-1 (int64), or numbers (float64)."""
    class_names: list[str] | None
    """Name of class k at position k; None for numbers."""


def _flesch_kincaid(text: str) -> float:
    import textstat  # a second, for its dictionary of syllables

    return float(textstat.flesch_kincaid_grade(text))


def _words(text: str) -> list[str]:
    """Runs of letters and digits, joined by apostrophes and hyphens."""
    return _WORD.findall(text)


PROPERTIES: dict[str, Callable[[str], float]] = {
    "flesch_kincaid": _flesch_kincaid,
    "num_words": lambda text: len(_words(text)),
    "num_characters": len,
    "word_length": lambda text: float(np.mean([len(word) for word in _words(text)] or [0])),
    "type_token_ratio": lambda text: len({word.lower() for word in _words(text)}) / max(1, len(_words(text))),
}
"""Numbers that follow from the text alone; 0 for a text without words (its characters apart). The Flesch-Kincaid
grade (Kincaid et al. 1975) is made for English, and the type-token ratio falls with length."""


def make_targets(
    wanted: Sequence[str],
    examples: pd.DataFrame,
    label_names: list[str],
    read_column: Callable[[str], pd.Series],
    *,
    num_folds: int,
) -> list[Target]:
    """The targets in the order of their names, with one value for every row of `examples`.

    Parameters
    ----------
    wanted
        "label"; a name of `PROPERTIES`; or else a column of the data, which holds numbers if all of it parses as
        numbers and there are more than `MAX_NUMERIC_CLASSES` different ones, and classes otherwise. With ":3" at
        its end, numbers are binned into that many classes of as nearly equal size as ties allow.
    examples
        example_id, text, label (ids), and text_pair where there are pairs: properties are those of `text`, so of
        the first of two sentences and of the question.
    label_names
        Name of label k at position k.
    read_column
        Column to its values by example_id: strings, None where there is no value. Raises InputError for a column
        that does not exist.
    num_folds
        Folds of the cross-validation, each of which needs a row of every class.

    Raises
    ------
    InputError
        An unknown or repeated name; a missing value; the same value for every text; bins of classes, or more bins
        than values; a class with fewer rows than folds.
    """
    if repeated := [name for name in wanted if wanted.count(name) > 1]:
        raise InputError(f"--targets {repeated[0]!r}: given twice; accepted: each target once")

    @cache
    def measured(name: str) -> np.ndarray:
        values = {text: PROPERTIES[name](text) for text in examples["text"].unique()}
        return examples["text"].map(values).to_numpy(dtype=np.float64)

    targets = []
    for name in wanted:
        base, bins = _split_name(name)
        if base == "label":
            target = Target(name, examples["label"].to_numpy(dtype=np.int64), label_names)
        elif base in PROPERTIES:
            target = Target(name, measured(base), None)
        else:
            target = _column_target(name, base, bins, examples["example_id"], read_column)
        _check_varies(target)
        if bins is not None:
            target = _binned(target, bins)
        _check_classes(target, num_folds)
        targets.append(target)
    return targets


def _split_name(name: str) -> tuple[str, int | None]:
    """("num_words", 3) of "num_words:3"; (name, None) of a name without a number of bins."""
    base, colon, bins = name.rpartition(":")
    return (base, int(bins)) if colon and bins.isdecimal() else (name, None)


def _column_target(
    name: str, column: str, bins: int | None, example_ids: pd.Series, read_column: Callable[[str], pd.Series]
) -> Target:
    try:
        values = read_column(column).reindex(example_ids)
    except InputError as error:
        raise InputError(f"{error}; or, of the texts themselves: label, {', '.join(PROPERTIES)}") from None
    if values.isna().any():
        raise InputError(
            f"--targets {name!r}: no value for example {values.index[values.isna()][0]!r}; "
            f"accepted: a column with a value for every text"
        )
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    # Who asks for bins says that these are numbers, however few.
    if np.isfinite(numbers).all() and (bins is not None or len(np.unique(numbers)) > MAX_NUMERIC_CLASSES):
        return Target(name, numbers, None)
    class_names = sorted_labels(set(values))
    ids = {value: number for number, value in enumerate(class_names)}
    return Target(name, np.array([ids[value] for value in values], dtype=np.int64), class_names)


def _check_varies(target: Target) -> None:
    if (target.values == target.values[0]).all():
        value = target.values[0]
        shown = f"{value:g}" if target.class_names is None else repr(target.class_names[value])
        raise InputError(f"--targets {target.name!r}: it is {shown} for every text; accepted: a target that varies")


def _binned(target: Target, bins: int) -> Target:
    """Classes by quantile. Texts with the same value stay together, so a common value may fill a class by itself."""
    if target.class_names is not None:
        raise InputError(f"--targets {target.name!r}: classes cannot be binned; accepted: the name without ':{bins}'")
    distinct, counts = np.unique(target.values, return_counts=True)
    if not 2 <= bins <= len(distinct):
        raise InputError(
            f"--targets {target.name!r}: {bins} bins for {len(distinct)} different values; "
            f"accepted: 2 to {len(distinct)} bins"
        )
    # From either end, since a common value at one of them (no word repeated) would leave little for its neighbours.
    splits = [_equal_runs(counts, bins), len(distinct) - _equal_runs(counts[::-1], bins)[::-1]]
    ends = min(splits, key=lambda ends: sum(np.square([run.sum() for run in np.split(counts, ends)])))
    cuts = [float(value) for value in distinct[ends - 1]]
    shown = _shown(cuts)
    between = [f"{low} – {high}" for low, high in zip(shown[:-1], shown[1:], strict=True)]
    return Target(
        target.name,
        np.searchsorted(cuts, target.values).astype(np.int64),
        [f"≤ {shown[0]}", *between, f"> {shown[-1]}"],
    )


def _equal_runs(counts: np.ndarray, runs: int) -> np.ndarray:
    """[runs - 1]: where each run but the last ends, from the first on with its equal share of what is left."""
    below = np.concatenate([[0], counts.cumsum()])
    ends = [0]
    for left in range(runs, 1, -1):
        wanted = below[ends[-1]] + (below[-1] - below[ends[-1]]) / left
        candidates = below[ends[-1] + 1 : len(counts) - left + 2]  # leaves one value for every run that follows
        ends.append(ends[-1] + 1 + int(np.abs(candidates - wanted).argmin()))
    return np.array(ends[1:])


def _shown(cuts: list[float]) -> list[str]:
    """With two decimals, or as many as tell them apart."""
    for decimals in range(2, 16):
        shown = [np.format_float_positional(cut, decimals, trim="-") for cut in cuts]
        if len(set(shown)) == len(shown):
            return shown
    return [repr(cut) for cut in cuts]


def _check_classes(target: Target, num_folds: int) -> None:
    if target.class_names is None:
        return
    rows = np.bincount(target.values, minlength=len(target.class_names))
    if rows.min() < num_folds:
        raise InputError(
            f"--targets {target.name!r}: class {target.class_names[rows.argmin()]!r} has {rows.min()} row(s); "
            f"accepted: one in each of {num_folds} folds, so fewer folds, more texts, or for numbers bins as in "
            f"'num_words:3'"
        )


def control_labels(keys: Sequence[str], proportions: np.ndarray, seed: int) -> np.ndarray:
    """A control task: a class for every key, drawn without regard to what the key means.

    The same key (a word type) has the same class wherever it stands, so a probe can only memorise it: what a probe
    reaches here is its own capacity, and its accuracy on the real task minus this one its selectivity.

    Parameters
    ----------
    keys
        One a row, with repeats.
    proportions
        [classes]: shares from which the class of each distinct key is drawn.
    seed
        With the key alone it decides: neither the order of the keys nor the other keys have a say.

    Returns
    -------
    np.ndarray
        [keys], class ids (int64).

    References
    ----------
    Hewitt & Liang 2019, "Designing and Interpreting Probes with Control Tasks".
    """
    draws = {key: _uniform(seed, key) for key in set(keys)}
    edges = np.cumsum(proportions, dtype=np.float64)
    return np.searchsorted(edges / edges[-1], [draws[key] for key in keys], side="right").astype(np.int64)


def _uniform(seed: int, key: str) -> float:
    """A number in [0, 1) from the first 53 bits of a hash: as many as a float holds."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
