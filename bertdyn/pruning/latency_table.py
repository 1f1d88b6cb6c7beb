"""How long blocks of each size take on this machine: the look-up table of a latency budget.

Encoders whose layers all have h heads and no neurons, or n neurons and no heads, are timed in turns; what they take
beyond one without any is that of their blocks, divided by their number (ZipLM, Kurtic et al. 2023, times blocks alike).
"""

from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from bertdyn.models.parts import family_of
from bertdyn.models.pruned import MODELS
from bertdyn.pruning.cost import Costs, grid, latency_costs
from bertdyn.pruning.latency import measure, one_thread, random_batches, run_once
from bertdyn.pruning.plan import Plan
from bertdyn.pruning.shape import KINDS, Shape, shape_of
from bertdyn.pruning.surgery import pruned_config

ROUNDS = 15


class LatencyTable(NamedTuple):
    """What was measured; `latency_costs` makes costs of it."""

    fixed: float
    """Seconds of an encoder whose blocks have no units."""
    tables: dict[str, dict[int, float]]
    """`attention`, `ffn` → number of units → seconds that one such block adds."""


def measured_costs(model: PreTrainedModel, batch_size: int, length: int, *, seed: int = 0) -> Costs:
    """Seconds of a forward pass of the encoder, as a sum over its blocks: `latency_table` as costs."""
    return latency_costs(*latency_table(model, batch_size, length, seed=seed))


def latency_table(model: PreTrainedModel, batch_size: int, length: int, *, seed: int = 0) -> LatencyTable:
    """Time blocks of each size on this machine.

    Parameters
    ----------
    model
        Gives family, sizes and device; its weights are not read.
    batch_size, length
        Of the batch that is timed, with padding as `latency` makes it.
    seed
        Of the batch.

    Raises
    ------
    ValueError
        If texts are longer than the model takes.
    """
    shape = shape_of(model)
    most = {"attention": max(shape.heads), "ffn": max(shape.neurons)}
    sizes = [("attention", 0), *((kind, units) for kind in KINDS for units in grid(most[kind]))]
    encoders = {size: _uniform(model, shape, *size) for size in sizes}
    [batch] = random_batches(next(iter(encoders.values())).config, [(batch_size, length)], seed=seed)
    batch = {name: value.to(model.device) for name, value in batch.items()}

    names = {f"{kind} {units}": (kind, units) for kind, units in sizes}
    with torch.inference_mode(), one_thread():
        runners = {name: partial(run_once, encoders[size], batch) for name, size in names.items()}
        seconds = measure(runners, ROUNDS, seed=seed)
    median = {names[name]: float(value) for name, value in seconds.median().items()}
    empty = median["attention", 0]
    tables = {
        kind: {units: max(0.0, median[kind, units] - empty) / len(shape.heads) for units in grid(most[kind])}
        for kind in KINDS
    }
    return LatencyTable(empty, tables)


def _uniform(model: PreTrainedModel, shape: Shape, kind: str, units: int) -> PreTrainedModel:
    """An encoder of the family with random weights whose blocks of one kind have so many units, the others none."""
    layers = len(shape.heads)
    even = shape._replace(heads=(max(shape.heads),) * layers, neurons=(max(shape.neurons),) * layers)
    kept = {site: tuple(range(units if site.kind == kind else 0)) for site in even.sites}
    config = pruned_config(model.config, Plan(even, kept))
    with torch.random.fork_rng(devices=[]):
        encoder = MODELS[family_of(model.config)][0](config)
    return encoder.to(device=model.device, dtype=model.dtype).eval()  # type: ignore[call-arg]
