import pytest
import torch

from bertdyn.sae.dictionaries import Dictionaries
from bertdyn.sae.objective import auxiliary_loss, find_dead, sparsity_loss, squared_error
from bertdyn.sae.sparse import Weights, sparse_autoencoder

NUM, BATCH, WIDTH, LATENTS, K = 3, 7, 5, 11, 4


def dense_codes(rows: torch.Tensor, weights: Weights, over_batch: bool) -> torch.Tensor:
    activations = torch.einsum("nbw,nlw->nbl", rows, weights.encoder) + weights.encoder_bias[:, None]
    if over_batch:
        flat = activations.flatten(1)
        values, index = flat.topk(K * BATCH)
        return torch.zeros_like(flat).scatter(1, index, values.relu()).view_as(activations)
    values, index = activations.topk(K)
    return torch.zeros_like(activations).scatter(-1, index, values.relu())


def drawn() -> tuple[torch.Tensor, Weights]:
    torch.manual_seed(0)
    shapes = (NUM, LATENTS, WIDTH), (NUM, LATENTS), (NUM, LATENTS, WIDTH), (NUM, WIDTH)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return torch.randn(NUM, BATCH, WIDTH, dtype=torch.float64), Weights(*tensors)


@pytest.mark.parametrize("over_batch", [False, True])
def test_values_and_gradients_are_the_dense_ones(over_batch: bool) -> None:
    rows, weights = drawn()
    target = torch.randn_like(rows)
    decoded, fired = sparse_autoencoder(rows, weights, K, over_batch=over_batch)
    codes = dense_codes(rows, weights, over_batch)
    dense = codes @ weights.decoder + weights.decoder_bias[:, None]
    torch.testing.assert_close(decoded, dense, rtol=0, atol=1e-10)
    torch.testing.assert_close(fired, (codes > 0).sum(dim=1).double())
    assert (codes == 0).any(dim=-1).all()
    ours = torch.autograd.grad((decoded - target).square().sum(), weights)
    theirs = torch.autograd.grad((dense - target).square().sum(), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_half_precision_chooses_and_single_precision_computes() -> None:
    torch.manual_seed(0)
    weights = Weights(torch.randn(2, 64, 16), torch.randn(2, 64), torch.randn(2, 64, 16), torch.randn(2, 16))
    rows = torch.randn(2, 200, 16)
    exact, _ = sparse_autoencoder(rows, weights, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = sparse_autoencoder(rows, weights, 8)
    alike = torch.isclose(exact, rounded, rtol=0, atol=1e-4).all(dim=-1)
    assert rounded.dtype == torch.float32
    assert 0.5 < alike.float().mean() < 1  # other choices among near ties only; where the same, the same to float32


def made(activation: str, dtype: torch.dtype = torch.float64) -> Dictionaries:
    torch.manual_seed(1)
    model = Dictionaries(1, NUM, WIDTH, LATENTS, activation=activation, k=K).to(dtype)
    model.start_at(torch.randn(NUM, LATENTS, WIDTH, dtype=dtype), torch.randn(NUM, BATCH, WIDTH, dtype=dtype))
    model.encoder_bias.data.normal_()
    return model


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "relu"])
def test_a_dictionary_starts_at_the_length_of_the_rows(activation: str) -> None:
    """The residual is orthogonal to the reconstruction: no other scale of the encoder has a smaller error."""
    torch.manual_seed(0)
    model = Dictionaries(1, NUM, WIDTH, LATENTS, activation=activation, k=K).double()
    rows = torch.randn(NUM, BATCH, WIDTH, dtype=torch.float64)
    model.start_at(torch.randn(NUM, LATENTS, WIDTH, dtype=torch.float64), rows)
    reconstruction = model(rows)[0]
    along = ((rows - reconstruction) * reconstruction).sum(dim=(1, 2))
    torch.testing.assert_close(along, torch.zeros(NUM, dtype=torch.float64), rtol=0, atol=1e-10)
    assert reconstruction.square().sum() > 0.1


def test_every_term_has_the_gradient_of_the_dense_formula() -> None:
    """AuxK too, whose gradient reaches encoder, bias and decoder of dead latents, and nothing else."""
    model = made("topk")
    rows = torch.randn(NUM, BATCH, WIDTH, dtype=torch.float64)
    model.idle[0, :6], model.idle[2, 3] = 50, 20  # six dead latents, none, one
    dead = find_dead(model.idle, 20, at_most=LATENTS)
    assert dead is not None
    assert dead.dead.sum(dim=1).tolist() == [6, 0, 1]
    reconstruction, _, _ = model(rows)
    k = 3
    ours = auxiliary_loss(model, rows, reconstruction, dead, k)
    left = (rows - reconstruction).detach()
    for number in range(NUM):
        gone = (model.idle[number] >= 20).nonzero()[:, 0]
        activations = (rows[number] @ model.encoder[number].t() + model.encoder_bias[number]).relu()
        kept = torch.zeros_like(activations)
        kept[:, gone] = activations[:, gone]
        values, index = kept.topk(k)
        codes = torch.zeros_like(kept).scatter(1, index, values)
        error = (left[number] - codes @ model.decoder[number]).square().sum() / left[number].square().sum()
        dense = min(1, len(gone) / k) * error
        torch.testing.assert_close(ours[number], dense, rtol=0, atol=1e-10)
        parameters = [model.encoder, model.encoder_bias, model.decoder]
        for one, other in zip(
            torch.autograd.grad(ours[number], parameters, retain_graph=True),
            torch.autograd.grad(dense, parameters) if len(gone) else [torch.zeros_like(p) for p in parameters],
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        if len(gone):
            assert torch.autograd.grad(ours[number], model.encoder, retain_graph=True)[0][number][gone].abs().sum() > 0


def test_the_longest_dead_are_chosen_where_they_are_too_many() -> None:
    idle = torch.tensor([[0.0, 30, 5, 90, 25], [0, 0, 0, 21, 0]])
    found = find_dead(idle, 20, at_most=2)
    assert found is not None
    assert found.latents[0].tolist() == [3, 1]
    assert found.dead.sum(dim=1).tolist() == [2, 1]
    assert found.latents[1, 0] == 3
    assert find_dead(idle, 100, at_most=2) is None


def test_error_is_the_share_of_variance_and_l1_the_sum_of_codes() -> None:
    rows = torch.randn(2, 500, 8, dtype=torch.float64)
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows / rows.square().sum(dim=-1).mean(dim=1).sqrt()[:, None, None]  # mean squared length 1
    torch.testing.assert_close(squared_error(rows, torch.zeros_like(rows)), torch.ones(2, dtype=torch.float64))
    codes = torch.rand(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(sparsity_loss(codes), codes.sum(dim=(1, 2)) / 3)


def test_gradient_along_a_direction_is_taken_out_and_lengths_stay_one() -> None:
    model = made("relu")
    rows = torch.randn(NUM, BATCH, WIDTH, dtype=torch.float64)
    squared_error(rows, model(rows)[0]).sum().backward()
    assert (model.decoder.grad * model.decoder).sum(dim=-1).abs().max() > 1e-3
    model.project_gradient()
    assert (model.decoder.grad * model.decoder).sum(dim=-1).abs().max() < 1e-14
    model.decoder.data += 0.1 * torch.randn_like(model.decoder)
    model.normalize()
    torch.testing.assert_close(model.decoder.norm(dim=-1), torch.ones(NUM, LATENTS, dtype=torch.float64))
