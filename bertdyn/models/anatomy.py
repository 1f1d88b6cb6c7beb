"""Where each family keeps its embeddings, layers, heads and feed-forward parts.

This module and the names in `parts` are the only places that know how a model family is built. Everything
else asks for an `Anatomy` and speaks of components: `word_embeddings`, `query`, `ffn_in`, `head`, … To add a
family, enter the names of its layers in `parts.PARTS`, and a small function that returns its `Anatomy` in `FAMILIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from bertdyn.errors import InputError
from bertdyn.models.parts import PARTS, family_of
from bertdyn.models.pruned import NoHeads

EMBEDDING_COMPONENTS = (
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "embeddings_conv",
    "embeddings_norm",
    "embeddings_projection",
)
LAYER_COMPONENTS = (
    "query",
    "key",
    "value",
    "attention_output",
    "attention_norm",
    "ffn_in",
    "ffn_out",
    "ffn_norm",
)
_HEADS = ("query", "key", "value")
COMPONENTS = (*EMBEDDING_COMPONENTS, *LAYER_COMPONENTS, "pooler", "head", "other")


class Place(NamedTuple):
    """Where a parameter belongs."""

    component: str
    """One of `COMPONENTS`."""
    layer: int | None
    """1..L for encoder layers, None outside them; a shared layer has the number of its first use."""


@dataclass(frozen=True)
class Anatomy:
    """The modules of one encoder by the names that the field gives them."""

    embeddings: dict[str, nn.Module]
    """Component name → module, before the first layer; only components that the family has."""
    layers: list[dict[str, nn.Module]]
    """One entry per *physical* layer: component name → module. ALBERT shares one entry. Without heads, a layer of a
    pruned model has no query, key and value; without neurons, no ffn_in."""
    depth: int
    """Number of layers in the forward pass, L; larger than `len(layers)` where layers are shared."""
    head_size: int
    """Width of one attention head."""
    pooler: list[nn.Module] = field(default_factory=list)
    """The modules between the last layer and the head, where the encoder itself has them."""
    blocks: list[nn.Module] = field(default_factory=list)
    """The module of each physical layer, where there is one: hidden states in, hidden states out."""
    stack: nn.Module | None = None
    """The one module that runs all layers, where there is one: hidden_states and attention_mask in,
    last_hidden_state out."""
    last_attention_output: nn.Module | None = None
    """The module behind the last layer's attention, where all that follows treats every token alone:
    (context, what entered the layer) in, both [batch, seq, hidden]."""

    @property
    def shares_layers(self) -> bool:
        return len(self.layers) < self.depth


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """The anatomy of `model`, with or without a task head.

    Raises
    ------
    InputError
        If the family is not one of `FAMILIES`.
    """
    check_family(model.config)
    return FAMILIES[family_of(model.config)](model.base_model)


def check_family(config: PretrainedConfig) -> None:
    """Raise `InputError` unless the family of `config`, pruned or not, is known here."""
    if family_of(config) not in FAMILIES:
        raise InputError(
            f"model family {config.model_type!r} is not supported: accepted are {', '.join(sorted(FAMILIES))}"
        )


def places(model: PreTrainedModel) -> dict[str, Place]:
    """Parameter name → `Place`, for every parameter of `model`.

    Parameters of the encoder that no table names (those of a checkpoint's own code) are `other`;
    everything outside the encoder is `head`.
    """
    anatomy = anatomy_of(model)
    known: dict[int, Place] = {}
    for component, module in anatomy.embeddings.items():
        known |= {id(p): Place(component, None) for p in module.parameters()}
    for number, layer in enumerate(anatomy.layers, start=1):
        for component, module in layer.items():
            known |= {id(p): Place(component, number) for p in module.parameters()}
    for module in anatomy.pooler:
        known |= {id(p): Place("pooler", None) for p in module.parameters()}
    inside = {id(p) for p in model.base_model.parameters()} if model.base_model is not model else None
    return {
        name: known.get(id(p), Place("other" if inside is None or id(p) in inside else "head", None))
        for name, p in model.named_parameters()
    }


def max_length(config: PretrainedConfig) -> int:
    """The longest input, in tokens with special ones, that the position embeddings allow."""
    # RoBERTa counts positions from padding_idx + 1, so that many rows of its table are never used.
    offset = config.pad_token_id + 1 if family_of(config) in ("roberta", "camembert") else 0
    return config.max_position_embeddings - offset


def _head_size(config: PretrainedConfig) -> int:
    return config.hidden_size // config.num_attention_heads


def _layers(encoder: Any) -> list[dict[str, nn.Module]]:
    """The parts of every physical layer; those that pruning has removed are not among them."""
    parts = PARTS[family_of(encoder.config)]
    layers = []
    for layer in parts.layers(encoder.config):
        heads = [] if isinstance(encoder.get_submodule(parts.attention.format(i=layer)), NoHeads) else _HEADS
        of = {component: parts.name(component, layer) for component in parts.layer}
        found = {c: encoder.get_submodule(name) for c, name in of.items() if c in heads or c not in _HEADS}
        layers.append({c: module for c, module in found.items() if not isinstance(module, nn.Identity)})
    return layers


def _bert(encoder: Any) -> Anatomy:
    embeddings = encoder.embeddings
    return Anatomy(
        embeddings={
            "word_embeddings": embeddings.word_embeddings,
            "position_embeddings": embeddings.position_embeddings,
            "token_type_embeddings": embeddings.token_type_embeddings,
            "embeddings_norm": embeddings.LayerNorm,
        },
        layers=_layers(encoder),
        depth=encoder.config.num_hidden_layers,
        head_size=_head_size(encoder.config),
        pooler=[encoder.pooler] if encoder.pooler is not None else [],
        blocks=list(encoder.encoder.layer),
        stack=encoder.encoder,
        last_attention_output=encoder.encoder.layer[-1].attention.output,
    )


def _conv2d_bert(encoder: Any) -> Anatomy:
    anatomy = _bert(encoder)
    return replace(anatomy, embeddings=anatomy.embeddings | {"embeddings_conv": encoder.embeddings.conv})


def _distilbert(encoder: Any) -> Anatomy:
    embeddings = encoder.embeddings
    return Anatomy(
        embeddings={
            "word_embeddings": embeddings.word_embeddings,
            "position_embeddings": embeddings.position_embeddings,
            "embeddings_norm": embeddings.LayerNorm,
        },
        layers=_layers(encoder),
        depth=encoder.config.num_hidden_layers,
        head_size=_head_size(encoder.config),
        blocks=list(encoder.transformer.layer),
        stack=encoder.transformer,
    )


def _albert(encoder: Any) -> Anatomy:
    embeddings = encoder.embeddings
    return Anatomy(
        embeddings={
            "word_embeddings": embeddings.word_embeddings,
            "position_embeddings": embeddings.position_embeddings,
            "token_type_embeddings": embeddings.token_type_embeddings,
            "embeddings_norm": embeddings.LayerNorm,
            "embeddings_projection": encoder.encoder.embedding_hidden_mapping_in,
        },
        layers=_layers(encoder),
        depth=encoder.config.num_hidden_layers,
        head_size=_head_size(encoder.config),
        pooler=[encoder.pooler] if encoder.pooler is not None else [],
        blocks=[layer for group in encoder.encoder.albert_layer_groups for layer in group.albert_layers],
        stack=encoder.encoder,
    )


def _flaubert(encoder: Any) -> Anatomy:
    return Anatomy(
        embeddings={
            "word_embeddings": encoder.embeddings,
            "position_embeddings": encoder.position_embeddings,
            "embeddings_norm": encoder.layer_norm_emb,
        },
        layers=_layers(encoder),
        depth=encoder.config.n_layers,
        head_size=_head_size(encoder.config),
    )


FAMILIES: dict[str, Callable[[Any], Anatomy]] = {
    "bert": _bert,
    "fft_bert": _bert,
    "conv2d_bert": _conv2d_bert,
    "roberta": _bert,
    "camembert": _bert,
    "distilbert": _distilbert,
    "albert": _albert,
    "flaubert": _flaubert,
}
