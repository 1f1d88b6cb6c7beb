"""How much the output of each unit changes: between two texts, or between two states of training.

System 4 pruned what changes little, and measured the change between two batches of different texts through the same
weights, padding included. `between_texts` is that, over many pairs of texts and real tokens only: it says how much a
unit depends on its input. `between_states` holds the texts fixed and changes the weights: what training did to a unit.
"""

from collections.abc import Iterable
from itertools import tee

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bertdyn.data.batching import Batch
from bertdyn.pruning.shape import Site
from bertdyn.pruning.statistics import unit_outputs

Changes = dict[Site, Tensor]
"""[width] by block, float64: of each input of the output projection, the mean absolute change."""


@torch.inference_mode()
def between_states(model: PreTrainedModel, other: PreTrainedModel, batches: Iterable[Batch]) -> Changes:
    """Mean over real tokens of abs(output in `model` - output in `other`), the same texts in both.

    Raises
    ------
    ValueError
        If the two have other shapes.
    """
    means = _Means()
    for here, there in zip(*map(unit_outputs, (model, other), tee(batches)), strict=True):
        for mine, others in zip(here.rows, there.rows, strict=True):
            if mine.rows.shape != others.rows.shape:
                raise ValueError(f"{mine.site} has another width in the two states")
            means.add(mine.site, (mine.rows - others.rows).abs())
    return means.result()


@torch.inference_mode()
def between_texts(model: PreTrainedModel, pairs: Iterable[Batch]) -> Changes:
    """Mean of abs(output in one text - output in its partner, at the same position).

    Parameters
    ----------
    pairs
        Batches of texts that stand two by two: rows 0 and 1 are partners, 2 and 3, … Positions beyond the end of the
        shorter of two partners are left out.
    """
    means = _Means()
    for outputs in unit_outputs(model, pairs):
        packing = outputs.packing
        real = packing.unpack(torch.ones(len(packing.rows), dtype=torch.bool, device=packing.rows.device))
        both = real[0::2] & real[1::2]
        for site, rows, first_tokens in outputs.rows:
            values = rows if first_tokens else packing.unpack(rows)
            change = (values[0::2] - values[1::2]).abs()
            means.add(site, change if first_tokens else change[both])
    return means.result()


class _Means:
    """Means by block, of rows that come in pieces."""

    def __init__(self) -> None:
        self.sums: Changes = {}
        self.counts: dict[Site, int] = {}

    def add(self, site: Site, rows: Tensor) -> None:
        total = rows.double().sum(dim=0)
        self.sums[site] = self.sums[site] + total if site in self.sums else total
        self.counts[site] = self.counts.get(site, 0) + len(rows)

    def result(self) -> Changes:
        return {site: total / self.counts[site] for site, total in self.sums.items()}
