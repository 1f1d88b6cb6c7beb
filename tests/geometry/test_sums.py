"""Closed forms over sums equal the naive definitions over all pairs, whole, merged and with texts taken out."""

import numpy as np
import pytest

from bertdyn.geometry.moments import Moments
from bertdyn.geometry.sums import Sums, pair_measures, state_measures

LENGTHS = (3, 1, 6, 2, 5, 4)
ALL = tuple(range(len(LENGTHS)))
PAIRS = [(0, 1), (0, 2)]


def make_states(seed=0, widths=(6, 6, 4)):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(sum(LENGTHS), width)) + rng.normal(size=width) for width in widths]


def sums_of(states, texts=ALL, origins=None):
    """The sums over some of the texts."""
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    chosen = np.isin(owner, list(texts))
    offsets = np.concatenate([[0], np.cumsum([LENGTHS[text] for text in texts])])
    return Sums.of([rows[chosen] for rows in states], offsets, origins or [rows[0] for rows in states], PAIRS)


def cosines(x, y):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T


def naive(states, a, b):
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    of_different_texts = owner[:, None] != owner
    means = [states[i].mean(axis=0) for i in (a, b)]
    centred = [states[i] - mean for i, mean in zip((a, b), means, strict=True)]
    shapes = [rows / np.linalg.norm(rows) for rows in centred]
    return {
        "cosine_random_pairs_a": cosines(states[a], states[a])[of_different_texts].mean(),
        "cosine_random_pairs_b": cosines(states[b], states[b])[of_different_texts].mean(),
        "cosine_mismatched": cosines(states[a], states[b])[of_different_texts].mean(),
        "cosine_of_means": cosines(means[0][None], means[1][None])[0, 0],
        "procrustes": 2 - 2 * np.linalg.svd(shapes[0].T @ shapes[1], compute_uv=False).sum(),
    }


def test_pair_measures_equal_the_naive_ones():
    states = make_states()
    found = pair_measures(sums_of(states), 0, 1)
    for measure, value in naive(states, 0, 1).items():
        assert found[measure] == pytest.approx(value, abs=1e-10), measure


def test_states_of_other_widths_have_no_cosine():
    found = pair_measures(sums_of(make_states()), 0, 2)
    assert set(found) == {"cka", "procrustes"}
    assert 0 < found["procrustes"] < 2


def test_state_measures_equal_the_naive_ones():
    states = make_states()
    rows = states[0]
    found = state_measures(sums_of(states), 0)
    variance = rows.var(axis=0, ddof=1).sum()
    assert found["total_variance"] == pytest.approx(variance, abs=1e-10)
    assert found["total_variance_normalised"] == pytest.approx(variance / np.mean(np.sum(rows**2, axis=1)), abs=1e-10)
    assert found["random_pair_cosine"] == pytest.approx(naive(states, 0, 1)["cosine_random_pairs_a"], abs=1e-10)


def test_blocks_add_up_and_texts_are_taken_out():
    states = make_states()
    origins = [rows[3] for rows in states]
    whole = sums_of(states, origins=origins)
    one, other = (sums_of(states, texts, origins) for texts in ((0, 2, 5), (1, 3, 4)))
    for left, right in ((whole, one + other), (other, whole - one)):
        for a, b in PAIRS:
            expected, found = pair_measures(left, a, b), pair_measures(right, a, b)
            assert expected.keys() == found.keys()
            for measure, value in expected.items():
                assert found[measure] == pytest.approx(value, abs=1e-10), measure
        for state in range(3):
            for measure, value in state_measures(left, state).items():
                assert state_measures(right, state)[measure] == pytest.approx(value, abs=1e-10), measure


def test_what_is_subtracted_for_the_digits_changes_no_measure():
    states = make_states()
    expected = pair_measures(sums_of(states), 0, 1) | state_measures(sums_of(states), 1)
    moved = sums_of(states, origins=[np.full(rows.shape[1], 0.3) for rows in states])
    found = pair_measures(moved, 0, 1) | state_measures(moved, 1)
    for measure, value in expected.items():
        assert found[measure] == pytest.approx(value, abs=1e-10), measure
    np.testing.assert_allclose(moved.mean(0), states[0].mean(axis=0), atol=1e-12)
    assert Moments.of(states[0]).total_variance == pytest.approx(expected["total_variance"], rel=1)


def test_a_state_is_like_itself_and_a_rotation_keeps_what_is_invariant():
    rows = make_states()[0]
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    found = [pair_measures(sums_of([rows, other, other]), 0, 1) for other in (rows, rows @ rotation)]
    for measures in found:
        assert measures["cka"] == pytest.approx(1, abs=1e-10)
        assert measures["procrustes"] == pytest.approx(0, abs=1e-10)
    assert found[0]["cosine_of_means"] == pytest.approx(1, abs=1e-12)
    assert found[1]["cosine_of_means"] < 0.9


def test_rows_that_are_all_the_same_have_no_shape():
    rows = np.full((sum(LENGTHS), 6), 0.1)
    found = pair_measures(sums_of([rows, rows, rows]), 0, 1)
    assert np.isnan([found["cka"], found["procrustes"]]).all()
    assert found["cosine_random_pairs_a"] == pytest.approx(1, abs=1e-12)


def test_similar_tokens_within_texts_do_not_raise_the_control_between_texts():
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(40, 60)), 10, axis=0) + 0.1 * rng.normal(size=(400, 60))
    sums = Sums.of([rows], np.arange(0, 401, 10), [rows[0]], [])
    assert abs(sums.between_texts(0, 0)) < 0.02
    every_row_a_text = Sums.of([rows], np.arange(401), [rows[0]], [])
    assert every_row_a_text.between_texts(0, 0) > 0.02
