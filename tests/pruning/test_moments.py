"""Moments merged from blocks are those of all rows together."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertdyn.pruning.moments import InputMoments

WIDTH = 4


def rows(count, seed=0, shift=0.0, spread=1.0, dtype=torch.float64):
    """Correlated inputs about `shift`."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) @ torch.randn(
        WIDTH, WIDTH, generator=generator, dtype=torch.float64
    )
    return (shift + spread * mixed).to(dtype)


def merged(blocks, covariance):
    return reduce(add, (InputMoments.of(block, covariance) for block in blocks))


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any),
    seed=st.integers(0, 1000),
    shift=st.sampled_from([0.0, -3.0, 100.0]),
    covariance=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_any_split_in_any_order_is_the_whole(sizes, seed, shift, covariance, order):
    whole = rows(sum(sizes), seed, shift)
    blocks = list(whole.split(sizes))
    order.shuffle(blocks)
    found, expected = merged(blocks, covariance), whole.numpy()
    assert found.num_rows == len(expected)
    np.testing.assert_allclose(found.mean, expected.mean(axis=0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.variance, expected.var(axis=0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.mean_square, (expected**2).mean(axis=0), rtol=1e-10, atol=1e-10)
    if covariance:
        np.testing.assert_allclose(found.covariance, np.cov(expected, rowvar=False, bias=True), rtol=1e-10, atol=1e-10)


def test_grouping_of_the_sums_does_not_matter():
    a, b, c = (InputMoments.of(block, True) for block in rows(20, shift=5).split([3, 10, 7]))
    for one, other in zip((a + b) + c, a + (b + c), strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "shift", "spread", "tolerance"), [(torch.float64, 1e6, 1e-3, 1e-6), (torch.float32, 1e3, 1e-2, 1e-4)]
)
def test_a_mean_large_against_the_spread_costs_no_digits(dtype, shift, spread, tolerance):
    """The mean of squares minus the square of the mean would have none left."""
    whole = rows(1000, shift=shift, spread=spread, dtype=dtype)
    exact = whole.double().numpy()
    for covariance in (False, True):
        found = merged(whole.split(64), covariance)
        np.testing.assert_allclose(found.variance, exact.var(axis=0), rtol=tolerance)
    expected = np.cov(exact, rowvar=False, bias=True)
    np.testing.assert_allclose(found.covariance, expected, atol=tolerance * exact.var())


def test_an_empty_block_changes_nothing():
    some, none = InputMoments.of(rows(5), True), InputMoments.of(rows(0), True)
    for found in (some + none, none + some):
        assert found.num_rows == 5
        assert torch.equal(found.mean, some.mean)
        assert torch.equal(found.scatter, some.scatter)


def test_a_covariance_that_was_not_collected_is_refused():
    with pytest.raises(ValueError, match="covariance=True"):
        _ = InputMoments.of(rows(5), False).covariance
