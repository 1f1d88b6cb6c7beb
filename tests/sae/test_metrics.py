"""Measures of a code: dense float64 formulas, whatever the blocks."""

import numpy as np
import pytest
import torch

from bertdyn.sae.dictionary import Dictionary, decode, encode
from bertdyn.sae.metrics import Basis, basis_of, measure

WIDTH, LATENTS = 8, 20


def make_rows(n=300, offset=100.0):
    """Far from 0 and with an outlier dimension, as layer outputs are."""
    rows = np.random.default_rng(0).normal(size=(n, WIDTH)) + offset
    rows[:, 3] *= 50
    return torch.from_numpy(rows)


def rectangle(seed=0):
    """A basis without rounding between blocks: each row alone, in float64."""
    matrix = torch.from_numpy(np.random.default_rng(seed).normal(size=(WIDTH, LATENTS)))

    def code(rows):
        return torch.stack([torch.relu((row - 100) @ matrix - 2) for row in rows])

    return Basis(code, lambda codes: torch.stack([one @ matrix.T / 10 + 100 for one in codes]))


def blocks_of(rows, *cuts):
    return [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]


def test_equals_the_dense_formulas():
    rows, basis = make_rows(), rectangle()
    scale = rows.std(dim=0)
    x, codes = rows.numpy(), basis.encode(rows).numpy()
    x_hat = basis.decode(torch.from_numpy(codes)).numpy()
    found = measure(basis, blocks_of(rows, 1, 1, 37, 200), scale)
    assert found.rows == 300
    assert found.fvu == pytest.approx(((x - x_hat) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum(), rel=1e-10)
    z, z_hat = x / scale.numpy(), x_hat / scale.numpy()
    standardised = ((z - z_hat) ** 2).sum() / ((z - z.mean(axis=0)) ** 2).sum()
    assert found.fvu_standardised == pytest.approx(standardised, rel=1e-10)
    assert abs(found.fvu - found.fvu_standardised) > 0.01
    on = codes != 0
    np.testing.assert_array_equal(found.density, on.mean(axis=0))
    np.testing.assert_array_equal(found.on_counts, np.bincount(on.sum(axis=1), minlength=LATENTS + 1))
    assert found.l0 == pytest.approx(on.sum(axis=1).mean(), rel=1e-12)
    for share in (0.05, 0.5, 0.95):
        expected = np.quantile(on.sum(axis=1), share, method="inverted_cdf")
        assert found.l0_quantile(share) == expected


def test_blocks_are_the_whole():
    rows, basis = make_rows(), rectangle()
    whole, parts = measure(basis, [rows], rows.std(dim=0)), measure(basis, rows.split(7), rows.std(dim=0))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_mean_is_at_1_and_the_rows_themselves_at_0(offset):
    rows = make_rows(offset=offset)
    mean, scale = rows.mean(dim=0), rows.std(dim=0)
    constant = measure(Basis(lambda rows: 0 * rows[:, :1], lambda codes: codes + mean), [rows], scale)
    assert constant.fvu == pytest.approx(1, abs=1e-10)
    assert constant.fvu_standardised == pytest.approx(1, abs=1e-10)
    same = measure(Basis(lambda rows: rows, lambda codes: codes), rows.split(50), scale)
    assert (same.fvu, same.fvu_standardised, same.l0, same.dense_share) == (0, 0, WIDTH, 1)


def test_dead_and_dense_latents():
    """Latent 0 never, 1 once, 2 in exactly a tenth, 3 in more, 4 always."""
    codes = torch.zeros(100, 5)
    codes[7, 1], codes[:10, 2], codes[:11, 3], codes[:, 4] = 1, 1, 0.5, 2
    found = measure(Basis(lambda rows: codes, lambda codes: make_rows(100)), [make_rows(100)], torch.ones(WIDTH))
    assert found.dead_share == pytest.approx(0.2)
    assert found.dense_share == pytest.approx(0.4)
    assert found.l0 == pytest.approx((1 + 10 + 11 + 100) / 100)


def test_half_precision_rows_of_a_dictionary():
    """The stored rows, float16, are measured as they are."""
    torch.manual_seed(0)
    encoder, decoder = torch.randn(WIDTH, LATENTS), torch.randn(LATENTS, WIDTH)
    zeros = torch.zeros(LATENTS)
    mean, scale = torch.full((WIDTH,), 3.0), torch.ones(WIDTH)
    dictionary = Dictionary("topk", 4, encoder, zeros, decoder, mean, torch.tensor(0.0), mean, scale)
    rows = (torch.randn(50, WIDTH) + 3).half()
    found = measure(basis_of(dictionary), rows.split(9), scale)
    x, x_hat = rows.double(), decode(dictionary, encode(dictionary, rows)).double()
    expected = float((x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum())
    assert found.fvu == pytest.approx(expected, rel=1e-5)
    assert found.l0 <= 4


def test_rows_that_are_alike_and_no_rows():
    alike = measure(Basis(lambda rows: rows, lambda codes: codes + 1), [make_rows(1).repeat(9, 1)], torch.ones(WIDTH))
    assert np.isnan(alike.fvu)
    with pytest.raises(ValueError, match="no rows"):
        measure(rectangle(), [make_rows(0)], torch.ones(WIDTH))
