"""From a model and a plan to a smaller model: tensors are cut by index, on both sides of every cut.

    query, key, value   rows of the heads that stay          ffn_in    rows of the neurons that stay
    attention_output    columns of the same heads            ffn_out   columns of the same neurons

Everything else is the dense model's. The softmax scale stays that of the dense head size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from bertdyn.models.loading import HEADS
from bertdyn.models.parts import PARTS, family_of
from bertdyn.models.pruned import CONFIGS, MODELS, auto_map
from bertdyn.models.unpadded import is_unpadded
from bertdyn.pruning.compensation import Projection
from bertdyn.pruning.plan import Plan
from bertdyn.pruning.shape import Site, shape_of

CUT = {"attention": ("query", "key", "value"), "ffn": ("ffn_in",)}
"""Kind of block → the components whose rows are its units."""
PROJECTIONS = {"attention": "attention_output", "ffn": "ffn_out"}


def prune(model: PreTrainedModel, plan: Plan, projections: Mapping[Site, Projection] | None = None) -> PreTrainedModel:
    """A new model with the units that stay, on the device, in the type and in the mode of `model`.

    A model that computes no padding gives one that does: call `run_unpadded` on it, too. An optimiser has to be made
    anew.

    Parameters
    ----------
    plan
        For a model of this shape.
    projections
        Output projections that make up for what goes (`compensation`). Default: the columns that stay.

    Raises
    ------
    InputError
        If the plan is for a model of another shape.
    """
    plan.check_fits(shape_of(model), plan.fingerprint)
    config = pruned_config(model.config, plan)
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are all replaced
        pruned = MODELS[family_of(model.config)][_head(model)](config)
    if getattr(model.base_model, "pooler", None) is None and hasattr(pruned.base_model, "pooler"):
        pruned.base_model.pooler = None  # type: ignore[assignment]
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    state = prune_state(model.state_dict(), model.config, plan, projections or {}, prefix)
    pruned = pruned.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
    pruned.load_state_dict(state)
    if not is_unpadded(model):
        pruned.set_attn_implementation(model.config._attn_implementation)
    return pruned.train(model.training)


def pruned_config(config: PretrainedConfig, plan: Plan) -> PretrainedConfig:
    """The configuration of the pruned model."""
    family = family_of(config)
    fields = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "auto_map")}
    fields |= {"layer_num_heads": list(plan.result.heads), "layer_intermediate_sizes": list(plan.result.neurons)}
    made = CONFIGS[family](**fields)
    made.auto_map = auto_map(family)
    return made


def prune_state(
    state: Mapping[str, Tensor],
    config: PretrainedConfig,
    plan: Plan,
    projections: Mapping[Site, Projection],
    prefix: str = "",
) -> dict[str, Tensor]:
    """The state dict of the pruned model from that of the dense one.

    Parameters
    ----------
    config
        Of the dense model: its family and sizes.
    prefix
        What stands before the encoder's names: "bert." in a model with a head.
    """
    parts, result = PARTS[family_of(config)], dict(state)
    layers = parts.layers(config)
    for site in plan.kept:
        inputs = torch.tensor(plan.inputs(site), dtype=torch.long)
        output = prefix + parts.name(PROJECTIONS[site.kind], layers[site.layer - 1])
        found = projections.get(site)
        bias = f"{output}.bias"
        if found is not None:
            result[f"{output}.weight"], result[bias] = found.weight, found.bias
        else:
            result[f"{output}.weight"] = state[f"{output}.weight"].index_select(1, inputs.to(state[bias].device))
        names = [prefix + parts.name(component, layers[site.layer - 1]) for component in CUT[site.kind]]
        for name in names:
            for kind in ("weight", "bias"):
                tensor = state[f"{name}.{kind}"]
                result[f"{name}.{kind}"] = tensor.index_select(0, inputs.to(tensor.device))
        if not len(inputs):  # the block is its constant
            for name in (f"{output}.weight", *(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))):
                del result[name]
    return result


def _head(model: PreTrainedModel) -> int:
    """Which of the classes of a family: the encoder alone, for classes, for questions."""
    heads = [HEADS["classification"], HEADS["question-answering"]]
    return next((i for i, head in enumerate(heads, start=1) if head in type(model).__name__), 0)
