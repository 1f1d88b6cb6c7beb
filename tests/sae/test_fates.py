"""Planted truth: dictionaries made of known directions, so that every fate is known."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from scipy.stats import t as student_t

from bertdyn.errors import InputError
from bertdyn.geometry.cosines import unit
from bertdyn.sae.fates import Latents, independent_fates, share_table, shared_fates, stagewise_fates

WIDTH = 128
BASIS = np.linalg.qr(np.random.default_rng(99).standard_normal((WIDTH, WIDTH)))[0]
KEPT, ROTATED, DIED, BORN, FOUND_ONCE, DEAD = range(0, 20), range(20, 30), range(30, 38), range(38, 44), 5, 4
BEFORE = [*KEPT, *ROTATED, *DIED]
AFTER = [*KEPT, *ROTATED, *BORN]


def turned(directions, degrees, towards):
    angle = np.radians(degrees)
    return np.cos(angle) * directions + np.sin(angle) * towards


def planted(features, seed, rotated=False, noise=0.02, strength=1.0):
    """A dictionary with `features` in an order of its own, some that no other seed finds, some that are dead.

    `strength` of feature f: f + 1, so that it can be known again.
    """
    rng = np.random.default_rng(seed)
    true = BASIS[features]
    if rotated:  # away from all that is planted
        moves = np.isin(features, ROTATED)
        true = np.where(moves[:, None], turned(true, 50, BASIS[np.array(features) + 44]), true)
    true = unit(true + np.reshape(noise, (-1, 1)) * rng.standard_normal(true.shape))
    own = unit(rng.standard_normal((FOUND_ONCE + DEAD, 40)) @ BASIS[-40:])
    names = np.array([*features, *[-1] * FOUND_ONCE, *[-2] * DEAD])
    order = rng.permutation(len(names))
    density = np.where(names == -2, 0.0, 0.01 + names / 1000)[order]
    latents = Latents(np.concatenate([true, own])[order].astype(np.float32), density, strength * (names[order] + 3.0))
    return latents, names[order]


def dictionaries(features, seeds, **options):
    made = [planted(features, seed, **options) for seed in seeds]
    return [latents for latents, _ in made], [names for _, names in made]


def before_and_after(seeds=3, **options):
    before, names_before = dictionaries(BEFORE, range(seeds))
    after, names_after = dictionaries(AFTER, range(10, 10 + seeds), rotated=True, strength=2.0, **options)
    return {"pretrained": before, "best": after}, {"before": names_before, "after": names_after}


def named(table, names):
    """With the planted feature of each latent."""
    feature = [
        names[side][seed][latent] for side, seed, latent in zip(table.side, table.seed, table.latent, strict=True)
    ]
    return table.assign(feature=feature)


# Independent dictionaries --------------------------------------------------------------------------------------------


def test_exactly_what_was_planted_is_found():
    states, names = before_and_after()
    table = named(independent_fates(states), names)
    assert len(table) == 3 * (len(BEFORE) + len(AFTER) + 2 * FOUND_ONCE)  # no row for dead latents
    assert table["cosine"].notna().all()  # also where nothing was left to match: more are alive before than after
    truth = {**dict.fromkeys(KEPT, "kept"), **dict.fromkeys(ROTATED, "rotated"), -1: "unstable"}
    truth |= {**dict.fromkeys(DIED, "died"), **dict.fromkeys(BORN, "born")}
    for column in ("fate", "share_fate"):
        assert (table[column] == table["feature"].map(truth)).all()
    planted_there = table["feature"] >= 0
    assert (table.loc[planted_there, "floor_fate"] == "kept").all()
    assert (table.loc[~planted_there, "floor_fate"] == "unstable").all()
    rotated = table[table["fate"] == "rotated"]
    np.testing.assert_allclose(rotated["cosine"], np.cos(np.radians(50)) / (1 + WIDTH * 0.02**2), atol=0.06)
    assert (table.loc[planted_there, "floor_cosine"] > 0.93).all()


def test_the_partner_is_the_same_feature_of_another_seed():
    states, names = before_and_after()
    table = named(independent_fates(states), names)
    found = table[table["fate"].isin(["kept", "rotated"])]
    assert len(found) == 2 * 3 * len([*KEPT, *ROTATED])
    other = {"before": "after", "after": "before"}
    for row in found.itertuples():
        assert row.partner_seed != row.seed
        assert names[other[row.side]][row.partner_seed][row.partner] == row.feature
    np.testing.assert_allclose(found["norm_ratio"], 2)  # whichever side it is seen from
    np.testing.assert_allclose(found["floor_norm_ratio"], 1)
    np.testing.assert_allclose(found["density_before"], 0.01 + found["feature"] / 1000)
    np.testing.assert_allclose(found["density_after"], 0.01 + found["feature"] / 1000)
    gone = table[table["fate"].isin(["died", "born"])]
    assert (gone["partner"] == -1).all()
    assert gone["norm_ratio"].isna().all()
    assert gone.loc[gone["side"] == "before", "density_before"].notna().all()
    assert gone.loc[gone["side"] == "after", "density_before"].isna().all()


def test_the_order_of_latents_changes_nothing():
    states, names = before_and_after()
    rng = np.random.default_rng(5)
    shuffled, shuffled_names = {}, {}
    for (state, seeds), side in zip(states.items(), ("before", "after"), strict=True):
        orders = [rng.permutation(len(latents.density)) for latents in seeds]
        shuffled[state] = [Latents(*(v[order] for v in of)) for of, order in zip(seeds, orders, strict=True)]
        shuffled_names[side] = [own[order] for own, order in zip(names[side], orders, strict=True)]
    ignored = ["latent", "partner"]
    keys = ["side", "seed", "feature", "cosine"]
    tables = [
        named(independent_fates(of_states), of_names).drop(columns=ignored).sort_values(keys, ignore_index=True)
        for of_states, of_names in ((states, names), (shuffled, shuffled_names))
    ]
    tables = [table[table["feature"] >= 0] for table in tables]
    pd.testing.assert_frame_equal(*tables, rtol=1e-9)


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_without_change_each_share_is_its_floor(seeds):
    """Noise by which fates of all kinds happen between seeds of one state."""
    before, _ = dictionaries(BEFORE, range(seeds), noise=np.linspace(0.02, 0.11, len(BEFORE)))
    table = independent_fates({"pretrained": before, "epoch_001": before})
    assert table["floor_fate"].nunique() >= 3
    assert (table["share_fate"] == table["floor_fate"]).all()
    np.testing.assert_allclose(table["cosine"], table["floor_cosine"], atol=1e-12)


def test_the_floor_of_identical_dictionaries_is_all_kept():
    latents = planted(BEFORE, 0)[0]
    table = independent_fates({"pretrained": [latents] * 3, "best": [planted(AFTER, 1)[0]] * 3})
    assert (table["floor_fate"] == "kept").all()
    assert set(table["share_fate"]) == {"kept", "rotated", "died", "born"} - {"rotated"}


def test_the_seed_that_says_what_is_stable_does_not_say_the_floor():
    """A feature of seeds 0 and 1 only: by the next seed it is stable for seed 0, and the third one does not have it."""
    both, third = planted(BEFORE, 0)[0], planted([*KEPT, *ROTATED], 2)[0]
    table = independent_fates({"pretrained": [both, both, third], "best": [both, both, third]})
    floors = share_table(table.assign(layer=2)).set_index(["side", "fate"])
    of_seed = table[(table["side"] == "before") & (table["seed"] == 0)]["floor_fate"].value_counts()
    assert of_seed["died"] == len(DIED) + FOUND_ONCE
    of_seed = table[(table["side"] == "before") & (table["seed"] == 1)]["floor_fate"].value_counts()
    assert of_seed["unstable"] == len(DIED) + FOUND_ONCE
    expected = (len(DIED) + FOUND_ONCE) / (len(BEFORE) + FOUND_ONCE) / 3
    assert floors.loc[("before", "died"), "floor"] == pytest.approx(expected)
    assert floors.loc[("before", "died"), "share"] == pytest.approx(expected)


def test_two_seeds_have_shares_of_all_latents_and_claims_of_stable_ones():
    states, names = before_and_after(seeds=2)
    table = named(independent_fates(states), names)
    once = table["feature"] == -1
    assert (table.loc[once, "fate"] == "unstable").all()
    gone = np.where(table.loc[once, "side"] == "before", "died", "born")
    assert (table.loc[once, "share_fate"] == gone).all()
    assert (table.loc[once, "floor_fate"] == gone).all()


def test_since_is_the_first_state_at_which_a_latent_was_not_kept():
    before, names_before = dictionaries(BEFORE, range(2))
    states = {"pretrained": before}
    gone_at = [[], [*range(30, 33)], [*range(30, 36)]]
    for i, gone in enumerate(gone_at):
        states[f"epoch_{i + 1:03d}"] = dictionaries(
            [f for f in BEFORE if f not in gone] + [38], range(10 * i, 10 * i + 2)
        )[0]
    table = independent_fates(states)
    own = named(table[table["side"] == "before"], {"before": names_before})
    since = own.groupby("feature")["since"].agg(lambda values: set(values))
    assert all(since[f] == {"epoch_002"} for f in range(30, 33))
    assert all(since[f] == {"epoch_003"} for f in range(33, 36))
    assert all(since[f] == {None} for f in [*range(30), 36, 37])
    born = table[table["fate"] == "born"]
    assert len(born) == 2 * 3
    assert (born["since"] == born["state"]).all()


def test_one_seed_has_no_floor():
    latents = planted(BEFORE, 0)[0]
    with pytest.raises(InputError, match="another seed of the same state, give 2"):
        independent_fates({"pretrained": [latents], "best": [latents]})
    with pytest.raises(InputError, match="2 of pretrained, 1 of best"):
        independent_fates({"pretrained": [latents] * 2, "best": [latents]})
    with pytest.raises(InputError, match="none besides pretrained"):
        independent_fates({"pretrained": [latents] * 2})


# Dictionaries that were continued ------------------------------------------------------------------------------------

NUMBER = 100


def continued(first, degrees, seed, dead=()):
    """`first` with each latent turned by its own angle; the latents `dead` are off."""
    rng = np.random.default_rng(seed)
    across = rng.standard_normal(first.directions.shape)
    across = unit(across - np.sum(across * first.directions, axis=1, keepdims=True) * first.directions)
    density = np.where(np.isin(np.arange(NUMBER), dead), 0.0, 0.02)
    moved = turned(first.directions, np.asarray(degrees)[:, None], across)
    return Latents(moved, density, np.full(NUMBER, 3.0))


@pytest.fixture
def first():
    density = np.where(np.arange(NUMBER) >= 90, 0.0, 0.01)  # 90 to 99 are dead
    return Latents(unit(np.random.default_rng(0).standard_normal((NUMBER, WIDTH))), density, np.full(NUMBER, 2.0))


def test_a_latent_that_keeps_its_number_is_held_against_the_control(first):
    of_control = np.linspace(0, 20, NUMBER)
    of_control[[5, 6]] = 80  # where a dead latent points does not count
    control = continued(first, of_control, 1, dead=[5, 6, 91, 92, *range(93, 100)])
    degrees = np.full(NUMBER, 2.0)
    degrees[10:22] = 60
    after = continued(first, degrees, 2, dead=[4, 5, 92, *range(95, 100)])
    table = stagewise_fates(first, {"best": after}, {"best": control}, seed=3).set_index("latent")
    expected = dict.fromkeys(range(90), "kept") | dict.fromkeys(range(10, 22), "rotated")
    expected |= {4: "died", 5: "unstable", 90: "unstable", 91: "born", 93: "born", 94: "born"}
    assert table["fate"].to_dict() == expected
    alive_in_both = [j for j in range(90) if j not in (5, 6)]
    floor = dict.fromkeys(range(90), "kept") | {6: "died", 5: "unstable", 90: "unstable"}
    floor |= dict.fromkeys([91, 93, 94], "kept") | dict.fromkeys(alive_in_both[-5:], "rotated")  # 5 % of 88: the last 5
    assert table["floor_fate"].to_dict() == floor
    np.testing.assert_allclose(table["cosine"][10:22], 0.5, atol=1e-12)
    np.testing.assert_allclose(table["floor_cosine"], np.cos(np.radians(of_control))[table.index])
    assert (table["norm_ratio"] == 1.5).all()
    assert (table["seed"] == 3).all()
    assert (table.index == table["partner"]).all()


def test_more_of_the_same_training_has_the_shares_of_its_floor(first):
    control = continued(first, np.random.default_rng(3).uniform(0, 40, NUMBER), 1, dead=[1, 2, 3, 98, 99])
    table = stagewise_fates(first, {"best": control}, {"best": control})
    assert (table["share_fate"] == table["floor_fate"]).all()
    assert set(table["fate"]) == {"kept", "rotated", "unstable"}
    assert (table["fate"] == "rotated").sum() == 5  # of 87
    same = stagewise_fates(first, {"best": first}, {"best": first})
    assert (same["fate"] == "kept").all()  # the 5 % quantile of equal cosines is no rotation
    assert len(same) == 90


def test_states_of_a_continued_dictionary_say_when(first):
    still = continued(first, np.full(NUMBER, 1.0), 1, dead=range(90, 100))
    early, late = np.full((2, NUMBER), 0.5)
    early[:3], late[:8] = 50, 50
    after = {"epoch_001": still, "epoch_002": continued(first, early, 1, dead=range(90, 100))}
    after["best"] = continued(first, late, 1, dead=range(91, 100))
    table = stagewise_fates(first, after, dict.fromkeys(after, still))
    since = table.groupby("latent")["since"].agg(lambda values: set(values)).to_dict()
    assert {j for j, found in since.items() if found == {"epoch_002"}} == {0, 1, 2}
    assert {j for j, found in since.items() if found == {"best"}} == {3, 4, 5, 6, 7, 90}
    assert set(table["state"]) == set(after)
    with pytest.raises(InputError, match="none for best; there are epoch_001, epoch_002"):
        stagewise_fates(first, after, {"epoch_001": still, "epoch_002": still})


# One dictionary for all states ---------------------------------------------------------------------------------------


def codes_of(on, value=1.0):
    return scipy.sparse.csr_array(np.asarray(on, dtype=np.float32) * value)


def test_a_shared_dictionary_has_latents_that_are_on_in_one_state_only():
    rng = np.random.default_rng(0)
    texts = np.repeat(np.arange(200), 10)
    densities = np.array([[0.1, 0.1, 0.0, 0.1, 0.1, 0.0], [0.1, 0.0, 0.1, 0.2, 0.1, 0.0]])
    before, after = rng.random((2, 2000, 6)) < densities[:, None]
    before[:, 4] = after[:, 4]  # the same rows, three times as strong
    strength = np.array([1, 1, 1, 1, 3, 1])
    table = shared_fates({"a": codes_of(before), "b": codes_of(after, strength)}, texts, seed=1).set_index("latent")
    for column in ("fate", "share_fate"):
        assert table[column].to_dict() == {0: "kept", 1: "died", 2: "born", 3: "kept", 4: "kept"}  # 5: never on
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
    codes = codes_of(rng.random((3000, 300)) < 0.0007)
    texts = rng.permutation(np.repeat(np.arange(300), 10))  # rows of a text need not stand together
    table = shared_fates({"a": codes, "b": codes}, texts)
    assert (table["share_fate"] == table["floor_fate"]).all()
    assert set(table["floor_fate"]) == {"born", "kept", "died"}
    assert (table["fate"] == "kept").all()
    assert not table["changed"].any()
    assert (table["log_density_ratio"] == 0).all()
    assert (table["q_value"] == 1).all()


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
    table = shared_fates({"a": codes_of(on[0]), "b": codes_of(on[1])}, np.repeat(np.arange(texts), tokens))
    covered = (table["low"] < truth) & (truth < table["high"])
    assert 0.93 < covered.mean() < 0.985
    by_token = 1.96 * np.sqrt(1 / on[0].sum(axis=0) + 1 / on[1].sum(axis=0))  # what tokens as the sample would claim
    assert (np.abs(table["log_density_ratio"] - truth) < by_token).mean() < 0.85
    np.testing.assert_array_equal(table["changed"], (table["low"] > 0) | (table["high"] < 0))
    assert (table["changed"] | (table["q_value"] >= 0.05)).all()
    swapped = shared_fates({"a": codes_of(on[1]), "b": codes_of(on[0])}, np.repeat(np.arange(texts), tokens))
    np.testing.assert_allclose(swapped["low"], -table["high"], atol=1e-10)


def test_a_latent_of_one_text_proves_no_change():
    on = np.zeros((100, 2), dtype=bool)
    on[:10, 0] = True  # all in text 0
    on[::5, 1] = True  # two in each of the 10 texts
    off = np.zeros((100, 2), dtype=bool)
    off[9, 0] = True
    table = shared_fates({"a": codes_of(on), "b": codes_of(off)}, np.repeat(np.arange(10), 10))
    assert table["changed"].tolist() == [False, True]
    assert table[["low", "high"]].to_numpy()[0].tolist() == [-np.inf, np.inf]


def test_few_texts_have_students_quantile():
    """Gone from 5 of 200 texts: beyond 1.96 standard errors, which five texts do not estimate well enough."""
    on = np.arange(200)[:, None] < [5, 9]
    table = shared_fates({"a": codes_of(on), "b": codes_of(np.zeros((200, 2)))}, np.arange(200))
    assert table["changed"].tolist() == [False, True]
    error = np.sqrt(200 / 199 * (5 - 25 / 200))
    assert table["p_value"][0] == pytest.approx(2 * student_t.sf(5 / error, 4))


def test_codes_of_other_rows_are_an_input_error():
    codes = codes_of(np.eye(4))
    with pytest.raises(InputError, match=r"codes of b: \(3, 4\)"):
        shared_fates({"a": codes, "b": codes[:3]}, np.arange(4))
    with pytest.raises(InputError, match="one text"):
        shared_fates({"a": codes, "b": codes}, np.zeros(4))


# Shares --------------------------------------------------------------------------------------------------------------


def test_shares_are_means_over_seeds_with_students_interval():
    states, _ = before_and_after()
    shares = share_table(pd.concat([independent_fates(states).assign(layer=layer) for layer in (2, 4)]))
    assert shares.groupby(["layer", "side"], sort=False)["share"].sum().to_list() == pytest.approx([1] * 4)
    assert shares.groupby(["layer", "side"], sort=False)["floor"].sum().to_list() == pytest.approx([1] * 4)
    row = shares.set_index(["layer", "side", "fate"]).loc[(4, "before", "died")]
    assert row["share"] == pytest.approx(len(DIED) / (len(BEFORE) + FOUND_ONCE))
    assert (row["floor"], row["num_seeds"], row["num_latents"]) == (0, 3, len(BEFORE) + FOUND_ONCE)
    made = pd.DataFrame(
        {"comparison": "shared", "layer": 2, "state": "best", "side": "both", "seed": [0] * 4 + [1] * 4 + [2] * 5}
    )
    made["share_fate"] = ["died", *["kept"] * 3] * 2 + ["died", "died", *["kept"] * 3]
    made["floor_fate"] = ["died", *["kept"] * 3] + ["kept"] * 9
    row = share_table(made).set_index("fate").loc["died"]
    for column, values in (("share", [0.25, 0.25, 0.4]), ("floor", [0.25, 0, 0]), ("excess", [0, 0.25, 0.4])):
        mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(3)
        expected = np.array([mean, *student_t.interval(0.95, 2, mean, error)])
        expected = expected if column == "excess" else expected.clip(0, 1)
        np.testing.assert_allclose(row[[column, f"{column}_low", f"{column}_high"]].to_numpy(dtype=float), expected)
    one = share_table(made[made["seed"] == 0]).set_index("fate").loc["died"]
    assert one["share"] == 0.25
    assert np.isnan(one["share_low"])
    with pytest.raises(InputError, match="no column layer"):
        share_table(made.drop(columns="layer"))
