"""What a code of rows keeps of them, and how sparse it is: one pass over blocks of rows, in bounded memory.

Everything that codes rows has the same form here, `Basis`: a dictionary, the principal components, a random
dictionary. So all stand in one table under the same measures.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertdyn.sae.dictionary import Dictionary, decode, encode

Reconstruct = Callable[[Tensor], Tensor]
"""[rows, width] → [rows, width]; a `Basis` is one."""

DENSE = 0.1
"""A latent that is on in a larger share of the rows is dense."""


@dataclass(frozen=True)
class Basis:
    """A way to code rows and to get them back."""

    encode: Callable[[Tensor], Tensor]
    """[rows, width] → [rows, latents]"""
    decode: Callable[[Tensor], Tensor]
    """[rows, latents] → [rows, width]"""

    def __call__(self, rows: Tensor) -> Tensor:
        """What is left of the rows, [rows, width]."""
        return self.decode(self.encode(rows))


def basis_of(dictionary: Dictionary) -> Basis:
    """A dictionary as a basis; rows go to its device."""
    device = dictionary.encoder.device
    return Basis(lambda rows: encode(dictionary, rows.to(device)), lambda codes: decode(dictionary, codes))


class Measures(NamedTuple):
    """Of one basis on some rows."""

    rows: int
    """Rows that were measured: a latent is dead for them."""
    fvu: float
    """Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean‖², about the mean of these rows. 1: no better than that
    mean; NaN where all rows are alike."""
    fvu_standardised: float
    """The same of rows / scale, where all dimensions count alike; outlier dimensions decide the raw one."""
    l0: float
    """Mean number of latents that are on (not 0) in a row."""
    on_counts: np.ndarray
    """[latents + 1]: number of rows in which exactly n latents are on."""
    density: np.ndarray
    """[latents]: share of the rows in which each latent is on."""
    dead_share: float
    """Share of the latents that are on in none of the rows."""
    dense_share: float
    """Share of the latents that are on in more than a tenth of the rows."""

    def l0_quantile(self, share: float) -> int:
        """The smallest n such that at least this share of the rows has n latents on or fewer."""
        return int(np.searchsorted(np.cumsum(self.on_counts), share * self.rows))


@torch.inference_mode()
def measure(basis: Basis, blocks: Iterable[Tensor], scale: Tensor) -> Measures:
    """All measures in one pass.

    Parameters
    ----------
    blocks
        [rows of a block, width] each; a few thousand rows bound the memory.
    scale
        [width]: what standardises a dimension, such as `dictionary.scale`; the same for all that is compared.

    Returns
    -------
    Measures
        Sums are in float64.

    Raises
    ------
    ValueError
        If there are no rows.
    """
    sums: _Sums | None = None
    for block in blocks:
        if len(block):
            codes = basis.encode(block)
            if sums is None:
                sums = _Sums(block, codes)
            sums.add(block, basis.decode(codes), codes)
    if sums is None:
        raise ValueError("no rows to measure")
    return sums.measures(scale)


class _Sums:
    """Sums over the rows so far, by dimension and by latent."""

    def __init__(self, rows: Tensor, codes: Tensor) -> None:
        # About the mean of the first block: where the mean is large, squares about 0 would lose the spread's digits.
        self.origin = rows.double().mean(dim=0)
        self.rows = 0
        self.total, self.squares, self.residual = (torch.zeros_like(self.origin) for _ in range(3))
        latents = codes.shape[1]
        self.on = torch.zeros(latents, dtype=torch.long, device=codes.device)
        self.on_counts = torch.zeros(latents + 1, dtype=torch.long, device=codes.device)

    def add(self, rows: Tensor, reconstruction: Tensor, codes: Tensor) -> None:
        moved = rows.double() - self.origin
        rest = rows.double() - reconstruction.to(rows.device).double()
        self.rows += len(rows)
        self.total += moved.sum(dim=0)
        self.squares += moved.square().sum(dim=0)
        self.residual += rest.square().sum(dim=0)
        on = codes != 0
        self.on += on.sum(dim=0)
        self.on_counts += torch.bincount(on.sum(dim=1), minlength=len(self.on_counts))

    def measures(self, scale: Tensor) -> Measures:
        variance = self.squares - self.total.square() / self.rows
        variance = torch.where(variance > 1e-12 * self.squares, variance, 0)  # less is rounding
        weights = scale.to(variance).square().reciprocal()
        density = (self.on.double() / self.rows).cpu().numpy()
        return Measures(
            rows=self.rows,
            fvu=_ratio(self.residual.sum(), variance.sum()),
            fvu_standardised=_ratio(self.residual @ weights, variance @ weights),
            l0=float(density.sum()),
            on_counts=self.on_counts.cpu().numpy(),
            density=density,
            dead_share=float((density == 0).mean()),
            dense_share=float((density > DENSE).mean()),
        )


def _ratio(above: Tensor, below: Tensor) -> float:
    return float(above / below) if below > 0 else float("nan")
