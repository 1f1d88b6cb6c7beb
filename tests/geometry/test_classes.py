import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestCentroid

from bertdyn.geometry.classes import (
    class_cosines,
    fisher_ratio,
    nearest_centroid_correct,
    neural_collapse,
    silhouettes,
)


def _classes(counts=(20, 30, 10), width=6, distance=3.0, seed=0):
    """Normal clouds around random means; class 1 is absent, so that ids are no indices."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 2, 3, 5, 6][: len(counts)], counts))
    means = distance * rng.normal(size=(7, width))
    return means[labels] + rng.normal(size=(len(labels), width)) + 1, labels


def _naive_collapse(rows, labels):
    values, counts = np.unique(labels, return_counts=True)
    means = {value: rows[labels == value].mean(axis=0) for value in values}
    centre = rows.mean(axis=0)
    within = sum(np.outer(x - means[c], x - means[c]) for x, c in zip(rows, labels, strict=True)) / len(rows)
    between = sum(n * np.outer(means[c] - centre, means[c] - centre) for c, n in zip(values, counts, strict=True))
    return np.trace(within @ np.linalg.pinv(between / len(rows), rcond=1e-10)) / len(values)


@settings(max_examples=20)
@given(st.lists(st.integers(2, 12), min_size=2, max_size=5), st.integers(2, 12), st.integers(0, 2**32))
def test_closed_forms_equal_the_definitions(counts, width, seed):
    rows, labels = _classes(counts, width, seed=seed)
    norms = np.linalg.norm(rows, axis=1)
    cosines = rows @ rows.T / norms / norms[:, None]
    same, other = labels[:, None] == labels, ~np.eye(len(rows), dtype=bool)
    expected = cosines[same & other].mean(), cosines[~same].mean()
    np.testing.assert_allclose(class_cosines(rows, labels), expected, atol=1e-10)

    means = np.array([rows[labels == c].mean(axis=0) for c in labels])
    ratio = np.sum((means - rows.mean(axis=0)) ** 2) / np.sum((rows - means) ** 2)
    assert fisher_ratio(rows, labels) == pytest.approx(ratio, rel=1e-10)
    assert fisher_ratio(5 * rows - 30, labels) == pytest.approx(ratio, rel=1e-10)

    # Class means that nearly lie in a plane amplify rounding in the naive pseudo-inverse, not only in ours.
    expected_collapse = _naive_collapse(rows, labels)
    assert neural_collapse(rows, labels) == pytest.approx(expected_collapse, rel=1e-6)


def test_neural_collapse_at_double_precision_and_towards_zero():
    rows, labels = _classes()
    assert neural_collapse(rows, labels) == pytest.approx(_naive_collapse(rows, labels), rel=1e-10)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert neural_collapse(2 * rows @ rotation + 9, labels) == pytest.approx(neural_collapse(rows, labels), rel=1e-9)
    means = np.array([rows[labels == c].mean(axis=0) for c in labels])
    assert neural_collapse(means + 0.1 * (rows - means), labels) == pytest.approx(
        0.01 * neural_collapse(rows, labels), rel=1e-9
    )
    assert neural_collapse(means, labels) < 1e-20


def test_separated_classes_score_high_and_shuffled_labels_at_chance():
    rows, labels = _classes((60, 60, 60), distance=4)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert nearest_centroid_correct(rows, labels).all()
    assert nearest_centroid_correct(rows, shuffled).mean() == pytest.approx(1 / 3, abs=0.12)
    assert silhouettes(rows, labels).mean() > 0.5
    assert silhouettes(rows, shuffled).mean() < 0.05
    assert class_cosines(rows, labels).within > class_cosines(rows, labels).between + 0.3


def test_nearest_centroid_equals_scikit_learns():
    rows, labels = _classes(distance=0.7)
    split = StratifiedKFold(5, shuffle=True, random_state=3)
    expected = cross_val_predict(NearestCentroid(), rows, labels, cv=split) == labels
    assert 0.3 < expected.mean() < 1
    np.testing.assert_array_equal(nearest_centroid_correct(rows, labels, seed=3), expected)


def test_no_row_takes_part_in_the_centroid_that_judges_it():
    """Of nearly orthogonal rows, the nearest centroid would be the one that contains the row."""
    rng = np.random.default_rng(0)
    rows = np.eye(80) + 1e-3 * rng.normal(size=(80, 80))
    assert nearest_centroid_correct(rows, np.arange(80) % 4, folds=10).mean() == pytest.approx(0.25, abs=0.15)


def test_small_classes_give_fewer_folds_and_a_single_row_is_wrong():
    rows, labels = _classes((20, 3, 1), distance=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        correct = nearest_centroid_correct(rows, labels)
    np.testing.assert_array_equal(correct, labels != 3)
    assert not nearest_centroid_correct(rows[:3], np.arange(3)).any()
    assert nearest_centroid_correct(rows, np.zeros(24)).all()


def test_silhouettes_equal_scikit_learns():
    rows, labels = _classes()
    np.testing.assert_allclose(silhouettes(rows + 50, labels), silhouette_samples(rows, labels), atol=1e-9)


def test_one_class_or_one_row_a_class_have_no_separation():
    rows, labels = _classes()
    one = np.zeros(len(rows), dtype=int)
    assert np.isnan(class_cosines(rows, one).between)
    assert np.isnan(class_cosines(rows[:3], np.arange(3)).within)
    assert fisher_ratio(rows, one) == pytest.approx(0, abs=1e-20)
    assert np.isnan(neural_collapse(rows, one))
    assert np.isnan(silhouettes(rows, one)).all()
    assert np.isnan(silhouettes(rows[:3], np.arange(3))).all()


@pytest.mark.parametrize("value", [0.1, 7.3, 1000.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])  # sums of float16 rows happen to be exact
def test_identical_rows_are_no_classes_and_warn_of_nothing(value, dtype):
    _, labels = _classes((20, 30, 11))
    rows = (value * np.random.default_rng(0).normal(size=(1, 6))).astype(dtype).repeat(61, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(class_cosines(rows, labels), [1, 1], atol=1e-12)
        assert np.isnan(fisher_ratio(rows, labels))
        assert np.isnan(neural_collapse(rows, labels))
        np.testing.assert_array_equal(nearest_centroid_correct(rows, labels), labels == 2)  # the most frequent
        np.testing.assert_array_equal(silhouettes(rows, labels), 0)


def test_classes_whose_rows_are_the_same_are_separated_completely():
    rows, labels = np.repeat(np.eye(3), 5, axis=0), np.repeat(np.arange(3), 5)
    assert fisher_ratio(rows, labels) > 1e20
    assert neural_collapse(rows, labels) == pytest.approx(0, abs=1e-20)
    assert nearest_centroid_correct(rows, labels).all()
    np.testing.assert_allclose(silhouettes(rows, labels), 1, atol=1e-7)
