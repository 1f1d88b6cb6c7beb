"""No padding computed: a batch stays padded outside, inside the encoder only its real tokens exist.

    input_ids [batch, seq] → embeddings, as they are → packed [1, tokens, hidden]
        → every layer: linear parts on real tokens, attention within each text
        → first tokens [batch, 1, hidden] for a classification head, else back to [batch, seq, hidden]

A classification head reads first tokens only, so that behind the last layer's attention no other is computed
either (in families whose layer has a seam there: BERT, RoBERTa, CamemBERT and the embedding variants).

Logits and gradients are those of the padded model. Hooks on the model do it, through the public attention
interface of transformers; no class of any family is touched, and nothing of it is saved with the model.
A call that asks for hidden states or attentions runs padded, since those are recorded inside the encoder, unless
it brings its own `packing`; so do calls under gradient checkpointing, and with another attention implementation.
Not made for torch.compile.

Where attention runs: on a GPU as one variable-length call over jagged tensors (flash attention in half
precision, memory-efficient attention in float32); on a CPU, whose kernels know no such thing, queries, keys
and values alone are padded for it, a few texts of similar length at a time.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from bertdyn.errors import InputError
from bertdyn.models.anatomy import anatomy_of
from bertdyn.models.loading import HEADS

NAME = "bertdyn_unpadded"
TEXTS_IN_A_BLOCK = 8
"""Texts that attention pads to one length where it must; by timed steps on GLUE SST-2, where 4 to 16 are equally good
and the whole batch of 32 costs 7 % more."""


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of one batch lie. The packed order of the texts may be another than the batch's."""

    rows: Tensor
    """[tokens]: position of each packed token in the flattened batch."""
    offsets: Tensor
    """[batch + 1]: the text that was packed i-th is `offsets[i]:offsets[i + 1]` of the packed tokens."""
    firsts: Tensor
    """[batch]: packed position of the first token of each text, in the order of the batch."""
    shape: tuple[int, int]
    """(batch, seq) of the padded batch."""

    def pack(self, padded: Tensor) -> Tensor:
        """[batch, seq, …] → [tokens, …]"""
        return padded.flatten(0, 1).index_select(0, self.rows)

    def unpack(self, packed: Tensor) -> Tensor:
        """[tokens, …] → [batch, seq, …], zero at padding."""
        batch, seq = self.shape
        padded = packed.new_zeros(batch * seq, *packed.shape[1:])
        return padded.index_copy(0, self.rows, packed).unflatten(0, (batch, seq))

    @cached_property
    def blocks(self) -> "list[Block]":
        """Neighbouring texts to be padded together; their bounds are read on the host."""
        bounds, device = self.offsets.tolist(), self.offsets.device
        blocks = []
        for start in range(0, len(bounds) - 1, TEXTS_IN_A_BLOCK):
            own = torch.tensor(bounds[start : start + TEXTS_IN_A_BLOCK + 1])
            lengths = own.diff()
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            rows = mask.flatten().nonzero().squeeze(1)
            blocks.append(Block(slice(int(own[0]), int(own[-1])), mask.to(device), rows.to(device)))
        return blocks


class Block(NamedTuple):
    """Some texts of a packing, for kernels that know padded batches only."""

    tokens: slice
    """Their packed tokens."""
    mask: Tensor
    """[texts, longest], true at real tokens."""
    rows: Tensor
    """[tokens]: position of each in the flattened mask."""

    def pad(self, tokens: Tensor) -> Tensor:
        """[tokens, …] → [texts, longest, …], zero at padding."""
        padded = tokens.new_zeros(self.mask.numel(), *tokens.shape[1:])
        return padded.index_copy(0, self.rows, tokens).unflatten(0, self.mask.shape)


def packing_of(attention_mask: Tensor, token_rows: Tensor | None = None) -> Packing:
    """The packing of a batch with `attention_mask` [batch, seq].

    `token_rows` [tokens] are the positions of its ones in the flattened mask. Their number is the size of
    everything that follows, so that finding them here makes the host wait for a GPU; the collator knows them.
    Where attention runs in blocks, the longest texts are packed first: neighbours then have similar lengths.
    """
    mask = attention_mask.bool()
    batch, seq = mask.shape
    lengths = mask.sum(dim=1)
    if mask.device.type != "cuda":
        order = lengths.argsort(descending=True, stable=True)
        text, position = mask[order].nonzero(as_tuple=True)
        rows = order[text] * seq + position
        offsets = F.pad(lengths[order].cumsum(0), (1, 0))
        firsts = torch.empty_like(order).index_copy_(0, order, offsets[:-1])
    else:
        rows = mask.flatten().nonzero().squeeze(1) if token_rows is None else token_rows
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        firsts = offsets[:-1]
    return Packing(rows, offsets, firsts, (batch, seq))


def can_run_unpadded(model: PreTrainedModel) -> bool:
    """Whether `model` is an encoder of one stack with an exchangeable attention (FlauBERT's is not)."""
    config = model.config
    chunked = getattr(config, "chunk_size_feed_forward", 0)  # the feed-forward part, by positions of the padded batch
    return anatomy_of(model).stack is not None and not getattr(config, "is_decoder", False) and not chunked


def is_unpadded(model: PreTrainedModel) -> bool:
    """Whether `run_unpadded` was called on `model` and holds."""
    return model.config._attn_implementation == NAME


def run_unpadded(model: PreTrainedModel) -> None:
    """Make `model` compute no padding from now on; its forward then accepts `token_rows` or `packing`, too.

    With a `packing`, from `packing_of`, every token goes through every layer, and what is recorded inside
    the encoder is packed, [1, tokens, …]. To be called once on a model.

    Raises
    ------
    InputError
        If it cannot.
    """
    anatomy = anatomy_of(model)
    stack = anatomy.stack
    if stack is None or not can_run_unpadded(model):
        raise InputError(
            f"--unpadded true: this {model.config.model_type} computes with padding only; accepted are encoders of "
            "BERT, RoBERTa, CamemBERT, DistilBERT and ALBERT"
        )
    model.set_attn_implementation(NAME)
    firsts_only = HEADS["classification"] in type(model).__name__
    last = anatomy.last_attention_output if firsts_only else None
    hooks = _Hooks(firsts_only, drops_unread=last is not None)
    model.register_forward_pre_hook(hooks.start, with_kwargs=True)
    stack.register_forward_pre_hook(hooks.pack, with_kwargs=True)
    stack.register_forward_hook(hooks.unpack)
    model.register_forward_hook(hooks.stop, always_call=True)
    if last is not None:
        last.register_forward_pre_hook(hooks.drop_unread)


class _Hooks:
    """What the hooks of one model share: the packing of the batch that is in it."""

    def __init__(self, firsts_only: bool, drops_unread: bool) -> None:
        self.firsts_only, self.drops_unread = firsts_only, drops_unread
        self.packing: Packing | None = None
        self.all_tokens = False

    def start(self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        # Set anew in every call: one that was interrupted by Ctrl-C leaves its own behind.
        self.packing = kwargs.pop("packing", None)
        self.all_tokens = not self.firsts_only or self.packing is not None
        token_rows, mask = kwargs.pop("token_rows", None), kwargs.get("attention_mask")
        if self.packing is not None:
            return args, kwargs
        recorded = any(
            kwargs.get(name, getattr(model.config, name, False))
            for name in ("output_hidden_states", "output_attentions")
        )
        if mask is not None and not recorded and is_unpadded(model) and not model.is_activation_checkpointing:
            self.packing = packing_of(mask, token_rows)
        return args, kwargs

    def pack(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.packing is None:
            return None
        # Some families pass hidden states by position, some by name, and so the mask.
        arguments = kwargs | dict(zip(("hidden_states", "attention_mask"), args, strict=False))
        arguments["hidden_states"] = self.packing.pack(arguments["hidden_states"])[None]
        arguments["attention_mask"] = self.packing
        return (), arguments

    def drop_unread(self, module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, ...] | None:
        """Behind its attention, the last layer computes only the tokens that the head reads."""
        if self.packing is None or self.all_tokens:
            return None
        return tuple(tokens.index_select(1, self.packing.firsts) for tokens in args)

    def unpack(self, stack: nn.Module, args: tuple, output: Any) -> Any:
        if self.packing is None:
            return None
        packed = output.last_hidden_state[0]
        if self.all_tokens:
            output.last_hidden_state = self.packing.unpack(packed)
        else:
            firsts = packed if self.drops_unread else packed.index_select(0, self.packing.firsts)
            output.last_hidden_state = firsts[:, None]
        return output

    def stop(self, model: nn.Module, args: tuple, output: Any) -> None:
        self.packing = None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Packing | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each text: [1, heads, tokens, head size] → [1, tokens, heads, head size]."""
    if not isinstance(attention_mask, Packing):
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **kwargs)
    attend = _jagged_attention if query.is_cuda else _padded_attention
    # [tokens, heads, head size] each
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    return attend(q, k, v, attention_mask, dropout, scaling)[None], None


def _jagged_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, dropout: float, scaling: float | None
) -> Tensor:
    def texts(tokens: Tensor) -> Tensor:  # [batch, heads, (its length), head size]
        # The bounds are given so that nothing asks the GPU for them.
        jagged = torch.nested.nested_tensor_from_jagged(
            tokens, packing.offsets, min_seqlen=1, max_seqlen=packing.shape[1]
        )
        return jagged.transpose(1, 2)

    context = F.scaled_dot_product_attention(texts(query), texts(key), texts(value), dropout_p=dropout, scale=scaling)
    return context.transpose(1, 2).values()


def _padded_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, dropout: float, scaling: float | None
) -> Tensor:
    contexts = []
    for block in packing.blocks:
        q, k, v = (block.pad(tokens[block.tokens]).transpose(1, 2) for tokens in (query, key, value))
        context = F.scaled_dot_product_attention(
            q, k, v, attn_mask=block.mask[:, None, None], dropout_p=dropout, scale=scaling
        )
        contexts.append(context.transpose(1, 2).flatten(0, 1).index_select(0, block.rows))
    return torch.cat(contexts)


def _mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The padding mask [batch, seq] as it is: to look into it, as transformers does, is to wait for a GPU."""
    return attention_mask


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
