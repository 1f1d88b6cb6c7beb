"""Training: many dictionaries as if alone, resumed as if uninterrupted, known features found again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from bertdyn.errors import InputError
from bertdyn.features.rows import RowDataset
from bertdyn.sae.dictionaries import Dictionaries
from bertdyn.sae.dictionary import decode, encode
from bertdyn.sae.rows import RowBatches, TrainingRows, standardisation_of
from bertdyn.sae.training import Place, Recipe, exported, make_dictionaries, train_dictionaries

SMALL = Recipe(num_latents=24, k=3, num_epochs=3, batch_size=32, warmup_steps=5, dead_after=4)


class Rows(RowDataset):
    """Rows in memory instead of a store's."""

    def __init__(self, arrays: np.ndarray) -> None:
        self._arrays, self._rows = [list(of) for of in arrays], np.arange(arrays.shape[2])


def drawn(states: int, layers: int, rows: int = 200) -> Rows:
    """Rows as those of BERT: a large mean, and one dimension with a far larger spread."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(states, layers, 8, 8))
    found = np.einsum("nw,slwv->slnv", generator.laplace(size=(rows, 8)), mixing)
    found[..., 3] *= 30
    return Rows((found + 10 * generator.normal(size=(states, layers, 1, 8))).astype(np.float32))


def training_rows(rows: Rows, **options: bool) -> TrainingRows:
    names = [[f"state {s} layer {n}" for n in range(len(of))] for s, of in enumerate(rows._arrays)]
    return TrainingRows([rows], [standardisation_of(rows, names)], **options)


def trained(rows: TrainingRows, recipe: Recipe, seeds: list[int], state_file: Path | None = None) -> Dictionaries:
    model = make_dictionaries(rows, recipe, seeds)
    train_dictionaries(Accelerator(cpu=True), model, rows, recipe, seed=0, state_file=state_file)
    return model


def test_rows_are_centred_by_state_and_scaled_alike_in_all() -> None:
    rows = drawn(2, 3)
    rows._arrays[1] = [array * 2 for array in rows._arrays[1]]
    standard = training_rows(rows)
    batch = standard.batch(np.arange(len(rows))).unflatten(0, (2, 3)).double()
    torch.testing.assert_close(batch.mean(dim=2), torch.zeros(2, 3, 8, dtype=torch.float64), rtol=0, atol=1e-5)
    lengths = batch.square().sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(lengths.mean(dim=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(lengths.flatten().float(), standard.variance, rtol=1e-5, atol=0)
    raw = rows.batch(np.arange(len(rows))).double()
    spread = (raw - raw.mean(dim=2, keepdim=True)).square().mean(dim=2).mean(dim=0).sqrt()
    np.testing.assert_allclose(standard.deviation[0], spread.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(standard.deviation[0], standard.deviation[1])


def test_a_dimension_that_hardly_varies_is_not_blown_up() -> None:
    rows = drawn(2, 1)
    for state, spread in zip(rows._arrays, (0.0, 1e-6), strict=True):
        state[0][:, 5] = 1 + spread * np.random.default_rng(1).normal(size=len(rows))
    standard = training_rows(rows)
    batch = standard.batch(np.arange(len(rows)))
    assert torch.isfinite(batch).all()
    assert batch[:, :, 5].abs().max() < 1e-3
    rows._arrays = [[np.ones_like(array) for array in state] for state in rows._arrays]
    with pytest.raises(InputError, match="state 0 layer 0: all rows are the same"):
        training_rows(rows)


def test_a_row_that_is_not_finite_is_named() -> None:
    rows = drawn(2, 2)
    rows._arrays[1][0][150, 4] = np.nan
    with pytest.raises(InputError, match="state 1 layer 0 has rows that are not finite"):
        training_rows(rows)


def test_an_epoch_is_every_row_once_in_the_order_of_seed_and_epoch() -> None:
    rows = drawn(1, 1, rows=64)
    batches = RowBatches(training_rows(rows), 16, seed=3)

    def order(epoch: int) -> torch.Tensor:
        batches.set_epoch(epoch)
        return torch.cat([batch["rows"][0] for batch in batches])

    first, second = order(1), order(2)
    assert len(first) == 64
    assert not torch.equal(first, second)
    assert torch.equal(first, order(1))
    assert torch.equal(first.sort(dim=0)[0], second.sort(dim=0)[0])


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "relu"])
def test_each_of_many_is_what_it_would_be_alone(activation: str) -> None:
    recipe = Recipe(**{**SMALL.__dict__, "activation": activation, "l1_coefficient": 0.1 * (activation == "relu")})
    rows = drawn(2, 2)
    together = trained(training_rows(rows), recipe, [0, 1])
    for number, (seed, state, layer) in enumerate(np.ndindex(2, 2, 2)):
        alone = Rows(np.array(rows._arrays)[state : state + 1, layer : layer + 1])
        single = TrainingRows([alone], [standardisation_of(alone, [["row"]])])
        whole = training_rows(rows)
        # the scale is common to the states of a layer, here as there
        single._factor, single.variance = (
            whole._factor[state : state + 1, layer : layer + 1],
            whole.variance[state * 2 + layer][None],
        )
        model = make_dictionaries(single, recipe, [seed])
        train_dictionaries(Accelerator(cpu=True), model, single, recipe, seed=0)
        for one, other in zip(model.parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(one[0], other[number], rtol=1e-3, atol=2e-5)
    assert not torch.allclose(together.encoder[0], together.encoder[4])


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    rows = training_rows(drawn(2, 1))
    whole = trained(rows, SMALL, [0, 1], tmp_path / "whole.safetensors")
    interrupted = make_dictionaries(rows, SMALL, [0, 1])
    broken = RuntimeError("killed")
    seen = 0

    def dies(*_: object) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen > 16:  # in the third epoch
            raise broken
        return original(*_)

    original, rows.batch = rows.batch, dies  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="killed"):
        train_dictionaries(
            Accelerator(cpu=True), interrupted, rows, SMALL, seed=0, state_file=tmp_path / "cut.safetensors"
        )
    rows.batch = original  # type: ignore[method-assign]
    resumed = trained(rows, SMALL, [0, 1], tmp_path / "cut.safetensors")
    assert any((value != 0).any() for value in [whole.idle])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "relu"])
@pytest.mark.parametrize("pooled", [False, True])
def test_an_exported_dictionary_reconstructs_raw_rows_as_the_model_does_standardised_ones(
    activation: str, pooled: bool
) -> None:
    recipe = Recipe(**{**SMALL.__dict__, "activation": activation})
    rows = drawn(2, 2)
    standard = training_rows(rows, pooled=pooled)
    model = trained(standard, recipe, [0])
    everything = np.arange(len(rows))
    with torch.no_grad():
        reconstruction, fired, _ = model(standard.batch(everything))
    if pooled:
        reconstruction = reconstruction.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 1)
    found = exported(model, standard)
    raw = rows.batch(everything)
    for state, layer in np.ndindex(2, 2):
        dictionary = found[Place(0, state, layer)]
        codes = encode(dictionary, raw[state, layer])
        if activation == "batch_topk":  # one threshold for all batches
            continue
        expected = reconstruction[state * 2 + layer] / standard._factor[state, layer] + standard._shift[state, layer]
        torch.testing.assert_close(decode(dictionary, codes), expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(dictionary.directions.norm(dim=1), torch.ones(24))
    if activation == "batch_topk":
        on = [encode(found[Place(0, *at)], raw[at]).count_nonzero() for at in np.ndindex(2, 2)]
        per_row = torch.stack(on).float().mean() / len(rows)
        assert per_row == pytest.approx(3, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["topk", "batch_topk"])
def test_known_features_are_found_again(activation: str) -> None:
    """Superposition: 256 true directions in 64 dimensions, Zipf rates, 4 a row on average, an offset."""
    generator = np.random.default_rng(0)
    true = generator.normal(size=(256, 64))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    rates = 1 / np.arange(1, 257) ** 0.5
    rates *= 4 / rates.sum()
    codes = (generator.random((120_000, 256)) < rates) * generator.uniform(0.5, 1.5, size=(120_000, 256))
    rows = Rows((codes @ true + generator.normal(size=64))[None, None].astype(np.float32))
    standard = training_rows(rows)
    recipe = Recipe(activation=activation, num_latents=512, k=6, num_epochs=8, batch_size=512)
    dictionary = exported(trained(standard, recipe, [0]), standard)[Place(0, 0, 0)]
    directions = torch.nn.functional.normalize(dictionary.decoder, dim=1)
    cosines = (torch.from_numpy(true).float() @ directions.t()).amax(dim=1)
    assert (cosines > 0.9).float().mean() > 0.95
    shuffled = torch.from_numpy(generator.permuted(true, axis=1)).float() @ directions.t()
    assert (shuffled.amax(dim=1) > 0.9).float().mean() < 0.02  # nothing is found that is not there
