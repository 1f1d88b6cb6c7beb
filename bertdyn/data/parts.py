"""From the splits of a source to four parts: repeats out, shares carved, subsets taken.

Rows are chosen by rank: the SHA-256 of seed, purpose and example id. A share or subset is the first n of a
ranking, so a smaller one lies inside a larger one by construction, and neither the order of the file nor a
random generator's state has a say.
"""

import hashlib

import pandas as pd

from bertdyn.data.config import PARTS
from bertdyn.errors import InputError

SHARE = 0.1
MAX_PROBE_SHARE = 2000
"""Features of the probe part are kept for every layer and state: more rows cost disk and add little."""
PRIORITY = ("test", "probe", "validation", "train")
"""A text that occurs twice stays in the first of these: held-out parts are never made smaller by train."""


def by_rank(frame: pd.DataFrame, data_seed: int, purpose: str) -> pd.DataFrame:
    """The rows in the seeded order of one purpose, numbered anew from 0."""
    keys = [hashlib.sha256(f"{data_seed}:{purpose}:{name}".encode()).digest() for name in frame["example_id"]]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return frame.iloc[order].reset_index(drop=True)


def drop_repeats(parts: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Keep the first of rows with the same text (and pair), over all parts in the order of `PRIORITY`.

    Returns
    -------
    parts
        What is left of each.
    counts
        repeats_dropped (rows), label_conflicts (texts whose rows differ in label).
    """
    names = [name for name in PRIORITY if name in parts]
    rows = pd.concat([parts[name] for name in names], keys=names, names=["part", None])
    key = [column for column in ("text", "text_pair") if column in rows]
    repeated = rows.duplicated(key, keep="first")
    copies = rows[rows.duplicated(key, keep=False)]
    conflicts = int((copies.groupby(key, sort=False)["label"].nunique() > 1).sum()) if len(copies) else 0
    kept = rows[~repeated]
    membership = kept.index.get_level_values("part")
    return (
        {name: kept[membership == name].reset_index(drop=True) for name in names},
        {"repeats_dropped": int(repeated.sum()), "label_conflicts": conflicts},
    )


def carve(
    parts: dict[str, pd.DataFrame], data_seed: int, source: str
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Fill the parts that the source lacks with seeded shares of its train split.

    Each missing part gets 10 % of train (at least one row; probe at most 2,000).

    Parameters
    ----------
    parts
        train, and what else the source has.
    source
        What was read, for the message.

    Returns
    -------
    parts
        All four.
    origins
        For each part a phrase that says where it comes from.

    Raises
    ------
    InputError
        Too few rows for four parts that are not empty.
    """
    pool = parts["train"]
    share = max(1, round(SHARE * len(pool)))
    complete = dict(parts)
    origins = dict.fromkeys(parts, "split of the source")
    for name in PRIORITY:
        if name in parts:
            continue
        size = min(share, MAX_PROBE_SHARE) if name == "probe" else share
        ranked = by_rank(pool, data_seed, name)
        complete[name], pool = ranked.head(size), ranked.iloc[size:]
        origins[name] = f"{size} rows of train, by data_seed"
    complete["train"] = pool
    for name in PARTS:
        if complete[name].empty:
            total = sum(map(len, parts.values()))
            raise InputError(
                f"{source}: no row is left for the {name} part ({total} different texts in all); "
                f"accepted: enough for train, validation, probe and test"
            )
    return {name: complete[name] for name in PARTS}, {name: origins[name] for name in PARTS}


def subset(frame: pd.DataFrame, limit: int | None, data_seed: int) -> pd.DataFrame:
    """The first `limit` rows (all if None) of a part in its seeded order."""
    return by_rank(frame, data_seed, "subset").head(limit if limit is not None else len(frame))


def count_labels(frame: pd.DataFrame, label_names: list[str]) -> dict[str, int]:
    """Label name → rows, 0 included."""
    rows = frame["label"].value_counts()
    return {name: int(rows.get(number, 0)) for number, name in enumerate(label_names)}
