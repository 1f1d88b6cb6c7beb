import numpy as np
import pytest

from bertdyn.geometry.dimensions import norm_quantiles, outlier_dimensions


def test_only_the_dimensions_that_stand_out_are_found_whatever_their_number():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=768), rng.normal(1, 0.05, size=768)
    assert not outlier_dimensions(mean, std).any()
    mean[[3, 400]] = [-12, 1e5]  # beside 100,000, an ordinary standard deviation would not see −12
    std[7] = 3
    np.testing.assert_array_equal(np.flatnonzero(outlier_dimensions(mean, std)), [3, 7, 400])
    assert abs(mean[3] - mean.mean()) < 3 * mean.std()


def test_scale_and_shift_do_not_matter_and_the_threshold_does():
    rng = np.random.default_rng(0)
    mean, std = rng.standard_t(2, size=300), np.ones(300)
    found = outlier_dimensions(mean, std)
    np.testing.assert_array_equal(outlier_dimensions(1e3 * mean - 5, 1e3 * std), found)
    assert outlier_dimensions(mean, std, 3).sum() > found.sum() > outlier_dimensions(mean, std, 20).sum()


def test_dimensions_that_are_all_the_same_have_no_outliers():
    assert not outlier_dimensions(np.zeros(8), np.zeros(8)).any()


def test_norm_quantiles():
    np.testing.assert_allclose(norm_quantiles(np.arange(101, dtype=np.float16)), [5, 25, 50, 75, 95])
    assert norm_quantiles(np.array([2.0, 4.0]), (0.5,)) == pytest.approx([3])
    assert np.isnan(norm_quantiles(np.array([]))).all()
