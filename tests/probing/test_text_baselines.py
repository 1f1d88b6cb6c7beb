import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline

from bertdyn.data.synthetic import generate
from bertdyn.probing.targets import Target
from bertdyn.probing.text_baselines import majority_scores, tfidf_predictions

INVERSE_PENALTIES = [0.01, 0.3, 10.0, 300.0]
KINDS = ("two classes", "three classes", "numbers")


def _example(kind, size=160, num_folds=4):
    rows = generate(size, 0, "train")
    values = rows["text"].str.len().to_numpy()
    names = None
    if kind == "two classes":
        values, names = rows["label"].to_numpy(), ["negative", "positive"]
    elif kind == "three classes":
        values, names = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values), ["short", "medium", "long"]
    else:
        values = values.astype(np.float64)
    folds = np.random.default_rng(0).permutation(np.arange(size) % num_folds)
    return rows["text"].tolist(), Target("x", values, names), folds


@pytest.mark.parametrize("kind", KINDS)
def test_the_explicit_nested_search_chooses_and_predicts_the_same(kind):
    texts, target, folds = _example(kind)
    rows = np.array(texts, dtype=object)
    classes = target.class_names is not None
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    if classes:
        model, grid = LogisticRegression(max_iter=1000), {"logisticregression__C": INVERSE_PENALTIES}
    else:
        model, grid = Ridge(), {"ridge__alpha": [1 / penalty for penalty in INVERSE_PENALTIES]}
    found = tfidf_predictions(texts, target, folds, INVERSE_PENALTIES)
    chosen = set()
    for fold in range(4):
        kept = folds != fold
        search = GridSearchCV(
            make_pipeline(tfidf, model),
            grid,
            scoring="neg_log_loss" if classes else "neg_mean_squared_error",
            cv=PredefinedSplit(folds[kept]),
        ).fit(rows[kept], target.values[kept])
        expected = search.predict_proba(rows[~kept]) if classes else search.predict(rows[~kept])
        np.testing.assert_allclose(found[~kept], expected, atol=1e-10)
        chosen.add(search.best_index_)
    assert chosen != {0}  # the grid has a say


@pytest.mark.parametrize("kind", KINDS)
def test_a_fold_is_predicted_without_its_other_texts_and_without_its_values(kind):
    texts, target, folds = _example(kind)
    before = tfidf_predictions(texts, target, folds, INVERSE_PENALTIES)
    own = np.flatnonzero(folds == 2)
    other = target.values.copy()
    other[own] = np.roll(other[own], 1)
    changed = list(texts)
    for row in own[1:]:
        changed[row] = f"{texts[own[0]]} novel{row}"  # the first text's words become common, and new ones come in
    after = tfidf_predictions(changed, target._replace(values=other), folds, INVERSE_PENALTIES)
    np.testing.assert_array_equal(after[own[0]], before[own[0]])
    assert not np.array_equal(after[folds != 2], before[folds != 2])  # the others do learn from it


def test_each_pair_of_folds_is_fitted_once(monkeypatch):
    texts, target, folds = _example("two classes", num_folds=5)
    fits, plain = [], LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda self, *data: fits.append(self.C) or plain(self, *data))
    found = tfidf_predictions(texts, target, folds, INVERSE_PENALTIES)
    assert len(fits) == 10 * len(INVERSE_PENALTIES) + 5
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


def test_words_tell_what_they_can():
    texts, target, folds = _example("numbers", 400, 5)
    errors = [
        np.square(target.values - predicted).mean()
        for predicted in (tfidf_predictions(texts, target, folds, INVERSE_PENALTIES), majority_scores(target, folds))
    ]
    assert errors[0] < 0.5 * errors[1]


def test_majority_by_hand():
    folds = np.array([0, 0, 1, 1, 2, 2])
    classes = Target("x", np.array([0, 0, 0, 1, 1, 2]), ["a", "b", "c"])
    found = majority_scores(classes, folds)
    np.testing.assert_allclose(found[[0, 2, 4]], [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.75, 0.25, 0]], atol=1e-12)
    np.testing.assert_array_equal(found[::2], found[1::2])
    numbers = Target("x", np.array([1.0, 2, 3, 4, 5, 6]), None)
    np.testing.assert_allclose(majority_scores(numbers, folds), [4.5, 4.5, 3.5, 3.5, 2.5, 2.5], atol=1e-12)


def test_a_class_that_a_fit_never_sees():
    texts, target, folds = _example("two classes")
    values = target.values.copy()
    values[np.flatnonzero(folds == 0)[0]] = 2
    found = tfidf_predictions(texts, Target("x", values, ["a", "b", "rare"]), folds, INVERSE_PENALTIES)
    assert (found[folds == 0, 2] == 0).all()
    assert (found[folds != 0, 2] > 0).all()
