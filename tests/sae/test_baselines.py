"""Baselines: scikit-learn's components, and random directions that are scaled as well as they can be."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from bertdyn.geometry.moments import Moments
from bertdyn.sae.baselines import pca_basis, random_dictionary
from bertdyn.sae.dictionary import encode
from bertdyn.sae.metrics import basis_of, measure

WIDTH = 12


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(500, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) * np.linspace(1, 30, WIDTH) + 40


def test_components_are_those_of_scikit_learn_on_standardised_rows(rows):
    scale, origin = rows.std(axis=0), rows[:50].mean(axis=0)
    basis = pca_basis(Moments.of(rows - origin), 4, origin=origin, scale=torch.from_numpy(scale))
    reference = PCA(4).fit(rows / scale)
    expected = reference.inverse_transform(reference.transform(rows / scale)) * scale
    np.testing.assert_allclose(basis(torch.from_numpy(rows)), expected, atol=1e-9)
    found = measure(basis, torch.from_numpy(rows).split(60), torch.from_numpy(scale))
    assert found.fvu_standardised == pytest.approx(1 - reference.explained_variance_ratio_.sum(), rel=1e-9)
    assert (found.l0, found.dead_share, found.l0_quantile(0.05)) == (4, 0, 4)


def test_all_components_lose_nothing_and_more_are_refused(rows):
    moments, origin = Moments.of(rows), np.zeros(WIDTH)
    basis = pca_basis(moments, WIDTH, origin=origin, scale=torch.ones(WIDTH))
    np.testing.assert_allclose(basis(torch.from_numpy(rows)), rows, atol=1e-9)
    assert basis(torch.from_numpy(rows).half()).dtype == torch.float32
    with pytest.raises(ValueError, match="13 principal components of 12 dimensions: accepted are 1 to 12"):
        pca_basis(moments, 13, origin=origin, scale=torch.ones(WIDTH))


def test_random_directions_are_scaled_as_well_as_they_can_be(rows):
    blocks = torch.from_numpy(rows).float().split(100)
    mean, scale = torch.from_numpy(rows.mean(axis=0)), torch.from_numpy(rows.std(axis=0))
    dictionary = random_dictionary(blocks, mean, scale, num_latents=60, k=5, seed=0)
    lengths = (dictionary.decoder / dictionary.scale).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(60))
    assert measure(basis_of(dictionary), blocks, scale).l0_quantile(1) == 5

    def fvu(gain):
        scaled = dictionary._replace(encoder=dictionary.encoder * gain, encoder_bias=dictionary.encoder_bias * gain)
        return measure(basis_of(scaled), blocks, scale).fvu_standardised

    best = fvu(1)
    assert best < min(fvu(0.97), fvu(1.03), 1.0)
    # a parabola in the gain, 1 at gain 0: its minimum is at 1
    assert 1 - best == pytest.approx((fvu(2) - best), rel=1e-4)


def test_random_codes_are_the_largest_projections(rows):
    x = torch.from_numpy(rows)
    mean, scale = x.mean(dim=0), x.std(dim=0)
    dictionary = random_dictionary(x.split(100), mean, scale, num_latents=60, k=5, seed=0)
    codes = encode(dictionary, x)
    along = ((x - mean) / scale).float() @ dictionary.directions.T
    ratio = codes[codes > 0] / along[codes > 0]
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-4, atol=0)
    assert torch.equal((codes > 0).sum(dim=1), torch.full((500,), 5))
    assert torch.where(codes > 0, -torch.inf, along).amax(dim=1).le(along.topk(5).values[:, -1]).all()


def test_random_directions_are_a_function_of_the_seed(rows):
    blocks = [torch.from_numpy(rows).float()]
    make = {"mean": torch.zeros(WIDTH), "scale": torch.ones(WIDTH), "num_latents": 30, "k": 3}
    one, same, other = (random_dictionary(blocks, **make, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.encoder, same.encoder)
    assert not torch.allclose(one.encoder, other.encoder)
    with pytest.raises(ValueError, match="k = 31 of 30 latents"):
        random_dictionary(blocks, **make | {"k": 31}, seed=0)
