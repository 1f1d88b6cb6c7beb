"""Latent by latent: how often each is on, for which label, what became of it under fine-tuning, beside the floor."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from tqdm.auto import tqdm

from bertdyn.sae.dictionary import Dictionary, sparse_codes
from bertdyn.sae.fates import Latents, share_table
from bertdyn.sae.independent_fates import independent_fates
from bertdyn.sae.latents import latent_statistics
from bertdyn.sae.naming import CONTROL, Name
from bertdyn.sae.shared_fates import shared_fates
from bertdyn.sae.stagewise_fates import stagewise_fates
from bertdyn.steps.sae_rows import PartRows


class LatentTables(NamedTuple):
    """Of all dictionaries of the main sparsity."""

    features: pd.DataFrame
    """One row a latent of each dictionary and state."""
    labels: pd.DataFrame
    """One row a latent and class."""
    fates: pd.DataFrame
    """See `sae.fates`; empty with one state."""
    shares: pd.DataFrame
    """Shares of the fates beside their floor."""


def latent_tables(
    dictionaries: Mapping[Name, Dictionary],
    rows: Mapping[str, PartRows],
    states: Sequence[str],
    layers: Sequence[int],
    num_classes: int,
    *,
    comparisons: Sequence[str],
) -> LatentTables:
    """Statistics and fates of every latent, layer by layer.

    Parameters
    ----------
    dictionaries
        Of the main sparsity.
    rows
        State → rows of the measured part.
    states
        In the order of training.
    num_classes
        0: the texts have no classes.
    comparisons
        Whose fates are wanted. Dictionaries of the first state that others are continued from are independent ones,
        whether their fates are wanted or not.
    """
    features, labels, fates = [], [], []
    for layer in tqdm(layers, desc="latents", unit="layer"):
        here = {name: made for name, made in dictionaries.items() if name.layer == layer}
        counted: dict[Name, Latents] = {}
        for name, dictionary in here.items():
            of = rows.get(name.rows_state(states[0]))
            if of is None:
                continue
            codes = codes_of(name, dictionary, of, states[0])
            counted[name] = _counted(dictionary, codes)
            if name.comparison == CONTROL:
                continue
            classes = of.examples["label"].to_numpy() if num_classes else np.zeros(len(of.examples), dtype=int)
            statistics = latent_statistics(codes, of.text, classes, max(1, num_classes))
            features.append(statistics.latents.assign(**name.key, strength=counted[name].strength))
            labels.append(statistics.labels.assign(**name.key))
        if len(states) > 1:
            fates += [table.assign(layer=layer) for table in _fates(here, counted, rows, states, comparisons)]
    found = pd.concat(features, ignore_index=True)
    by_label = pd.concat(labels, ignore_index=True)
    if not num_classes:
        found, by_label = found.drop(columns=["label", "auc", "difference"]), by_label[:0]
    if not fates:
        return LatentTables(found, by_label, pd.DataFrame(), pd.DataFrame())
    table = pd.concat(fates, ignore_index=True)
    shares = pd.concat([share_table(of).assign(layer=layer) for layer, of in table.groupby("layer")], ignore_index=True)
    return LatentTables(found, by_label, table, shares)


def codes_of(name: Name, dictionary: Dictionary, rows: PartRows, first: str) -> scipy.sparse.csr_array:
    """Codes of the rows that a dictionary is measured on, [rows, latents]."""
    return sparse_codes(dictionary, rows.blocks(name.rows_state(first), name.layer))


def _counted(dictionary: Dictionary, codes: scipy.sparse.csr_array) -> Latents:
    rows = codes.shape[0]
    density = np.bincount(codes.indices[codes.data > 0], minlength=codes.shape[1]) / rows
    strength = np.sqrt(np.asarray(codes.astype(np.float64).power(2).sum(axis=0)).ravel() / rows)
    return Latents(dictionary.directions.cpu().numpy(), density, strength, rows)


def _fates(
    dictionaries: Mapping[Name, Dictionary],
    counted: Mapping[Name, Latents],
    rows: Mapping[str, PartRows],
    states: Sequence[str],
    comparisons: Sequence[str],
) -> list[pd.DataFrame]:
    """Of one layer, of the comparisons that are wanted and have dictionaries."""
    wanted = {name.comparison for name in counted} & set(comparisons)
    seeds = sorted({name.seed for name in counted})
    first, *later = states
    find = {(name.comparison, name.state, name.seed): latents for name, latents in counted.items()}
    tables = []
    for seed in seeds:
        if "shared" in wanted:
            codes = {
                name.state: codes_of(name, dictionary, rows[name.state], first)
                for name, dictionary in dictionaries.items()
                if name.comparison == "shared" and name.seed == seed
            }
            by_state, directions = {state: codes[state] for state in states}, find["shared", first, seed].directions
            tables.append(shared_fates(by_state, rows[first].text, directions, seed))
        if "stagewise" in wanted:
            after = {state: find["stagewise", state, seed] for state in later}
            control = {state: find[CONTROL, state, seed] for state in later}
            tables.append(stagewise_fates(find["stagewise", first, seed], after, control, seed))
    if "independent" in wanted and len(seeds) > 1:
        table = independent_fates({state: [find["independent", state, seed] for seed in seeds] for state in states})
        named = np.array([*seeds, -1])  # it numbers them from 0 on; -1 is no partner
        tables.append(table.assign(seed=named[table["seed"]], partner_seed=named[table["partner_seed"]]))
    return tables
