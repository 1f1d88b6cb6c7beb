"""k-sparse probing: it finds what was planted, sees nothing of the fold it judges, and is at chance where all is."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bertdyn.probing.cross_validation import make_folds
from bertdyn.sae.sparse_probing import class_differences, sparse_probes, text_means

TEXTS, LATENTS = 400, 50


def make_codes(classes=2, planted=17):
    """Sparse noise codes [rows, latents], several rows a text, and a latent that is on in rows of class 1 only."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=TEXTS)
    texts = np.sort(np.concatenate([np.arange(TEXTS), rng.integers(TEXTS, size=3 * TEXTS)]))
    codes = rng.exponential(size=(len(texts), LATENTS)) * (rng.random((len(texts), LATENTS)) < 0.1)
    codes[:, planted] = np.where(labels[texts] == 1, 1 + rng.random(len(texts)), 0)
    return scipy.sparse.csr_array(codes.astype(np.float32)), texts, labels


def test_means_over_the_rows_of_a_text():
    codes, texts, _ = make_codes()
    dense = codes.toarray().astype(np.float64)
    expected = np.array([dense[texts == text].mean(axis=0) for text in range(TEXTS)])
    np.testing.assert_allclose(text_means(codes, texts, TEXTS).toarray(), expected, atol=1e-12)
    np.testing.assert_allclose(text_means(dense, texts, TEXTS), expected, atol=1e-12)
    assert not text_means(codes, texts, TEXTS + 1)[[TEXTS]].toarray().any()  # a text without rows
    order = np.random.default_rng(1).permutation(len(texts))
    np.testing.assert_allclose(text_means(dense[order], texts[order], TEXTS), expected, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_differences_are_those_of_the_formula(offset):
    codes, texts, labels = make_codes(classes=3)
    features = text_means(codes, texts, TEXTS).toarray() + offset
    features[:, 4] = offset
    expected = np.zeros(LATENTS)
    for j in range(LATENTS):
        x = features[:, j] - offset
        gaps = [abs(x[labels == c].mean() - x[labels != c].mean()) for c in range(3)]
        expected[j] = max(gaps) / x.std() if x.std() else 0
    found = class_differences(features, labels)
    np.testing.assert_allclose(found, expected, atol=1e-12 if offset == 0 else 1e-6)
    assert found[4] == 0
    if offset == 0:
        np.testing.assert_allclose(class_differences(scipy.sparse.csr_array(features), labels), expected, atol=1e-12)


def test_the_planted_latent_is_found():
    codes, texts, labels = make_codes()
    features = text_means(codes, texts, TEXTS)
    one, five = sparse_probes(features, labels, make_folds(labels, 5, seed=0))
    assert (one.chosen == 17).all()
    assert one.correct.mean() == 1
    assert five.chosen.shape == (5, 5)
    assert (five.chosen[:, 0] == 17).all()
    # dense features go the same way
    dense_one, dense_five = sparse_probes(features.toarray(), labels, make_folds(labels, 5, seed=0))
    np.testing.assert_array_equal(dense_one.correct, one.correct)
    np.testing.assert_array_equal(dense_five.chosen, five.chosen)


def test_scores_are_those_of_a_loop_over_scikit_learn():
    codes, texts, labels = make_codes(classes=3)
    features = text_means(codes, texts, TEXTS).toarray()
    folds = make_folds(labels, 4, seed=1)
    (probe,) = sparse_probes(features, labels, folds, [3])
    for fold in range(4):
        train = folds != fold
        chosen = np.argsort(-class_differences(features[train], labels[train]))[:3]
        np.testing.assert_array_equal(probe.chosen[fold], chosen)
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features[train][:, chosen], labels[train])
        expected = model.predict(features[~train][:, chosen]) == labels[~train]
        np.testing.assert_array_equal(probe.correct[~train], expected)
    assert 0.5 < probe.correct.mean() < 0.9  # class 1 is read off, 0 and 2 cannot be told apart


def test_shuffled_labels_are_at_chance():
    """Latents are chosen among thousands by the label: with the judged texts in the choice, this would be far above."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 3000))
    right = [
        probe.correct.mean()
        for _ in range(5)
        for labels in [rng.permutation(np.repeat([0, 1], 150))]
        for probe in sparse_probes(features, labels, make_folds(labels, 5, seed=0))
    ]
    assert abs(np.mean(right) - 0.5) < 4 * 0.5 / np.sqrt(1500)


def test_the_judged_fold_is_never_seen():
    codes, texts, labels = make_codes()
    features, folds = text_means(codes, texts, TEXTS).toarray(), make_folds(labels, 5, seed=0)
    before = sparse_probes(features, labels, folds)
    changed = features.copy()
    changed[folds == 2, 30] = 1000 * labels[folds == 2]  # a perfect latent, in the judged fold alone
    for one, other in zip(before, sparse_probes(changed, labels, folds), strict=True):
        np.testing.assert_array_equal(one.chosen[2], other.chosen[2])


def test_fewer_latents_than_asked_for_and_other_texts():
    codes, texts, labels = make_codes()
    features = text_means(codes, texts, TEXTS)[:, [17, 3]]
    one, five = sparse_probes(features, labels, make_folds(labels, 5, seed=0))
    assert (one.chosen.shape, five.chosen.shape) == ((5, 1), (5, 2))
    with pytest.raises(ValueError, match="features of 400 texts, 399 labels, 400 folds"):
        sparse_probes(features, labels[:-1], np.zeros(TEXTS))
