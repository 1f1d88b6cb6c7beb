import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertdyn.geometry.cosines import (
    mean_between_groups,
    mean_pair_cosine,
    unit,
    within_text,
)

BINS = np.linspace(-1, 1, 21)


def _texts(lengths, width=7, seed=0, shift=0.5):
    rows = np.random.default_rng(seed).normal(size=(sum(lengths), width)) + shift
    return rows, np.cumsum([0, *lengths])


def _cosines(a, b):
    return np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])


def test_unit_rows_have_length_one_and_a_zero_row_none():
    rows, _ = _texts([5])
    rows[2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norms = np.linalg.norm(unit(rows.astype(np.float16)), axis=1)
    np.testing.assert_allclose(norms, [1, 1, np.nan, 1, 1], atol=1e-12)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 2**32))
def test_means_over_pairs_equal_all_pairs(lengths, seed):
    rows, offsets = _texts(lengths, seed=seed)
    cosines, group = _cosines(rows, rows), np.repeat(np.arange(len(lengths)), lengths)
    cosines = cosines.reshape(len(rows), len(rows))
    totals = np.array([unit(rows[a:b]).sum(axis=0) for a, b in zip(offsets[:-1], offsets[1:], strict=True)])
    different = group[:, None] != group
    between = cosines[different].mean() if different.any() else np.nan
    assert mean_between_groups(totals, lengths) == pytest.approx(between, abs=1e-10, nan_ok=True)
    pairs = ~np.eye(len(rows), dtype=bool)
    everywhere = cosines[pairs].mean() if len(rows) > 1 else np.nan
    assert mean_pair_cosine(totals.sum(axis=0), len(rows)) == pytest.approx(everywhere, abs=1e-10, nan_ok=True)
    each = [cosines[a:b, a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    within = [g[~np.eye(len(g), dtype=bool)].mean() if len(g) > 1 else np.nan for g in each]
    np.testing.assert_allclose(mean_pair_cosine(totals, lengths), within, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_within_text_equals_a_naive_loop(dtype):
    lengths = [4, 1, 9, 2, 0, 9, 30, 4]
    rows, offsets = _texts(lengths)
    rows = np.concatenate([np.ones((3, 7)), rows]).astype(dtype)  # a block may start inside a store
    found = within_text(rows, offsets + 3, BINS)
    densities = []
    for text, (start, length) in enumerate(zip(offsets[:-1] + 3, lengths, strict=True)):
        tokens = rows[start : start + length].astype(np.float64)
        values = [found.mean[text], found.variance[text], found.trace[text], found.trace_normalised[text]]
        if length < 2:
            assert np.isnan(values).all()
            continue
        pairs = _cosines(tokens, tokens)[np.triu_indices(length, 1)]
        trace = np.trace(np.cov(tokens.T))
        expected = [pairs.mean(), pairs.var(), trace, trace / np.mean(np.sum(tokens**2, axis=1))]
        np.testing.assert_allclose(values, expected, atol=1e-10)
        densities.append(np.histogram(pairs, BINS, density=True)[0])
    np.testing.assert_allclose(found.histogram, np.mean(densities, axis=0), atol=1e-10)
    assert found.num_texts == len(densities) == 6
    assert found.histogram @ np.diff(BINS) == pytest.approx(1, abs=1e-12)


def test_a_long_text_weighs_as_much_as_a_short_one():
    same, spread = np.ones((2, 50)), np.eye(50)  # cosines of 1 and of 0
    found = within_text(np.concatenate([same, spread]), np.array([0, 2, 52]), np.array([-1, 0.5, 1]))
    np.testing.assert_allclose(found.histogram * [1.5, 0.5], [0.5, 0.5])


def test_blocks_of_texts_combine_to_the_whole():
    lengths = [4, 1, 9, 2, 5, 9, 30, 4]
    rows, offsets = _texts(lengths)
    whole, first, second = (within_text(rows, offsets[part], BINS) for part in (slice(9), slice(4), slice(3, 9)))
    np.testing.assert_array_equal(np.concatenate([first.mean, second.mean]), whole.mean)
    np.testing.assert_array_equal(np.concatenate([first.trace, second.trace]), whole.trace)
    merged = (first.histogram * first.num_texts + second.histogram * second.num_texts) / whole.num_texts
    np.testing.assert_allclose(merged, whole.histogram, atol=1e-12)


def test_identical_zero_and_missing_tokens_give_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = within_text(np.full((6, 3), 0.1, dtype=np.float16), np.array([0, 6]), BINS)
        zero = within_text(np.array([[0.0, 0], [1, 0], [1, 1], [1, 1]]), np.array([0, 2, 4]), BINS)
        none = within_text(np.zeros((0, 3)), np.array([0]), BINS)
    np.testing.assert_allclose([same.mean[0], same.variance[0], same.trace[0]], [1, 0, 0], atol=1e-12)
    assert same.histogram[-1] == pytest.approx(10)  # a cosine of 1 + 2e-16 is in the last bin
    assert np.isnan(zero.mean[0])
    assert zero.num_texts == 1
    assert none.num_texts == 0
    assert not none.histogram.any()
