"""Dictionaries whose latents keep their numbers, turned by known angles."""

import numpy as np
import pytest

from bertdyn.errors import InputError
from bertdyn.geometry.cosines import unit
from bertdyn.sae.fates import Latents
from bertdyn.sae.stagewise_fates import stagewise_fates
from tests.sae.test_independent_fates import WIDTH, turned

NUMBER = 100


def continued(first, degrees, seed, dead=()):
    """`first` with each latent turned by its own angle; the latents `dead` are off."""
    rng = np.random.default_rng(seed)
    across = rng.standard_normal(first.directions.shape)
    across = unit(across - np.sum(across * first.directions, axis=1, keepdims=True) * first.directions)
    density = np.where(np.isin(np.arange(NUMBER), dead), 0.0, 0.02)
    moved = turned(first.directions, np.asarray(degrees)[:, None], across)
    return Latents(moved, density, np.full(NUMBER, 3.0), 20_000)


@pytest.fixture
def first():
    density = np.where(np.arange(NUMBER) >= 90, 0.0, 0.01)  # 90 to 99 are dead
    return Latents(
        unit(np.random.default_rng(0).standard_normal((NUMBER, WIDTH))), density, np.full(NUMBER, 2.0), 20_000
    )


def test_a_latent_that_keeps_its_number_is_held_against_the_control(first):
    of_control = np.linspace(0, 20, NUMBER)
    of_control[[5, 6]] = 80  # where a dead latent points does not count
    control = continued(first, of_control, 1, dead=[5, 6, 91, 92, *range(93, 100)])
    degrees = np.full(NUMBER, 2.0)
    degrees[10:22] = 60
    after = continued(first, degrees, 2, dead=[4, 5, 92, *range(95, 100)])
    table = stagewise_fates(first, {"best": after}, {"best": control}, seed=3).set_index("latent")
    expected = dict.fromkeys(range(90), "kept") | dict.fromkeys(range(10, 22), "turned")
    expected |= {4: "died", 5: "unstable", 90: "unstable", 91: "born", 93: "born", 94: "born"}
    assert table["fate"].to_dict() == expected
    alive_in_both = [j for j in range(90) if j not in (5, 6)]
    floor = dict.fromkeys(range(90), "kept") | {6: "died", 5: "unstable", 90: "unstable"}
    floor |= dict.fromkeys([91, 93, 94], "kept") | dict.fromkeys(alive_in_both[-5:], "turned")  # 5 % of 88: the last 5
    assert table["floor_fate"].to_dict() == floor
    np.testing.assert_allclose(table["cosine"][10:22], 0.5, atol=1e-12)
    np.testing.assert_allclose(table["floor_cosine"], np.cos(np.radians(of_control))[table.index])
    assert (table[["norm_ratio", "share_norm_ratio", "floor_norm_ratio"]] == 1.5).all(axis=None)
    assert (table["seed"] == 3).all()
    assert (table.index == table["partner"]).all()


def test_more_of_the_same_training_has_the_shares_of_its_floor(first):
    control = continued(first, np.random.default_rng(3).uniform(0, 40, NUMBER), 1, dead=[1, 2, 3, 98, 99])
    table = stagewise_fates(first, {"best": control}, {"best": control})
    assert (table["share_fate"] == table["floor_fate"]).all()
    assert set(table["fate"]) == {"kept", "turned", "unstable"}
    assert (table["fate"] == "turned").sum() == 5  # of 87
    same = stagewise_fates(first, {"best": first}, {"best": first})
    assert (same["fate"] == "kept").all()  # the 5 % quantile of equal cosines turns nothing
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


def test_rows_that_are_few_make_no_latent_alive(first):
    few, after = (of._replace(num_rows=400) for of in (first, continued(first, np.zeros(NUMBER), 1)))
    table = stagewise_fates(few, {"best": after}, {"best": after})
    assert len(table) == NUMBER  # 8 rows of 400 are a density of 0.02: alive after, none before
    assert (table["fate"] == "unstable").all()
