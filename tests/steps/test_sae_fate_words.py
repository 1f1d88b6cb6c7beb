"""What a report says of fates is what stands in the tables."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from bertdyn.geometry.cosines import unit
from bertdyn.sae.fates import Latents, share_table
from bertdyn.sae.independent_fates import independent_fates
from bertdyn.sae.shared_fates import shared_fates
from bertdyn.sae.stagewise_fates import stagewise_fates
from bertdyn.steps.sae_fate_words import fate_lines

STATES = ["pretrained", "best"]
LATENTS, WIDTH = 40, 80


def turned(degrees):
    """Orthogonal directions, each turned by an angle towards one of its own."""
    angle = np.radians(np.broadcast_to(degrees, LATENTS))[:, None]
    directions = np.eye(WIDTH)
    return np.cos(angle) * directions[:LATENTS] + np.sin(angle) * directions[LATENTS:]


def latents(degrees=0.0, alive=slice(None)):
    density = np.zeros(LATENTS)
    density[alive] = 0.05
    return Latents(turned(degrees), density, np.ones(LATENTS), 20_000)


def words(*tables):
    fates = pd.concat([table.assign(layer=4) for table in tables], ignore_index=True)
    return list(fate_lines(share_table(fates), fates, STATES))


def independent(seeds):
    before = [latents(seed) for seed in range(seeds)]
    after = [latents(80 + seed, slice(10, None)) for seed in range(seeds)]
    return independent_fates({"pretrained": before, "best": after})


def test_three_seeds_tell_fates_of_stable_latents():
    found = words(independent(3))
    assert "| 4 | 40 of 40 (100.0%) | 30 of 30 (100.0%) | 0.17 | 1.00 |" in found
    assert "| 4 | kept | 0.0% | 100.0% | -100.0 points (-100.0 … -100.0) |" in found
    assert "| 4 | died | 100.0% | 0.0% | +100.0 points (+100.0 … +100.0) |" in found
    assert "| 4 | born | 100.0% | 0.0% | +100.0 points (+100.0 … +100.0) |" in found
    assert any("over seeds of dictionaries, of one fine-tuning" in line for line in found)
    assert not any("unstable" in line or "-0.0" in line for line in found)


def test_two_seeds_tell_how_alike_latents_are_and_no_shares():
    found = words(independent(2))
    assert any(line.startswith("**Two seeds tell no fate**") for line in found)
    assert "| 4 | 40 of 40 (100.0%) | 30 of 30 (100.0%) | 0.16 | 1.00 |" in found
    tables = [line for line in found if line.startswith("|")]
    assert len(tables) == 3  # and none of fates
    assert any("no intervals" in line for line in found)


def test_seeds_that_have_nothing_in_common_have_no_fates():
    rng = np.random.default_rng(0)
    seeds = [latents()._replace(directions=unit(rng.standard_normal((LATENTS, WIDTH)))) for _ in range(6)]
    found = words(independent_fates({"pretrained": seeds[:3], "best": seeds[3:]}))
    assert any(line.startswith("| 4 | 0 of 40 (0.0%) | 0 of 40 (0.0%) |") for line in found)
    assert len([line for line in found if line.startswith("|")]) == 3
    assert not any("Two seeds" in line for line in found)


def test_turned_latents_stand_beside_their_angles():
    """All of them turned more than the control, and by little; latents that are not alive at both ends do not count."""
    before, dead = latents(), slice(6, None)
    table = stagewise_fates(before, {"best": latents(13, dead)}, {"best": latents(np.linspace(8, 10, LATENTS), dead)})
    found = words(table)
    turned_rows = [line for line in found if line.startswith("| 4 | turned | 85.0% | ")]
    assert len(turned_rows) == 1
    assert "| 4 | median angle | 13.0° | 9.2° | +3.8° |" in found  # 9.2 of latents 6 to 39
    assert not any("rotated" in line for line in found)


def test_changed_densities_and_norms_stand_beside_two_halves_of_the_texts():
    rng = np.random.default_rng(3)
    texts = np.repeat(np.arange(300), 10)
    before = rng.random((3000, 10)) < 0.1
    after = rng.random((3000, 10)) < np.repeat([0.1, 0.35, 0.1], [5, 4, 1])
    strength = np.repeat([1.0, 3.0], [9, 1])  # the last: as often, and stronger
    codes = {"pretrained": scipy.sparse.csr_array(before * 1.0), "best": scipy.sparse.csr_array(after * strength)}
    found = words(shared_fates(codes, texts, np.eye(next(iter(codes.values())).shape[1])))
    assert "| 4 | doubled | 40.0% | 0.0% | +40.0 points |" in found
    assert "| 4 | kept | 60.0% | 100.0% | -40.0 points |" in found
    assert "| 4 | norm ×2 or more | 10.0% | 0.0% | +10.0 points |" in found
    assert "| 4 | norm ×0.5 or less | 0.0% | 0.0% | +0.0 points |" in found
    of_halves = shared_fates(codes, texts, np.eye(next(iter(codes.values())).shape[1]))
    assert of_halves["share_norm_ratio"][9] == pytest.approx(3, rel=0.2)


def test_one_state_says_nothing():
    assert list(fate_lines(pd.DataFrame(), pd.DataFrame(), ["pretrained"])) == []
