"""Plans from thresholds and from ratios, block by block: a unit stays if its score reaches the threshold."""

import math
from collections.abc import Sequence

import numpy as np

from bertdyn.errors import InputError
from bertdyn.pruning.plan import Plan, best
from bertdyn.pruning.scores import Scores
from bertdyn.pruning.shape import KINDS, UNIT_NAMES, Shape, Site


def by_thresholds(
    shape: Shape,
    scores: Scores,
    thresholds: dict[str, Sequence[float]],
    kind: str,
    *,
    allow_empty: bool = False,
    round_to: int = 1,
) -> Plan:
    """Keep the units whose scores are at least the threshold of their block.

    Parameters
    ----------
    scores
        [units] by block.
    thresholds
        `attention`, `ffn` → one number a physical layer.
    kind
        "absolute": a threshold is a score. "quantile": it is a share of the block's units, from 0 to 1, and the score
        at that quantile (`numpy.quantile`, linear) is what counts. 0 keeps all.
    allow_empty
        Let a block lose all units; else its best one stays.
    round_to
        Numbers of neurons are rounded up to multiples of this (but not beyond what there is).

    Raises
    ------
    InputError
        If the thresholds keep no unit at all.
    """
    counts = {}
    for site in shape.sites:
        values, threshold = scores[site].numpy(), thresholds[site.kind][site.layer - 1]
        least = np.quantile(values, threshold) if kind == "quantile" else threshold
        counts[site] = int((values >= least).sum())
    if not any(counts.values()):
        highest = {k: [float(scores[site].max()) for site in shape.sites if site.kind == k] for k in KINDS}
        words = {"attention": "of a head", "ffn": "of a neuron"}
        raise InputError(
            "these thresholds remove everything: accepted are some below the highest score, "
            + " and ".join(f"{max(found):.4g} {words[kind]}" for kind, found in highest.items() if found)
        )
    return from_counts(shape, scores, counts, allow_empty=allow_empty, round_to=round_to)


def by_ratios(
    shape: Shape,
    scores: Scores,
    ratios: dict[str, Sequence[float]],
    *,
    allow_empty: bool = False,
    round_to: int = 1,
) -> Plan:
    """Keep a share of each block's units, those with the highest scores.

    Parameters
    ----------
    ratios
        `attention`, `ffn` → one number from 0 to 1 a physical layer; the number of units is rounded to the nearest.
    """
    counts = {site: math.floor(ratios[site.kind][site.layer - 1] * shape.units(site) + 0.5) for site in shape.sites}
    return from_counts(shape, scores, counts, allow_empty=allow_empty, round_to=round_to)


def from_counts(
    shape: Shape, scores: Scores, counts: dict[Site, int], *, allow_empty: bool = False, round_to: int = 1
) -> Plan:
    """The plan that keeps so many units a block (at least one, and multiples of `round_to` neurons)."""
    kept = {}
    for site, count in counts.items():
        count = max(count, 0 if allow_empty else 1)
        if site.kind == "ffn":
            count = min(-(-count // round_to) * round_to, shape.units(site))
        kept[site] = best(scores[site], count)
    return Plan(shape, kept)


def per_layer(values: Sequence[float], shape: Shape, flag: str) -> list[float]:
    """One number a physical layer, from a list of as many or of one that holds for all.

    Raises
    ------
    InputError
        If there are more or fewer.
    """
    layers = len(shape.heads)
    if len(values) == 1:
        return list(values) * layers
    if len(values) == layers:
        return list(values)
    shared = (
        f", since its {shape.depth} layers share their weights: what one loses, all lose" if shape.shares_layers else ""
    )
    kind = "attention" if flag.startswith("attention") else "ffn"
    raise InputError(
        f"--{flag} has {len(values)} numbers: accepted are {layers} (a number of {UNIT_NAMES[kind]} for each layer of "
        f"this encoder{shared}), or one for all"
    )
