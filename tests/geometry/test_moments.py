import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertdyn.geometry.moments import CrossMoments, Moments


def _rows(n=40, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width))


def _assert_same(a, b):
    for name in a.__dataclass_fields__:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-10, atol=1e-10)


def test_sums_are_what_they_say():
    x, y = _rows(), _rows(width=4, seed=1)
    moments, cross = Moments.of(x), CrossMoments.of(x, y)
    np.testing.assert_allclose(moments.weighted, sum(row * (row @ row) for row in x), atol=1e-10)
    assert moments.quartic == pytest.approx(sum((row @ row) ** 2 for row in x), abs=1e-10)
    np.testing.assert_allclose(cross.product, sum(np.outer(a, b) for a, b in zip(x, y, strict=True)), atol=1e-10)
    np.testing.assert_allclose(cross.x_by_y, sum(a * (b @ b) for a, b in zip(x, y, strict=True)), atol=1e-10)
    np.testing.assert_allclose(cross.y_by_x, sum(b * (a @ a) for a, b in zip(x, y, strict=True)), atol=1e-10)
    assert cross.quartic == pytest.approx(sum((a @ a) * (b @ b) for a, b in zip(x, y, strict=True)), abs=1e-10)


def test_derived_values_equal_numpys():
    x = _rows() + 3
    moments = Moments.of(x)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T), atol=1e-12)
    assert moments.total_variance == pytest.approx(np.trace(np.cov(x.T)), abs=1e-10)
    assert moments.mean_square_norm == pytest.approx(np.mean(np.sum(x**2, axis=1)), abs=1e-10)


@given(st.lists(st.integers(0, 40), max_size=5), st.randoms(use_true_random=False))
def test_blocks_in_any_order_equal_one_block_and_a_block_can_be_taken_out(cuts, random):
    x, y = _rows() + 1, _rows(width=4, seed=1) - 2
    edges = [0, *sorted(cuts), 40]
    blocks = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    random.shuffle(blocks)
    total, cross = Moments.of(x[:0]), CrossMoments.of(x[:0], y[:0])
    for block in blocks:
        total, cross = total + Moments.of(x[block]), cross + CrossMoments.of(x[block], y[block])
    _assert_same(total, Moments.of(x))
    _assert_same(cross, CrossMoments.of(x, y))
    last = blocks[-1]
    rest_x, rest_y = np.delete(x, last, axis=0), np.delete(y, last, axis=0)
    _assert_same(total - Moments.of(x[last]), Moments.of(rest_x))
    _assert_same(cross - CrossMoments.of(x[last], y[last]), CrossMoments.of(rest_x, rest_y))


def test_half_precision_blocks_are_summed_in_double():
    x = (100 * _rows(2000)).astype(np.float16)
    np.testing.assert_allclose(Moments.of(x).covariance, np.cov(x.astype(np.float64).T), rtol=1e-10)


@pytest.mark.parametrize("shift", [0.0, 1e-17, 0.1, 1e5])
def test_identical_rows_have_exactly_no_variance(shift):
    rows = np.tile(shift * _rows(1, 50), (997, 1))
    moments = Moments.of(rows[:500]) + Moments.of(rows[500:])
    assert moments.total_variance == 0
    assert not moments.covariance.any()
    assert (moments - Moments.of(rows[:100])).total_variance == 0


def test_too_few_rows_and_unaligned_rows():
    assert np.isnan(Moments.of(_rows(1)).total_variance)
    assert np.isnan(Moments.of(_rows(1)).covariance).all()
    assert np.isnan(Moments.of(_rows(0)).mean).all()
    with pytest.raises(ValueError, match="aligned: 40 and 39 rows"):
        CrossMoments.of(_rows(), _rows(39))
