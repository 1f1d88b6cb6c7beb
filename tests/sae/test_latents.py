"""Statistics of sparse codes against the same from dense ones, latent by latent, and AUCs against scikit-learn's."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.metrics import roc_auc_score

from bertdyn.errors import InputError
from bertdyn.sae.latents import (
    activation_change,
    activation_histograms,
    auc_by_class,
    latent_statistics,
    ranked,
)

ROWS, LATENTS, TEXTS, CLASSES = 400, 12, 60, 3
DEAD, DENSE = 4, 7


def random_codes(seed=0, tied=True):
    """[rows, latents], mostly zero; few distinct values, so that ties are everywhere."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 4, (ROWS, LATENTS)).astype(float) if tied else rng.exponential(size=(ROWS, LATENTS))
    on = rng.random((ROWS, LATENTS)) < np.linspace(0.01, 0.5, LATENTS)
    on[:, DEAD], on[:, DENSE] = False, True
    return np.where(on, values, 0.0)


def texts_of_rows(seed=0):
    """Text of each row, in no order; text 5 has no row, text 6 has one."""
    rng = np.random.default_rng(seed)
    examples = rng.choice(np.setdiff1d(np.arange(TEXTS), [5, 6]), ROWS)
    examples[17] = 6
    return examples, rng.integers(0, CLASSES, TEXTS)


@pytest.fixture(params=[True, False], ids=["tied", "continuous"])
def case(request):
    codes = random_codes(tied=request.param)
    examples, labels = texts_of_rows()
    statistics = latent_statistics(scipy.sparse.csr_array(codes), examples, labels, CLASSES)
    texts = np.unique(examples)
    assert 5 not in texts
    means = np.stack([codes[examples == text].mean(axis=0) for text in texts])
    return codes, means, labels[texts], statistics


def test_statistics_of_latents(case):
    codes, means, labels, (latents, _) = case
    assert latents["latent"].tolist() == list(range(LATENTS))
    expected = {
        "density": (codes > 0).mean(axis=0),
        "mean_on": [column[column > 0].mean() if column.any() else np.nan for column in codes.T],
        "variance": codes.var(axis=0),
        "max": codes.max(axis=0),
        "text_share": (means > 0).mean(axis=0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(latents[name], values, rtol=1e-12, err_msg=name)
    for latent in range(LATENTS):
        aucs = [roc_auc_score(labels == label, means[:, latent]) for label in range(CLASSES)]
        row = latents.loc[latent]
        if latent == DEAD:
            assert row["label"] == -1
            assert np.isnan(row["auc"])
            assert np.isnan(row["difference"])
        else:
            assert row["label"] == np.argmax(aucs)
            assert row["auc"] == pytest.approx(max(aucs), abs=1e-12)


def test_statistics_by_label(case):
    _, means, labels, (latents, by_label) = case
    assert by_label[["latent", "label"]].to_numpy().tolist() == [[j, c] for j in range(LATENTS) for c in range(CLASSES)]
    for row in by_label.itertuples():
        own, rest = (means[chosen, row.latent] for chosen in (labels == row.label, labels != row.label))
        assert row.num_texts == len(own)
        assert row.mean == pytest.approx(own.mean(), abs=1e-12)
        assert row.std == pytest.approx(own.std(ddof=1), abs=1e-12)
        assert row.auc == pytest.approx(roc_auc_score(labels == row.label, means[:, row.latent]), abs=1e-12)
        if row.latent == DEAD:
            assert np.isnan(row.difference)
            continue
        squares = (len(own) - 1) * own.var(ddof=1) + (len(rest) - 1) * rest.var(ddof=1)
        assert row.difference == pytest.approx(
            (own.mean() - rest.mean()) / np.sqrt(squares / (len(labels) - 2)), rel=1e-10
        )
        spoken = latents.loc[row.latent]
        if spoken["label"] == row.label:
            assert spoken["difference"] == row.difference


def test_auc_of_random_ties_is_that_of_scikit_learn():
    """From nothing on to everything on, with one value for all, and of classes that do not occur."""
    rng = np.random.default_rng(1)
    for share in (0.0, 0.02, 0.3, 1.0):
        values = np.where(rng.random((80, 20)) < share, rng.integers(1, 6, (80, 20)) / 4, 0)
        values[:, 0] = share > 0
        labels = rng.choice([0, 1, 3], 80)
        found = auc_by_class(scipy.sparse.csc_array(values), labels, 5)
        assert found.shape == (20, 5)
        assert np.isnan(found[:, [2, 4]]).all()
        for latent in range(20):
            for label in (0, 1, 3):
                expected = roc_auc_score(labels == label, values[:, latent])
                assert found[latent, label] == pytest.approx(expected, abs=1e-13)
    assert np.isnan(auc_by_class(scipy.sparse.csc_array(values), np.ones(80, dtype=int), 2)).all()


def test_one_class_or_one_text_is_not_compared():
    codes = scipy.sparse.csr_array(random_codes())
    examples, labels = texts_of_rows()
    for number, of in ((examples, np.zeros(TEXTS, dtype=int)), (np.zeros(ROWS, dtype=int), labels[:1] * 0)):
        latents, by_label = latent_statistics(codes, number, of, 2)
        assert (latents["label"] == -1).all()
        assert by_label[["auc", "difference"]].isna().all().all()


def test_perfect_separation_without_spread_has_no_difference_but_an_auc():
    codes = scipy.sparse.csr_array(np.array([[0.1], [0.1], [0.3], [0.3]]))
    latents, _ = latent_statistics(codes, np.arange(4), np.array([0, 0, 1, 1]), 2)
    assert latents.loc[0, ["label", "auc"]].tolist() == [1, 1.0]
    assert np.isnan(latents.loc[0, "difference"])


def test_change_of_activations():
    before, after = random_codes(0), random_codes(1)
    after[:, 0] = before[:, 0]  # as it was
    after[:, 1] = 0  # died
    before[:, 2] = 0  # born
    after[:, 3] = 2 * before[:, 3]
    before[:, 5], after[:, 5] = np.eye(ROWS)[:, 0], np.eye(ROWS)[:, 1]  # on elsewhere
    found = activation_change(*map(scipy.sparse.csr_array, (before, after)))
    np.testing.assert_allclose(found[[0, 1, 2, 3, 5]], [0, 1, 1, 1 / 5, 1], rtol=1e-14)
    assert np.isnan(found[DEAD])
    for j in set(range(LATENTS)) - {DEAD}:
        a, b = before[:, j], after[:, j]
        assert found[j] == pytest.approx(((a - b) ** 2).sum() / ((a**2).sum() + (b**2).sum()), rel=1e-12)
    with pytest.raises(InputError, match="same rows and latents"):
        activation_change(scipy.sparse.csr_array(before), scipy.sparse.csr_array(after[:-1]))


def test_histograms_of_activations():
    codes = random_codes(tied=False)
    high = np.full(LATENTS, 2.0)
    found = activation_histograms(scipy.sparse.csr_array(codes), high, 10)
    for j, column in enumerate(codes.T):
        expected = np.histogram(np.minimum(column[column > 0], 2.0), bins=10, range=(0, 2))[0]
        np.testing.assert_array_equal(found[j], expected)
    assert found[DENSE].sum() == ROWS


def test_rankings():
    table = pd.DataFrame(
        {
            "latent": [0, 1, 2, 3],
            "density": [0.5, 0.0, 0.1, 0.5],
            "variance": [1.0, 0.0, 3.0, 2.0],
            "auc": [0.6, np.nan, 0.9, np.nan],
        }
    )
    assert ranked(table, "density")["latent"].tolist() == [0, 3, 2]
    assert ranked(table, "variance")["latent"].tolist() == [2, 3, 0]
    assert ranked(table, "selectivity")["latent"].tolist() == [2, 0]
    with pytest.raises(InputError, match="no column 'change'"):
        ranked(table, "change")
    # what was on before, and is not any more, has changed
    assert ranked(table.assign(change=[0.2, 1.0, np.nan, 0.3]), "change")["latent"].tolist() == [1, 3, 0]
    with pytest.raises(InputError, match="density, variance, selectivity, change"):
        ranked(table, "beauty")


def test_input_that_does_not_fit():
    codes = scipy.sparse.csr_array(random_codes())
    examples, labels = texts_of_rows()
    for wrong, said in (
        ((codes[:0], examples[:0], labels, CLASSES), "there is no row"),
        ((codes, examples[1:], labels, CLASSES), "400 rows of codes, but texts of 399"),
        ((codes, examples, labels[:50], CLASSES), "but labels of 50 texts"),
        ((codes, examples, labels, 2), "labels 0 to 2, of 2 classes"),
        ((-codes, examples, labels, CLASSES), "negative or NaN"),
        ((codes * np.nan, examples, labels, CLASSES), "negative or NaN"),
    ):
        with pytest.raises(InputError, match=said):
            latent_statistics(*wrong)
