"""Gradient norms per tensor, computed once a step and used twice: for clipping and for the dynamics."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def tensor_norms(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The Frobenius norm of each parameter's gradient, [len(parameters)]; 0 where there is none.

    Stays on the device of the parameters: no synchronisation.
    """
    norms = torch.zeros(len(parameters), device=parameters[0].device)
    with_gradient = [i for i, p in enumerate(parameters) if p.grad is not None]
    if with_gradient:
        # The foreach kernel is what torch.nn.utils.get_total_norm itself uses, before it sums up.
        found = torch._foreach_norm([parameters[i].grad for i in with_gradient])  # type: ignore[misc]
        norms[with_gradient] = torch.stack(found).float()
    return norms


def clip_gradients(parameters: Sequence[nn.Parameter], norms: Tensor, max_norm: float) -> None:
    """Scale all gradients together so that their global norm is at most `max_norm` (0: leave them)."""
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.linalg.vector_norm(norms))
