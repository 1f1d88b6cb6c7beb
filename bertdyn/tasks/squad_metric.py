"""The official SQuAD 2.0 metric: exact match and token F1 of normalised answers, and the best null threshold.

After evaluate-v2.0.py of Rajpurkar, Jia and Liang, "Know What You Don't Know" (2018). An answer of "" says that
there is none; a question without (non-empty) golds has the one gold "". One difference: the threshold that the
script finds may lie between questions of equal score, where no threshold can be; here it never does.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without (ASCII) punctuation and English articles, words one space apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of one question, each the best over its golds.

    >>> answer_scores("the Normans of Italy", ["Normans", "Normans of Sicily"])
    (0.0, 0.6666666666666666)
    """
    predicted = normalize_answer(prediction)
    accepted = {gold for gold in map(normalize_answer, golds) if gold} or {""}
    return float(predicted in accepted), max(_f1(predicted.split(), gold.split()) for gold in accepted)


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = sum((Counter(predicted) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def squad_scores(predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The figures of the official script, in its percent.

    Parameters
    ----------
    predictions
        Question id to answer, "" for none; ids that `golds` does not name are ignored.
    golds
        Question id to gold answers; empty for a question without an answer.

    Returns
    -------
    scores
        exact, f1, total over all questions; has_ans_... over those with golds and no_ans_... over those
        without, each left out where there are no such questions.

    Raises
    ------
    KeyError
        A question without a prediction (the official script would leave it out of the mean).
    """
    scores = {name: answer_scores(predictions[name], answers) for name, answers in golds.items()}
    groups = {
        "": list(golds),
        "has_ans_": [name for name in golds if golds[name]],
        "no_ans_": [name for name in golds if not golds[name]],
    }
    figures: dict[str, float] = {}
    for prefix, names in groups.items():
        if names:
            # Added one after another, as the script does: from Python 3.12 on sum() would round otherwise.
            exact, f1_sum = np.cumsum([scores[name] for name in names], axis=0)[-1]
            figures[f"{prefix}exact"] = float(100.0 * exact / len(names))
            figures[f"{prefix}f1"] = float(100.0 * f1_sum / len(names))
            figures[f"{prefix}total"] = len(names)
    return figures


class Threshold(NamedTuple):
    """The best place to stop answering."""

    threshold: float
    """A question is answered if and only if its score difference is at most this."""
    score: float
    """Mean score of all questions with this threshold."""


def best_threshold(differences: np.ndarray, answered: np.ndarray, unanswered: np.ndarray) -> Threshold:
    """The threshold with the best mean score, in one sorted pass.

    Parameters
    ----------
    differences
        [questions]; null score minus score of the best answer. NaN and inf are never answered.
    answered, unanswered
        [questions]; score of a question if its answer is given, and if none is given.

    Returns
    -------
    best
        Its threshold is one of the differences, or the next number below all of them where no answer at all
        is best (0.0 where there is nothing to answer). Of equally good thresholds the lowest, which answers
        the fewest questions.
    """
    answerable = np.flatnonzero(differences < math.inf)
    order = answerable[np.argsort(differences[answerable], kind="stable")]
    ranked = differences[order]
    # math.fsum: the sum of none must not depend on the order of the questions, nor ties on rounding
    none = math.fsum(unanswered)
    if not len(order):
        return Threshold(0.0, none / len(unanswered))
    totals = none + np.cumsum(answered[order] - unanswered[order])
    last_of_its_value = np.append(ranked[1:] != ranked[:-1], True)
    totals, candidates = totals[last_of_its_value], ranked[last_of_its_value]
    # Rounded, because sums that are equal on paper differ in the last digits.
    best = int(np.argmax(np.round(totals, 9)))
    if round(float(totals[best]), 9) <= round(none, 9):
        return Threshold(float(np.nextafter(ranked[0], -math.inf)), none / len(unanswered))
    return Threshold(float(candidates[best]), float(totals[best]) / len(unanswered))
