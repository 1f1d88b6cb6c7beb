"""SQuAD 2.0: questions with their contexts and gold answers, divided by article.

Questions of one article share contexts, names and facts, so articles are divided, never questions; only the
articles of the scored part are shared, and there by whole contexts, with the probe part, which is never scored
and never trained on. Every gold answer is checked to stand where the file says. Questions that repeat (6 of the
6,078 ask of one context what was asked before) are kept: the official score counts every id.
"""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bertdyn.data.config import PARTS, DataConfig
from bertdyn.data.parts import PRIORITY, by_rank, count_labels, subset
from bertdyn.data.reading import FILE_FLAGS, refuse_flags
from bertdyn.data.sources import find_folder
from bertdyn.data.text_data import TextData, fingerprint_parts
from bertdyn.errors import InputError

logger = logging.getLogger(__name__)

LABEL_NAMES = ["unanswerable", "answerable"]
OFFICIAL_PAIR = ("train-v2.0.json", "dev-v2.0.json")
LAYOUT = "a file in the layout of SQuAD 2.0"
TRAIN_ARTICLES = (
    *("1973_oil_crisis", "European_Union_law", "Force", "Huguenot", "Immune_system"),
    *("Islamism", "Normans", "Packet_switching", "Steam_engine", "Yuan_dynasty"),
)
VALIDATION_ARTICLES = ("French_and_Indian_War", "Imperialism")
TEST_ARTICLES = ("Computational_complexity_theory", "Harvard_University", "Scottish_Parliament", "Warsaw")
"""The 16 articles of the half of the official dev file that CS224N distributes: 3,789 / 766 / 1,523 questions,
of which 48, 47 and 49 % have an answer (48 % of all)."""
VALIDATION_SHARE, TEST_SHARE = 2 / 16, 4 / 16
"""Of the articles of another single file."""
OFFICIAL_VALIDATION_SHARE = 0.05
"""Of the articles of the official train file."""


class Division(NamedTuple):
    """Which articles, by title, become which part."""

    train: list[str]
    validation: list[str]
    held_out: list[str]
    """Half of each one's contexts is the test part, the other half the probe part."""
    origin: str
    """A phrase that says how they were chosen."""


def load_squad(config: DataConfig) -> TextData:
    """Read, check, divide and subset the questions of a folder.

    The folder holds either one JSON file, whose articles are divided 10 : 2 : 4 (the 16 articles of the
    CS224N file by fixed titles, others by data_seed), or the official train-v2.0.json and dev-v2.0.json: then
    5 % of the articles of train are for validation, and those of dev for test and probe.

    Raises
    ------
    InputError
        A flag that does not go with it; no such folder or file; not the layout of SQuAD; a repeated id; an
        empty question; gold answers that are missing, or present where there should be none, or do not stand
        where the file says; too few articles or contexts for four parts.
    """
    refuse_flags(config, *FILE_FLAGS)
    if config.clean_text:
        raise InputError(
            "--clean_text True: it does not go with --dataset 'squad_v2', whose answers are positions in the text "
            "as it stands; accepted: False"
        )
    folder = find_folder(
        "squad_v2", "squad2", "one SQuAD 2.0 JSON file, or " + " and ".join(OFFICIAL_PAIR), config.data_dir
    )
    tables = {path.name: read_squad(path) for path in _find_files(folder)}
    whole = pd.concat(tables.values(), ignore_index=True)
    repeated = whole["example_id"][whole["example_id"].duplicated()]
    if len(repeated):
        raise InputError(f"{folder}: question {repeated.iloc[0]!r} stands in both files; accepted: each id once")
    if len(tables) == 1:
        division = _divide(list(dict.fromkeys(whole["title"])), config.data_seed, str(folder))
    else:
        titles = {name: list(dict.fromkeys(table["title"])) for name, table in tables.items()}
        division = _divide_pair(titles[OFFICIAL_PAIR[0]], titles[OFFICIAL_PAIR[1]], config.data_seed, str(folder))
    complete, repeats = _parts(whole, division, config.data_seed)
    for part in PARTS:
        if complete[part].empty:
            raise InputError(
                f"{folder}: no question is left for the {part} part; accepted: articles of more than one context"
            )
    parts = {part: subset(complete[part], config.max_samples(part), config.data_seed) for part in PARTS}
    counts = {part: count_labels(parts[part], LABEL_NAMES) for part in PARTS}
    held_out = f"half of the contexts of {len(division.held_out)} articles, by data_seed"
    report: dict[str, Any] = {
        "dataset": config.dataset,
        "source": str(folder),
        "data_seed": config.data_seed,
        "rows_read": {name: len(table) for name, table in tables.items()},
        "repeated_contexts_dropped": repeats,
        "repeated_questions_kept": sum(int(table.duplicated(["text", "text_pair"]).sum()) for table in parts.values()),
        "parts_from": {
            "train": f"{len(division.train)} articles {division.origin}",
            "validation": f"{len(division.validation)} articles {division.origin}",
            "probe": held_out,
            "test": held_out,
        },
        "articles": {part: sorted(set(parts[part]["title"])) for part in PARTS},
        "paragraphs": {part: parts[part]["text_pair"].nunique() for part in PARTS},
        "rows": {part: len(parts[part]) for part in PARTS},
        "class_counts": counts,
    }
    for part in PARTS:
        logger.info("%s: %d questions, %s (%s)", part, len(parts[part]), counts[part], report["parts_from"][part])
    return TextData(
        parts=parts,
        label_names=list(LABEL_NAMES),
        name=config.dataset,
        source=str(folder),
        fingerprint=fingerprint_parts(parts, LABEL_NAMES),
        report=report,
        task="question-answering",
    )


def read_squad(path: Path) -> pd.DataFrame:
    """The questions of one file in its order, with the columns that `TextData.parts` describes.

    A question without is_impossible (SQuAD 1.1) has an answer. plausible_answers and other further keys are
    ignored.

    Raises
    ------
    InputError
        See `load_squad`.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as JSON ({reason}); accepted: {LAYOUT}") from None
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for article in _field(content, "data", list, str(path)):
        title = _field(article, "title", str, f"{path}, an article")
        for paragraph in _field(article, "paragraphs", list, f"{path}, article {title!r}"):
            where = f"{path}, a paragraph of article {title!r}"
            context = _field(paragraph, "context", str, where)
            if not context.strip():
                raise InputError(f"{where}: its context is empty; accepted: a text")
            for question in _field(paragraph, "qas", list, where):
                row = _question(question, context, where, path)
                if row["example_id"] in seen:
                    raise InputError(f"{path}, question {row['example_id']!r}: a repeated id; accepted: each id once")
                seen.add(row["example_id"])
                rows.append(row | {"title": title})
    if not rows:
        raise InputError(f"{path}: no question; accepted: {LAYOUT} with at least one")
    columns = ["example_id", "text", "text_pair", "label", "title", "answers", "answer_starts"]
    return pd.DataFrame(rows, columns=columns).astype({"label": "int64"})


def _question(question: Any, context: str, where: str, path: Path) -> dict[str, Any]:
    """One row, all but its title."""
    name = _field(question, "id", str, f"{where}, a question")
    where = f"{path}, question {name!r}"
    text = _field(question, "question", str, where).strip()
    if not text:
        raise InputError(f"{where}: the question is empty; accepted: a text")
    answers = _field(question, "answers", list, where)
    impossible = _field(
        question | {"is_impossible": question.get("is_impossible", False)}, "is_impossible", bool, where
    )
    if impossible and answers:
        raise InputError(
            f"{where}: is_impossible, but it has answers; accepted: no answers where is_impossible is true"
        )
    if not impossible and not answers:
        raise InputError(f"{where}: no answers; accepted: one or more, or is_impossible true")
    golds, starts = [], []
    for answer in answers:
        gold, start = _field(answer, "text", str, where), _field(answer, "answer_start", int, where)
        if not gold.strip():
            raise InputError(f"{where}: an answer is empty; accepted: a piece of the context")
        if start < 0 or context[start : start + len(gold)] != gold:
            found = context[max(start, 0) : max(start, 0) + len(gold)]
            raise InputError(
                f"{where}: answer {gold[:60]!r} is not at character {start} of the context, where {found[:60]!r} "
                f"stands; accepted: answer_start counted in characters"
            )
        golds.append(gold)
        starts.append(start)
    return {
        "example_id": name,
        "text": text,
        "text_pair": context,
        "label": int(not impossible),
        "answers": golds,
        "answer_starts": starts,
    }


def _field(record: Any, name: str, kind: type, where: str) -> Any:
    """`record[name]`, checked: a JSON object with this field of this type."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: {str(record)[:60]!r} is no JSON object; accepted: {LAYOUT}")
    if name not in record:
        raise InputError(f"{where}: no field '{name}'; accepted: {LAYOUT}")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where}: '{name}' is {str(value)[:60]!r}, no {kind.__name__}; accepted: {LAYOUT}")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{where}: '{name}' holds half a surrogate pair, which is no text; accepted: {LAYOUT}")
    return value


def _find_files(folder: Path) -> list[Path]:
    """The only JSON file of a folder, or the official two, train first."""
    found = sorted(path for path in folder.glob("*.json") if path.is_file())
    names = [path.name for path in found]
    if sorted(names) == sorted(OFFICIAL_PAIR):
        return [folder / name for name in OFFICIAL_PAIR]
    if len(found) == 1:
        return found
    listed = ", ".join(names) if names else "no .json file"
    raise InputError(f"{folder}: it holds {listed}; accepted: one JSON file, or {' and '.join(OFFICIAL_PAIR)}")


def _divide(titles: list[str], data_seed: int, source: str) -> Division:
    """The articles of a single file."""
    if set(titles) == {*TRAIN_ARTICLES, *VALIDATION_ARTICLES, *TEST_ARTICLES}:
        return Division(list(TRAIN_ARTICLES), list(VALIDATION_ARTICLES), list(TEST_ARTICLES), "by fixed titles")
    validation = max(1, round(VALIDATION_SHARE * len(titles)))
    test = max(1, round(TEST_SHARE * len(titles)))
    if len(titles) <= validation + test:
        raise InputError(f"{source}: {len(titles)} article(s) in all; accepted: 3 or more, to divide between the parts")
    ranked = _ranked(titles, data_seed, "articles")
    held_out, rest = ranked[:test], ranked[test:]
    return Division(rest[validation:], rest[:validation], held_out, "by data_seed")


def _divide_pair(train: list[str], dev: list[str], data_seed: int, source: str) -> Division:
    """The articles of the official two files."""
    both = sorted(set(train) & set(dev))
    if both:
        raise InputError(
            f"{source}: article {both[0]!r} stands in both files; accepted: train and dev of other articles"
        )
    validation = max(1, round(OFFICIAL_VALIDATION_SHARE * len(train)))
    if len(train) <= validation:
        raise InputError(f"{source}: {OFFICIAL_PAIR[0]} has {len(train)} article(s); accepted: 2 or more")
    ranked = _ranked(train, data_seed, "articles")
    return Division(ranked[validation:], ranked[:validation], dev, f"of {OFFICIAL_PAIR[0]}, by data_seed")


def _ranked(names: list[str], data_seed: int, purpose: str) -> list[str]:
    return by_rank(pd.DataFrame({"example_id": names}), data_seed, purpose)["example_id"].tolist()


def _parts(whole: pd.DataFrame, division: Division, data_seed: int) -> tuple[dict[str, pd.DataFrame], int]:
    """All questions of each part, and how many were dropped because another part has their context.

    A few contexts of the official files stand in two articles: they stay in the first part of `PRIORITY`.
    """
    part_of = dict.fromkeys(division.train, "train") | dict.fromkeys(division.validation, "validation")
    parts = {name: whole[whole["title"].map(part_of.get) == name] for name in ("train", "validation")}
    held_out = whole[~whole["title"].isin(part_of.keys())]
    probe_contexts: set[str] = set()
    for _, questions in held_out.groupby("title", sort=True):
        contexts = _ranked(list(dict.fromkeys(questions["text_pair"])), data_seed, "probe contexts")
        probe_contexts.update(contexts[: len(contexts) // 2])
    in_probe = held_out["text_pair"].isin(probe_contexts)
    parts |= {"test": held_out[~in_probe], "probe": held_out[in_probe]}
    seen: set[str] = set()
    dropped = 0
    for name in PRIORITY:
        repeated = parts[name]["text_pair"].isin(seen)
        dropped += int(repeated.sum())
        seen.update(parts[name]["text_pair"])
        parts[name] = parts[name][~repeated]
    return parts, dropped
