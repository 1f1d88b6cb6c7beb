"""What happens inside an encoder on real tokens: hidden states, module activations, first-token attention.

    with recording(model, {"hidden": {0, 6}, "ffn_post": {6}}) as record:
        recorded = record(batch)
        recorded.values["hidden", 6]     # [tokens, hidden]

Whether the model computes padding or not, only real tokens come out. Hidden states are those that transformers
itself records. The rest is read by hooks on the parts that `anatomy` names, counted by call, so that a layer
that is shared (ALBERT) has its own activations at each of its calls; no hook stays on the model.

First-token attention is recomputed from the queries and keys: one query a text, instead of an attention
implementation that keeps all [seq, seq] weights.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertdyn.errors import InputError
from bertdyn.models.anatomy import Anatomy, anatomy_of
from bertdyn.models.unpadded import Packing, is_unpadded, packing_of

_OUTPUTS = {"attention_output": "attention_output", "ffn_pre": "ffn_in"}
_INPUTS = {"context": "attention_output", "ffn_post": "ffn_out"}
UNITS = {"context": "query", "attention": "query", "ffn_pre": "ffn_in", "ffn_post": "ffn_in"}
"""Site → the component without which a layer has none of it: heads or neurons, which pruning may have removed."""


class Recorded(NamedTuple):
    """One batch."""

    values: dict[tuple[str, int], Tensor]
    """(site, layer) → [tokens, width], for `attention` [tokens]; all in the same order of tokens."""
    packing: Packing
    """Says which token of the batch each row is."""
    output: Any
    """What the model returned; for an encoder without a head it has no `logits`."""


@contextmanager
def recording(
    model: PreTrainedModel, wanted: Mapping[str, Collection[int]]
) -> Iterator[Callable[[Mapping[str, Tensor]], Recorded]]:
    """A function that runs `model` on a batch (its inputs, [batch, seq]) and returns what was `wanted`.

    Parameters
    ----------
    wanted
        Site (of `models.config.SITES`) → layers, 0 to L.

    Raises
    ------
    InputError
        If a layer has nothing of that kind left.
    """
    anatomy = anatomy_of(model)
    for site, layers in wanted.items():
        check_units(anatomy, site, layers)
    calls = _Calls(wanted)
    handles = []
    for site in wanted:
        for component in _components(site):
            name = component if site == "attention" else site
            having = [number for number, layer in enumerate(anatomy.layers, start=1) if component in layer]
            calls.expect(name, list(range(1, anatomy.depth + 1)) if anatomy.shares_layers else having)
            for module in (anatomy.layers[number - 1][component] for number in having):
                if site in _INPUTS:
                    handles.append(module.register_forward_pre_hook(calls.keep_input(site)))
                else:
                    handles.append(module.register_forward_hook(calls.keep_output(name, site)))

    def record(inputs: Mapping[str, Tensor]) -> Recorded:
        calls.start()
        arguments: dict[str, Any] = dict(inputs)
        packing = packing_of(arguments["attention_mask"], arguments.pop("token_rows", None))
        if is_unpadded(model):
            arguments["packing"] = packing
        output = model(**arguments, output_hidden_states=True)
        values = {}
        for layer in wanted.get("hidden", ()):
            values["hidden", layer] = _real(output.hidden_states[layer], packing)
        for (name, layer), kept in calls.kept.items():
            if name not in ("query", "key"):
                values[name, layer] = _real(kept, packing)
        for layer in wanted.get("attention", ()):
            query, key = (_real(calls.kept[name, layer], packing) for name in ("query", "key"))
            values["attention", layer] = first_token_attention(query, key, packing, anatomy.head_size)
        calls.check()
        return Recorded(values, packing, output)

    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


class _Calls:
    """Which call of the forward pass a hook is in: calls of one kind happen in the order of the layers."""

    def __init__(self, wanted: Mapping[str, Collection[int]]) -> None:
        self.wanted = wanted
        self.layers: dict[str, list[int]] = {}
        self.start()

    def expect(self, name: str, layers: list[int]) -> None:
        """The calls of `name` are those of these layers, in this order."""
        self.layers[name] = layers

    def start(self) -> None:
        self.counts: dict[str, int] = {}
        self.kept: dict[tuple[str, int], Tensor] = {}

    def keep(self, name: str, site: str, value: Tensor) -> None:
        count = self.counts[name] = self.counts.get(name, 0) + 1
        if count > len(self.layers[name]):  # said by `check`, with the whole number
            return
        layer = self.layers[name][count - 1]
        if layer in self.wanted[site]:
            self.kept[name, layer] = value

    def keep_output(self, name: str, site: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            self.keep(name, site, output)

        return hook

    def keep_input(self, site: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            self.keep(site, site, args[0])

        return hook

    def check(self) -> None:
        for name, layers in self.layers.items():
            count = self.counts.get(name, 0)
            if count != len(layers):
                raise RuntimeError(f"{name} was called {count} times in a forward pass of {len(layers)} layers with it")


def check_units(anatomy: Anatomy, site: str, layers: Collection[int]) -> None:
    """Raise `InputError` if one of `layers` has lost all units of the kind that `site` shows."""
    for layer in sorted(layers):
        if site in UNITS and layer and UNITS[site] not in anatomy.layers[min(layer, len(anatomy.layers)) - 1]:
            raise InputError(
                f"{site!r} of layer {layer}: pruning left it no {'neurons' if 'ffn' in site else 'heads'}; "
                "leave the layer out, or take hidden"
            )


def _components(site: str) -> tuple[str, ...]:
    if site == "attention":
        return ("query", "key")
    return tuple(table[site] for table in (_OUTPUTS, _INPUTS) if site in table)


def _real(values: Tensor, packing: Packing) -> Tensor:
    """[batch, seq, width] padded, or [1, tokens, width] without padding → [tokens, width]"""
    return packing.pack(values) if values.shape[:2] == packing.shape else values[0]


def first_token_attention(query: Tensor, key: Tensor, packing: Packing, head_size: int) -> Tensor:
    """How much the first token of its text attends to each token, mean over heads.

    Parameters
    ----------
    query, key
        [tokens, heads × head size] of one layer.

    Returns
    -------
    attention
        [tokens], float32; sums to 1 over each text.
    """
    first = query.index_select(0, packing.firsts).float().unflatten(-1, (-1, head_size))
    keys = packing.unpack(key.float()).unflatten(-1, (-1, head_size))
    with torch.autocast(query.device.type, enabled=False):  # which would round the scores
        scores = torch.einsum("bhd,bshd->bhs", first, keys) * head_size**-0.5
    real = packing.unpack(torch.ones_like(key[:, 0])).bool()
    weights = scores.masked_fill(~real[:, None], -torch.inf).softmax(dim=-1).mean(dim=1)
    return packing.pack(weights)
