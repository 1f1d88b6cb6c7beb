import warnings

import numpy as np
import pytest
from scipy.stats import bootstrap, t

from bertdyn.geometry import intervals
from bertdyn.geometry.intervals import bias_corrected, bootstrap_ratio, jackknife
from bertdyn.geometry.moments import CrossMoments, Moments
from bertdyn.geometry.similarity import debiased_cka


def _examples(n=200, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 30, n).astype(float)
    return lengths * (0.4 + 0.2 * rng.normal(size=n)), lengths


def test_bootstrap_agrees_with_scipys():
    sums, lengths = _examples()
    expected = bootstrap(
        (sums, lengths),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=0,
    ).confidence_interval
    found = bootstrap_ratio(sums, lengths, seed=1, replicates=4000)
    assert found == pytest.approx((expected.low, expected.high), abs=0.05 * (expected.high - expected.low))


def test_intervals_cover_the_truth_about_95_times_in_100():
    hits = 0
    for seed in range(200):
        low, high = bootstrap_ratio(*_examples(80, seed), seed=seed, replicates=300)
        hits += low < 0.4 < high
    assert 180 <= hits <= 198


def test_columns_blocks_and_seeds(monkeypatch):
    sums, lengths = _examples()
    both = bootstrap_ratio(np.stack([sums, 2 * sums], axis=1), lengths, seed=0)
    assert both[0].shape == both[1].shape == (2,)
    single = bootstrap_ratio(sums, lengths, seed=0)
    np.testing.assert_allclose([both[0][0], both[1][0]], single, atol=1e-12)
    np.testing.assert_allclose(both[0] * [2, 1], both[0][1], atol=1e-12)  # the same resamples for every column
    monkeypatch.setattr(intervals, "BLOCK_ELEMENTS", 7 * 200)
    np.testing.assert_allclose(bootstrap_ratio(sums, lengths, seed=0), single, atol=1e-12)
    assert bootstrap_ratio(sums, lengths, seed=1) != single


def test_an_example_without_a_value_drops_out_with_its_denominator():
    sums, lengths = _examples()
    numerators = np.stack([sums, np.full(200, np.nan), sums], axis=1)
    numerators[::2, 2] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_ratio(numerators, lengths, seed=0)
        nothing = bootstrap_ratio(np.zeros((0, 2)), np.zeros(0), seed=0)
    ratio = sums[1::2].sum() / lengths[1::2].sum()
    assert low[2] < ratio < high[2]
    assert high[2] - low[2] == pytest.approx(np.sqrt(2) * (high[0] - low[0]), rel=0.25)  # half of the examples
    assert np.isnan([low[1], high[1]]).all()
    assert np.isnan(nothing).all()


def test_jackknife_of_a_mean_is_students_interval():
    sample = np.random.default_rng(0).normal(size=30)
    left_out = (sample.sum() - sample) / 29
    expected = t.interval(0.95, 29, sample.mean(), sample.std(ddof=1) / np.sqrt(30))
    assert jackknife(sample.mean(), left_out) == pytest.approx(expected, abs=1e-12)


def test_jackknife_without_enough_estimates():
    assert np.isnan(jackknife(0.5, np.array([0.5]))).all()
    assert np.isnan(jackknife(0.5, np.array([0.5, np.nan, 0.4]))).all()
    assert jackknife(0.5, np.full(5, 0.5)) == (0.5, 0.5)


def _cka(x, y):
    return debiased_cka(Moments.of(x), Moments.of(y), CrossMoments.of(x, y))


def test_a_bootstrap_biases_debiased_cka_and_the_jackknife_does_not():
    """Of unrelated states: repeated rows are pairs that are the same in both states."""
    resampled, left_out, covered = [], [], 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2, 60, 20))
        draws = rng.integers(60, size=(5, 60))
        resampled.append(np.mean([_cka(x[draw], y[draw]) for draw in draws]))
        without = np.array(
            [_cka(np.delete(x, group, 0), np.delete(y, group, 0)) for group in np.arange(60).reshape(10, 6)]
        )
        left_out.append(without.mean())
        low, high = jackknife(_cka(x, y), without)
        covered += low < 0 < high
    assert np.mean(resampled) > 0.15
    assert abs(np.mean(left_out)) < 0.02
    assert covered >= 34


def test_unrelated_tokens_are_not_alike_because_they_share_texts():
    """Texts of ten tokens that share most of their direction: what they have in common is in both states."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(120), 10)
    states = [rng.normal(size=(120, 60))[owner] + rng.normal(size=(1200, 60)) for _ in range(2)]

    def cka(chosen):
        x, y = (rows[chosen] for rows in states)
        return debiased_cka(Moments.of(x), Moments.of(y), CrossMoments.of(x, y))

    whole = cka(owner >= 0)
    left_out = np.array([cka(owner % 10 != group) for group in range(10)])
    assert whole > 0.05
    corrected = bias_corrected(whole, left_out)
    assert abs(corrected) < whole / 3
    low, high = jackknife(corrected, left_out)
    assert low < 0.02 < high
    assert bias_corrected(1.0, np.ones(10)) == 1
