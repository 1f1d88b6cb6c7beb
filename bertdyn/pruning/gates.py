"""Gates on the units of a running encoder: what a head or a neuron gives out is scaled before it is projected.

    with gated(model, {site: gates}):
        output = model(**inputs)

Gates of 0 and 1 are the masked model that a pruned one must equal; gates that require a gradient say how the loss
depends on each unit. transformers has no `head_mask` any more (it swallows it without effect), so that hooks before the
two output projections do it, in all families and attention implementations; none stays on the model.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from bertdyn.pruning.shape import Site, projection


@contextmanager
def gated(
    model: PreTrainedModel, gates: Mapping[Site, Tensor], centres: Mapping[Site, Tensor] | None = None
) -> Iterator[None]:
    """Inside, the output of every unit u of the sites is centre + gate · (u - centre).

    Parameters
    ----------
    gates
        [units], or [batch, units]: another gate for each text, of a model that computes its padding.
    centres
        [width] by site, what a closed gate leaves: the mean, where it will be folded into the bias. None: zero.
    """
    handles = []
    try:
        for site, gate in gates.items():
            hook = _scale(gate, None if centres is None else centres[site])
            handles.append(projection(model, site).register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scale(gate: Tensor, centre: Tensor | None) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        states = args[0]  # [batch, seq, width]
        factors = gate.repeat_interleave(states.shape[-1] // gate.shape[-1], dim=-1).to(states.dtype)
        factors = factors[:, None] if factors.dim() == 2 else factors
        if centre is None:
            return (states * factors,)
        return (centre + factors * (states - centre),)

    return hook
