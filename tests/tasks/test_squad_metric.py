"""The official SQuAD 2.0 figures, to the last digit."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertdyn.tasks.squad_metric import answer_scores, best_threshold, normalize_answer, squad_scores


def exact_match(prediction, golds):
    return answer_scores(prediction, golds)[0]


def f1(prediction, golds):
    return answer_scores(prediction, golds)[1]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Normans,", "normans"),
        ("an a the", ""),
        ("theatre of a-the U.S.A.", "theatre of athe usa"),
        ("“Éclair” an\u00a0Ör", "“éclair” ör"),  # only ASCII punctuation goes
        ("", ""),
    ],
)
def test_normalising(text, normal):
    assert normalize_answer(text) == normal


def test_scores_by_hand():
    assert (exact_match("the cat", ["Cat!"]), f1("the cat", ["Cat!"])) == (1.0, 1.0)
    # two of three predicted words, two of four gold ones: p 2/3, r 1/2
    assert f1("big red dog", ["small red dog house"]) == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert f1("dog dog", ["dog"]) == pytest.approx(2 * 0.5 / 1.5), "a word counts as often as it occurs in both"
    assert f1("b", ["a b c", "b d"]) == pytest.approx(2 / 3), "the best gold counts"
    assert exact_match("b", ["x", "b"]) == 1.0
    assert [exact_match("", []), f1("", []), exact_match("x", []), f1("x", [])] == [1.0, 1.0, 0.0, 0.0]
    assert [exact_match("", ["x"]), f1("", ["x"])] == [0.0, 0.0]
    assert exact_match("the", []) == 1.0, "what is nothing after normalising is no answer, as in the script"
    assert exact_match("b", ["the", "b"]) == 1.0
    assert exact_match("", ["the", "b"]) == 0.0, "a gold that is nothing is no gold where there is another"


def test_real_predictions_have_the_official_figures(real_data):
    content = json.loads((real_data / "squad2" / "dev-6078-official-ids.json").read_text())
    golds = {
        question["id"]: [answer["text"] for answer in question["answers"]]
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    predictions = json.loads((real_data / "squad2" / "predictions" / "bert_single.11873.json").read_text())
    official = json.loads((real_data / "squad2" / "predictions" / "bert_single.6078.eval.json").read_text())
    names = {key: key.replace("HasAns", "has_ans").replace("NoAns", "no_ans") for key in official}
    assert squad_scores(predictions, golds) == {names[key]: value for key, value in official.items()}


def test_groups_without_a_question_are_left_out_and_a_missing_prediction_is_an_error():
    assert set(squad_scores({"q": "x"}, {"q": ["x"]})) == {
        *("exact", "f1", "total"),
        *("has_ans_exact", "has_ans_f1", "has_ans_total"),
    }
    with pytest.raises(KeyError, match="other"):
        squad_scores({"q": "x"}, {"q": ["x"], "other": []})


SCORES = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0])
QUESTION = st.tuples(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0, math.inf]), SCORES, st.booleans())


@given(st.lists(QUESTION, min_size=1, max_size=12), st.randoms())
@settings(max_examples=300, deadline=None)
def test_best_threshold_is_the_best_that_any_threshold_gives(questions, random):
    """Against all thresholds tried one by one; ties in the differences and in the means are frequent here."""

    def search(rows):
        differences, answered, impossible = (np.array(column) for column in zip(*rows, strict=True))
        return best_threshold(differences, np.where(impossible, 0.0, answered), impossible.astype(float))

    def mean(threshold):
        return sum(
            (0.0 if impossible else score) if difference <= threshold else float(impossible)
            for difference, score, impossible in questions
        ) / len(questions)

    found = search(questions)
    assert found.score == pytest.approx(mean(found.threshold))
    tried = {threshold: mean(threshold) for threshold in (-9.0, -2.0, -1.0, 0.0, 0.5, 3.0)}
    assert found.score == pytest.approx(max(tried.values()))
    lowest = min(threshold for threshold, score in tried.items() if score > found.score - 1e-9)
    assert math.isfinite(found.threshold)
    if any(difference < math.inf for difference, _, _ in questions):
        answers = {sum(question[0] <= threshold for question in questions) for threshold in (lowest, found.threshold)}
        assert len(answers) == 1, "of equal thresholds the one that answers least"
    random.shuffle(questions)
    assert search(questions).threshold == found.threshold, "the order of questions has no say"


def test_answers_that_are_not_numbers_are_never_given():
    found = best_threshold(np.array([math.nan, 1.0, math.inf]), np.ones(3), np.zeros(3))
    assert found == (1.0, pytest.approx(1 / 3))
    assert best_threshold(np.array([math.nan]), np.ones(1), np.zeros(1)).threshold == 0.0
