"""Gradient norms per tensor, computed once a step and used twice: for clipping and for the dynamics."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def tensor_norms(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The Frobenius norm of each parameter's gradient, [len(parameters)]; 0 where there is none.

    Stays on the device of the parameters: no synchronisation.
    """
    # The foreach kernel is what torch.nn.utils.get_total_norm itself uses, before it sums up.
    gradients = [p.grad for p in parameters if p.grad is not None]
    found = iter(torch._foreach_norm(gradients) if gradients else ())
    none = torch.zeros((), device=parameters[0].device)
    return torch.stack([none if p.grad is None else next(found).float() for p in parameters])


def clip_gradients(parameters: Sequence[nn.Parameter], norms: Tensor, max_norm: float) -> None:
    """Scale all gradients together so that their global norm is at most `max_norm` (0: leave them)."""
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.linalg.vector_norm(norms))
