"""What an encoder costs, from its shape alone: parameters, FLOPs, and the share of each block in them.

The encoder's cost is that of its layers; embeddings, pooler and head are what pruning does not touch, and are counted
in the model's totals only. FLOPs are those of the matrix products, two a multiply-add, the products of attention
included; they are what `torch.utils.flop_counter.FlopCounterMode` counts under eager attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bertdyn.pruning.shape import KINDS, Shape, Site


@dataclass(frozen=True)
class Costs:
    """The cost of an encoder as a sum over its blocks, each a function of its number of units."""

    name: str
    """`parameters`, `flops` or `latency`."""
    block: Callable[[str, int], float]
    """(kind, units) → cost of one block; not falling with the number of units."""
    fixed: float = 0.0
    """What the rest of the encoder costs."""

    def of(self, shape: Shape) -> float:
        """The cost of an encoder."""
        return self.fixed + sum(
            self.block(kind, units)
            for kind, numbers in zip(KINDS, (shape.heads, shape.neurons), strict=True)
            for units in numbers
        )

    def table(self, shape: Shape, site: Site, counts: Sequence[int]) -> np.ndarray:
        """[counts]: the cost of a block with each of these numbers of units."""
        return np.array([self.block(site.kind, count) for count in counts], dtype=np.float64)


def parameter_costs(shape: Shape) -> Costs:
    """Parameters of the encoder's physical layers, biases and LayerNorms included.

    A head costs 4 · hidden · head size + 3 · head size, a neuron 2 · hidden + 1.
    """
    hidden, head = shape.hidden_size, shape.head_size
    per_unit = {"attention": 4 * hidden * head + 3 * head, "ffn": 2 * hidden + 1}
    always = hidden + 2 * hidden  # the bias of the output projection, the LayerNorm
    return Costs("parameters", lambda kind, units: units * per_unit[kind] + always)


def flop_costs(shape: Shape, batch_size: int = 1, length: int = 64) -> Costs:
    """FLOPs of one forward pass of the layers over texts of `length` tokens; a shared layer counts each call."""
    hidden, head = shape.hidden_size, shape.head_size
    tokens, calls = batch_size * length, shape.depth // len(shape.heads)
    per_unit = {
        "attention": 2 * tokens * 4 * hidden * head + 2 * 2 * tokens * length * head,
        "ffn": 2 * tokens * 2 * hidden,
    }
    return Costs("flops", lambda kind, units: float(calls * units * per_unit[kind]))


def latency_costs(fixed: float, tables: dict[str, dict[int, float]]) -> Costs:
    """Latency from a look-up table.

    Parameters
    ----------
    fixed
        Seconds of an encoder whose blocks have no units.
    tables
        `attention`, `ffn` → number of units → seconds that one such block adds; between two numbers it is interpolated,
        and where noise makes a smaller block slower, the larger one's time is raised to it.
    """
    curves = {}
    for kind, table in tables.items():
        units = sorted({0, *table})
        curves[kind] = units, np.maximum.accumulate([table.get(count, 0.0) for count in units])

    def block(kind: str, units: int) -> float:
        return float(np.interp(units, *curves[kind]))

    return Costs("latency", block, fixed)


def grid(width: int, points: int = 12) -> list[int]:
    """Numbers of units to measure, about evenly spread over 1 to `width`."""
    numbers = np.unique(np.linspace(0, width, points + 1).round().astype(int))[1:]
    return [int(number) for number in numbers if number > 0]
