from itertools import combinations

import numpy as np
import pytest

from bertdyn.errors import InputError
from bertdyn.probing import stages
from bertdyn.probing.stages import find_stages

TEXTS = 800


def _flipping(rng, states=14, layers=13, flips=0.05, right=0.8):
    """[states, layers, texts]: every text has its answer, turned in 5 % of the states, half of it in all layers."""
    answers = rng.random(TEXTS) < right
    own, shared = rng.random((states, layers, TEXTS)), rng.random((states, 1, TEXTS))
    return answers ^ (np.where(rng.random((states, layers, 1)) < 0.5, own, shared) < flips)


def _staying(rng, states=14, layers=13, rate=0.2, right=0.8):
    """Every answer is drawn anew after 1/rate states on average, in all layers at once: it stays in between."""
    answers, found = rng.random(TEXTS) < right, []
    for _ in range(states):
        answers = np.where(rng.random(TEXTS) < rate, rng.random(TEXTS) < right, answers)
        found.append(np.broadcast_to(answers, (layers, TEXTS)))
    return np.stack(found)


def _wobbling(rng, states=14, layers=13):
    """States differ by a point or so in all layers, for no longer than the state."""
    return _raised(rng, _flipping(rng, states, layers), 0.1 + 0.015 * rng.normal(size=states))


def _raised(rng, correct, by):
    """The same, with `by` [states] more of the texts right (of those 20 % that are wrong), always the same ones."""
    return correct | (rng.random(TEXTS) < np.asarray(by)[:, None, None] / 0.2)


@pytest.mark.parametrize("make", [_flipping, _staying, _wobbling])
@pytest.mark.parametrize(("states", "layers"), [(14, 1), (14, 13), (30, 13)])
def test_nothing_is_found_where_nothing_changes(make, states, layers):
    rng = np.random.default_rng(0)
    found = [find_stages(make(rng, states, layers), seed=0, resamples=200).change_points for _ in range(40)]
    assert sum(map(bool, found)) <= 3


@pytest.mark.parametrize("make", [_flipping, _staying])
def test_a_jump_of_ten_points_is_found_where_it_is(make):
    rng = np.random.default_rng(1)
    for at in (4, 7, 12):
        correct = _raised(rng, make(rng), 0.1 * (np.arange(14) >= at))
        found = find_stages(correct, seed=0, resamples=200)
        assert found.change_points == [at]
        assert found.support[0] > 0.95
        low, high = found.intervals[0]
        assert at - 1 <= low <= at <= high <= at + 1
        expected = [correct[:at].mean(axis=(0, 2)), correct[at:].mean(axis=(0, 2))]
        np.testing.assert_allclose(found.levels, expected, atol=1e-12)
        assert not found.drift


def test_a_jump_in_one_layer_is_found_among_noisy_ones():
    rng = np.random.default_rng(2)
    correct = _flipping(rng)
    correct[5:, 3] = _raised(rng, correct[5:, 3:4], np.full(9, 0.1))[:, 0]
    # a fifth layer that swings by 20 points with every state hides it unless layers are scaled by their noise
    correct[:, 4] = rng.random((14, TEXTS)) < rng.permutation(np.linspace(0.7, 0.9, 14))[:, None]
    found = find_stages(correct, seed=0, resamples=200)
    assert found.change_points == [5]
    assert found.levels[1, 3] - found.levels[0, 3] > 0.06


def test_two_jumps():
    rng = np.random.default_rng(3)
    steps = 0.1 * (np.arange(20) >= 6) + 0.06 * (np.arange(20) >= 13)
    found = find_stages(_raised(rng, _flipping(rng, 20), steps), seed=0, resamples=200)
    assert found.change_points == [6, 13]
    assert min(found.support) > 0.9
    assert found.levels.shape == (3, 13)


def test_a_small_jump_is_in_doubt():
    """The support of a point and a half is below 1, and its place is known to a state or two."""
    rng = np.random.default_rng(1)
    found = find_stages(_raised(rng, _flipping(rng), 0.016 * (np.arange(14) >= 7)), seed=0)
    assert found.change_points == [7]
    assert 0.5 < found.support[0] < 0.99
    low, high = found.intervals[0]
    assert 0 < high - low <= 3


def test_a_drift_is_cut_and_said_to_be_one():
    rng = np.random.default_rng(4)
    found = find_stages(_raised(rng, _flipping(rng, 20), np.linspace(0, 0.15, 20)), seed=0)
    assert len(found.change_points) >= 2
    assert found.support[0] > 0.8  # which is why support alone proves no stage
    assert found.drift


def test_the_segmentation_is_the_best_of_all():
    def cost(signal, cuts, penalty):
        parts = np.split(signal, cuts)
        return sum(np.square(part - part.mean(axis=0)).sum() for part in parts) + penalty * len(cuts)

    rng = np.random.default_rng(5)
    places = range(2, 11)
    every = [cuts for k in range(6) for cuts in combinations(places, k) if np.all(np.diff(cuts) >= 2)]
    counts = set()
    for penalty in (1.0, 3.0, 8.0):
        for _ in range(10):
            signal = rng.normal(size=(12, 2)) + np.repeat(rng.normal(size=(3, 2)), 4, axis=0)
            best = min(every, key=lambda cuts: cost(signal, cuts, penalty))
            assert stages._segment(signal, 2, penalty) == list(best)
            counts.add(len(best))
            gain = cost(signal, (), 0) - min(cost(signal, (cut,), 0) for cut in places)
            assert stages._gains(signal[None], 2)[0] == pytest.approx(gain, abs=1e-10)
    assert counts >= {0, 1, 2, 3}


def test_intervals_count_the_change_point_that_is_nearest():
    found = [[4, 9], [5], [12], [3, 6, 10], [], *[[5, 10]] * 10]
    assert stages._interval(5, [5, 10], found) == (4, 6)
    assert stages._interval(10, [5, 10], found) == (9, 12)
    assert np.isnan(stages._interval(5, [5, 10], [[10], []])).all()


def test_nothing_ever_changes_and_the_seed_decides():
    right = np.broadcast_to(np.arange(TEXTS) % 2, (14, 3, TEXTS))
    found = find_stages(right, seed=0)
    assert (found.change_points, found.support, found.intervals, found.drift) == ([], [], [], False)
    np.testing.assert_allclose(found.levels, np.full((1, 3), 0.5), atol=1e-12)
    jump = right | (np.arange(14) >= 6)[:, None, None]
    assert find_stages(jump, seed=0).change_points == [6]
    rng = np.random.default_rng(6)
    correct = _raised(rng, _flipping(rng), 0.012 * (np.arange(14) >= 7))
    one, again, other = (find_stages(correct, seed=seed) for seed in (0, 0, 1))
    assert one.support == again.support
    assert one.support != other.support


def test_refused():
    with pytest.raises(InputError, match="^11 states: too few .*; accepted: 12 or more"):
        find_stages(np.ones((11, 2, 50)), seed=0)
    with pytest.raises(ValueError, match="a score in every state"):
        find_stages(np.full((14, 2, 50), np.nan), seed=0)
