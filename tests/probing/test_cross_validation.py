"""Nested cross-validation: scikit-learn's nested loops, and nothing that was seen is scored."""

import functools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bertdyn.probing.closed_form import fit_nearest_centroid, fit_ridge
from bertdyn.probing.cross_validation import cross_validate, make_folds
from bertdyn.probing.logistic import fit_logistic
from tests.probing.test_linear_probes import PENALTIES, make_rows

FOLDS = 4


@pytest.fixture(scope="module")
def rows():
    features, classes, _ = make_rows(3, rows=160)
    folds = torch.from_numpy(make_folds(classes[:, 0].numpy(), FOLDS, seed=0))
    return features, classes, folds


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr("bertdyn.probing.logistic.TOLERANCE", 1e-9)


def test_nested_choice_and_scores_are_those_of_scikit_learn(rows):
    features, classes, folds = rows
    found = cross_validate(functools.partial(fit_logistic, num_classes=3), features, classes, folds, PENALTIES)
    for target in range(2):
        x, y = features.numpy(), classes[:, target].numpy()
        for fold in range(FOLDS):
            inner = np.where(folds == fold, -1, folds)
            pipeline = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=50_000))
            seen = inner >= 0
            search = GridSearchCV(
                pipeline,
                {"logisticregression__C": PENALTIES},
                scoring=lambda model, x, y: -log_loss(y, model.predict_proba(x), labels=range(3)) * len(y),
                cv=PredefinedSplit(inner[seen]),
            ).fit(x[seen], y[seen])
            assert found.penalties[fold, target] == search.best_params_["logisticregression__C"]
            said = found.scores[folds == fold, target].softmax(dim=1).numpy()
            np.testing.assert_allclose(said, search.predict_proba(x[~seen]), atol=1e-5)
            assert float(found.fitted[fold, target]) == pytest.approx(np.mean(search.predict(x[seen]) == y[seen]))


def test_nested_ridge_is_that_of_scikit_learn(rows):
    features, _, folds = rows
    numbers = features[:, :1] / features[:, 0].std() + torch.randn(160, 1, generator=torch.Generator().manual_seed(0))
    found = cross_validate(fit_ridge, features, numbers, folds, PENALTIES, classes=False)
    x, y = features.numpy(), numbers[:, 0].numpy()
    for fold in range(FOLDS):
        inner = np.where(folds == fold, -1, folds)
        seen = inner >= 0
        search = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()),
            {"ridge__alpha": [1 / penalty for penalty in PENALTIES]},
            scoring=lambda model, x, y: -np.sum((model.predict(x) - y) ** 2),
            cv=PredefinedSplit(inner[seen]),
        ).fit(x[seen], y[seen])
        assert 1 / found.penalties[fold, 0] == pytest.approx(search.best_params_["ridge__alpha"])
        np.testing.assert_allclose(found.scores[folds == fold, 0, 0], search.predict(x[~seen]), rtol=1e-6, atol=1e-8)
        rest = np.sum((search.predict(x[seen]) - y[seen]) ** 2) / np.sum((y[seen] - y[seen].mean()) ** 2)
        assert float(found.fitted[fold, 0]) == pytest.approx(1 - rest)


def test_the_judged_fold_is_never_seen(rows):
    """Other labels and features of a fold change neither the choice nor the probe that judges it."""
    features, classes, folds = rows
    fit = functools.partial(fit_logistic, num_classes=3)
    before = cross_validate(fit, features, classes, folds, PENALTIES)
    for fold in range(FOLDS):
        changed, other = features.clone(), classes.clone()
        mine = folds == fold
        other[mine] = other[mine].flip(0)
        changed[mine] *= -3
        after = cross_validate(fit, changed, other, folds, PENALTIES)
        torch.testing.assert_close(before.penalties[fold], after.penalties[fold])
        of_fold = slice(fold * 2, fold * 2 + 2)
        torch.testing.assert_close(
            before.of_folds.only(of_fold).scores(features),
            after.of_folds.only(of_fold).scores(features),
            atol=1e-5,
            rtol=1e-5,
        )


def test_random_labels_are_at_chance():
    """As many features as rows: a probe that saw what it is scored on would be perfect."""
    rng = np.random.default_rng(0)
    features, classes = torch.tensor(rng.normal(size=(200, 200))), torch.tensor(rng.integers(2, size=(200, 20)))
    folds = torch.from_numpy(make_folds(np.zeros(200, dtype=int), 5, seed=0))
    found = cross_validate(functools.partial(fit_logistic, num_classes=2), features, classes, folds, PENALTIES)
    accuracy = (found.scores.argmax(dim=2) == classes).double().mean()
    assert abs(float(accuracy) - 0.5) < 4 * np.sqrt(0.25 / 4000)
    assert float(found.fitted.mean()) > 0.65


def test_probes_without_a_penalty_need_no_inner_folds(rows):
    features, classes, folds = rows
    calls = []

    def fit(features, classes, training, fits):
        calls.append(len(fits.sets))
        return fit_nearest_centroid(features, classes, training, fits, 3)

    found = cross_validate(fit, features, classes, folds, [1.0])
    assert calls == [2 * (FOLDS + 3)]  # without each fold, all, and both halves
    assert found.scores.shape == (160, 2, 3)


def test_folds_share_classes_evenly():
    classes = np.repeat([0, 1, 2], [50, 30, 10])
    folds = make_folds(classes, 5, seed=3)
    for fold in range(5):
        np.testing.assert_array_equal(np.bincount(classes[folds == fold]), [10, 6, 2])
    np.testing.assert_array_equal(folds, make_folds(classes, 5, seed=3))
    assert (folds != make_folds(classes, 5, seed=4)).any()
