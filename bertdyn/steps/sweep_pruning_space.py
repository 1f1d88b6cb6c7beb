"""What a trial of a sweep over pruning thresholds chooses from, what it is judged by, and what is tried first."""

from typing import Any

import numpy as np

from bertdyn.errors import InputError
from bertdyn.models.anatomy import max_length
from bertdyn.models.loading import load_config
from bertdyn.models.parts import PARTS, family_of
from bertdyn.pruning.config import COMPENSATIONS, CRITERIA
from bertdyn.steps.prune_source import check_prunable
from bertdyn.steps.sources import find_states
from bertdyn.steps.sweep_config import SweepPruningConfig
from bertdyn.sweeping.space import Number, PerLayer, Space, Words, read_space
from bertdyn.sweeping.studies import Direction
from bertdyn.tracking.locations import resolve_model

OWN_CRITERIA = tuple(name for name in CRITERIA if name != "auto")
UNIFORM = (0.1, 0.25, 0.5, 0.75)
SYSTEM_4 = {
    # The shape that its README gives for four layers: heads 8 8 6 1 of 8, neurons 2048 2048 193 83 of 2048.
    "System 4, published": ([0, 0, 0.25, 0.875], [0, 0, 0.906, 0.959]),
    # Its lists were early- and late-heavy, linear and exponential in depth, here as quantiles.
    "System 4, late-heavy": ([0, 0.1, 0.3, 0.5], [0, 0.2, 0.5, 0.8]),
    "System 4, early-heavy": ([0.5, 0.3, 0.1, 0], [0.8, 0.5, 0.2, 0]),
    "System 4, linear": ([0.125, 0.25, 0.375, 0.5], [0.2, 0.4, 0.6, 0.8]),
    "System 4, exponential": ([0.0625, 0.125, 0.25, 0.5], [0.1, 0.2, 0.4, 0.8]),
}


def space_of(config: SweepPruningConfig) -> Space:
    """The space of the options, for the layers of the model that is pruned.

    Raises
    ------
    InputError
        If there is no such model, or the space does not fit it.
    """
    if config.source_run_id:
        [state] = find_states(config.source_run_id, config.state, flag="state")
        location = state.location
    else:
        location = resolve_model(str(config.model_name_or_path))
    model = load_config(location, trust_remote_code=config.trust_remote_code)
    check_prunable(model)
    family = family_of(model)
    if family not in PARTS:
        raise InputError(f"model family {family!r} cannot be pruned: accepted are {', '.join(sorted(PARTS))}")
    layers = len(PARTS[family].layers(model))
    quantile = config.threshold_kind == "quantile"
    each = Number(0, 1) if quantile else Number(-np.inf, np.inf)
    criteria = tuple(name for name in OWN_CRITERIA if name != "state_change" or config.source_run_id)
    space = read_space(
        config.space_path,
        config.space_overrides,
        {
            "attention_thresholds": PerLayer(each, layers),
            "ffn_thresholds": PerLayer(each, layers),
            "criterion": Words(criteria),
            "compensation": Words(COMPENSATIONS),
        },
    )
    if config.criterion == "auto" and not space.choices("criterion"):
        raise InputError("--criterion auto: a trial takes one; name it, or let the trials choose in the space")
    if config.allow_empty and layers < model.num_hidden_layers:
        raise InputError("--allow_empty true: the layers of this encoder share their weights; accepted is false")
    if config.budget_of == "latency" and config.cost_length > max_length(model):
        raise InputError(
            f"--cost_length {config.cost_length}: this model has no positions for so many tokens; accepted are at most "
            f"{max_length(model)}"
        )
    if not quantile and len(space.choices("criterion")) > 1:
        raise InputError("--threshold_kind absolute: scores of several criteria share no scale; fix the criterion")
    space.check_free(config, ("criterion", "compensation"))
    return space


def directions(config: SweepPruningConfig) -> list[Direction]:
    """Of the values of a trial."""
    if config.objective == "pareto":
        return ["minimize", "minimize"]
    return ["minimize" if config.score == "kl" else "maximize"]


def value_names(config: SweepPruningConfig) -> list[str]:
    """What the values of a trial are."""
    return ["kl", config.budget_of] if config.objective == "pareto" else [config.score]


def first_trials(config: SweepPruningConfig, space: Space) -> dict[str, dict[str, Any]]:
    """What a person would try first: nothing pruned, all layers alike, System 4's lists (as quantiles)."""
    if config.threshold_kind != "quantile":
        return {}
    wanted = {"unpruned": ([0.0], [0.0])}
    wanted |= {f"uniform {share:g}": ([share], [share]) for share in UNIFORM}
    found: dict[str, dict[str, Any]] = {}
    for origin, (attention, ffn) in (wanted | SYSTEM_4).items():
        words: dict[str, str] = {
            name: space.choices(name)[0] for name in ("criterion", "compensation") if name in space.free
        }
        if origin in SYSTEM_4:
            theirs = {"criterion": "activation_change", "compensation": "none"}
            words |= {name: word for name, word in theirs.items() if word in space.choices(name)}
        own = {"attention_thresholds": attention, "ffn_thresholds": ffn} | words
        params = space.scatter(own)
        if params is not None and params not in found.values():
            found[space.named(origin, own, params)] = params
    return found
