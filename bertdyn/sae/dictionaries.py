"""Many dictionaries of equal shape as one model: layers × states × seeds, trained side by side.

Rows come in groups (a layer of a state, or the same layer of several states together); every seed has one dictionary
for each group. Dictionary number seed × groups + group.
"""

import torch
from torch import Tensor, nn

from bertdyn.sae.sparse import Weights, sparse_autoencoder


class Dictionaries(nn.Module):
    """Sparse autoencoders on standardised rows; the decoder's rows have length 1.

    Parameters
    ----------
    num_seeds, num_groups
        Their product is the number of dictionaries.
    width
        Of the rows.
    num_latents
        Of each dictionary.
    activation
        One of `config.ACTIVATIONS`.
    k
        Latents a row (topk), or on average over a batch (batch_topk).
    """

    idle: Tensor

    def __init__(
        self, num_seeds: int, num_groups: int, width: int, num_latents: int, *, activation: str, k: int
    ) -> None:
        super().__init__()
        number = num_seeds * num_groups
        self.num_seeds, self.activation, self.k = num_seeds, activation, k
        self.encoder = nn.Parameter(torch.zeros(number, num_latents, width))
        self.encoder_bias = nn.Parameter(torch.zeros(number, num_latents))
        self.decoder = nn.Parameter(torch.zeros(number, num_latents, width))
        self.decoder_bias = nn.Parameter(torch.zeros(number, width))
        self.register_buffer("idle", torch.zeros(number, num_latents))
        """Steps since each latent was on."""

    @torch.no_grad()
    def start_at(self, points: Tensor, rows: Tensor) -> None:
        """Data-point initialisation: each latent points at one row, and is read along the same direction.

        The strongest of many correlated directions add up to far too much: 30 times the variance of the rows, in layer
        4 of MiniLM, which takes most of the first epoch to unlearn. So a dictionary's encoder is scaled by the one
        number with which some rows are reconstructed best.

        Parameters
        ----------
        points
            [dictionaries, latents, width], standardised rows.
        rows
            [dictionaries, batch, width], likewise.
        """
        self.decoder.copy_(nn.functional.normalize(points, dim=-1))
        self.encoder.copy_(self.decoder)
        reconstruction = self(rows)[0]
        along, squares = (rows * reconstruction).sum(dim=(1, 2)), reconstruction.square().sum(dim=(1, 2))
        self.encoder.mul_((along / squares.clamp_min(torch.finfo(rows.dtype).tiny))[:, None, None])

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Reconstruct rows.

        Parameters
        ----------
        rows
            [dictionaries, batch, width], standardised.

        Returns
        -------
        reconstruction
            [dictionaries, batch, width]
        fired
            [dictionaries, latents]: on how many rows each latent was on.
        codes
            [dictionaries, batch, latents] of relu, whose penalty needs them; None for the others.
        """
        weights = Weights(self.encoder, self.encoder_bias, self.decoder, self.decoder_bias)
        if self.activation == "relu":
            codes = torch.baddbmm(self.encoder_bias[:, None], rows, self.encoder.transpose(1, 2)).relu()
            decoded = torch.baddbmm(self.decoder_bias[:, None], codes, self.decoder)
            return decoded, (codes.detach() > 0).sum(dim=1), codes
        decoded, fired = sparse_autoencoder(rows, weights, self.k, over_batch=self.activation == "batch_topk")
        return decoded, fired, None

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take out of the decoder's gradient what would change the lengths of its rows."""
        if self.decoder.grad is not None:
            along = torch.linalg.vecdot(self.decoder.grad, self.decoder)
            self.decoder.grad.addcmul_(self.decoder, along[..., None], value=-1)

    @torch.no_grad()
    def normalize(self) -> None:
        """Give every row of the decoder length 1."""
        self.decoder.div_(torch.linalg.vector_norm(self.decoder, dim=-1, keepdim=True).clamp_min_(1e-12))
