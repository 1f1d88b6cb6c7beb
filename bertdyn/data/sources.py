"""The named sources: where their files lie, and for classification what their labels mean, in one table."""

import os
from dataclasses import dataclass
from pathlib import Path

from bertdyn.errors import InputError

DATA_VARIABLE = "BERTDYN_DATA"
_POLARITY = {"0": "negative", "1": "positive"}


@dataclass(frozen=True)
class Source:
    """A dataset that is known by name."""

    folder: str
    """Folder under $BERTDYN_DATA."""
    files: dict[str, str]
    """Part to file: train always; a part that is missing here is carved from train."""
    labels: dict[str, str]
    """Label as written in the file to readable name, in the order of the label ids."""
    label_column: str = "label"
    text_column: str = "text"
    id_column: str | None = None
    """The source's own example id; else the id is made of the split's name and the row number."""
    header: tuple[str, ...] | None = None
    """Column names where the file has none."""


SST2_GLUE = Source(
    folder="sst2_glue",
    # GLUE's test.tsv carries no labels, so its dev split is what can be scored. Its train holds
    # phrases: parts carved from it share no text, but may share a sentence.
    files={"train": "train.tsv", "test": "dev.tsv"},
    labels=_POLARITY,
    text_column="sentence",
)

SOURCES = {
    "sst2": Source(
        folder="sst2_sentences",
        files={"train": "train.tsv", "probe": "dev.tsv", "test": "test.tsv"},
        labels=_POLARITY,
        header=("label", "text"),
    ),
    "imdb": Source(
        folder="imdb",
        files={"train": "train_2500.jsonl", "test": "test_2500.jsonl"},
        labels=_POLARITY,
        id_column="id",
    ),
    "news": Source(
        folder="news5",
        files={"train": "news.csv"},
        labels={"0": "wellness", "1": "sports", "2": "entertainment", "3": "politics", "4": "food"},
    ),
    "spotify": Source(
        folder="spotify_reviews",
        files={"train": "ratings_1_5.csv"},
        labels={rating: rating for rating in "12345"},
        label_column="rating",
    ),
    "flue_cls": Source(
        folder="allocine_fr",
        files={"train": "train.csv", "test": "test.csv"},
        labels=_POLARITY,
    ),
}
NAMES = ("synthetic", *SOURCES, "squad_v2")


def find_source(name: str, data_dir: str | None) -> tuple[Source, Path]:
    """A named source and the folder of its files.

    SST-2 comes in two forms, and the header of train.tsv tells which one lies in the folder.

    Raises
    ------
    InputError
        No such folder, or nothing says where it is.
    """
    source = SOURCES[name]
    folder = find_folder(name, source.folder, ", ".join(source.files.values()), data_dir)
    if name == "sst2" and _first_line(folder / "train.tsv") == b"sentence\tlabel":
        source = SST2_GLUE
    return source, folder


def find_folder(name: str, usual: str, holds: str, data_dir: str | None) -> Path:
    """The folder of a named dataset: `data_dir`, or else `usual` under $BERTDYN_DATA.

    Parameters
    ----------
    holds
        The files that should be there, for the message.

    Raises
    ------
    InputError
        No such folder, or nothing says where it is.
    """
    root = os.environ.get(DATA_VARIABLE)
    if data_dir:
        folder, given = Path(data_dir), f"--data_dir {data_dir!r}"
    elif root:
        folder, given = Path(root) / usual, f"{DATA_VARIABLE} {root!r}"
    else:
        raise InputError(
            f"--dataset {name!r}: nothing says where it lies; accepted: --data_dir with the folder of its files, "
            f"or {DATA_VARIABLE} set to the folder that holds {usual}"
        )
    if not folder.is_dir():
        raise InputError(f"{given}: no folder {folder}; accepted: a folder with {holds}")
    return folder


def _first_line(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.readline().removeprefix(b"\xef\xbb\xbf").strip()
