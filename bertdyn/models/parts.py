"""Names of the parts of an encoder layer, by family; nothing but names.

`anatomy` finds the modules by them, surgery the tensors of a state dict, and a pruned model the modules that it
makes narrower. A saved pruned model brings a copy of this file, so it imports nothing of bertdyn.
"""

from collections.abc import Callable
from typing import NamedTuple

from transformers import PretrainedConfig

PRUNED = "pruned_"
"""What the family of a pruned model begins with: `pruned_bert`."""


def family_of(config: PretrainedConfig) -> str:
    """The family that a model is of, pruned or not: `bert` for `pruned_bert`, too."""
    return config.model_type.removeprefix(PRUNED)


def _numbers(config: PretrainedConfig) -> list[str]:
    return [str(layer) for layer in range(config.num_hidden_layers)]


class Parts(NamedTuple):
    """Where a family keeps the parts of its layers; `{i}` stands for a layer."""

    layer: dict[str, str]
    """Component → module name within the encoder."""
    attention: str
    """The module of one layer's attention: hidden states in, (hidden states, weights) out."""
    layers: Callable[[PretrainedConfig], list[str]] = _numbers
    """What to put for `{i}`, one a *physical* layer."""

    def name(self, component: str, layer: str) -> str:
        """The module name of a component."""
        return self.layer[component].format(i=layer)


_BERT = Parts(
    layer={
        "query": "encoder.layer.{i}.attention.self.query",
        "key": "encoder.layer.{i}.attention.self.key",
        "value": "encoder.layer.{i}.attention.self.value",
        "attention_output": "encoder.layer.{i}.attention.output.dense",
        "attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
        "ffn_in": "encoder.layer.{i}.intermediate.dense",
        "ffn_out": "encoder.layer.{i}.output.dense",
        "ffn_norm": "encoder.layer.{i}.output.LayerNorm",
    },
    attention="encoder.layer.{i}.attention.self",
)
_DISTILBERT = Parts(
    layer={
        "query": "transformer.layer.{i}.attention.q_lin",
        "key": "transformer.layer.{i}.attention.k_lin",
        "value": "transformer.layer.{i}.attention.v_lin",
        "attention_output": "transformer.layer.{i}.attention.out_lin",
        "attention_norm": "transformer.layer.{i}.sa_layer_norm",
        "ffn_in": "transformer.layer.{i}.ffn.lin1",
        "ffn_out": "transformer.layer.{i}.ffn.lin2",
        "ffn_norm": "transformer.layer.{i}.output_layer_norm",
    },
    attention="transformer.layer.{i}.attention",
)
_ALBERT = Parts(
    layer={
        "query": "encoder.albert_layer_groups.{i}.attention.query",
        "key": "encoder.albert_layer_groups.{i}.attention.key",
        "value": "encoder.albert_layer_groups.{i}.attention.value",
        "attention_output": "encoder.albert_layer_groups.{i}.attention.dense",
        "attention_norm": "encoder.albert_layer_groups.{i}.attention.LayerNorm",
        "ffn_in": "encoder.albert_layer_groups.{i}.ffn",
        "ffn_out": "encoder.albert_layer_groups.{i}.ffn_output",
        "ffn_norm": "encoder.albert_layer_groups.{i}.full_layer_layer_norm",
    },
    attention="encoder.albert_layer_groups.{i}.attention",
    layers=lambda config: [
        f"{group}.albert_layers.{inner}"
        for group in range(config.num_hidden_groups)
        for inner in range(config.inner_group_num)
    ],
)
_FLAUBERT = Parts(
    layer={
        "query": "attentions.{i}.q_lin",
        "key": "attentions.{i}.k_lin",
        "value": "attentions.{i}.v_lin",
        "attention_output": "attentions.{i}.out_lin",
        "attention_norm": "layer_norm1.{i}",
        "ffn_in": "ffns.{i}.lin1",
        "ffn_out": "ffns.{i}.lin2",
        "ffn_norm": "layer_norm2.{i}",
    },
    attention="attentions.{i}",
)

PARTS: dict[str, Parts] = {
    "bert": _BERT,
    "fft_bert": _BERT,
    "conv2d_bert": _BERT,
    "roberta": _BERT,
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
    "albert": _ALBERT,
    "flaubert": _FLAUBERT,
}
