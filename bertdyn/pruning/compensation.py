"""What a removed unit leaves behind: its mean, or what the units that stay can say of it.

A block adds W x + b to the stream. Without the inputs R it adds W_K x_K + b, and the best linear mend from statistics
of x alone is

    mean            b + W_R E[x_R]                          exact where the removed inputs are constant (FLAP)
    least_squares   the same, and W_K + W_R C_RK C_KK⁻¹     the removed inputs as a linear function of the others

Least squares is damped by shrinking the covariance to a multiple of the identity (OAS), since a few hundred first
tokens say little of a thousand inputs. Both lower the squared error on the texts they are computed from, the second
more than the first; neither must lower the error of the logits, so which one a block gets is chosen by that (`search`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bertdyn.pruning.moments import InputMoments

METHODS = ("none", "mean", "least_squares")


class Projection(NamedTuple):
    """The output projection of a pruned block."""

    weight: Tensor
    """[hidden, inputs that stay]"""
    bias: Tensor
    """[hidden]"""


def compensate(weight: Tensor, bias: Tensor, kept: list[int], moments: InputMoments | None, method: str) -> Projection:
    """The output projection without the inputs that are not `kept`.

    Parameters
    ----------
    weight, bias
        [hidden, inputs], [hidden]: the dense block's.
    kept
        Ascending indices of inputs.
    moments
        Of all inputs, with covariance for `least_squares`; None for `none`.
    method
        One of `METHODS`.
    """
    removed = torch.ones(weight.shape[1], dtype=torch.bool)
    removed[kept] = False
    stays, goes = torch.tensor(kept, dtype=torch.long), removed.nonzero().squeeze(1)
    stays, goes = stays.to(weight.device), goes.to(weight.device)
    if method == "none" or not len(goes):
        return Projection(weight[:, stays], bias)
    assert moments is not None
    exact, mean = weight.double(), moments.mean.to(weight.device)
    lost = exact[:, goes]
    if method == "mean" or not len(stays):
        return Projection(weight[:, stays], (bias.double() + lost @ mean[goes]).to(bias.dtype))
    # [removed, kept]: the removed inputs as a linear function of those that stay
    coefficients = _regression(moments, stays, goes)
    return Projection(
        (exact[:, stays] + lost @ coefficients).to(weight.dtype),
        (bias.double() + lost @ (mean[goes] - coefficients @ mean[stays])).to(bias.dtype),
    )


def _regression(moments: InputMoments, stays: Tensor, goes: Tensor) -> Tensor:
    covariance = moments.covariance.to(stays.device)
    damping = oas_damping(covariance, moments.num_rows)
    own = covariance[stays][:, stays]
    own = own + damping * torch.eye(len(stays), dtype=own.dtype, device=own.device)
    return torch.linalg.solve(own, covariance[stays][:, goes]).T


def oas_damping(covariance: Tensor, count: int) -> float:
    """What to add to the diagonal of a covariance [p, p] of `count` rows: λ = ρ μ / (1 - ρ) of the oracle
    approximating shrinkage (1 - ρ) C + ρ μ I.

    References
    ----------
    Chen, Wiesel, Eldar & Hero 2010, equation 23.
    """
    p = len(covariance)
    trace, squared = float(covariance.trace()), float(covariance.square().sum())
    if trace <= 0:
        return 1.0
    numerator = (1 - 2 / p) * squared + trace**2
    denominator = (count + 1 - 2 / p) * (squared - trace**2 / p)
    rho = min(0.99, numerator / denominator) if denominator > 0 else 0.99
    return rho * trace / p / (1 - rho) + 1e-9 * trace / p
