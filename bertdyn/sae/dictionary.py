"""A trained sparse dictionary as it is used: rows in, sparse codes out, rows back.

    codes = activation(rows @ encoder + encoder_bias)         [rows, latents]
    reconstruction = codes @ decoder + decoder_bias           [rows, width]

A dictionary is trained on standardised rows, (row - mean) / scale by dimension, since layer outputs of BERT have a
large mean and a few outlier dimensions. Here that is folded into the weights: rows go in as the encoder produced them.
Mean and scale are kept beside, for measures in standardised space, where all dimensions count alike and where each
latent's direction, decoder / scale, has length 1: an activation is a length in units of standard deviations.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor


class Dictionary(NamedTuple):
    """One dictionary, float32, all tensors on one device."""

    activation: str
    """One of `config.ACTIVATIONS`."""
    k: int
    """Latents that are on in a row: topk exactly (fewer where less than k are positive), batch_topk on average in
    training; relu 0."""
    encoder: Tensor
    """[width, latents]"""
    encoder_bias: Tensor
    """[latents]"""
    decoder: Tensor
    """[latents, width]"""
    decoder_bias: Tensor
    """[width]"""
    threshold: Tensor
    """Scalar: what an activation must reach to count (batch_topk, whose selection in training depends on the batch);
    0 for the others."""
    mean: Tensor
    """[width] of the rows that it was trained on"""
    scale: Tensor
    """[width], likewise"""

    @property
    def width(self) -> int:
        """Of the rows."""
        return self.encoder.shape[0]

    @property
    def num_latents(self) -> int:
        return self.encoder.shape[1]

    @property
    def directions(self) -> Tensor:
        """[latents, width], each of length 1: the decoder in standardised space."""
        return torch.nn.functional.normalize(self.decoder / self.scale, dim=1)

    def to(self, device: torch.device | str) -> "Dictionary":
        return self._replace(**{name: value.to(device) for name, value in self._asdict().items() if name not in _PLAIN})


_PLAIN = ("activation", "k")


def encode(dictionary: Dictionary, rows: Tensor) -> Tensor:
    """Codes of rows.

    Parameters
    ----------
    rows
        [..., width], as the encoder produced them.

    Returns
    -------
    codes
        [..., latents], not negative, mostly 0; float32.

    Raises
    ------
    ValueError
        If the rows have another width.
    """
    if rows.shape[-1] != dictionary.width:
        raise ValueError(f"rows of width {rows.shape[-1]}; the dictionary is of width {dictionary.width}")
    codes = torch.relu(rows.float() @ dictionary.encoder + dictionary.encoder_bias)
    if dictionary.activation == "topk":
        values, latents = codes.topk(dictionary.k, dim=-1)
        return torch.zeros_like(codes).scatter_(-1, latents, values)
    return codes * (codes >= dictionary.threshold)


def decode(dictionary: Dictionary, codes: Tensor) -> Tensor:
    """[..., latents] → [..., width]"""
    return codes @ dictionary.decoder + dictionary.decoder_bias


def sparse_codes(dictionary: Dictionary, blocks: Iterable[Tensor]) -> scipy.sparse.csr_array:
    """Codes of many rows, block by block: [rows, latents], float32, only what is not 0.

    Parameters
    ----------
    blocks
        [rows of a block, width] each; a few thousand rows bound the memory.
    """
    found = []
    for block in blocks:
        codes = encode(dictionary, block.to(dictionary.encoder.device))
        rows, latents = codes.nonzero(as_tuple=True)
        index = (rows.cpu().numpy(), latents.cpu().numpy().astype(np.int32))
        shape = (len(block), dictionary.num_latents)
        found.append(scipy.sparse.csr_array((codes[rows, latents].cpu().numpy(), index), shape=shape))
    if not found:
        return scipy.sparse.csr_array((0, dictionary.num_latents), dtype=np.float32)
    return scipy.sparse.csr_array(scipy.sparse.vstack(found, format="csr"))
