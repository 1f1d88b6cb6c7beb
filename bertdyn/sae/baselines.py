"""What a trained dictionary has to beat, as bases for the same measures: principal components, random directions."""

from collections.abc import Iterable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from bertdyn.geometry.moments import Moments
from bertdyn.sae.dictionary import Dictionary, decode, encode
from bertdyn.sae.metrics import Basis


def pca_basis(moments: Moments, num_components: int, *, origin: np.ndarray, scale: Tensor) -> Basis:
    """The leading principal components of standardised rows.

    Of all bases with so many numbers a row, this one loses the least standardised variance of the rows it was fitted
    to. All its numbers are always on, so that its L0 is `num_components`; the same ones for every row, where a
    dictionary chooses among many.

    Parameters
    ----------
    moments
        Of the train rows, less `origin`.
    num_components
        k, at most the width.
    origin
        [width]: what was subtracted from the rows before the moments; zeros if nothing.
    scale
        [width]: of the dictionary that is compared; ones for components of the rows as they are.

    Raises
    ------
    ValueError
        If there are not so many components.
    """
    width = len(scale)
    if not 1 <= num_components <= width:
        raise ValueError(f"{num_components} principal components of {width} dimensions: accepted are 1 to {width}")
    scale = scale.double()
    inverse = 1 / scale.cpu().numpy()
    covariance = moments.covariance * np.outer(inverse, inverse)
    _, vectors = scipy.linalg.eigh(covariance, subset_by_index=[width - num_components, width - 1])
    mean = torch.from_numpy(moments.mean + origin).to(scale.device)
    components = torch.from_numpy(vectors[:, ::-1].copy()).to(scale.device)

    def project(rows: Tensor) -> Tensor:
        rows = rows.to(device=mean.device, dtype=torch.promote_types(rows.dtype, torch.float32))
        return ((rows - mean.to(rows)) / scale.to(rows)) @ components.to(rows)

    def restore(codes: Tensor) -> Tensor:
        return (codes @ components.T.to(codes)) * scale.to(codes) + mean.to(codes)

    return Basis(project, restore)


@torch.inference_mode()
def random_dictionary(
    blocks: Iterable[Tensor], mean: Tensor, scale: Tensor, *, num_latents: int, k: int, seed: int
) -> Dictionary:
    """A topk dictionary of random directions: what sparse coding alone is worth, without anything learned.

    Directions are uniform on the sphere of standardised space, encoder and decoder the same. The k largest positive
    projections are on; as directions overlap, they add up to too much, so that all are scaled by one number, by
    which the given rows are reconstructed with the least squared error (in standardised space).

    Parameters
    ----------
    blocks
        [rows of a block, width] each: train rows, of which a few thousand are enough.
    mean, scale
        [width] each: of the dictionary that is compared.
    num_latents, k
        Likewise.
    seed
        Of the directions.

    Raises
    ------
    ValueError
        If there are fewer latents than k.
    """
    if not 1 <= k <= num_latents:
        raise ValueError(f"k = {k} of {num_latents} latents: accepted are 1 to {num_latents}")
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(num_latents, len(mean), generator=generator, dtype=torch.float64)
    mean, scale = mean.float(), scale.float()
    directions = torch.nn.functional.normalize(normal, dim=1).to(mean)
    encoder = (directions / scale).T.contiguous()
    dictionary = Dictionary(
        activation="topk",
        k=k,
        encoder=encoder,
        encoder_bias=-mean @ encoder,
        decoder=directions * scale,
        decoder_bias=mean,
        threshold=mean.new_zeros(()),
        mean=mean,
        scale=scale,
    )
    gain = _gain(dictionary, blocks)
    return dictionary._replace(encoder=encoder * gain, encoder_bias=dictionary.encoder_bias * gain)


def _gain(dictionary: Dictionary, blocks: Iterable[Tensor]) -> float:
    """The factor by which reconstructions fit rows best, ⟨row, reconstruction⟩ / ‖reconstruction‖², standardised."""
    along = squares = 0.0
    for block in blocks:
        rows = block.to(dictionary.mean)
        said = ((decode(dictionary, encode(dictionary, rows)) - dictionary.mean) / dictionary.scale).double()
        standardised = ((rows - dictionary.mean) / dictionary.scale).double()
        along += float((standardised * said).sum())
        squares += float(said.square().sum())
    return along / squares if squares else 1.0
