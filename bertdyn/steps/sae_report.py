"""What an sae run says at its end: tables, figures, metrics and the page in Markdown."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bertdyn.plots.sae import plot_densities, plot_fidelity, plot_frontier, plot_sparse_probes
from bertdyn.plots.sae_fates import plot_cosines, plot_fates
from bertdyn.sae.fidelity import NOTHING
from bertdyn.sae.naming import CONTROL
from bertdyn.steps.sae_fate_words import fate_lines
from bertdyn.steps.sae_latents import LatentTables
from bertdyn.tracking.tracker import Tracker

MAX_SCALAR_KEYS = 100
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
    shown_latents: pd.DataFrame
    """The latents of the pages: partner, change, nearest, effect on the logits."""
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
        "shown_latents": found.shown_latents,
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
    fates = found.latents.fates
    if len(fates) and fates["comparison"].ne("shared").any():
        directed = fates[fates["comparison"] != "shared"]
        yield "cosines", plot_cosines(directed, f"How far latents turned: {label}")


def _one_comparison(fidelity: pd.DataFrame) -> pd.DataFrame:
    """Independent dictionaries, and what is no dictionary."""
    return fidelity[(fidelity["replacement"] != "dictionary") | (fidelity["comparison"] == "independent")]


def _log_scalars(tracker: Tracker, found: Studied) -> None:
    """By layer and state, no more keys than one can look at; the step is the number of the state."""
    errors = found.errors[(found.errors["comparison"] == "independent") & (found.errors["sparsity"] == found.sparsity)]
    errors = errors[errors["rows"] == found.rows].groupby(["state", "layer"])
    means = errors[["fvu_standardized", "l0", "dead_share"]].mean()
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
        if len(found.latents.shares):
            shares = found.latents.shares[found.latents.shares["state"] == state]
            changed = shares[~shares["fate"].isin(["kept", "unstable"])]
            for (comparison, fate), of in changed.groupby(["comparison", "fate"]):  # mean over layers and sides
                values[f"sae/{comparison}/{fate}_above_floor"] = float(of["excess"].mean())
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
    yield from fate_lines(found.latents.shares, found.latents.fates, found.states)
    yield "### Error and sparsity"
    yield ""
    yield from _error_lines(found)
    if len(found.fidelity):
        yield from _fidelity_lines(found)
    if len(found.probes):
        yield from _probe_lines(found)


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
    if {"shared", "stagewise"} & set(errors["comparison"]):
        yield (
            "A stage-wise dictionary is trained once more, at a lower rate, on each later state; a shared one sees the "
            "rows of all states in each of as many steps. Compare errors within a kind."
        )
        yield ""
    yield from _warnings(errors)
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


def _warnings(errors: pd.DataFrame) -> Iterator[str]:
    """Dictionaries that are no better than what needs no training."""
    trained = errors[errors["comparison"].isin(TRAINED)].groupby(["layer", "state"])["fvu_standardized"].max()
    plain = errors[errors["comparison"].isin(["pca", "random_dictionary"])]
    plain = plain.groupby(["layer", "state"])["fvu_standardized"].min()
    worse = [f"layer {layer} of {state}" for (layer, state), error in trained.items() if error >= plain[layer, state]]
    if worse:
        yield (
            f"**No better than PCA or random directions: {', '.join(worse)}.** Their latents say little: train on more "
            "rows, for more passes, or fewer latents."
        )
        yield ""


def _state_order(found: Studied, state: str) -> int:
    return found.states.index(state) if state in found.states else len(found.states)


def _fidelity_lines(found: Studied) -> Iterator[str]:
    table = _one_comparison(found.fidelity)
    columns = ["accuracy", "accuracy_clean", "agreement", "kl", "recovered_kl_mean"]
    means = table.groupby(["layer", "state", "where", "replacement"], sort=False)[columns].mean()
    ablated = means.xs("mean", level="replacement")["kl"].groupby(["layer", "where"]).max()
    without_cost = set(ablated[ablated < NOTHING].index)
    yield "### What the classifier loses with reconstructions in place of a layer's rows"
    yield ""
    if without_cost:
        named = ", ".join(f"layer {layer} {where}" for layer, where in sorted(without_cost))
        yield f"Not shown, since even their mean costs the classifier nothing there: {named}."
        yield ""
    if len(without_cost) == len(ablated):
        return
    yield "| layer | state | rows | by | accuracy | as it is | same label | KL (nats) | recovered (KL, of mean) |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for (layer, state, where, replacement), row in means.iterrows():  # type: ignore[misc]
        if where == "both" or replacement in ("zero", "random_dictionary") or (layer, where) in without_cost:
            continue
        recovered = "–" if np.isnan(row["recovered_kl_mean"]) else f"{row['recovered_kl_mean']:.1%}"
        yield (
            f"| {layer} | {state} | {where} | {replacement} | {row['accuracy']:.3f} | {row['accuracy_clean']:.3f} | "
            f"{row['agreement']:.1%} | {row['kl']:.4f} | {recovered} |"
        )
    yield ""


def _probe_lines(found: Studied) -> Iterator[str]:
    own = found.probes[(found.probes["comparison"] != "shared") & (found.probes["comparison"] != "stagewise")]
    own = own[own["sparsity"] == found.sparsity]
    yield f"### The label in one latent, or in five (largest class {own['majority'].iloc[0]:.3f})"
    yield ""
    yield "| layer | state | basis | 1 (95 % over texts) | 5 |"
    yield "|---|---|---|---|---|"
    values = ["accuracy", "accuracy_low", "accuracy_high"]  # of several seeds, their means
    table = own.pivot_table(index=["layer", "state", "basis"], columns="size", values=values, sort=False)
    for (layer, state, basis), row in sorted(
        table.iterrows(),
        key=lambda item: (item[0][0], _state_order(found, item[0][1]), item[0][2]),  # type: ignore[index]
    ):
        cells = [
            f"{row['accuracy', size]:.3f} ({row['accuracy_low', size]:.3f} – {row['accuracy_high', size]:.3f})"
            for size in (1, 5)
        ]
        yield f"| {layer} | {state} | {basis} | {' | '.join(cells)} |"
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
