"""Other hidden states in a running encoder: what a layer gives out is replaced, and the rest of the model goes on.

    with splicing(model, 4, edit):
        logits = model(**inputs).logits      # edit: [tokens, width] → [tokens, width], real tokens only

    logits = run_from(model, 4, inputs, rows).logits      # the same for rows that are known, without layers 1 to 4

`edit` receives what `recording` records of that layer, in the same order of tokens (that of `packing_of`), whether the
model computes padding or not, and what it returns is what the next layer, or behind the last one the head, sees.
Padding keeps what it had. Hooks do it; none stays on the model.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertdyn.models.anatomy import Anatomy, anatomy_of
from bertdyn.models.unpadded import Packing, is_unpadded, packing_of

Edit = Callable[[Tensor], Tensor]
"""[tokens, width] → [tokens, width]"""


class TokenKinds(NamedTuple):
    """Which tokens of a batch are what, [tokens] each, bool. Special tokens behind the first are neither."""

    content: Tensor
    """Tokens of the text."""
    first: Tensor
    """The first token of each text, which a classification head reads."""


def kinds_of(packing: Packing, input_ids: Tensor, special_ids: Tensor) -> TokenKinds:
    """The kinds of a batch's tokens, in the order of its packing.

    Parameters
    ----------
    input_ids
        [batch, seq]
    special_ids
        [n]: ids of the tokens that the tokenizer puts around texts. Not all that it calls special: an unknown word is
        content.
    """
    special = torch.isin(packing.pack(input_ids), special_ids.to(input_ids.device))
    first = torch.zeros_like(special)
    first[packing.firsts] = True
    return TokenKinds(~special & ~first, first)


@contextmanager
def splicing(model: PreTrainedModel, layer: int, edit: Edit) -> Iterator[None]:
    """Inside, every call of `model` (by keywords, with attention_mask) has `edit`ed hidden states at `layer`.

    Parameters
    ----------
    model
        In evaluation mode: in training, dropout follows the embeddings.
    layer
        0 (what enters the first layer) to L (what the last one gives out).
    edit
        Called once in a forward pass.

    Raises
    ------
    ValueError
        If the model has no such layer, is training or computes its feed-forward parts in chunks; in a call without
        attention_mask, or if `edit` returns another shape.
    """
    anatomy = anatomy_of(model)
    _check(model, anatomy, layer)
    splice = _Splice(anatomy.depth, layer, edit)
    handles = [
        model.register_forward_pre_hook(splice.start, with_kwargs=True, prepend=True),  # before that of run_unpadded
        model.register_forward_hook(splice.stop),
        *(module.register_forward_hook(splice.replace) for module in _ends(anatomy, layer)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_from(model: PreTrainedModel, layer: int, inputs: Mapping[str, Tensor], rows: Tensor) -> Any:
    """What `model` returns of a batch whose hidden states at `layer` are `rows`.

    As `splicing` with an edit that returns `rows`, but the layers below are not computed: a run from the middle layer
    takes half the time. (In families whose layers are modules: all but FlauBERT.)

    Parameters
    ----------
    model
        In evaluation mode.
    layer
        0 to L.
    inputs
        Of the batch, with attention_mask.
    rows
        [tokens, width], in the order of `packing_of(attention_mask)`.

    Raises
    ------
    ValueError
        As `splicing`.
    """
    anatomy = anatomy_of(model)
    arguments: dict[str, Any] = dict(inputs)
    _check(model, anatomy, layer)
    packing = packing_of(inputs["attention_mask"], inputs.get("token_rows"))
    if not is_unpadded(model):
        arguments.pop("token_rows", None)
    if layer == 0 or not anatomy.blocks:
        with splicing(model, layer, lambda _: rows):
            return model(**arguments)
    if layer == anatomy.depth and is_unpadded(model):
        arguments["packing"] = packing  # else only first tokens are expected from the last layer
    with _skipping(anatomy, layer, lambda values: _put(values, rows, packing)):
        return model(**arguments)


@contextmanager
def _skipping(anatomy: Anatomy, layer: int, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Layers below `layer` hand on what they are given, and it gives out `replace` of that."""
    calls = 0

    def instead_of(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > layer:
                return forward(hidden_states, *args, **kwargs)
            return replace(hidden_states) if calls == layer else hidden_states

        return counted

    blocks = {id(block): block for block in anatomy.blocks}.values()
    try:
        for block in blocks:
            block.forward = instead_of(block.forward)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)  # that of the class is there again


class _Splice:
    """What the hooks of one splice share: which batch is in the model, and how many layers it has passed."""

    def __init__(self, depth: int, layer: int, edit: Edit) -> None:
        self.depth, self.layer, self.edit = depth, layer, edit
        self.packing: Packing | None = None
        self.calls = 0

    def start(self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.calls, self.packing = 0, kwargs.get("packing")
        if self.packing is None:
            if kwargs.get("attention_mask") is None:
                raise ValueError("a spliced model must be called with attention_mask=…")
            self.packing = packing_of(kwargs["attention_mask"], kwargs.get("token_rows"))
            # Else an unpadded classifier's last layer would compute first tokens only.
            if self.layer == self.depth and is_unpadded(model) and not kwargs.get("output_hidden_states"):
                kwargs["packing"] = self.packing
        return args, kwargs

    def replace(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        self.calls += 1
        if self.layer and self.calls != self.layer:
            return None
        if self.packing is None:
            raise ValueError("a spliced model must be called as a whole, not one of its parts")
        packed = self.packing.pack(output) if output.shape[:2] == self.packing.shape else output[0]
        return _put(output, self.edit(packed), self.packing)

    def stop(self, model: nn.Module, args: tuple, output: Any) -> None:
        self.packing = None
        if self.calls != (self.depth if self.layer else 1):
            raise RuntimeError(f"{self.calls} layers were passed in a forward pass of {self.depth}: nothing is spliced")


def _put(values: Tensor, rows: Tensor, packing: Packing) -> Tensor:
    """`values`, [batch, seq, width] padded or [1, tokens, width] without padding, with `rows` at its real tokens."""
    expected = (len(packing.rows), values.shape[-1])
    if rows.shape != expected:
        raise ValueError(f"hidden states of shape {list(rows.shape)} were given for {list(expected)}")
    rows = rows.to(values.dtype)
    if values.shape[:2] != packing.shape:
        return rows[None]
    return values.flatten(0, 1).index_copy(0, packing.rows, rows).view_as(values)


def _ends(anatomy: Anatomy, layer: int) -> list[nn.Module]:
    """The modules whose outputs are the hidden states of `layer`, or of all layers above 0 by call."""
    if layer == 0:
        last = "embeddings_projection" if "embeddings_projection" in anatomy.embeddings else "embeddings_norm"
        return [anatomy.embeddings[last]]
    return list({id(parts["ffn_norm"]): parts["ffn_norm"] for parts in anatomy.layers}.values())


def _check(model: PreTrainedModel, anatomy: Anatomy, layer: int) -> None:
    if not 0 <= layer <= anatomy.depth:
        raise ValueError(f"no layer {layer} to splice into: accepted are 0 to {anatomy.depth}")
    if model.training:
        raise ValueError("a model in training mode cannot be spliced: model.eval() first")
    if getattr(model.config, "chunk_size_feed_forward", 0):
        raise ValueError("a model with chunk_size_feed_forward computes hidden states in pieces: accepted here is 0")
