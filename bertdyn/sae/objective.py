"""What a dictionary is trained for: reconstruction, sparsity, and no dead latents."""

from typing import NamedTuple

import torch
from torch import Tensor

from bertdyn.sae.dictionaries import Dictionaries


class DeadLatents(NamedTuple):
    """Latents that have not been on for a while, padded to the same number in every dictionary."""

    latents: Tensor
    """[dictionaries, most dead ones of a dictionary]: their numbers."""
    dead: Tensor
    """[dictionaries, most dead ones], bool: False is padding."""


def find_dead(idle: Tensor, window: int, at_most: int) -> DeadLatents | None:
    """Latents that were off for `window` steps or more; None if there are none. Synchronises.

    Parameters
    ----------
    idle
        [dictionaries, latents]: steps since each was on.
    at_most
        So many of a dictionary, those that were off longest: it bounds the cost of `auxiliary_loss`, which would else
        be several times that of the rest where latents are many and most are rare.
    """
    most = min(at_most, int((idle >= window).sum(dim=1).max()))
    if most == 0:
        return None
    longest, latents = idle.topk(most, dim=1)
    return DeadLatents(latents, longest >= window)


def squared_error(rows: Tensor, reconstruction: Tensor) -> Tensor:
    """[dictionaries]: share of the rows' variance that is not explained.

    Standardised rows have a mean squared length of 1 by construction, over all train rows: no noise of a batch's own
    variance.
    """
    return (reconstruction - rows).square().sum(dim=-1).mean(dim=1)


def auxiliary_loss(model: Dictionaries, rows: Tensor, reconstruction: Tensor, dead: DeadLatents, k: int) -> Tensor:
    """[dictionaries]: AuxK, how badly the k strongest dead latents reconstruct what the others left over.

    Gives dead latents a gradient (arXiv 2406.04093, A.2): the mean squared error over the left-over's, counted less
    where fewer than k latents are dead.

    Parameters
    ----------
    rows, reconstruction
        [dictionaries, batch, width]; what is left over, their difference, gets no gradient.
    """
    left = (rows - reconstruction).detach()
    index = dead.latents[..., None].expand(-1, -1, rows.shape[-1])
    encoder, decoder = model.encoder.gather(1, index), model.decoder.gather(1, index)
    activations = torch.baddbmm(model.encoder_bias.gather(1, dead.latents)[:, None], rows, encoder.transpose(1, 2))
    activations = activations.relu() * dead.dead[:, None]
    if activations.shape[-1] > k:
        values, latents = activations.topk(k, dim=-1)
        activations = torch.zeros_like(activations).scatter(-1, latents, values)
    error = (left - activations @ decoder).square().mean(dim=(1, 2))
    share = (dead.dead.sum(dim=1).to(left.dtype) / k).clamp_max(1.0)
    return share * error / left.square().mean(dim=(1, 2)).clamp_min(torch.finfo(left.dtype).tiny)


def sparsity_loss(codes: Tensor) -> Tensor:
    """[dictionaries]: L1 norm of a row's codes, in units of the length of a standardised row, mean over rows.

    The decoder's rows have length 1, so that no code can be made small at the decoder's cost.

    Parameters
    ----------
    codes
        [dictionaries, batch, latents], not negative.
    """
    return codes.sum(dim=-1).mean(dim=1)
