"""The end of a sweep over freeze schedules: the winner and its controls, trained in full with the same seeds."""

import dataclasses
import logging
from typing import Any

import numpy as np
import pandas as pd
from optuna import Study
from optuna.trial import FrozenTrial

from bertdyn.errors import InputError
from bertdyn.geometry.intervals import bootstrap_ratio
from bertdyn.steps.config import FineTuneConfig
from bertdyn.steps.fine_tuning import fine_tune
from bertdyn.steps.seeds import earlier_result, t_interval
from bertdyn.steps.sweep_config import SweepFreezingConfig
from bertdyn.steps.sweep_freezing_trials import NOTHING_FROZEN, consistent, value_names
from bertdyn.steps.sweep_report import chosen_lines, importance_lines, options_digest, record_trials, trial_lines
from bertdyn.sweeping import studies
from bertdyn.sweeping.outcome import complete
from bertdyn.sweeping.space import Space
from bertdyn.sweeping.studies import noted
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

WORDS = {
    "winner": "the winner",
    "unfrozen": "nothing frozen, the learning rate of the options",
    "unfrozen_same_rate": "nothing frozen, the winner's learning rates",
}


def conclude(config: SweepFreezingConfig, space: Space, study: Study, tracker: Tracker) -> str:
    """Record the trials, train the winner and its controls, report.

    Raises
    ------
    InputError
        If no trial keeps within the budget.
    """
    title = config.training().label()
    table, found = record_trials(study, value_names(config), False, title, tracker)
    within = complete(study)
    if not within:
        raise InputError(
            f"--budget {config.limit}: no trial takes so few training FLOPs; accepted are larger ones, or a space "
            "that freezes more"
        )
    winner = min(within, key=lambda trial: trial.values[0])
    logger.info("the winner is trial %d: trained in full, beside training with nothing frozen", winner.number)
    scores, links = train_all(config, space, winner, tracker)
    tracker.log_table(scores.drop(columns="correct"), "winner_scores")
    differences = paired(scores, config.seed)
    tracker.log_table(differences, "paired_differences")
    score = scores["score"].iloc[0]
    metrics = {"best/loss": winner.values[0], "best/training_flops": noted(winner)["training_flops"]}
    metrics[f"test/{score}"] = float(scores.loc[scores["name"] == "winner", "test"].mean())
    for row in differences.to_dict("records"):
        for end in ("", "_low", "_high"):
            metrics[f"test/{score}_minus_{row['other']}{end}"] = row[f"difference{end}"]
    tracker.log_metrics(metrics, studies.finished(study))
    tracker.set_tags({"optuna.best_trial": str(winner.number), "best_run_id": winner.user_attrs[studies.RUN] or ""})
    drawn = ", importances" if len(found) else ""
    summary = "\n".join(
        [
            f"## Sweep over freeze schedules: {title}",
            "",
            *trial_lines(table, study, config),
            "### The winner: the lowest validation loss"
            + (f" within {config.limit:g} of the training FLOPs" if config.limit is not None else ""),
            "",
            *chosen_lines(winner),
            f"Validation loss {winner.values[0]:.4f}, at {noted(winner)['training_flops']:.0%} of the encoder's "
            f"training FLOPs. {unfrozen_line(table)}",
            "",
            "### Trained in full",
            "",
            *score_lines(scores, differences, links),
            "",
            "### What matters",
            "",
            *importance_lines(found, value_names(config)),
            f"Figures (artifacts, `figures/`): history, parallel_coordinates{drawn}. Tables: trials{drawn}, "
            "winner_scores, paired_differences (parquet).",
        ]
    )
    tracker.note(summary)
    return summary


def configs(config: SweepFreezingConfig, space: Space, winner: FrozenTrial) -> dict[str, FineTuneConfig]:
    """Winner and controls → the options of their training in full."""
    chosen = consistent(space.gather(winner.params), config)
    rates = {name: chosen[name] for name in ("learning_rate",) if name in chosen}
    found = {"winner": config.training(**chosen)}
    for name in config.control_list():
        rate = rates if name == "unfrozen_same_rate" else {}
        decay = {k: v for k, v in chosen.items() if k == "layerwise_lr_decay" and rate}
        found[name] = config.training(**NOTHING_FROZEN | rate | decay)
    return found


def train_all(
    config: SweepFreezingConfig, space: Space, winner: FrozenTrial, tracker: Tracker
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Train winner and controls with every seed, a child run each.

    Returns
    -------
    scores, links
        One row a name and seed: name, seed, score (what it is called), test, validation, correct ([examples] of the
        test part, or None); and name → links to the runs.
    """
    rows: list[dict[str, Any]] = []
    links: dict[str, list[str]] = {}
    for name, training in configs(config, space, winner).items():
        for seed in config.seed_list():
            register = config.register_as if name == "winner" and seed == config.seed_list()[0] else None
            own = dataclasses.replace(training, seed=seed, register_as=register)
            run_name = f"{name}-{winner.number:04d}-s{seed}-{options_digest(own)}"
            with tracker.child(run_name, own.tags() | {"bertdyn.stage": "fine-tune"}) as child:
                scores = (earlier_result(child) or fine_tune(own, child)).scores
                links.setdefault(name, []).append(child.link())
                rows.append({"name": name, "seed": seed, **_scores(scores), "correct": _correct(child)})
    return pd.DataFrame(rows), links


def _scores(scores: pd.DataFrame) -> dict[str, Any]:
    score = "accuracy" if "accuracy" in scores else "f1"
    best = scores[(scores["state"] == "best") & (scores["baseline"] == "none")].set_index("part")[score]
    return {"score": score, "test": float(best["test"]), "validation": float(best["validation"])}


def _correct(child: Tracker) -> np.ndarray | None:
    try:
        predictions = pd.read_parquet(child.fetch("predictions.parquet"))
    except FileNotFoundError:
        return None
    test = predictions[predictions["part"] == "test"].sort_values("example_id")
    if "predicted" not in test:
        return None
    return (test["predicted"] == test["label"]).to_numpy(dtype=np.float64)


def paired(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The winner's test score less each control's: other, difference and its 95 % interval, over.

    With several seeds by Student's t over them; with one by a bootstrap over examples, where there are such.
    """
    winner = scores[scores["name"] == "winner"].set_index("seed")
    rows = []
    for name, rows_of in scores[scores["name"] != "winner"].groupby("name", sort=False):
        other = rows_of.set_index("seed")
        difference = (winner["test"] - other["test"]).to_numpy()
        low, high, over = np.nan, np.nan, "seeds"
        if len(difference) > 1:
            low, high = t_interval(difference, bounded=False)
        elif winner["correct"].iloc[0] is not None:
            each, over = winner["correct"].iloc[0] - other["correct"].iloc[0], "examples"
            low, high = (float(end) for end in bootstrap_ratio(each, np.ones(len(each)), seed=seed))
        rows.append(
            {
                "other": name,
                "difference": float(difference.mean()),
                "difference_low": low,
                "difference_high": high,
                "over": over,
            }
        )
    return pd.DataFrame(rows)


def unfrozen_line(table: pd.DataFrame) -> str:
    """The best trial in which nothing was frozen: what the search found without freezing."""
    frozen = table[[name for name in ("param/freeze_layers", "param/freeze_embeddings") if name in table]]
    if frozen.shape[1] < 2:
        return ""
    open_ones = table[(frozen.fillna(0).astype(int).sum(axis=1) == 0) & (table["state"] == "complete")]
    if open_ones.empty:
        return "No trial without freezing came to its end."
    best = open_ones.loc[open_ones["loss"].idxmin()]
    return f"The best of {len(open_ones)} without freezing that came to their end: {best['loss']:.4f}."


def score_lines(scores: pd.DataFrame, differences: pd.DataFrame, links: dict[str, list[str]]) -> list[str]:
    """Test scores of winner and controls, and the paired differences."""
    score = scores["score"].iloc[0]
    lines = [f"| | test {score}, mean | each seed | validation, mean | runs |", "|---|---|---|---|---|"]
    for name, of in scores.groupby("name", sort=False):
        each = ", ".join(f"{value:.4f}" for value in of["test"])
        lines.append(
            f"| {WORDS[str(name)]} | {of['test'].mean():.4f} | {each} | {of['validation'].mean():.4f} "
            f"| {', '.join(links[str(name)])} |"
        )
    lines += ["", "The winner less (points, 95 % interval):", ""]
    for row in differences.to_dict("records"):
        interval = "one seed, no interval"
        if not np.isnan(row["difference_low"]):
            low, high = 100 * row["difference_low"], 100 * row["difference_high"]
            interval = f"{low:+.2f} to {high:+.2f}, over {row['over']}"
        lines.append(f"- {WORDS[row['other']]}: {100 * row['difference']:+.2f} ({interval})")
    return lines
