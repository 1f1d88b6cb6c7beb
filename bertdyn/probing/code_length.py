"""Online code length of labels given features (Voita & Titov 2020): how much effort, not only how well."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertdyn.probing.cross_validation import losses_of
from bertdyn.probing.linear import Fits, centred
from bertdyn.probing.logistic import fit_logistic

ROWS_A_CLASS = 2
"""Of the rarest class in the first block, which is sent without a probe: a probe of absent classes cannot be fitted."""


class CodeLength(NamedTuple):
    """A message that holds all labels, for one who knows the features."""

    bits: np.ndarray
    """[rows]: what the label of each row takes, in the order of the rows."""
    uniform_bits: float
    """What all labels take without any model: rows × log2 K."""
    penalty_bits: float
    """What it takes to say which penalty was used."""

    @property
    def total(self) -> float:
        """In bits."""
        return float(self.bits.sum()) + self.penalty_bits

    @property
    def compression(self) -> float:
        """Uniform code length over this one. Features are of no use where it is that of features that are all the same:
        1 for classes of one size, more where their sizes alone tell much."""
        return self.uniform_bits / self.total


def code_length(features: Tensor, classes: Tensor, penalties: Sequence[float], num_classes: int) -> CodeLength:
    """Labels sent block by block, each under a logistic probe that was fitted to all blocks before it.

    Blocks double in size up to all rows, as in the paper; the first goes by the uniform code. The penalty is the one
    with the shortest message, and the message says which: choosing among P costs log2 P bits.

    Parameters
    ----------
    features
        [rows, width], in a random order.
    classes
        [rows], 0 to K - 1.
    penalties
        Inverse penalties (C) to choose from.

    References
    ----------
    Voita & Titov 2020, "Information-Theoretic Probing with Minimum Description Length".
    """
    features, _ = centred(features)
    rows, ends = len(classes), block_ends(classes, num_classes)
    uniform = float(np.log2(num_classes))
    bits = features.new_full((rows, len(penalties)), uniform)
    if len(ends) > 1:
        position = torch.arange(rows, device=classes.device)
        training = torch.stack([position < end for end in ends[:-1]], dim=1)
        values = torch.tensor(penalties, dtype=torch.float64, device=classes.device)
        blocks = torch.arange(len(ends) - 1, device=classes.device)
        sets = blocks.repeat_interleave(len(values))
        probes = fit_logistic(
            features,
            classes[:, None],
            training,
            Fits(torch.zeros_like(sets), sets, values.repeat(len(blocks))),
            num_classes,
        )
        for number, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
            of_block = slice(start, end)
            scores = probes.only(sets == number).scores(features[of_block])
            losses = losses_of(scores, classes[of_block, None].expand(-1, len(values)), classes=True)
            bits[of_block] = losses / np.log(2)
    best = int(bits.sum(dim=0).argmin())
    return CodeLength(bits[:, best].double().cpu().numpy(), rows * uniform, float(np.log2(len(penalties))))


def block_ends(classes: Tensor, num_classes: int) -> list[int]:
    """Where the blocks end: at all rows, at half of them, at a quarter, … while all classes are there before."""
    counts = torch.nn.functional.one_hot(classes, num_classes).cumsum(dim=0).amin(dim=1)
    enough = (counts >= ROWS_A_CLASS).nonzero()
    first = int(enough[0]) + 1 if len(enough) else len(classes)
    ends = [len(classes)]
    while ends[-1] // 2 >= first:
        ends.append(ends[-1] // 2)
    return ends[::-1]
