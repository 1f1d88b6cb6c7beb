"""TopK and BatchTopK as one differentiable function that is sparse wherever a dense one multiplies by zeros.

Only the choice of the latents needs all their activations: one dense product. The reconstruction and all gradients go
over the chosen ones, a share of k / latents of the multiplications. All dictionaries together are one sparse matrix
with a block for each, [dictionaries × batch, dictionaries × latents], so that every product is one call.

OpenAI's and EleutherAI's trainers (arXiv 2406.04093; sparsify) are sparse alike, with gathered [rows × k, width] floats
or Triton kernels; here PyTorch's own sparse products do it, on a CPU and on a GPU.
"""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Said once a process by every use of it; what is used here is tested against the dense formula.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


class Weights(NamedTuple):
    """Of several dictionaries."""

    encoder: Tensor
    """[dictionaries, latents, width]"""
    encoder_bias: Tensor
    """[dictionaries, latents]"""
    decoder: Tensor
    """[dictionaries, latents, width]"""
    decoder_bias: Tensor
    """[dictionaries, width]"""


def sparse_autoencoder(rows: Tensor, weights: Weights, k: int, *, over_batch: bool = False) -> tuple[Tensor, Tensor]:
    """Reconstructions from the k strongest latents, with gradients for the weights.

    Parameters
    ----------
    rows
        [dictionaries, batch, width]; they get no gradient.
    k
        Latents a row; with `over_batch`, the k × batch strongest ones of all rows of a dictionary together.

    Returns
    -------
    reconstruction
        [dictionaries, batch, width]
    fired
        [dictionaries, latents], float: on how many rows each latent was on; no gradient.
    """
    return _SparseAutoencoder.apply(rows, *weights, k, over_batch)


class _Chosen(NamedTuple):
    """The positions that are on, in the layout of a CSR matrix [dictionaries × batch, dictionaries × latents]."""

    starts: Tensor
    """[dictionaries × batch + 1]"""
    columns: Tensor
    """[chosen]"""
    values: Tensor
    """[chosen], at least 0"""


class _SparseAutoencoder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, k, over_batch = arguments
        weights = Weights(*tensors)
        dictionaries, latents, width = weights.encoder.shape
        flat = rows.reshape(-1, width)
        activations = torch.baddbmm(weights.encoder_bias[:, None], rows, weights.encoder.transpose(1, 2))
        chosen = _over_batch(activations, k) if over_batch else _by_row(activations, k)
        if activations.dtype != rows.dtype:  # autocast: half precision chooses, the values are exact
            exact = _sampled(chosen, flat, weights.encoder.view(-1, width))
            chosen = chosen._replace(values=(exact + weights.encoder_bias.view(-1)[chosen.columns]).relu())
        del activations
        decoded = torch.nn.functional.embedding_bag(
            chosen.columns,
            weights.decoder.view(-1, width),
            chosen.starts[:-1],
            mode="sum",
            per_sample_weights=chosen.values,
        )
        decoded = decoded.view(dictionaries, -1, width) + weights.decoder_bias[:, None]
        fired = rows.new_zeros(dictionaries * latents)
        fired.index_add_(0, chosen.columns, (chosen.values > 0).to(rows.dtype))
        fired = fired.view(dictionaries, latents)
        ctx.save_for_backward(flat, weights.encoder, weights.decoder, *chosen)
        ctx.mark_non_differentiable(fired)
        return decoded, fired

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, encoder, decoder, *tensors = ctx.saved_tensors
        chosen = _Chosen(*tensors)
        dictionaries, latents, width = encoder.shape
        gradient = gradients[0].reshape(-1, width)
        of_values = _sampled(chosen, gradient, decoder.view(-1, width))
        of_values = of_values * (chosen.values > 0)
        by_latent, order = _transposed(chosen, dictionaries * latents)
        shape = (dictionaries * latents, len(flat))
        of_decoder = _csr(by_latent._replace(values=chosen.values[order]), shape) @ gradient
        of_encoder = _csr(by_latent._replace(values=of_values[order]), shape) @ flat
        of_bias = torch.zeros_like(encoder[..., 0]).view(-1).index_add_(0, chosen.columns, of_values)
        return (
            None,
            of_encoder.view_as(encoder),
            of_bias.view(dictionaries, latents),
            of_decoder.view_as(decoder),
            gradient.view(dictionaries, -1, width).sum(dim=1),
            None,
            None,
        )


def _by_row(activations: Tensor, k: int) -> _Chosen:
    """The k strongest latents of every row."""
    dictionaries, batch, latents = activations.shape
    values, columns = activations.topk(k, dim=-1, sorted=False)
    columns = columns + latents * torch.arange(dictionaries, device=columns.device)[:, None, None]
    starts = torch.arange(0, k * dictionaries * batch + 1, k, device=columns.device)
    return _Chosen(starts, columns.view(-1), values.reshape(-1).relu())


def _over_batch(activations: Tensor, k: int) -> _Chosen:
    """The k × batch strongest latents of all rows of each dictionary."""
    dictionaries, batch, latents = activations.shape
    values, positions = activations.view(dictionaries, -1).topk(k * batch, dim=-1, sorted=False)
    positions, order = (
        (positions + batch * latents * torch.arange(dictionaries, device=positions.device)[:, None]).view(-1).sort()
    )
    rows = positions // latents
    counts = torch.bincount(rows, minlength=dictionaries * batch)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    columns = positions % latents + latents * (rows // batch)
    return _Chosen(starts, columns, values.reshape(-1)[order].relu())


def _csr(chosen: _Chosen, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(*chosen, shape, check_invariants=False)


def _sampled(chosen: _Chosen, left: Tensor, right: Tensor) -> Tensor:
    """[chosen]: the products of rows of `left` and rows of `right` at the chosen positions only."""
    pattern = _csr(chosen._replace(values=left.new_zeros(len(chosen.columns))), (len(left), len(right)))
    return torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0.0).values()


def _transposed(chosen: _Chosen, latents: int) -> tuple[_Chosen, Tensor]:
    """The same positions by latent, and which chosen one each of them is."""
    order = chosen.columns.argsort(stable=True)
    lengths = chosen.starts.diff()
    rows = torch.arange(len(lengths), device=order.device).repeat_interleave(lengths, output_size=len(order))
    counts = torch.bincount(chosen.columns, minlength=latents)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return _Chosen(starts, rows[order], chosen.values), order
