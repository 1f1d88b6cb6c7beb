import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from bertdyn.geometry import similarity
from bertdyn.geometry.moments import CrossMoments, Moments
from bertdyn.geometry.similarity import (
    chance_overlap,
    debiased_cka,
    neighbour_overlap,
    neighbours,
    procrustes_distance,
    row_cosines,
)


def _cka(x, y):
    return debiased_cka(Moments.of(x), Moments.of(y), CrossMoments.of(x, y))


def _procrustes(x, y):
    return procrustes_distance(Moments.of(x), Moments.of(y), CrossMoments.of(x, y))


def _naive_hsic(x, y):
    """Song et al. 2012, equation 5, with n × n matrices."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    sums = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + sums - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def _naive_cka(x, y):
    return _naive_hsic(x, y) / np.sqrt(_naive_hsic(x, x) * _naive_hsic(y, y))


def _pair(n=50, width=8, other=5, seed=0, share=0.7):
    """Two states of correlated rows whose dimensions have different scales."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) * np.linspace(0.5, 3, width)
    return x, share * x @ rng.normal(size=(width, other)) + rng.normal(size=(n, other))


def _rotation(width, seed=3):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


@settings(max_examples=30)
@given(st.integers(4, 60), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32), st.floats(0, 1))
def test_cka_equals_the_definition_with_gram_matrices(n, width, other, seed, share):
    x, y = _pair(n, width, other, seed, share)
    if min(_naive_hsic(x, x), _naive_hsic(y, y)) > 1e-3:  # near 0 the quotient has no digits
        assert _cka(x, y) == pytest.approx(_naive_cka(x, y), rel=1e-10, abs=1e-10)
        assert _cka(x + 2, y - 3) == pytest.approx(_naive_cka(x, y), rel=1e-8, abs=1e-8)


def test_cka_with_more_dimensions_than_rows():
    x, y = _pair(20, 100, 130)
    assert _cka(x, y) == pytest.approx(_naive_cka(x, y), abs=1e-10)


def test_cka_of_unrelated_rows_is_zero_on_average_where_the_biased_one_is_near_one():
    values = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values.append(_cka(rng.normal(size=(30, 60)), rng.normal(size=(30, 60))))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    x, y = (np.random.default_rng(seed).normal(size=(30, 60)) for seed in (0, 1))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    biased = np.sum((x.T @ y) ** 2) / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert biased > 0.5 > 5 * np.std(values)


@settings(max_examples=30)
@given(st.integers(3, 60), st.integers(1, 12), st.integers(0, 2**32))
def test_procrustes_equals_scipys_rotation(n, width, seed):
    x, y = _pair(n, width, width, seed)
    x_unit, y_unit = ((a - a.mean(axis=0)) / np.linalg.norm(a - a.mean(axis=0)) for a in (x, y))
    rotation, _ = orthogonal_procrustes(x_unit, y_unit)
    expected = np.sum((x_unit @ rotation - y_unit) ** 2)
    assert _procrustes(x, y) == pytest.approx(expected, abs=1e-10)
    assert _procrustes(x + 5, y - 7) == pytest.approx(expected, abs=1e-10)


def test_procrustes_of_different_widths_equals_padding_with_zeros():
    x, y = _pair(50, 8, 5)
    assert _procrustes(x, y) == pytest.approx(_procrustes(x, np.pad(y, ((0, 0), (0, 3)))), abs=1e-10)


def test_procrustes_is_two_for_orthogonal_states():
    x = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    y = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert _procrustes(x, y) == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("measure", [_cka, _procrustes])
def test_sums_of_blocks_and_leaving_a_block_out_equal_the_whole(measure):
    x, y = _pair(60)
    function = {_cka: debiased_cka, _procrustes: procrustes_distance}[measure]
    parts = [(Moments.of(a), Moments.of(b), CrossMoments.of(a, b)) for a, b in ((x[:7], y[:7]), (x[7:], y[7:]))]
    merged = [a + b for a, b in zip(*parts, strict=True)]
    assert function(*merged) == pytest.approx(measure(x, y), abs=1e-12)
    left = [a - b for a, b in zip(merged, parts[0], strict=True)]
    assert function(*left) == pytest.approx(measure(x[7:], y[7:]), abs=1e-10)


def _mean_overlap(x, y):
    return neighbour_overlap(neighbours(x, 5), neighbours(y, 5)).mean()


@pytest.mark.parametrize(("measure", "same"), [(_cka, 1), (_procrustes, 0), (_mean_overlap, 1)])
def test_rotation_scale_and_shift_are_not_seen(measure, same):
    x, y = _pair(80, 10, 10)
    rotation = _rotation(10)
    assert measure(x, x) == pytest.approx(same, abs=1e-10)
    for moved in (x @ rotation, 7 * x, x + np.linspace(-2, 2, 10), 0.1 * x @ rotation - 1):
        assert measure(x, moved) == pytest.approx(same, abs=1e-10)
    assert measure(x, y @ rotation * 3 + 1) == pytest.approx(measure(x, y), abs=1e-9)
    assert abs(measure(x, y) - same) > 0.05


def test_row_cosines_see_rotation_and_shift_but_not_scale():
    x, _ = _pair()
    np.testing.assert_allclose(row_cosines(x, x), 1, atol=1e-12)
    np.testing.assert_allclose(row_cosines(x, -3 * x), -1, atol=1e-12)
    assert abs(row_cosines(x, x @ _rotation(8)).mean()) < 0.9
    assert row_cosines(x, x + 1).min() < 0.99


def test_row_cosines_equal_the_definition_and_a_zero_row_has_none():
    x, y = _pair(other=8)
    x, y = x.astype(np.float16), y.astype(np.float16)
    x[3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cosines = row_cosines(x, y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    expected = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) if a.any() else np.nan for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(cosines, expected, atol=1e-12)


@pytest.mark.parametrize("block", [7, similarity.BLOCK_ELEMENTS])
def test_neighbours_equal_sorted_distances(block, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_ELEMENTS", block * 50)
    x, _ = _pair()
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(neighbours(x + 100, 6), np.argsort(distances, axis=1)[:, :6])


def test_a_row_is_not_its_own_neighbour_but_its_duplicate_is():
    x, _ = _pair()
    x[1] = x[0]
    nearest = neighbours(x, 3)
    assert nearest[0, 0] == 1
    assert nearest[1, 0] == 0
    assert not (nearest == np.arange(50)[:, None]).any()


def test_overlap_counts_common_neighbours_in_any_order_and_is_at_chance_for_unrelated_rows():
    a, b = np.array([[1, 2, 3], [0, 2, 3]]), np.array([[3, 1, 9], [4, 5, 6]])
    np.testing.assert_allclose(neighbour_overlap(a, b), [2 / 3, 0])
    rng = np.random.default_rng(0)
    overlap = neighbour_overlap(neighbours(rng.normal(size=(400, 5)), 20), neighbours(rng.normal(size=(400, 5)), 20))
    assert overlap.mean() == pytest.approx(chance_overlap(400, 20), abs=0.01)


@pytest.mark.parametrize("value", [0.0, 0.1, 300.0])
def test_identical_rows_have_no_geometry(value):
    x, _ = _pair()
    constant = np.full((50, 4), value, dtype=np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a, b in ((x, constant), (constant, x), (constant, constant)):
            assert np.isnan(_cka(a, b))
            assert np.isnan(_procrustes(a, b))
            assert np.isnan(neighbour_overlap(neighbours(a, 3), neighbours(b, 3))).all()


def test_too_few_rows_and_wrong_input():
    x, y = _pair(3)
    assert np.isnan(_cka(x, y))
    with pytest.raises(ValueError, match="aligned: 3 and 2 rows"):
        debiased_cka(Moments.of(x), Moments.of(y[:2]), CrossMoments.of(x, y))
    with pytest.raises(ValueError, match="k must be from 1 to 2"):
        neighbours(x, 3)
    with pytest.raises(ValueError, match="same shape"):
        neighbour_overlap(np.zeros((3, 2)), np.zeros((3, 1)))
