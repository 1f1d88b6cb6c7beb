"""Hub datasets: whatever `datasets.load_dataset` finds, also a local folder of data files."""

import pandas as pd

from bertdyn.data.sources import NAMES
from bertdyn.errors import InputError

_SPLITS = {"train": ("train",), "dev": ("validation", "dev", "valid"), "test": ("test",)}


def load_hub(name: str, label_column: str | None) -> tuple[dict[str, pd.DataFrame], list[str] | None]:
    """The labelled splits of a hub dataset.

    Parameters
    ----------
    name
        Hub id or local folder, with ":configuration" where the dataset has several.
    label_column
        Column of the labels, or None for "label".

    Returns
    -------
    frames
        A table for train and, where labelled, dev and test. A label of -1 means unlabelled, as in GLUE.
    label_names
        The names of the labels where the dataset declares them (ClassLabel), else None.

    Raises
    ------
    InputError
        `load_dataset` fails, or there is no train split.
    """
    import datasets

    path, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(path, configuration or None)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"--dataset {name!r}: none of {', '.join(NAMES)}, no file, and load_dataset said: {reason}"
        ) from None
    column = label_column or "label"
    frames: dict[str, pd.DataFrame] = {}
    label_names = None
    for split, synonyms in _SPLITS.items():
        for synonym in synonyms:
            if synonym not in found or split in frames:
                continue
            table = found[synonym]
            frame = table.to_pandas()
            feature = table.features.get(column)
            if split != "train" and (
                column not in frame or frame[column].isin([-1]).all() or frame[column].isna().all()
            ):
                continue
            if isinstance(feature, datasets.ClassLabel):
                label_names = feature.names
                frame[column] = [_name(value, feature.names) for value in frame[column]]
            frames[split] = frame
    if "train" not in frames:
        raise InputError(
            f"--dataset {name!r}: it has the splits {', '.join(found)}; accepted: one that has a train split"
        )
    return frames, label_names


def _name(value: float, label_names: list[str]) -> object:
    """The declared name of a label; anything else (-1, missing) is left for the check of labels to refuse."""
    return label_names[int(value)] if value in range(len(label_names)) else value
