"""`TextData`: four disjoint parts of texts with labels or answers, and the record of how they came about."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bertdyn.data.config import PARTS


@dataclass(frozen=True)
class TextData:
    """What `load_data` returns."""

    parts: dict[str, pd.DataFrame]
    """train, validation, probe, test; each with the columns example_id, text, text_pair (only where there are
    pairs) and label (int64, 0..K-1). Rows stand in a seeded order, so that any prefix is a random sample.
    For question answering text is the question, text_pair its context, label 1 where the context holds an
    answer, and there are also title (of the article), answers (list of str: every gold, in the order of the
    file, repeats kept; empty where there is none) and answer_starts (list of int: where they begin in the
    context, in characters)."""
    label_names: list[str]
    """Name of label k at position k."""
    name: str
    """Named dataset, file name or hub id."""
    source: str
    """Folder, file or hub id that was read."""
    fingerprint: str
    """SHA-256 over ids, texts and labels of all parts, after cleaning and subsetting."""
    report: dict[str, Any]
    """JSON-able: rows read, dropped and kept, class counts, origin of each part, cleaning, data_seed."""
    task: str = "classification"
    """Or "question-answering"."""

    def class_counts(self) -> pd.DataFrame:
        """Tidy table with the columns part, label (name), rows; classes without a row are listed with 0."""
        counts = self.report["class_counts"]
        return pd.DataFrame(
            [(part, label, rows) for part in PARTS for label, rows in counts[part].items()],
            columns=["part", "label", "rows"],
        )


def fingerprint_parts(parts: dict[str, pd.DataFrame], label_names: list[str]) -> str:
    """SHA-256 (hex) of everything that a model or a reader of results can see of the data."""
    digest = hashlib.sha256(json.dumps(label_names).encode())
    for part in PARTS:
        frame = parts[part]
        digest.update(json.dumps([part, len(frame), list(frame.columns)]).encode())
        for row in frame.itertuples(index=False):
            digest.update(json.dumps(list(row)).encode())
    return digest.hexdigest()
