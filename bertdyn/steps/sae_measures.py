"""How good dictionaries are: error, sparsity, what a classifier loses, what a few latents know; beside baselines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bertdyn.data.batching import make_batches
from bertdyn.features.texts import texts_of
from bertdyn.geometry.intervals import bootstrap_ratio
from bertdyn.geometry.moments import Moments
from bertdyn.probing.cross_validation import make_folds
from bertdyn.sae.baselines import pca_basis, random_dictionary
from bertdyn.sae.dictionary import Dictionary, sparse_codes
from bertdyn.sae.fidelity import WHERE, Means, special_ids_of, splice_fidelity
from bertdyn.sae.metrics import Basis, Reconstruct, basis_of, measure
from bertdyn.sae.naming import CONTROL, Name
from bertdyn.sae.sparse_probing import Features, sparse_probes, text_means
from bertdyn.steps.extract_runs import ExtractRun, RunTexts
from bertdyn.steps.extraction import load_state
from bertdyn.steps.random_twin import RANDOM_INIT
from bertdyn.steps.sae_rows import PartRows
from bertdyn.steps.sources import find_states

FITTED_ROWS = 50_000
"""Train rows, about, that baselines are fitted to: every n-th of more."""
NUM_FOLDS = 5
SPARSE = (1, 5)
"""Latents that a sparse probe reads."""
BATCH_SIZE = 64


class Baselines:
    """Principal components and random directions of every state and layer, fitted to train rows once."""

    def __init__(self, train: Mapping[str, PartRows], seed: int) -> None:
        self.train, self.seed = train, seed
        self._moments: dict[tuple[str, int], tuple[Moments, np.ndarray]] = {}

    def pca(self, state: str, layer: int, components: int, scale: Tensor) -> Basis:
        """The leading components in standardised space."""
        if (state, layer) not in self._moments:
            blocks = self._blocks(state, layer)
            block = next(blocks).double().numpy()
            origin = block.mean(axis=0)
            moments = Moments.of(block - origin)
            for following in blocks:
                moments = moments + Moments.of(following.double().numpy() - origin)
            self._moments[state, layer] = moments, origin
        moments, origin = self._moments[state, layer]
        return pca_basis(moments, min(components, len(scale)), origin=origin, scale=scale)

    def random(self, state: str, layer: int, like: Dictionary, k: int) -> Dictionary:
        """As many random directions as the dictionary has latents."""
        return random_dictionary(
            [next(self._blocks(state, layer))],
            like.mean,
            like.scale,
            num_latents=like.num_latents,
            k=min(k, like.num_latents),
            seed=self.seed,
        )

    def means(self, layer: int, state: str, by_kind: Mapping[str, PartRows]) -> Means:
        """Mean rows by kind of token, of those that `by_kind` has."""
        found = []
        for kind in ("content", "first"):
            rows = by_kind.get(kind, by_kind["first"])  # what is not there is not replaced, either
            sums = [block.double().sum(dim=0) for block in rows.blocks(state, layer)]
            found.append((torch.stack(sums).sum(dim=0) / len(rows.numbers)).float())
        return Means(*found)

    def _blocks(self, state: str, layer: int) -> Iterator[Tensor]:
        rows = self.train[state]
        return rows.blocks(state, layer, step=max(1, len(rows.numbers) // FITTED_ROWS))


def error_table(
    dictionaries: Mapping[Name, Dictionary],
    rows: Mapping[str, Mapping[str, PartRows]],
    baselines: Baselines,
    first: str,
    main: float,
) -> pd.DataFrame:
    """Error and sparsity of every dictionary, and of its baselines.

    Parameters
    ----------
    rows
        Kind (content, first, …) → state → rows of the measured part. Dictionaries of other sparsities than `main` are
        measured on the first kind only.
    first
        The first state, on whose rows controls are measured.
    main
        The main sparsity.

    Returns
    -------
    pd.DataFrame
        A row a dictionary and kind of rows; see the columns in `_measured`.
    """
    found: list[dict[str, Any]] = []
    kinds = list(rows)
    seed = next(iter(dictionaries)).seed  # the first one of --seeds, the frontier's
    for name, dictionary in tqdm(dictionaries.items(), desc="measure", unit="dictionary"):
        state, layer = name.rows_state(first), name.layer
        for kind in kinds if name.sparsity == main else kinds[:1]:
            if state in rows[kind]:
                measured = _measured(basis_of(dictionary), rows[kind][state], state, layer, dictionary.scale)
                baseline = RANDOM_INIT if name.comparison == RANDOM_INIT else "none"
                found.append({**name._asdict(), "baseline": baseline, "rows": kind, **measured})
    own = [row for row in found if row["comparison"] == "independent" and row["seed"] == seed]
    for row in own:
        name = Name(*(row[field] for field in Name._fields))
        if row["rows"] == kinds[0]:
            k = max(1, round(row["l0"]))  # of relu, the sparsity that its penalty led to
            found += _baseline_rows(name, dictionaries[name], rows[kinds[0]][name.state], kinds[0], baselines, k)
    return pd.DataFrame(found)


def _baseline_rows(
    name: Name, dictionary: Dictionary, rows: PartRows, kind: str, baselines: Baselines, k: int
) -> list[dict[str, Any]]:
    """What needs no training, with k numbers a row, in the place of a dictionary."""
    bases = {
        "pca": baselines.pca(name.state, name.layer, k, dictionary.scale),
        "random_dictionary": basis_of(baselines.random(name.state, name.layer, dictionary, k)),
    }
    return [
        {
            **name._replace(comparison=baseline)._asdict(),
            "baseline": baseline,
            "rows": kind,
            **_measured(basis, rows, name.state, name.layer, dictionary.scale),
        }
        for baseline, basis in bases.items()
    ]


def _measured(basis: Basis, rows: PartRows, state: str, layer: int, scale: Tensor) -> dict[str, Any]:
    found = measure(basis, rows.blocks(state, layer), scale)
    return {
        "num_rows": found.rows,
        "fvu": found.fvu,
        "fvu_standardized": found.fvu_standardised,
        "l0": found.l0,
        "l0_q10": found.l0_quantile(0.1),
        "l0_median": found.l0_quantile(0.5),
        "l0_q90": found.l0_quantile(0.9),
        "dead_share": found.dead_share,
        "dense_share": found.dense_share,
        "num_latents": len(found.density),
    }


def sparse_probe_table(
    dictionaries: Mapping[Name, Dictionary],
    rows: Mapping[str, PartRows],
    baselines: Baselines,
    first: str,
    seed: int,
) -> pd.DataFrame:
    """What one latent, or five, say of the label: cross-validated over the texts of the measured part.

    Parameters
    ----------
    rows
        State → rows of the measured part.

    Returns
    -------
    pd.DataFrame
        A row for each dictionary or other basis and number of latents: accuracy with a 95 % interval over texts,
        beside the share of the largest class.
    """
    examples = next(iter(rows.values())).examples
    labels = examples["label"].to_numpy()
    folds = make_folds(labels, NUM_FOLDS, seed)
    majority = np.bincount(labels).max() / len(labels)
    found: list[dict[str, Any]] = []

    def add(name: Name, basis: str, features: Features) -> None:
        for probe in sparse_probes(features, labels, folds, SPARSE):
            low, high = bootstrap_ratio(probe.correct[:, None].astype(float), np.ones(len(labels)), seed=seed)
            found.append(
                {
                    **name._asdict(),
                    "basis": basis,
                    "size": probe.k,
                    "accuracy": probe.correct.mean(),
                    "accuracy_low": low[0],
                    "accuracy_high": high[0],
                    "majority": majority,
                }
            )

    for name, dictionary in tqdm(dictionaries.items(), desc="sparse probes", unit="dictionary"):
        state = name.rows_state(first)
        if name.comparison == CONTROL:
            continue
        of = rows[state]
        basis = RANDOM_INIT if name.comparison == RANDOM_INIT else "dictionary"
        codes = sparse_codes(dictionary, of.blocks(state, name.layer))
        add(name, basis, text_means(codes, of.text, len(labels)))
        if name.comparison == "independent" and name.seed == seed:
            # Both are linear: the mean of a text's rows first, the rest after it.
            raw = _row_means(of, state, name.layer)
            add(name._replace(comparison="dimensions"), "dimensions", raw)
            pca = baselines.pca(state, name.layer, len(dictionary.scale), dictionary.scale)
            add(name._replace(comparison="pca"), "pca", pca.encode(torch.from_numpy(raw)).cpu().numpy())
    return pd.DataFrame(found)


def _row_means(rows: PartRows, state: str, layer: int) -> np.ndarray:
    """[texts, width], float64: mean of the rows of each text; 0 for a text without rows."""
    texts, start = len(rows.examples), 0
    total: np.ndarray = np.zeros(())
    for block in rows.blocks(state, layer):
        of_text = rows.text[start : start + len(block)]
        member = scipy.sparse.csr_array((np.ones(len(block)), (of_text, np.arange(len(block)))), (texts, len(block)))
        total = total + member @ block.double().numpy()
        start += len(block)
    return total / np.maximum(np.bincount(rows.text, minlength=texts), 1)[:, None]


def fidelity_table(
    dictionaries: Mapping[Name, Dictionary],
    run: ExtractRun,
    texts: RunTexts,
    states: Sequence[str],
    examples: pd.DataFrame,
    part: str,
    baselines: Baselines,
    by_kind: Mapping[str, PartRows],
    components: Mapping[tuple[str, int], int],
    seed: int,
    device: torch.device,
) -> pd.DataFrame:
    """What the classifier of each state loses with reconstructions in place of a layer's rows.

    Parameters
    ----------
    dictionaries
        Those that take the rows' place.
    by_kind
        "content", "first" (of both, what there is) → train rows, whose means are an ablation. Only these kinds of rows
        are replaced; both together, too, where there are both.
    components
        (state, layer) → principal components, and random directions, that stand beside a dictionary.

    Returns
    -------
    pd.DataFrame
        See `splice_fidelity`; with the state, and the dictionary's comparison, seed and sparsity.
    """
    chosen = texts_of(texts.data, texts.tokens, [part], {part: run.config.max_samples(part)})
    sequences = chosen.sequences.select(
        np.flatnonzero(chosen.examples["example_id"].isin(examples["example_id"]).to_numpy())
    )
    batches = list(make_batches(sequences, texts.tokenizer, BATCH_SIZE, shuffle=False, token_rows=True))
    tables = []
    for state in tqdm(states, desc="spliced classifiers", unit="state"):
        location = find_states(str(run.config.source_run_id), state)[0]
        model = load_state(run.config, location, texts.data).eval().to(device)
        of_state = {
            name: made for name, made in dictionaries.items() if name.state == state and name.comparison != CONTROL
        }
        replacements: dict[int, dict[str, Reconstruct]] = {}
        means = {}
        for name, dictionary in of_state.items():
            here = replacements.setdefault(name.layer, {})
            here[_key(name)] = basis_of(dictionary)
            if name.comparison == "independent" and name.seed == seed:
                k = components[state, name.layer]
                here["pca"] = baselines.pca(state, name.layer, k, dictionary.scale)
                here["random_dictionary"] = basis_of(baselines.random(state, name.layer, dictionary, k))
                means[name.layer] = baselines.means(name.layer, state, by_kind)
        where = [place for place in WHERE if place in by_kind or (place == "both" and len(by_kind) == 2)]
        special = special_ids_of(texts.tokenizer)
        table = splice_fidelity(model, batches, replacements, means, special, where=where, seed=seed)
        tables.append(table.assign(state=state))
    table = pd.concat(tables, ignore_index=True)
    named = {_key(name): name for name in dictionaries}
    table["comparison"] = [named[key].comparison if key in named else key for key in table["replacement"]]
    table["seed"] = [named[key].seed if key in named else seed for key in table["replacement"]]
    table["replacement"] = ["dictionary" if key in named else key for key in table["replacement"]]
    return table


def _key(name: Name) -> str:
    return f"{name.comparison}/{name.seed}/{name.sparsity:g}"
