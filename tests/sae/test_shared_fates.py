"""One dictionary on the same rows in two states: how often each latent is on is planted."""

import numpy as np
import pytest
import scipy.sparse
from scipy.stats import t as student_t

from bertdyn.errors import InputError
from bertdyn.sae.fates import share_table
from bertdyn.sae.shared_fates import _counted, _unpaired, shared_fates

APART = np.eye(2000, dtype=np.float32)
"""Directions of as many latents as there are here, no two alike."""


def codes_of(on, value=1.0):
    return scipy.sparse.csr_array(np.asarray(on, dtype=np.float32) * value)


def test_one_feature_in_two_latents_is_split_and_not_dead_and_born():
    rng = np.random.default_rng(0)
    texts = np.repeat(np.arange(200), 10)
    on = rng.random((2000, 5)) < 0.1
    before, after = on.copy(), on.copy()
    before[:, 1], after[:, 0] = False, False  # 0 dies, 1 is born
    before[:, 3], after[:, 2] = False, False  # 2 dies, 3 is born, and they are nearly the same
    directions = np.eye(6)[:5].copy()
    directions[3, [2, 5]] = np.sqrt(0.8), np.sqrt(0.2)
    table = shared_fates({"a": codes_of(before), "b": codes_of(after)}, texts, directions)
    for column in ("fate", "share_fate"):
        assert table[column].tolist() == ["died", "born", "split", "split", "kept"]
    assert set(table["floor_fate"]) == {"kept"}


def test_a_shared_dictionary_has_latents_that_are_on_in_one_state_only():
    rng = np.random.default_rng(0)
    texts = np.repeat(np.arange(200), 10)
    densities = np.array([[0.1, 0.1, 0.0, 0.1, 0.1, 0.0], [0.1, 0.0, 0.1, 0.25, 0.1, 0.0]])
    before, after = rng.random((2, 2000, 6)) < densities[:, None]
    before[:, 4] = after[:, 4]  # the same rows, three times as strong
    strength = np.array([1, 1, 1, 1, 3, 1])
    table = shared_fates({"a": codes_of(before), "b": codes_of(after, strength)}, texts, APART, seed=1).set_index(
        "latent"
    )
    for column in ("fate", "share_fate"):
        assert table[column].to_dict() == {0: "kept", 1: "died", 2: "born", 3: "doubled", 4: "kept"}  # 5: never on
    assert (table["floor_fate"] == "kept").all()
    assert (table["cosine"] == 1).all()
    np.testing.assert_allclose(table["density_before"], before[:, :5].mean(axis=0))
    assert table["norm_ratio"][4] == pytest.approx(3)
    assert table["norm_ratio"][3] == pytest.approx(np.sqrt(after[:, 3].sum() / before[:, 3].sum()))
    assert table["norm_ratio"][1] == 0
    assert np.isnan(table["norm_ratio"][2])
    assert table["changed"].tolist() == [False, True, True, True, False]
    assert table["log_density_ratio"][3] == pytest.approx(np.log(after[:, 3].sum() / before[:, 3].sum()))
    assert table["log_density_ratio"].tolist()[1:3] == [-np.inf, np.inf]
    assert table.loc[[1, 2], ["low", "high"]].isna().all(axis=None)
    assert (table["low"][4], table["high"][4]) == (0, 0)


def test_the_same_codes_have_the_shares_of_their_floor_and_no_change():
    """Latents so rare that half of the texts has some of them and the other half not."""
    rng = np.random.default_rng(1)
    codes = codes_of(rng.random((3000, 300)) < 0.003)
    texts = rng.permutation(np.repeat(np.arange(300), 10))  # rows of a text need not stand together
    table = shared_fates({"a": codes, "b": codes}, texts, APART)
    assert (table["share_fate"] == table["floor_fate"]).all()
    np.testing.assert_array_equal(table["share_norm_ratio"], table["floor_norm_ratio"])
    assert (table["norm_ratio"] == 1).all()
    assert set(table["floor_fate"]) == {"born", "kept", "died"}
    assert (table["fate"] == "kept").all()
    assert not table["changed"].any()
    assert (table["log_density_ratio"] == 0).all()
    assert (table["q_value"] == 1).all()


def of_texts(rng, density, number=400, tokens=10, latents=200):
    """Codes of latents that whole texts are inclined to, so that the tokens of a text are alike."""
    inclined = rng.gamma(4, 0.25, (number, latents))
    return np.repeat(inclined * density, tokens, axis=0), np.repeat(np.arange(number), tokens)


def test_a_change_that_is_large_and_sure_has_a_fate_of_its_own():
    """200 latents each: on a third as often, as often, 30 % more often (significant, small), three times as often."""
    rng = np.random.default_rng(4)
    chances, texts = of_texts(rng, 0.05, latents=800)
    before = rng.random(chances.shape) < chances
    after = rng.random(chances.shape) < chances * np.repeat([0.35, 1, 1.3, 3], 200)
    table = shared_fates({"a": codes_of(before), "b": codes_of(after)}, texts, APART).set_index("latent")
    planted = np.repeat(["halved", "kept", "kept", "doubled"], 200)
    assert (table["fate"] == planted).mean() > 0.99
    assert (table["share_fate"] == planted).mean() > 0.93
    assert (table["floor_fate"] == "kept").mean() > 0.99
    assert table["changed"][400:600].mean() > 0.5  # what kept says nothing of
    shares = share_table(table.reset_index().assign(layer=2)).set_index("fate")
    assert shares["excess"][["doubled", "halved"]].between(0.2, 0.27).all()
    swapped = shared_fates({"a": codes_of(after), "b": codes_of(before)}, texts, APART).set_index("latent")
    other = {"doubled": "halved", "halved": "doubled", "kept": "kept"}
    assert (swapped["fate"] == table["fate"].map(other)).all()


def test_a_large_change_that_is_not_sure_has_none():
    """Ten rows in one text and two dozen in another one: by tokens a sure change, by texts none."""
    on = np.zeros((2, 4000, 1), dtype=bool)
    on[0, :10] = on[1, :10] = on[1, 20:44] = True
    table = shared_fates({"a": codes_of(on[0]), "b": codes_of(on[1])}, np.repeat(np.arange(100), 40), APART)
    assert np.exp(table["log_density_ratio"][0]) > 3
    assert table["fate"].tolist() == ["kept"]


def test_the_floor_has_as_many_false_changes_as_the_test_promises():
    """Unpaired, of texts of unequal lengths, with latents that come in whole texts."""
    rng = np.random.default_rng(6)
    lengths = rng.integers(1, 30, 600)
    texts = np.repeat(np.arange(600), lengths)
    inclined = rng.gamma(1, 1, (600, 1500))
    codes = codes_of(rng.random((len(texts), 1500)) < 0.03 * inclined[texts])
    own, other = _counted("a", codes, texts, codes.shape).halves
    p_values = _unpaired(own, other)
    assert 0.03 < (p_values < 0.05).mean() < 0.07
    assert 0.002 < (p_values < 0.01).mean() < 0.02
    by_token = np.sqrt(own.density / own.rows.sum() + other.density / other.rows.sum())
    assert (np.abs(own.density - other.density) > 1.96 * by_token).mean() > 0.09


def test_strength_is_compared_half_by_half_as_the_floor():
    """The even texts have twice the strength of the odd ones in both states."""
    texts = np.repeat(np.arange(40), 10)
    codes = codes_of(np.ones((400, 1)), np.where(texts % 2 == 0, 2.0, 1.0)[:, None])
    row = shared_fates({"a": codes, "b": 3 * codes}, texts, APART).iloc[0]
    assert (row["norm_ratio"], row["share_norm_ratio"], row["floor_norm_ratio"]) == pytest.approx((3, 1.5, 0.5))


def test_intervals_of_the_density_ratio_cover_it_though_tokens_of_a_text_are_alike():
    """Latents are repetitions: whole texts have a latent or not, twice as many after as before, half of them new."""
    rng = np.random.default_rng(2)
    texts, repetitions, tokens = 400, 600, 8
    has_before = rng.random((texts, repetitions)) < 0.06
    has_after = has_before & (rng.random(has_before.shape) < 0.8) | (rng.random(has_before.shape) < 0.076)
    truth = np.log((0.048 + 0.076 - 0.048 * 0.076) / 0.06)
    on = [
        np.repeat(has, tokens, axis=0) & (rng.random((texts * tokens, repetitions)) < 0.9)
        for has in (has_before, has_after)
    ]
    table = shared_fates({"a": codes_of(on[0]), "b": codes_of(on[1])}, np.repeat(np.arange(texts), tokens), APART)
    covered = (table["low"] < truth) & (truth < table["high"])
    assert 0.93 < covered.mean() < 0.985
    by_token = 1.96 * np.sqrt(1 / on[0].sum(axis=0) + 1 / on[1].sum(axis=0))  # what tokens as the sample would claim
    assert (np.abs(table["log_density_ratio"] - truth) < by_token).mean() < 0.85
    np.testing.assert_array_equal(table["changed"], (table["low"] > 0) | (table["high"] < 0))
    assert (table["changed"] | (table["q_value"] >= 0.05)).all()
    swapped = shared_fates({"a": codes_of(on[1]), "b": codes_of(on[0])}, np.repeat(np.arange(texts), tokens), APART)
    np.testing.assert_allclose(swapped["low"], -table["high"], atol=1e-10)


def test_a_latent_of_one_text_proves_no_change():
    on = np.zeros((100, 2), dtype=bool)
    on[:10, 0] = True  # all in text 0
    on[::5, 1] = True  # two in each of the 10 texts
    off = np.zeros((100, 2), dtype=bool)
    off[9, 0] = True
    table = shared_fates({"a": codes_of(on), "b": codes_of(off)}, np.repeat(np.arange(10), 10), APART)
    assert table["changed"].tolist() == [False, True]
    assert table[["low", "high"]].to_numpy()[0].tolist() == [-np.inf, np.inf]


def test_few_texts_have_students_quantile():
    """Gone from 5 of 200 texts: beyond 1.96 standard errors, which five texts do not estimate well enough."""
    on = np.arange(200)[:, None] < [5, 9]
    on, texts = np.repeat(on, 10, axis=0), np.repeat(np.arange(200), 10)
    table = shared_fates({"a": codes_of(on), "b": codes_of(np.zeros((2000, 2)))}, texts, APART)
    assert table["changed"].tolist() == [False, True]
    error = np.sqrt(200 / 199 * (5 - 25 / 200))
    assert table["p_value"][0] == pytest.approx(2 * student_t.sf(5 / error, 4))


def test_codes_of_other_rows_are_an_input_error():
    codes = codes_of(np.eye(4))
    with pytest.raises(InputError, match=r"codes of b: \(3, 4\)"):
        shared_fates({"a": codes, "b": codes[:3]}, np.arange(4), APART)
    with pytest.raises(InputError, match="one text"):
        shared_fates({"a": codes, "b": codes}, np.zeros(4), APART)
