import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertdyn.geometry.moments import Moments
from bertdyn.geometry.spectrum import effective_rank, iso_score


def _rotation(width, seed=3):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def _covariance(variances, seed=3):
    rotation = _rotation(len(variances), seed)
    return rotation @ np.diag(variances) @ rotation.T


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 15), st.floats(0.1, 10), st.integers(0, 2**32))
def test_effective_rank_equals_the_singular_values_of_the_rows(n, width, scale, seed):
    rows = np.random.default_rng(seed).normal(size=(n, width)) * np.linspace(0.5, 1, width) * scale + 1
    singular = np.linalg.svd(rows, compute_uv=False)
    shares = singular / singular.sum()
    expected = np.exp(-np.sum(shares * np.log(shares)))
    tolerance = 1e-10 if singular[-1] > 1e-2 * singular[0] else 1e-4  # squaring halves the digits of small ones
    assert effective_rank(Moments.of(rows).outer) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_k_equal_directions_have_rank_k_also_where_the_rest_is_empty(k):
    variances = np.r_[np.full(k, 4.0), np.zeros(10 - k)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert effective_rank(_covariance(variances)) == pytest.approx(k, abs=1e-10)
        assert iso_score(_covariance(variances)) == pytest.approx((k - 1) / 9, abs=1e-12)


def test_rank_deficient_rows_and_no_rows():
    rows = np.random.default_rng(0).normal(size=(5, 40))
    assert 1 < effective_rank(Moments.of(rows).outer) <= 5
    assert effective_rank(np.zeros((4, 4))) == 0
    assert np.isnan(effective_rank(np.full((4, 4), np.nan)))


def _published_iso_score(rows):
    """The steps of Rudman et al. 2022, algorithm 1, one after another."""
    n = rows.shape[1]
    variances = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    scaled = np.sqrt(n) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    share = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    return (n * share - 1) / (n - 1)


@settings(max_examples=30)
@given(st.integers(15, 60), st.integers(2, 15), st.integers(0, 2**32))
def test_iso_score_equals_the_published_algorithm(n, width, seed):
    rows = np.random.default_rng(seed).normal(size=(n, width)) * np.linspace(0.1, 1, width) + 5
    assert iso_score(np.cov(rows.T)) == pytest.approx(_published_iso_score(rows), abs=1e-10)


def test_rows_that_are_all_the_same_have_no_spectrum():
    covariance = Moments.of(np.full((30, 5), 0.1)).covariance
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert effective_rank(covariance) == 0
        assert np.isnan(iso_score(covariance))
