"""The end of a sweep over pruning thresholds: the winner, what stands beside it, and its training in full."""

import dataclasses
import logging
from typing import Any

import numpy as np
import pandas as pd
from optuna import Study
from optuna.trial import FrozenTrial

from bertdyn.errors import InputError
from bertdyn.geometry.intervals import bootstrap_ratio
from bertdyn.plots.sweeps import pareto
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.steps.prune_report import difference_lines
from bertdyn.steps.pruning import prune
from bertdyn.steps.pruning_seeds import paired_differences
from bertdyn.steps.pruning_seeds import report as seeds_report
from bertdyn.steps.sources import label_of, tags_of
from bertdyn.steps.sweep_config import SweepPruningConfig
from bertdyn.steps.sweep_pruning_space import value_names
from bertdyn.steps.sweep_pruning_trials import LATENCY, PartScorer, PruningTrials
from bertdyn.steps.sweep_report import chosen_lines, importance_lines, options_digest, record_trials, trial_lines
from bertdyn.sweeping import studies
from bertdyn.sweeping.config import seeds_of
from bertdyn.sweeping.outcome import complete, front, knee
from bertdyn.sweeping.space import Space
from bertdyn.sweeping.studies import noted
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

NAMES = {
    "winner": "the winner",
    "uniform": "one threshold for all layers",
    "divided": "the same cost, divided exactly (`prune --budget`)",
}


def conclude(config: SweepPruningConfig, space: Space, study: Study, tracker: Tracker) -> str:
    """Record the trials, compare the winner, train it, report.

    Raises
    ------
    InputError
        If no trial keeps within the budget.
    """
    label, values = label_of(config), value_names(config)
    table, found = record_trials(study, values, config.score == "score", label, tracker)
    winner, why = choose(config, study)
    logger.info("the winner is trial %d: compared with plans that take no trials, then done in full", winner.number)
    trials = PruningTrials(config, space, study.user_attrs.get(LATENCY))
    settings = trials.settings(space.gather(winner.params))
    references = compare(trials, settings)
    tracker.log_table(references, "references")
    best = front_of(config, study)
    shown = table.assign(cost=table["noted/cost"], kl=table["noted/kl"])
    tracker.log_table(shown[shown["number"].isin([trial.number for trial in best])], "pareto")
    numbers = [trial.number for trial in best]
    note = "no training after the cut"
    if config.trial_epochs:
        note = f"trials after {config.trial_epochs} epoch(s) of recovery; winner and its likes after the cut"
    figure = pareto(shown, numbers, references, config.budget_of, f"What can be had at which cost: {label}", note)
    tracker.log_figure(figure, "pareto")
    del trials  # the winner's training loads its own
    lines, metrics = train_winner(config, settings, winner, tracker)
    done = studies.finished(study)
    tracker.log_metrics(metrics | winner_metrics(winner, references), done)
    tracker.set_tags({"optuna.best_trial": str(winner.number), "best_run_id": winner.user_attrs[studies.RUN] or ""})
    drawn = ", importances" if len(found) else ""
    summary = "\n".join(
        [
            f"## Sweep over pruning thresholds: {label}",
            "",
            *trial_lines(table, study, config),
            f"### The winner: {why}",
            "",
            *chosen_lines(winner),
            *reference_lines(references, config.budget_of),
            "### Trained in full" if config.recover else "### On the test part, not trained",
            "",
            *lines,
            "",
            "### What matters",
            "",
            *importance_lines(found, values),
            f"Figures (artifacts, `figures/`): pareto, history, parallel_coordinates{drawn}. Tables: trials, "
            f"pareto, references{drawn} (parquet).",
        ]
    )
    tracker.note(summary)
    return summary


def front_of(config: SweepPruningConfig, study: Study) -> list[FrozenTrial]:
    """The trials with the lowest KL at their cost; of a constrained study by what it noted."""
    if config.objective == "pareto":
        return front(study)
    found: list[FrozenTrial] = []
    for trial in sorted(complete(study), key=lambda t: (noted(t)["cost"], noted(t)["kl"], t.number)):
        if not found or noted(trial)["kl"] < noted(found[-1])["kl"]:
            found.append(trial)
    return found


def choose(config: SweepPruningConfig, study: Study) -> tuple[FrozenTrial, str]:
    """The trial to train in full, and why it.

    Raises
    ------
    InputError
        If none keeps within the budget.
    """
    limit, within = config.limit, complete(study)
    if limit is not None:
        within = [trial for trial in within if noted(trial)["cost"] <= limit]
        if not within:
            raise InputError(
                f"--budget {limit}: no trial costs so little; accepted are larger budgets, more trials, or a space "
                "with higher thresholds"
            )
    if config.objective == "constrained":
        best = min if config.score == "kl" else max
        found = best(within, key=lambda trial: trial.values[0])
        return found, f"the best {config.score} on validation within {limit:g} of the {config.budget_of}"
    if limit is not None:
        found = min(within, key=lambda trial: trial.values[0])
        return found, f"the lowest KL on validation within {limit:g} of the {config.budget_of}"
    best_of = front(study)
    found = best_of[knee(np.array([trial.values[::-1] for trial in best_of]))]
    return found, "the knee of the front, the point farthest below the line between its ends"


def compare(trials: PruningTrials, settings: PruneConfig) -> pd.DataFrame:
    """The winner beside other plans of at most its cost, after surgery, on validation and test.

    Returns
    -------
    table
        name; part; cost; kl with its interval; agreement; the task's metrics; kl_minus_winner with its interval over
        texts, which are paired.
    """
    winner = trials.cut(settings)
    models = {"winner": winner}
    models["uniform"] = trials.cut_by(trials.uniform_within(winner.cost, settings), settings)
    models["divided"] = trials.cut_by(trials.divided_within(winner.cost, settings), settings)
    rows: list[dict[str, Any]] = []
    thresholds: dict[str, dict[str, float]] = {}
    for part in ("validation", "test"):
        scorer = trials.validation
        if part == "test":
            scorer = PartScorer(part, trials.base, trials.source.texts, trials.source.task, trials.teacher)
        base: np.ndarray | None = None
        for name, made in models.items():
            metrics, agreement = scorer.look(made.model, **thresholds.get(name, {}))
            if "null_threshold" in metrics:  # that of validation holds for test
                thresholds[name] = {"threshold": metrics["null_threshold"]}
            base = agreement.kl if base is None else base
            row = {"name": name, "part": part, "cost": made.cost, **metrics}
            for column, found in (("kl", agreement.kl), ("kl_minus_winner", agreement.kl - base)):
                low, high = bootstrap_ratio(found, np.ones(len(found)), seed=trials.config.seed)
                row |= {column: float(found.mean()), f"{column}_low": float(low), f"{column}_high": float(high)}
            rows.append(row)
    return pd.DataFrame(rows)


def train_winner(
    config: SweepPruningConfig, settings: PruneConfig, winner: FrozenTrial, tracker: Tracker
) -> tuple[list[str], dict[str, float]]:
    """Prune by the winner's thresholds and train in full, with every seed and beside its controls: lines, metrics."""
    tables, links, seeds, differences = [], {}, seeds_of(config.seeds), pd.DataFrame()
    for seed in seeds:
        own = dataclasses.replace(
            settings,
            seed=seed,
            calibration_seed=settings.calibration_seed + seed,
            register_as=config.register_as if seed == seeds[0] else None,
        )
        name = f"winner-{winner.number:04d}-s{seed}-{options_digest(own)}"
        with tracker.child(name, tags_of(own) | {"bertdyn.stage": "prune"}) as child:
            tables.append(scores_of(own, child).assign(seed=seed))
            links[seed] = child.link()
            differences = pd.read_parquet(child.fetch("differences.parquet"))
    table = pd.concat(tables, ignore_index=True)
    tracker.log_table(table, "winner_scores")
    score = "accuracy" if "accuracy" in table else "f1"
    last = "recovery" if settings.recover else "surgery"
    test = table[(table["model"] == "pruned") & (table["stage"] == last) & (table["part"] == "test")]
    metrics = {f"test/{score}": float(test[score].mean()), "test/kl": float(test["kl"].mean())}
    if len(seeds) > 1:
        differences = paired_differences(table)
        told = dataclasses.replace(settings, seeds=config.seeds, register_as=None)
        lines = seeds_report(told, table, differences, links).splitlines()[2:]
    else:
        differences = differences[differences["part"] == "test"]
        lines = [f"One seed, {links[seeds[0]]}: test {score} {test[score].mean():.4f}.", ""]
        lines += difference_lines(differences)
    for row in differences[differences["stage"] == last].to_dict("records"):
        # One seed: the dense model before any training is there, too.
        before = row.get("other_stage", last) != last
        for end in ("", "_low", "_high"):
            metrics[f"test/{score}_minus_{row['other']}{'_before' if before else ''}{end}"] = row[f"difference{end}"]
    return lines, metrics


def scores_of(config: PruneConfig, tracker: Tracker) -> pd.DataFrame:
    """The scores of one pruning; those that are there, of one that had ended before the sweep was interrupted."""
    try:
        tracker.fetch("summary.md")  # the last thing that a run writes
        return pd.read_parquet(tracker.fetch("scores.parquet"))
    except FileNotFoundError:
        return prune(config, tracker).scores


def winner_metrics(winner: FrozenTrial, references: pd.DataFrame) -> dict[str, float]:
    """The winner's numbers, and those of the plans beside it, for comparing sweeps in MLflow."""
    found = {"best/cost": noted(winner)["cost"], "best/kl": noted(winner)["kl"]}
    for row in references.to_dict("records"):
        found[f"{row['part']}_after_surgery/kl_{row['name']}"] = row["kl"]
    return found


def reference_lines(references: pd.DataFrame, cost: str) -> list[str]:
    """The comparison after surgery as a Markdown table and a sentence on what held on the test part."""
    score = "accuracy" if "accuracy" in references else "f1"
    lines = [
        f"After surgery, before any training; all with the winner's criterion and compensation, at most its {cost}:",
        "",
        f"| | {cost} | KL, validation | KL, test | less the winner's, test, 95 % (paired texts) | {score}, test |",
        "|---|---|---|---|---|---|",
    ]
    for name, words in NAMES.items():
        of = references[references["name"] == name].set_index("part")
        test, validation = of.loc["test"], of.loc["validation"]
        paired = ""
        if name != "winner":
            low, high = test["kl_minus_winner_low"], test["kl_minus_winner_high"]
            paired = f"{test['kl_minus_winner']:+.3g} ({low:+.3g} to {high:+.3g})"
        lines.append(
            f"| {words} | {test['cost']:.3f} | {validation['kl']:.3g} | {test['kl']:.3g} "
            f"({test['kl_low']:.3g} – {test['kl_high']:.3g}) | {paired} | {test[score]:.4f} |"
        )
    return [*lines, "", *(_verdict(references, name) for name in ("uniform", "divided")), ""]


def _verdict(references: pd.DataFrame, name: str) -> str:
    of = references[(references["name"] == name) & (references["part"] == "test")].iloc[0]
    if of["kl_minus_winner_low"] > 0:
        said = "the winner is nearer to the dense model on the test part"
    elif of["kl_minus_winner_high"] < 0:
        said = "it is nearer to the dense model on the test part than the winner"
    else:
        said = "the test part cannot tell it and the winner apart"
    return f"- {NAMES[name]}: {said}."
