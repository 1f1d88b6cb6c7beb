"""What each kind of step found, in a line or two, always beside what it is worth nothing without: its baseline."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import pandas as pd

from bertdyn.errors import NoArtifact
from bertdyn.plots.similarity import main_rows
from bertdyn.steps.seeds import t_interval
from bertdyn.tracking.locations import run_folder

BESIDE = {
    ("pretrained", "none"): "before training",
    ("none", "tfidf"): "TF-IDF",
    ("none", "majority"): "most frequent class",
    ("none", "always_null"): "always 'no answer'",
}
"""(state, baseline) of scores → what stands beside a fine-tuned model."""


class Finding(NamedTuple):
    """One line of the table."""

    question: str
    found: str
    baseline: str
    values: Mapping[str, float] = {}
    """Main numbers by name, as metrics of the report's run."""


class Told(NamedTuple):
    """What a report over several steps takes from one of them."""

    findings: tuple[Callable[[str], Iterator[Finding]], ...]
    """From a run's id; each says what it can."""
    figures: tuple[str, ...] = ()
    """Patterns of names in its `figures/`: the first that fits one is the figure that stands for it."""


def findings_of(stage: str, run_id: str) -> list[Finding]:
    """The lines of one run, as far as it made the tables that they are read from."""
    found: list[Finding] = []
    for findings in TOLD[stage].findings:
        with suppress(NoArtifact):  # one seed or state, or several: a table is missing, and what it would have said
            found.extend(findings(run_id))
    return found


def _table(run_id: str, name: str) -> pd.DataFrame:
    return pd.read_parquet(run_folder(run_id, f"{name}.parquet"))


def _value(row: pd.Series, name: str = "value", low: str = "low", high: str = "high", form: str = ".3f") -> str:
    """`0.994 (0.983 – 0.998)`"""
    if pd.isna(row.get(low)):
        return f"{row[name]:{form}}"
    return f"{row[name]:{form}} ({row[low]:{form}} – {row[high]:{form}})"


def _fine_tune(run_id: str) -> Iterator[Finding]:
    scores = _table(run_id, "scores").query("part == 'test'")
    score = "accuracy" if "accuracy" in scores else "f1"
    rows = scores.set_index(["state", "baseline"])
    others = [f"{name} {rows.at[key, score]:.3f}" for key, name in BESIDE.items() if key in rows.index]
    best = rows.loc[("best", "none")]
    yield Finding(
        f"How good is the fine-tuned model? ({score}, test)",
        _value(best, score, f"{score}_low", f"{score}_high"),
        ", ".join(others),
        {score: best[score]},
    )


def _fine_tune_seeds(run_id: str) -> Iterator[Finding]:
    table = _table(run_id, "seeds").query("part == 'test'")
    score = "accuracy" if "accuracy" in table else "f1"
    means = table.groupby(["state", "baseline"], sort=False)[score].mean()
    of_best = table[(table["state"] == "best") & (table["baseline"] == "none")][score].to_numpy()
    low, high = t_interval(of_best)
    yield Finding(
        f"How good are the fine-tuned models? ({score}, test, mean over {len(of_best)} seeds)",
        f"{of_best.mean():.3f} ({low:.3f} – {high:.3f})",
        ", ".join(f"{name} {means[key]:.3f}" for key, name in BESIDE.items() if key in means.index),
        {score: float(of_best.mean())},
    )


def _compare(run_id: str) -> Iterator[Finding]:
    table = _table(run_id, "similarity")
    table = table[table["kind"] == "states"]
    kind = main_rows(table)
    runs = table[table["rows"] == kind].groupby("run", sort=False)
    for run, of_run in runs:
        last = of_run.iloc[-1]
        pair = of_run[(of_run["state_a"] == last["state_a"]) & (of_run["state_b"] == last["state_b"])]
        rows = pair.set_index("measure")
        cka = rows.loc[["cka"]]
        low, high = cka.iloc[cka["value"].argmin()], cka.iloc[cka["value"].argmax()]
        of = f"_{run}" if len(runs) > 1 else ""
        question = f"What does fine-tuning leave as it was? ({run}: {last['state_a']} → {last['state_b']}, CKA, {kind})"
        yield Finding(
            question,
            f"least in layer {low['layer']}: {_value(low)}; most in layer {high['layer']}: {high['value']:.3f}",
            "1: nothing changed",
            {f"least_cka{of}": low["value"], f"least_cka_layer{of}": low["layer"]},
        )
        cosine, other = (pair[(pair["measure"] == name) & (pair["layer"] == low["layer"])].iloc[0]
                         for name in ("cosine", "cosine_mismatched"))  # fmt: skip
        yield Finding(
            f"How alike is a token to itself before, in layer {low['layer']}? (cosine)",
            _value(cosine),
            f"to a token of another text {other['value']:.3f}",
        )


def _probe(run_id: str) -> Iterator[Finding]:
    table = _table(run_id, "probes")
    main = table[table["metric"].isin(["accuracy", "r2", "f1"])]
    for target, of in main.groupby("target", sort=False):
        own = of[of["baseline"] == "none"]
        found, values = [], {}
        for state, rows in own.groupby("state", sort=False):
            best = rows.loc[rows["value"].idxmax()]
            found.append(f"{state}: {_value(best)} (layer {best['layer']})")
            values[f"{target}_{state}"] = best["value"]
        others = of[of["baseline"] != "none"].groupby("baseline", sort=False)["value"].max()
        words = ", ".join(f"{str(name).replace('_', ' ')} {value:.3f}" for name, value in others.items())
        metric = own["metric"].iloc[0]
        yield Finding(
            f"Where can {target} be read off? (best layer, {metric})",
            "; ".join(found),
            f"{words} (each at its best)",
            values,
        )


def _sae(run_id: str) -> Iterator[Finding]:
    errors = _table(run_id, "metrics")
    errors = errors[errors["rows"] == errors["rows"].iloc[0]]
    own, pca = (errors[errors["comparison"] == name] for name in ("independent", "pca"))
    for layer, rows in own.groupby("layer"):
        values = rows.groupby("state", sort=False)["fvu_standardized"].mean()
        plain = pca[pca["layer"] == layer].groupby("state")["fvu_standardized"].min()
        yield Finding(
            f"How much do sparse features leave unexplained? (layer {layer}, share of variance)",
            ", ".join(f"{state} {value:.3f}" for state, value in values.items()),
            "PCA " + ", ".join(f"{plain[state]:.3f}" for state in values.index),
            {f"unexplained_layer_{layer:02d}_{state}": value for state, value in values.items()},
        )
    shares = _table(run_id, "fate_shares")
    last = shares[shares["state"] == shares["state"].iloc[-1]]
    for (layer, comparison), of in last[last["fate"].isin(["born", "died"])].groupby(
        ["layer", "comparison"], sort=False
    ):
        yield Finding(
            f"Do features appear and die? (layer {layer}, {comparison})",
            ", ".join(f"{row.fate} {row.share:.1%}" for row in of.itertuples()),
            "without fine-tuning " + ", ".join(f"{row.floor:.1%}" for row in of.itertuples()),
            {f"{row.fate}_layer_{layer:02d}_{comparison}": row.share for row in of.itertuples()},
        )


def _prune(run_id: str) -> Iterator[Finding]:
    scores, costs = _table(run_id, "scores").query("part == 'test'"), _table(run_id, "costs").set_index("model")
    score = "accuracy" if "accuracy" in scores else "f1"
    last = scores.groupby("model", sort=False).tail(1).set_index("model")
    share = 1 - costs.at["pruned", "encoder_parameters"] / costs.at["dense", "encoder_parameters"]
    before = scores[(scores["model"] == "dense")].iloc[0]
    others = [f"unpruned {before[score]:.3f}"]
    others += [f"{name} units {last.at[name, score]:.3f}" for name in ("random", "magnitude") if name in last.index]
    yield Finding(
        f"What does a model with {share:.0%} fewer encoder parameters lose? ({score}, test)",
        f"{last.at['pruned', score]:.3f}",
        ", ".join(others),
        {score: last.at["pruned", score], "encoder_parameters_cut": share},
    )


def _prune_seeds(run_id: str) -> Iterator[Finding]:
    table = _table(run_id, "seeds").query("part == 'test'")
    score = "accuracy" if "accuracy" in table else "f1"
    before = table[(table["model"] == "dense") & (table["stage"] == "surgery")][score].mean()
    last = table.groupby(["seed", "model"], sort=False).tail(1)
    means = last.groupby("model", sort=False)[score].mean()
    others = [f"unpruned {before:.3f}"]
    others += [f"{name} units {means[name]:.3f}" for name in ("random", "magnitude") if name in means.index]
    yield Finding(
        f"What does the pruned model lose? ({score}, test, mean over {table['seed'].nunique()} seeds)",
        f"{means['pruned']:.3f}",
        ", ".join(others),
        {score: means["pruned"]},
    )


def _sweep_pruning(run_id: str) -> Iterator[Finding]:
    rows = _table(run_id, "references").query("part == 'test'").set_index("name")
    trials = _table(run_id, "trials")
    winner = rows.loc["winner"]
    yield Finding(
        f"What do {len(trials)} trials find at {winner['cost']:.0%} of the cost? (KL from the dense model, test)",
        _value(winner, "kl", "kl_low", "kl_high", ".3g"),
        f"one threshold for all {rows.at['uniform', 'kl']:.3g}, divided exactly {rows.at['divided', 'kl']:.3g}",
        {"kl": winner["kl"], "cost": winner["cost"]},
    )


def _sweep_freezing(run_id: str) -> Iterator[Finding]:
    table = _table(run_id, "winner_scores")
    rows = table.groupby("name", sort=False)["test"].mean()
    yield Finding(
        "What does the best freeze schedule gain? (test)",
        f"{rows['winner']:.3f}",
        ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in rows.items() if name != "winner"),
        {table["score"].iloc[0]: rows["winner"]},
    )


TOLD = {
    "fine-tune": Told((_fine_tune, _fine_tune_seeds), ("dynamics_by_layer",)),
    "extract": Told(()),
    "compare": Told((_compare,), ("similarity_by_layer", "similarity_over_runs")),
    "probe": Told((_probe,), ("*_by_layer",)),
    "sae": Told((_sae,), ("fates", "densities")),
    "prune": Told((_prune, _prune_seeds), ("architecture",)),
    "sweep-pruning": Told((_sweep_pruning,), ("pareto",)),
    "sweep-freezing": Told((_sweep_freezing,), ("history",)),
}
