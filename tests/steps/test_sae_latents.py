"""Which fates are made is what was asked for, not what happened to be trained."""

import numpy as np
import pytest
import torch

from bertdyn.sae.dictionary import Dictionary
from bertdyn.sae.naming import CONTROL, Name
from bertdyn.steps.sae_latents import latent_tables
from bertdyn.steps.sae_rows import part_rows
from tests.features.test_aligned import write_store

STATES, WIDTH, LATENTS = ["pretrained", "best"], 6, 12
SEEDS = [7, 5, 6]
TEXTS = [("probe", ["[" + "abcdefghij" * 3 + "]"])] * 4


def dictionary(seed):
    decoder = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=torch.manual_seed(seed)), dim=1)
    zeros, ones = torch.zeros(WIDTH), torch.ones(WIDTH)
    return Dictionary("topk", 3, decoder.T, torch.zeros(LATENTS), decoder, zeros, torch.tensor(0.0), zeros, ones)


@pytest.mark.parametrize(
    "wanted", [("stagewise",), ("shared", "stagewise"), ("independent",), ("shared", "stagewise", "independent")]
)
def test_fates_are_those_that_were_asked_for(tmp_path, wanted):
    rng = np.random.default_rng(0)
    store = write_store(
        tmp_path / "store", {state: {1: rng.normal(size=(128, WIDTH)).astype(np.float32)} for state in STATES}, TEXTS
    )
    rows = part_rows(store, STATES, [1], "content", ["probe"])
    names = [
        Name(comparison, state, 1, seed, 3.0)
        for comparison in ("shared", "stagewise", "independent", CONTROL)
        for state in STATES
        for seed in SEEDS
    ]
    made = {name: dictionary(number) for number, name in enumerate(names)}
    found = latent_tables(made, dict.fromkeys(STATES, rows), STATES, [1], 2, comparisons=wanted)
    assert set(found.fates["comparison"]) == set(wanted)
    assert set(found.features["comparison"]) == {"shared", "stagewise", "independent"}  # measured all the same
    assert set(found.shares["comparison"]) <= set(wanted)
    assert set(found.fates["seed"]) == set(SEEDS)
    assert set(found.fates["partner_seed"]) <= {*SEEDS, -1}
