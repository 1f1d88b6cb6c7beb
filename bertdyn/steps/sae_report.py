"""What an sae run says at its end: tables, figures, metrics and the page in Markdown."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bertdyn.plots.sae import plot_densities, plot_fidelity, plot_frontier, plot_sparse_probes
from bertdyn.plots.sae_fates import plot_cosines, plot_fates
from bertdyn.sae.fates import DIED, KEPT
from bertdyn.sae.fidelity import NOTHING
from bertdyn.steps.sae_latents import LatentTables
from bertdyn.steps.sae_training import CONTROL
from bertdyn.tracking.tracker import Tracker

MAX_SCALAR_KEYS = 100
STRONGER = 2.0
"""Ratio of the norms of what a latent contributes, from which on the report counts it."""
TRAINED = ("independent", "shared", "stagewise")


class Studied(NamedTuple):
    """Everything that an sae run found."""

    label: str
    rows: str
    """What a row is."""
    part: str
    states: Sequence[str]
    """In the order of training."""
    layers: Sequence[int]
    seeds: Sequence[int]
    sparsity: float
    """The main one."""
    errors: pd.DataFrame
    """See `sae_measures.error_table`."""
    probes: pd.DataFrame
    """See `sae_measures.sparse_probe_table`; empty where texts have no classes."""
    fidelity: pd.DataFrame
    """See `sae_measures.fidelity_table`; empty where there is no classifier."""
    latents: LatentTables
    examples: pd.DataFrame
    """What the pages show."""
    pages: Sequence[str]
    """Names of the files."""
    left_out: Sequence[str]
    """What was asked for by default and cannot be, in sentences."""


def write_report(tracker: Tracker, found: Studied) -> str:
    """Write tables, figures and metrics into `tracker`; return the report, Markdown."""
    fates = found.latents.fates
    tables = {
        "metrics": found.errors,
        "fidelity": found.fidelity,
        "sparse_probes": found.probes,
        "fate_shares": found.latents.shares,
        "fates": fates,
        "features": found.latents.features,
        "feature_labels": found.latents.labels,
        "examples": found.examples,
    }
    tables = {name: table for name, table in tables.items() if not table.empty}
    for name, table in tables.items():
        tracker.log_table(table, name)
    figures = dict(_figures(found))
    for name, figure in figures.items():
        tracker.log_figure(figure, name)
    _log_scalars(tracker, found)
    summary = "\n".join([*_lines(found), *_files(found, list(tables), list(figures))])
    tracker.note(summary)
    return summary


def _figures(found: Studied) -> Iterator[tuple[str, Figure]]:
    label = found.label
    shown = found.errors[found.errors["comparison"].isin(["independent", "random_init", "pca", "random_dictionary"])]
    table = shown.rename(columns={"sparsity": "k"})
    kind = found.errors["rows"].iloc[0]
    yield "frontier", plot_frontier(table[table["rows"] == kind], f"Error against sparsity: {label}")
    features = found.latents.features
    densities = features[(features["comparison"] == "independent") & (features["seed"] == found.seeds[0])]
    yield "densities", plot_densities(densities, f"How often latents are on: {label}")
    if len(found.fidelity):
        yield (
            "fidelity",
            plot_fidelity(_one_comparison(found.fidelity), f"Reconstructions in place of rows: {label}"),
        )
    if len(found.probes):
        own = found.probes[found.probes["comparison"].isin(["independent", "random_init", "pca", "dimensions"])]
        own = own[own["sparsity"] == found.sparsity]
        yield "sparse_probes", plot_sparse_probes(own, f"The label in one latent, or in five: {label}")
    if len(found.latents.shares):
        yield "fates", plot_fates(found.latents.shares, f"What became of the latents: {label}")
        directed = found.latents.fates[found.latents.fates["comparison"] != "shared"]
        if len(directed):
            yield "cosines", plot_cosines(directed, f"How far latents turned: {label}")


def _one_comparison(fidelity: pd.DataFrame) -> pd.DataFrame:
    """Independent dictionaries, and what is no dictionary."""
    return fidelity[(fidelity["replacement"] != "dictionary") | (fidelity["comparison"] == "independent")]


def _log_scalars(tracker: Tracker, found: Studied) -> None:
    """By layer and state, no more keys than one can look at; the step is the number of the state."""
    errors = found.errors[(found.errors["comparison"] == "independent") & (found.errors["sparsity"] == found.sparsity)]
    errors = errors[errors["rows"] == found.rows].groupby(["state", "layer"])
    means = errors[["fvu_standardized", "fvu", "l0", "dead_share", "dense_share"]].mean()
    for step, state in enumerate(found.states):
        values: dict[str, float] = {}
        for layer in found.layers:
            for name, value in means.loc[state, layer].items():
                values[f"sae/{name}/layer_{layer:02d}"] = float(value)
        if len(found.fidelity):
            own = _one_comparison(found.fidelity)
            own = own[(own["state"] == state) & (own["replacement"] == "dictionary") & (own["where"] == found.rows)]
            for layer, of in own.groupby("layer"):
                values[f"sae/agreement/layer_{layer:02d}"] = float(of["agreement"].mean())
                values[f"sae/kl/layer_{layer:02d}"] = float(of["kl"].mean())
        if len(found.latents.shares):
            shares = found.latents.shares[found.latents.shares["state"] == state]
            for row in shares[shares["fate"].isin(["born", "died", "rotated"])].itertuples():
                values[f"sae/{row.fate}_above_floor/{row.comparison}/{row.side}/layer_{row.layer:02d}"] = row.excess
        tracker.log_metrics(dict(list(values.items())[:MAX_SCALAR_KEYS]), step)


def _lines(found: Studied) -> Iterator[str]:
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
    errors = found.errors[(found.errors["sparsity"] == found.sparsity) | found.errors["baseline"].ne("none")]
    main = errors[errors["comparison"].eq("independent") & errors["rows"].eq(found.rows)]
    yield f"## Sparse dictionaries of {found.label}"
    yield ""
    yield (
        f"{main['num_latents'].iloc[0]:,} latents, {main['l0'].mean():.0f} of them on in a row ({found.rows}), "
        f"{seeds}; measured on {main['num_rows'].iloc[0]:,} rows of the part {found.part}, which trained neither the "
        "encoder nor a dictionary."
    )
    yield ""
    for sentence in found.left_out:
        yield f"Left out: {sentence}"
        yield ""
    yield from _fate_words(found)
    yield "### Error and sparsity"
    yield ""
    yield from _error_lines(found)
    if len(found.fidelity):
        yield from _fidelity_lines(found)
    if len(found.probes):
        yield from _probe_lines(found)


def _fate_words(found: Studied) -> Iterator[str]:
    shares = found.latents.shares
    if shares.empty:
        return
    last = found.states[-1]
    yield f"### What became of the latents of {found.states[0]}, in {last}"
    yield ""
    yield "| layer | comparison | fate | share | without fine-tuning (floor) | difference (95 % over seeds) |"
    yield "|---|---|---|---|---|---|"
    for row in shares[shares["state"] == last].itertuples():
        if row.fate in ("unstable",) or (row.side == "after" and row.fate != "born"):
            continue
        interval = ""
        if np.isfinite(row.excess_low):
            interval = f" ({100 * row.excess_low:+.1f} … {100 * row.excess_high:+.1f})"
        yield (
            f"| {row.layer} | {row.comparison} | {row.fate} | {row.share:.1%} | {row.floor:.1%} | "
            f"{100 * row.excess:+.1f} points{interval} |"
        )
    for row in _strength_shares(found).itertuples():
        yield (
            f"| {row.layer} | {row.comparison} | {row.change} | {row.share:.1%} | {row.floor:.1%} | "
            f"{100 * (row.share - row.floor):+.1f} points |"
        )
    yield ""
    yield (
        f"Kept, rotated, died, independent: matched one to one, cosine from {KEPT}, below, below {DIED}; of other "
        "seeds in the later state, and for the floor in the own. Stagewise: continued on the later state, floor: as "
        "long on the first again; rotated is below what 95 % of the floor keeps. Shared: one dictionary, on in one "
        "state only; "
        "floor: two halves of the texts of one state. Only the difference says something of fine-tuning."
    )
    yield ""


def _strength_shares(found: Studied) -> pd.DataFrame:
    """How many latents that keep their number contribute far more or far less in the last state than in the first."""
    fates = found.latents.fates
    fates = fates[(fates["state"] == found.states[-1]) & (fates["side"] == "both")]
    rows = []
    for (layer, comparison), of in fates.groupby(["layer", "comparison"]):
        for change, is_so in (
            (f"norm ×{STRONGER:g} or more", lambda ratio: ratio >= STRONGER),
            (f"norm ×{1 / STRONGER:g} or less", lambda ratio: ratio <= 1 / STRONGER),
        ):
            share, floor = (is_so(of[column]).mean() for column in ("norm_ratio", "floor_norm_ratio"))
            rows.append({"layer": layer, "comparison": comparison, "change": change, "share": share, "floor": floor})
    return pd.DataFrame(rows, columns=["layer", "comparison", "change", "share", "floor"])


def _error_lines(found: Studied) -> Iterator[str]:
    errors = found.errors[found.errors["comparison"] != CONTROL]
    errors = errors[errors["state"].isin([found.states[0], found.states[-1], "random_init"])]
    errors = errors[(errors["sparsity"] == found.sparsity) & (errors["rows"] == found.rows)]
    yield "| layer | state | dictionary | FVU, standardised | FVU | L0 | dead | dense |"
    yield "|---|---|---|---|---|---|---|---|"
    columns = ["fvu_standardized", "fvu", "l0", "dead_share", "dense_share"]
    table = errors.groupby(["layer", "state", "comparison"], sort=False)[columns].mean()
    order = {name: number for number, name in enumerate((*TRAINED, "pca", "random_dictionary", "random_init"))}
    keyed = sorted(table.iterrows(), key=lambda item: (item[0][0], _state_order(found, item[0][1]), order[item[0][2]]))  # type: ignore[index]
    for (layer, state, comparison), row in keyed:  # type: ignore[misc]
        name = {"pca": f"PCA ({row['l0']:.0f} components)", "random_dictionary": "random directions"}.get(
            comparison, comparison
        )
        yield (
            f"| {layer} | {state} | {name} | {row['fvu_standardized']:.3f} | {row['fvu']:.3f} | {row['l0']:.1f} | "
            f"{row['dead_share']:.1%} | {row['dense_share']:.1%} |"
        )
    yield ""
    other = found.errors[(found.errors["rows"] != found.rows) & found.errors["comparison"].eq("independent")]
    other = other.dropna(subset=["fvu_standardized"])  # at the embeddings, all first tokens are alike
    if len(other):
        kind = other["rows"].iloc[0]
        mean = other.groupby(["layer", "state"])["fvu_standardized"].mean()
        best = mean.idxmin()
        yield (
            f"On the {kind} token, on which they were not trained, they are no use: FVU from {mean[best]:.3g} (layer "
            f"{best[0]}, {best[1]}) on, where 1 is as good as the mean of these rows. `--rows {kind}` trains on them."
            if mean[best] > 1
            else f"On the {kind} token, on which they were not trained: FVU {mean.min():.2f} – {mean.max():.3g}."
        )
        yield ""


def _state_order(found: Studied, state: str) -> int:
    return found.states.index(state) if state in found.states else len(found.states)


def _fidelity_lines(found: Studied) -> Iterator[str]:
    table = _one_comparison(found.fidelity)
    yield "### What the classifier loses with reconstructions in place of a layer's rows"
    yield ""
    yield "| layer | state | rows | by | accuracy | as it is | same label | KL (nats) | recovered (KL, of mean) |"
    yield "|---|---|---|---|---|---|---|---|---|"
    columns = ["accuracy", "accuracy_clean", "agreement", "kl", "recovered_kl_mean"]
    means = table.groupby(["layer", "state", "where", "replacement"], sort=False)[columns].mean()
    mean = means.xs("mean", level="replacement")["kl"].groupby(["layer", "where"]).max()
    without_cost = set(mean[mean < NOTHING].index)
    for (layer, state, where, replacement), row in means.iterrows():  # type: ignore[misc]
        if where == "both" or replacement in ("zero", "random_dictionary") or (layer, where) in without_cost:
            continue
        recovered = "–" if np.isnan(row["recovered_kl_mean"]) else f"{row['recovered_kl_mean']:.1%}"
        yield (
            f"| {layer} | {state} | {where} | {replacement} | {row['accuracy']:.3f} | {row['accuracy_clean']:.3f} | "
            f"{row['agreement']:.1%} | {row['kl']:.4f} | {recovered} |"
        )
    yield ""
    if without_cost:
        named = ", ".join(f"layer {layer} {where}" for layer, where in sorted(without_cost))
        yield f"Not shown, since even their mean costs the classifier nothing there: {named}."
        yield ""


def _probe_lines(found: Studied) -> Iterator[str]:
    own = found.probes[(found.probes["comparison"] != "shared") & (found.probes["comparison"] != "stagewise")]
    own = own[own["sparsity"] == found.sparsity]
    yield f"### The label in one latent, or in five (largest class {own['majority'].iloc[0]:.3f})"
    yield ""
    yield "| layer | state | basis | 1 | 5 |"
    yield "|---|---|---|---|---|"
    table = own.pivot_table(index=["layer", "state", "basis"], columns="size", values="accuracy", sort=False)
    for (layer, state, basis), row in sorted(
        table.iterrows(),
        key=lambda item: (item[0][0], _state_order(found, item[0][1]), item[0][2]),  # type: ignore[index]
    ):
        yield f"| {layer} | {state} | {basis} | {row[1]:.3f} | {row[5]:.3f} |"
    yield ""


def _files(found: Studied, tables: Sequence[str], figures: Sequence[str]) -> Iterator[str]:
    yield ""
    if found.pages:
        yield f"Pages to read (`pages/`): {', '.join(f'`{name}`' for name in found.pages)}."
        yield ""
    yield (
        f"Figures (`figures/`): {', '.join(f'`{name}`' for name in figures)}. Tables (parquet): "
        f"{', '.join(f'`{name}`' for name in tables)}. Dictionaries, as SAELens reads them: "
        "`dictionaries/<comparison>/<state>/layer_…/seed_…/`."
    )
    yield ""
