"""Encoders whose layers have different numbers of heads and feed-forward neurons: real Hugging Face models.

    config.layer_num_heads            [12, 5, 0, …]      a number a physical layer; None: all as in the dense model
    config.layer_intermediate_sizes   [1536, 310, …]

`num_attention_heads` and `intermediate_size` keep the values of the dense model, so that the size of a head and the
scale of its softmax stay what they were, and no library trips over a list. Each class is that of its family with some
of its linear layers narrower, so everything that works on the family (attention implementations, gradient
checkpointing, export) works here. A block without any unit is not kept as a matrix of width 0, which ONNX runtimes
refuse, but leaves the constant that it adds: `NoUnits`.

Importing this module registers the classes with the Auto classes. A saved model brings a copy of it and of its
neighbours, so that it also loads where bertdyn is not installed, with trust_remote_code=True: import nothing of
bertdyn but by relative imports of modules that do the same.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
    AlbertModel,
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    CamembertConfig,
    CamembertForQuestionAnswering,
    CamembertForSequenceClassification,
    CamembertModel,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertModel,
    FlaubertConfig,
    FlaubertForQuestionAnsweringSimple,
    FlaubertForSequenceClassification,
    FlaubertModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaModel,
)
from transformers import initialization as init

from .embedding_variants import (
    Conv2dBertConfig,
    Conv2dBertForQuestionAnswering,
    Conv2dBertForSequenceClassification,
    Conv2dBertModel,
    FftBertConfig,
    FftBertForQuestionAnswering,
    FftBertForSequenceClassification,
    FftBertModel,
)
from .parts import PARTS, PRUNED, Parts, family_of

DENSE: dict[str, tuple[type[PretrainedConfig], tuple[type[PreTrainedModel], ...]]] = {
    "bert": (BertConfig, (BertModel, BertForSequenceClassification, BertForQuestionAnswering)),
    "fft_bert": (FftBertConfig, (FftBertModel, FftBertForSequenceClassification, FftBertForQuestionAnswering)),
    "conv2d_bert": (
        Conv2dBertConfig,
        (Conv2dBertModel, Conv2dBertForSequenceClassification, Conv2dBertForQuestionAnswering),
    ),
    "roberta": (RobertaConfig, (RobertaModel, RobertaForSequenceClassification, RobertaForQuestionAnswering)),
    "camembert": (
        CamembertConfig,
        (CamembertModel, CamembertForSequenceClassification, CamembertForQuestionAnswering),
    ),
    "distilbert": (
        DistilBertConfig,
        (DistilBertModel, DistilBertForSequenceClassification, DistilBertForQuestionAnswering),
    ),
    "albert": (AlbertConfig, (AlbertModel, AlbertForSequenceClassification, AlbertForQuestionAnswering)),
    "flaubert": (
        FlaubertConfig,
        (FlaubertModel, FlaubertForSequenceClassification, FlaubertForQuestionAnsweringSimple),
    ),
}
"""Family → configuration, and the classes for `AUTO_CLASSES`."""
AUTO_CLASSES = (AutoModel, AutoModelForSequenceClassification, AutoModelForQuestionAnswering)
HEAD_COUNTS = ("num_attention_heads", "n_heads")
"""What attention modules call their number of heads."""


class NoUnits(nn.Module):
    """The output projection of a block that has no unit left: the constant that the block adds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor) -> Tensor:
        """[…, anything] → [width], to be added to every token"""
        return self.bias.expand(*states.shape[:-1], -1)


class NoHeads(nn.Module):
    """Stands where a layer's attention was, with the output projection inside where the family has it there."""

    def __init__(self, output_name: str, output: NoUnits | None) -> None:
        super().__init__()
        self.output_name = output_name
        if output is not None:
            self.add_module(output_name, output)

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """[batch, seq, hidden] → ([batch, seq, hidden], None)"""
        return (getattr(self, self.output_name)(states) if self.output_name else states), None


class PrunedModel:
    """What makes the model classes of a family narrower; goes before one of them among the bases."""

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        _narrow(self.base_model, config)  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[attr-defined]  # for the modules that are new

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, NoUnits):
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)  # type: ignore[misc]


def _narrow(encoder: nn.Module, config: PretrainedConfig) -> None:
    """Give each layer of `encoder` the numbers of heads and neurons that `config` says."""
    parts = PARTS[family_of(config)]
    head_size = config.hidden_size // config.num_attention_heads
    for layer, heads in zip(parts.layers(config), config.layer_num_heads or (), strict=False):
        if heads:
            for component in ("query", "key", "value"):
                _resize(encoder, parts.name(component, layer), out_features=heads * head_size)
            _resize(encoder, parts.name("attention_output", layer), in_features=heads * head_size)
            attention = encoder.get_submodule(parts.attention.format(i=layer))
            for count in filter(lambda name: hasattr(attention, name), HEAD_COUNTS):
                setattr(attention, count, heads)
        else:
            _remove_heads(encoder, parts, layer, config.hidden_size)
    for layer, neurons in zip(parts.layers(config), config.layer_intermediate_sizes or (), strict=False):
        if neurons:
            _resize(encoder, parts.name("ffn_in", layer), out_features=neurons)
            _resize(encoder, parts.name("ffn_out", layer), in_features=neurons)
        else:
            encoder.set_submodule(parts.name("ffn_in", layer), nn.Identity())
            encoder.set_submodule(parts.name("ffn_out", layer), NoUnits(config.hidden_size))


def _resize(encoder: nn.Module, name: str, in_features: int | None = None, out_features: int | None = None) -> None:
    old: Any = encoder.get_submodule(name)
    sizes = in_features or old.in_features, out_features or old.out_features
    if sizes != (old.in_features, old.out_features):
        encoder.set_submodule(name, nn.Linear(*sizes))


def _remove_heads(encoder: nn.Module, parts: Parts, layer: str, width: int) -> None:
    attention, output = parts.attention.format(i=layer), parts.name("attention_output", layer)
    if output.startswith(f"{attention}."):
        encoder.set_submodule(attention, NoHeads(output.removeprefix(f"{attention}."), NoUnits(width)))
    else:
        encoder.set_submodule(attention, NoHeads("", None))
        encoder.set_submodule(output, NoUnits(width))


class _Checks:
    """What the configurations of pruned models share."""

    layer_num_heads: list[int] | None
    layer_intermediate_sizes: list[int] | None

    def validate_architecture(self) -> None:
        """Raises ValueError unless the lists fit the layers."""
        super().validate_architecture()  # type: ignore[misc]
        most = self.num_attention_heads  # type: ignore[attr-defined]
        layers = len(PARTS[family_of(self)].layers(self))  # type: ignore[arg-type]
        for name, limit in (("layer_num_heads", most), ("layer_intermediate_sizes", None)):
            numbers = getattr(self, name)
            if numbers is None:
                continue
            if len(numbers) != layers:
                raise ValueError(f"{name} has {len(numbers)} numbers: accepted are {layers}, one a layer")
            if min(numbers) < 0 or (limit is not None and max(numbers) > limit):
                raise ValueError(f"{name} {numbers}: accepted are numbers from 0" + (f" to {limit}" if limit else ""))


def _pruned_config(family: str, dense: type[PretrainedConfig]) -> type[PretrainedConfig]:
    fields: dict[str, Any] = {"layer_num_heads": list[int] | None, "layer_intermediate_sizes": list[int] | None}
    body = {"__module__": __name__, "__annotations__": fields, **dict.fromkeys(fields), "model_type": PRUNED + family}
    return strict(type(f"Pruned{dense.__name__}", (_Checks, dense), body))  # type: ignore[arg-type]


def _pruned_class(dense: type[PreTrainedModel], config: type[PretrainedConfig]) -> type[PreTrainedModel]:
    body = {"__module__": __name__, "config_class": config, "__doc__": f"{dense.__name__} with narrower layers."}
    return type(f"Pruned{dense.__name__}", (PrunedModel, dense), body)


CONFIGS: dict[str, type[PretrainedConfig]] = {}
"""Family (`bert`) → configuration of its pruned models."""
MODELS: dict[str, tuple[type[PreTrainedModel], ...]] = {}
"""Family → classes of its pruned models for `AUTO_CLASSES`: PrunedBertModel, PrunedBertForSequenceClassification, …"""

for _family, (_dense_config, _dense_classes) in DENSE.items():
    _config = CONFIGS[_family] = _pruned_config(_family, _dense_config)
    MODELS[_family] = tuple(_pruned_class(_class, _config) for _class in _dense_classes)
    AutoConfig.register(_config.model_type, _config)
    _config.register_for_auto_class()
    for _auto, _class in zip(AUTO_CLASSES, MODELS[_family], strict=True):
        _auto.register(_config, _class)
        _class.register_for_auto_class(_auto.__name__)  # type: ignore[attr-defined]
    # By name, too: that is how a checkpoint's own copy of this file is read.
    globals().update({_class.__name__: _class for _class in (_config, *MODELS[_family])})


def auto_map(family: str) -> dict[str, str]:
    """What a configuration says of where its code is: for every head, not only the one that is saved.

    `save_pretrained` alone would enter the saved class, and an encoder with another head could not be made of it.
    """
    here = __name__.rpartition(".")[2]
    names = {"AutoConfig": CONFIGS[family].__name__}
    names |= {auto.__name__: model.__name__ for auto, model in zip(AUTO_CLASSES, MODELS[family], strict=True)}
    return {auto: f"{here}.{name}" for auto, name in names.items()}
