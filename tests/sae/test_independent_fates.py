"""Planted truth: dictionaries made of known directions, so that every fate is known."""

import numpy as np
import pandas as pd
import pytest

from bertdyn.errors import InputError
from bertdyn.geometry.cosines import unit
from bertdyn.sae.fates import Latents, share_table
from bertdyn.sae.independent_fates import independent_fates

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
    directions = np.concatenate([true, own])[order].astype(np.float32)
    return Latents(directions, density, strength * (names[order] + 3.0), 20_000), names[order]


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
        shuffled[state] = [
            Latents(*(v[order] for v in of[:3]), of.num_rows) for of, order in zip(seeds, orders, strict=True)
        ]
        shuffled_names[side] = [own[order] for own, order in zip(names[side], orders, strict=True)]
    ignored = ["latent", "partner"]
    keys = ["side", "seed", "feature", "cosine"]
    tables = [
        named(independent_fates(of_states), of_names).drop(columns=ignored).sort_values(keys, ignore_index=True)
        for of_states, of_names in ((states, names), (shuffled, shuffled_names))
    ]
    tables = [table[table["feature"] >= 0] for table in tables]
    pd.testing.assert_frame_equal(*tables, rtol=1e-9)


@pytest.mark.parametrize("seeds", [3, 4])
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
    of_stable = (len(DIED) + FOUND_ONCE) / (len(BEFORE) + FOUND_ONCE)  # of seed 0; the others have none that dies
    assert floors.loc[("before", "died"), "floor"] == pytest.approx(of_stable / 3)
    assert floors.loc[("before", "died"), "share"] == pytest.approx(of_stable / 3)


def test_two_seeds_tell_how_alike_latents_are_and_no_fate():
    states, names = before_and_after(seeds=2)
    table = named(independent_fates(states), names)
    assert (table[["fate", "share_fate", "floor_fate"]] == "").all(axis=None)
    assert (table["partner"] == -1).all()
    assert table["since"].isna().all()
    assert table[["norm_ratio", "floor_norm_ratio"]].isna().all(axis=None)
    assert share_table(table.assign(layer=2)).empty
    planted_there = table["feature"] >= 0
    assert (table.loc[planted_there, "floor_cosine"] > 0.93).all()
    assert (table.loc[~planted_there, "floor_cosine"] < 0.7).all()
    same = table[table["feature"].isin(KEPT)]
    np.testing.assert_allclose(same["cosine"], same["floor_cosine"], atol=0.05)
    assert (table.loc[table["feature"].isin([*ROTATED, *DIED, *BORN]), "cosine"] < 0.75).all()


def test_a_latent_on_in_a_row_of_a_few_hundred_is_not_alive():
    """A density of 0.002 is one row of 800, and 400 of 200,000."""
    latents = planted(BEFORE, 0)[0]
    density = np.where(np.arange(len(latents.density)) < 7, 0.002, 0.02)
    for num_rows, dead in ((800, range(7)), (200_000, [])):
        seeds = [latents._replace(density=density, num_rows=num_rows)] * 3
        table = independent_fates({"pretrained": seeds, "best": seeds})
        assert set(table["latent"]) == set(range(len(density))) - set(dead)


def test_since_is_the_first_state_at_which_a_latent_was_not_kept():
    before, names_before = dictionaries(BEFORE, range(3))
    states = {"pretrained": before}
    gone_at = [[], [*range(30, 33)], [*range(30, 36)]]
    for i, gone in enumerate(gone_at):
        states[f"epoch_{i + 1:03d}"] = dictionaries(
            [f for f in BEFORE if f not in gone] + [38], range(10 * i, 10 * i + 3)
        )[0]
    table = independent_fates(states)
    own = named(table[table["side"] == "before"], {"before": names_before})
    since = own.groupby("feature")["since"].agg(lambda values: set(values))
    assert all(since[f] == {"epoch_002"} for f in range(30, 33))
    assert all(since[f] == {"epoch_003"} for f in range(33, 36))
    assert all(since[f] == {None} for f in [*range(30), 36, 37])
    born = table[table["fate"] == "born"]
    assert len(born) == 3 * 3
    assert (born["since"] == born["state"]).all()


def test_one_seed_has_no_floor():
    latents = planted(BEFORE, 0)[0]
    with pytest.raises(InputError, match="another seed of the same state, give 3"):
        independent_fates({"pretrained": [latents], "best": [latents]})
    with pytest.raises(InputError, match="2 of pretrained, 1 of best"):
        independent_fates({"pretrained": [latents] * 2, "best": [latents]})
    with pytest.raises(InputError, match="none besides pretrained"):
        independent_fates({"pretrained": [latents] * 2})
