import numpy as np
import pytest
from scipy.stats import bootstrap, kstest, permutation_test

from bertdyn.probing import paired
from bertdyn.probing.paired import paired_difference, paired_table


def _correct(shares, n=400, seed=0):
    """[len(shares), n] of 0/1, each text easy or hard in all of them."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=n)
    return [(ease + rng.normal(size=n) < np.quantile(ease, share)).astype(float) for share in shares]


def test_mcnemar_by_hand():
    a = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0.0])
    b = np.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0.0])
    found = paired_difference(a, b, seed=0)
    assert found.value == pytest.approx(5 / 12, abs=1e-12)
    assert found.p_value == pytest.approx(2 * (1 + 9 + 36) / 2**9, abs=1e-12)  # seven gains and two losses
    swapped = paired_difference(b, a, seed=0)
    np.testing.assert_allclose(swapped[:3], [-found.value, -found.high, -found.low], atol=1e-12)
    assert swapped.p_value == found.p_value


def test_sign_flips_agree_with_scipys_exact_test():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.3, 1.0):
        differences = rng.normal(shift, 1, size=12)
        exact = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        found = paired_difference(np.zeros(12), differences, seed=0)
        assert found.p_value == pytest.approx(exact, abs=0.02)
    assert paired_difference(np.zeros(50), np.full(50, 0.5), seed=0).p_value == 1 / 10_000  # no flip comes near


def test_a_text_without_a_score_drops_out_of_the_sign_flips():
    rng = np.random.default_rng(0)
    errors = np.square(rng.normal(size=60)) + 0.3
    missing = np.where(np.arange(60) % 3 == 0, np.nan, errors)
    known = ~np.isnan(missing)
    one, other = (paired_difference(np.ones(kept.sum()), missing[kept], seed=0) for kept in (known, known | True))
    assert one.value == pytest.approx(other.value, abs=1e-12)
    assert 0.1 < one.p_value < 0.9
    assert one.p_value == pytest.approx(other.p_value, abs=0.02)


def test_the_interval_is_the_bootstrap_of_the_mean_difference():
    a, b = (np.square(scores + 0.3) for scores in _correct([0.6, 0.7]))
    expected = bootstrap((b - a,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    found = paired_difference(a, b, seed=1, resamples=4000)
    assert found.low < found.value < found.high
    assert found[1:3] == pytest.approx(tuple(expected), abs=0.07 * (expected.high - expected.low))


def test_nothing_differs_and_nothing_is_known():
    (a,) = _correct([0.7])
    for scores in (a, a + 0.25):
        assert paired_difference(scores, scores, seed=0) == (0, 0, 0, 1)
    assert np.isnan(paired_difference(a, np.full(400, np.nan), seed=0)).all()


@pytest.mark.parametrize("scale", [1, 1.5])
def test_p_values_under_the_null_are_uniform_or_above(scale):
    """Neither below uniform (false alarms) nor, with many discordant texts, far above it (no power)."""
    p_values = []
    for seed in range(150):
        a, b = _correct([0.6, 0.6], 300, seed)
        p_values.append(paired_difference(a * scale, b * scale, seed=seed, resamples=2).p_value)
    assert kstest(p_values, "uniform", alternative="greater").pvalue > 0.01
    assert 0.4 < np.mean(p_values) < 0.65
    assert np.mean(np.array(p_values) < 0.05) < 0.1


def test_a_table_is_its_pairs_with_their_false_discovery_rate(monkeypatch):
    one, two, three = _correct([0.5, 0.6, 0.75])
    three[::7] = np.nan
    errors = np.square(two - 0.3)
    scores = {("pretrained", 1): one, ("epoch 1", 1): two, ("epoch 1", 2): three, ("epoch 2", 1): errors}
    cells = list(scores)
    pairs = [(cells[0], cells[1]), (cells[1], cells[2]), (cells[0], cells[2]), (cells[1], cells[3])]
    monkeypatch.setattr(paired, "BLOCK_ELEMENTS", 400 * 999)
    table = paired_table(scores, pairs, seed=5)
    assert table["n"].tolist() == [400, 342, 342, 400]
    assert table[["state_a", "layer_a", "state_b", "layer_b"]].iloc[1].tolist() == ["epoch 1", 1, "epoch 1", 2]
    for (a, b), row in zip(pairs, table.itertuples(), strict=True):
        single = paired_difference(scores[a], scores[b], seed=5)
        assert (row.difference, row.low, row.high, row.p_value) == pytest.approx(tuple(single), abs=1e-12)
    known = ~np.isnan(three)
    without = paired_difference(one[known], three[known], seed=5)
    assert (table["difference"][2], table["p_value"][2]) == pytest.approx((without.value, without.p_value), abs=1e-12)
    p = np.sort(table["p_value"])
    expected = np.minimum.accumulate((p * 4 / np.arange(1, 5))[::-1])[::-1]
    np.testing.assert_allclose(np.sort(table["q_value"]), expected, atol=1e-12)


def test_a_table_without_pairs_or_without_texts_in_common():
    assert paired_table({}, [], seed=0).columns.tolist()[-2:] == ["q_value", "n"]
    one, two = _correct([0.5, 0.9])
    scores = {("a", 0): one, ("b", 0): two, ("c", 0): np.full(400, np.nan)}
    table = paired_table(scores, [(("a", 0), ("b", 0)), (("a", 0), ("c", 0))], seed=0)
    assert table["q_value"][0] == table["p_value"][0]
    assert np.isnan(table.loc[1, ["difference", "p_value", "q_value"]].astype(float)).all()
