"""One layer of several states, measured: similarity of pairs of states, geometry of each state, with intervals.

Two passes over the rows of a layer, in bounded memory. The first sums (means, moments, unit vectors); the second
takes one group of texts after the other out of these sums, for the jackknife, and collects what each text says, for
the bootstrap. What needs the rows themselves (neighbours, effective rank, quantiles, classes) uses a seeded sample of
texts or tokens, whose size is in the table.
"""

import functools
import itertools
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bertdyn.features.aligned import AlignedRows, Rows
from bertdyn.geometry.classes import (
    class_cosines,
    fisher_ratio,
    nearest_centroid_correct,
    neural_collapse,
    silhouettes,
)
from bertdyn.geometry.cosines import WithinText, within_text
from bertdyn.geometry.dimensions import norm_quantiles, outlier_dimensions
from bertdyn.geometry.intervals import bias_corrected, bootstrap_ratio, jackknife
from bertdyn.geometry.moments import Moments
from bertdyn.geometry.pca import FixedBasis, fixed_basis
from bertdyn.geometry.similarity import chance_overlap, neighbour_overlap, neighbours, row_cosines
from bertdyn.geometry.spectrum import effective_rank
from bertdyn.geometry.sums import Sums, pair_measures, state_measures

GROUPS = 10
"""Of texts, for the jackknife."""
SAMPLE_ROWS = 2_000
"""Of each kind, where time grows with rows squared or the measure depends on their number."""
BIASED = ("cka", "procrustes")
"""Measures that take the likeness of tokens of one text (and few rows) for likeness of states: what the jackknife
estimates of that is taken off."""
BINS = np.linspace(-1, 1, 101)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Pairs = Sequence[tuple[int, int]]
Row = dict[str, Any]
"""Of a table."""


class LayerTables(NamedTuple):
    """Lists of rows of tables; states and pairs by number."""

    similarity: list[dict[str, Any]]
    """state_a, state_b, rows, measure, value, low, high, num_rows, num_examples, interval. CKA and Procrustes are
    corrected for bias, so that chance may take them a little beyond 1 or below 0; NaN below five texts. Neighbours of
    a token may be of its own text, which `knn_chance` does not know."""
    geometry: list[dict[str, Any]]
    """state, rows, measure, …"""
    histogram: list[dict[str, Any]]
    """state, low, high, density: of the cosines within texts"""
    dimensions: list[pd.DataFrame]
    """state, dimension, mean, std, outlier: of content tokens (first tokens, where there are no token rows)"""
    pca: list["Projection"]
    """Of first tokens, onto components that all states share; at most one."""


class Projection(NamedTuple):
    """Some rows in two dimensions."""

    basis: FixedBasis
    examples: np.ndarray
    """[rows]: number of the example of each row."""


def measure_layer(
    aligned: AlignedRows,
    layer: int,
    pairs: Pairs,
    *,
    geometry: bool = True,
    num_neighbours: int = 10,
    seed: int = 0,
) -> LayerTables:
    """Everything about one layer.

    Parameters
    ----------
    pairs
        Pairs (a, b) of states, by number.
    geometry
        Also measure each state alone.
    num_neighbours
        For the overlap of neighbourhoods.
    seed
        Of samples, resamples and folds.
    """
    tables = LayerTables([], [], [], [], [])
    states = range(aligned.num_states if geometry else 0)
    totals = _totals(aligned, layer, pairs)
    found = _second_pass(aligned, layer, pairs, states, totals)
    for kind, total in totals.items():
        num_examples = int((found.counts[kind] > 0).sum())
        if num_examples < 2:
            continue
        sample = _sample(aligned, layer, kind, seed)
        size = {"rows": kind, "num_rows": total.rows, "num_examples": num_examples}
        for a, b in pairs:
            at = size | {"state_a": a, "state_b": b}
            tables.similarity.extend(_jackknifed(pair_measures(total, a, b), found.left_out[kind, a, b], at))
            counts = found.counts[kind]
            for measure, sums in found.of_texts.get((kind, a, b), {}).items():
                tables.similarity.append(_bootstrapped(measure, sums, counts, at, seed))
        tables.similarity.extend(_neighbourhoods(sample, pairs, size, num_neighbours, seed))
        for state in states:
            at = size | {"state": state}
            tables.geometry.extend(_jackknifed(state_measures(total, state), found.left_out[kind, state], at))
            for measure, values in found.of_texts.get((kind, state), {}).items():
                tables.geometry.append(_bootstrapped(measure, values, np.ones(len(values)), at, seed))
            tables.geometry.extend(_sampled(sample, state, at))
            if kind != "content":
                tables.geometry.extend(_classes(sample, state, aligned.labels, at, seed))
        if kind == "first" and states and layer > 0:  # at layer 0 the first token is the same in all texts
            basis = fixed_basis(sample.states)
            tables.pca.append(Projection(basis, sample.examples))
            for state in states:
                at = size | {"state": state, "num_rows": len(sample.examples), "num_examples": len(sample.examples)}
                for number, share in enumerate(basis.explained[state], start=1):
                    tables.geometry.append(_row(f"pca_explained_{number}", share, at))
    main = totals.get("content") or next(iter(totals.values()))
    tables.dimensions.extend(_dimensions(main, state) for state in states)
    for state in states:
        tables.histogram.extend(_histogram(found, state))
    return tables


@dataclass
class _Found:
    """What the second pass collects."""

    left_out: dict[tuple, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    """(kind, a, b) or (kind, state) → measures without the first, the second, … group of texts"""
    of_texts: dict[tuple, dict[str, np.ndarray]] = field(default_factory=lambda: defaultdict(dict))
    """(kind, a, b) → measure → sum over the rows of each text; (kind, state) → measure → its value in each text;
    [examples], NaN where a text has none"""
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    """kind → rows of each text, [examples]"""
    densities: dict[int, list[WithinText]] = field(default_factory=lambda: defaultdict(list))
    """state → distributions of cosines within texts, of each block"""


def _totals(aligned: AlignedRows, layer: int, pairs: Pairs) -> dict[str, Sums]:
    totals: dict[str, Sums] = {}
    origins: dict[str, list[np.ndarray]] = {}
    for block in aligned.blocks(layer):
        for kind, rows in block.items():
            # Relative to one of the rows, so that rows that are all the same are exactly zero.
            # (A copy: a view would keep its whole block.)
            origin = origins.setdefault(kind, [states[0].copy() for states in rows.states])
            sums = Sums.of(rows.states, rows.offsets, origin, pairs)
            totals[kind] = totals[kind] + sums if kind in totals else sums
    return totals


def _second_pass(
    aligned: AlignedRows, layer: int, pairs: Pairs, states: Iterable[int], totals: Mapping[str, Sums]
) -> _Found:
    found = _Found()
    num_examples = len(aligned.examples)
    for kind in totals:
        found.counts[kind] = np.zeros(num_examples)
    bounds = np.linspace(0, num_examples, min(GROUPS, num_examples) + 1).round().astype(int)
    for first, last in itertools.pairwise(bounds.tolist()):
        group: dict[str, Sums] = {}
        for block in aligned.blocks(layer, first, last):
            for kind, rows in block.items():
                total = totals[kind]
                sums = Sums.of(rows.states, rows.offsets, total.origins, pairs)
                group[kind] = group[kind] + sums if kind in group else sums
                _read_texts(found, kind, rows, total, pairs, states if kind == "content" else ())
        for kind, total in totals.items():
            rest = total - group[kind] if kind in group else total
            for a, b in pairs:
                found.left_out[kind, a, b].append(pair_measures(rest, a, b))
            for state in states:
                found.left_out[kind, state].append(state_measures(rest, state))
    return found


def _read_texts(found: _Found, kind: str, rows: Rows, total: Sums, pairs: Pairs, states: Iterable[int]) -> None:
    """What each text of a block says."""
    found.counts[kind][rows.examples] = np.diff(rows.offsets)

    def put(key: tuple, measure: str, values: np.ndarray) -> None:
        empty = np.full(len(found.counts[kind]), np.nan)
        found.of_texts[key].setdefault(measure, empty)[rows.examples] = values

    for a, b in pairs:
        x, y = rows.states[a], rows.states[b]
        if x.shape != y.shape:
            continue
        centred = row_cosines(x - total.mean(a), y - total.mean(b))
        for measure, cosines in (("cosine", row_cosines(x, y)), ("cosine_centered", centred)):
            put((kind, a, b), measure, np.add.reduceat(cosines, rows.offsets[:-1]))
    for state in states:
        within = within_text(rows.states[state], rows.offsets, BINS)
        for measure, values in (
            ("within_text_cosine", within.mean),
            ("within_text_cosine_variance", within.variance),
            ("within_text_variance", within.trace),
            ("within_text_variance_normalised", within.trace_normalised),
        ):
            put((kind, state), measure, values)
        found.densities[state].append(within)


class _Sample(NamedTuple):
    """Rows that are held in memory."""

    states: list[np.ndarray]
    """[rows, width] by state"""
    examples: np.ndarray
    """[rows]: example of each"""


def _sample(aligned: AlignedRows, layer: int, kind: str, seed: int) -> _Sample:
    if kind == "content":
        return _Sample(*aligned.content_sample(layer, SAMPLE_ROWS, seed))
    # The first texts, which are a random sample.
    last = min(len(aligned.examples), SAMPLE_ROWS)
    rows = [block[kind] for block in aligned.blocks(layer, 0, last) if kind in block]
    states = [np.concatenate(of) for of in zip(*(r.states for r in rows), strict=True)]
    return _Sample(states, np.concatenate([r.examples for r in rows]))


def _neighbourhoods(sample: _Sample, pairs: Pairs, size: Row, num_neighbours: int, seed: int) -> Iterator[Row]:
    """How many of a row's nearest rows stay its nearest."""
    count = len(sample.examples)
    k = min(num_neighbours, count - 1)
    near = [neighbours(rows, k) for rows in sample.states]
    texts, position = np.unique(sample.examples, return_inverse=True)
    size = size | {"num_rows": count, "num_examples": len(texts)}
    for a, b in pairs:
        overlap = neighbour_overlap(near[a], near[b])
        at = size | {"state_a": a, "state_b": b}
        sums, counts = np.bincount(position, overlap), np.bincount(position)
        yield _bootstrapped("knn_overlap", sums, counts, at, seed)
        yield _row("knn_chance", np.nan if np.isnan(overlap).all() else chance_overlap(count, k), at)


def _sampled(sample: _Sample, state: int, at: Row) -> Iterator[Row]:
    """Effective rank and norms, of as many rows in every state."""
    rows = sample.states[state] - sample.states[state][0]
    at = at | {"num_rows": len(rows), "num_examples": len(np.unique(sample.examples))}
    ends = np.linspace(0, len(rows), min(GROUPS, len(rows)) + 1).round().astype(int)
    groups = [slice(first, last) for first, last in itertools.pairwise(ends.tolist())]
    for measure, values in (("effective_rank", rows), ("effective_rank_uncentered", sample.states[state])):
        centred = measure == "effective_rank"
        sums = [Moments.of(values[group]) for group in groups]
        total = functools.reduce(operator.add, sums)
        ranks = [effective_rank(m.covariance if centred else m.outer) for m in (total, *(total - s for s in sums))]
        yield from _jackknifed({measure: ranks[0]}, [{measure: rank} for rank in ranks[1:]], at)
    quantiles = norm_quantiles(np.linalg.norm(sample.states[state], axis=1), QUANTILES)
    for quantile, value in zip(QUANTILES, quantiles, strict=True):
        yield _row(f"norm_q{100 * quantile:02.0f}", value, at)


def _classes(sample: _Sample, state: int, labels: np.ndarray, at: Row, seed: int) -> Iterator[Row]:
    """How far the classes are apart."""
    rows, classes = sample.states[state], labels[sample.examples]
    at = at | {"num_rows": len(rows), "num_examples": len(rows)}
    kept = [np.arange(len(rows)) % GROUPS != group for group in range(min(GROUPS, len(rows)))]

    def measures(chosen: np.ndarray | slice) -> dict[str, float]:
        cosines = class_cosines(rows[chosen], classes[chosen])
        return {
            "class_cosine_within": cosines.within,
            "class_cosine_between": cosines.between,
            "fisher_ratio": fisher_ratio(rows[chosen], classes[chosen]),
            "nc1": neural_collapse(rows[chosen], classes[chosen]),
        }

    yield from _jackknifed(measures(slice(None)), [measures(chosen) for chosen in kept], at)
    ones = np.ones(len(rows))
    correct = nearest_centroid_correct(rows, classes, seed=seed)
    yield _bootstrapped("nearest_centroid_accuracy", correct, ones, at, seed)
    yield _bootstrapped("silhouette", silhouettes(rows, classes), ones, at, seed)


def _dimensions(total: Sums, state: int) -> pd.DataFrame:
    mean, std = total.mean(state), np.sqrt(np.clip(np.diag(total.moments[state].covariance), 0, None))
    outlier = outlier_dimensions(mean, std)
    return pd.DataFrame({"state": state, "dimension": range(len(mean)), "mean": mean, "std": std, "outlier": outlier})


def _histogram(found: _Found, state: int) -> Iterator[Row]:
    blocks = found.densities[state]
    texts = sum(block.num_texts for block in blocks)
    if texts:
        density = np.sum([block.histogram * block.num_texts for block in blocks], axis=0) / texts
        for low, high, value in zip(BINS[:-1], BINS[1:], density, strict=True):
            yield {"state": state, "low": low, "high": high, "density": value}


def _jackknifed(values: dict[str, float], left_out: Sequence[dict[str, float]], at: Row) -> Iterator[Row]:
    for measure, value in values.items():
        without = np.array([measures[measure] for measures in left_out])
        if measure in BIASED:
            value = bias_corrected(value, without)
        low, high = jackknife(value, without)
        yield _row(measure, value, at, low, high, "jackknife")


def _bootstrapped(measure: str, sums: np.ndarray, counts: np.ndarray, at: Row, seed: int) -> Row:
    known = ~np.isnan(sums)
    value = sums[known].sum() / counts[known].sum() if counts[known].sum() else np.nan
    low, high = map(float, bootstrap_ratio(sums, counts, seed=seed))
    return _row(measure, value, at, low, high, "bootstrap")


def _row(measure: str, value: float, at: Row, low: float = np.nan, high: float = np.nan, interval: str = "none") -> Row:
    return at | {"measure": measure, "value": value, "low": low, "high": high, "interval": interval}
