"""One pruning with several seeds: a child run each, and paired differences over them."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd

from bertdyn.steps.lists import several_seeds
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.steps.prune_report import CONTROL_WORDS, STAGES, score_name
from bertdyn.steps.pruning import PruneResult, prune
from bertdyn.steps.seeds import t_interval
from bertdyn.steps.sources import label_of, tags_of
from bertdyn.tracking.tracker import Tracker


def prune_seeds(config: PruneConfig, tracker: Tracker) -> PruneResult:
    """One child run per seed of `config.seeds`, and what they have in common.

    A seed decides the calibration texts, the recovery (order of batches, dropout) and what random pruning keeps; source
    model and data are the same for all.

    Raises
    ------
    InputError
        Whatever is wrong with the source, the texts, the plan or the options.
    """
    tracker.log_config(dataclasses.asdict(config))
    tables, links = [], {}
    for seed in several_seeds(config.seeds):
        own = dataclasses.replace(
            config, seed=seed, calibration_seed=config.calibration_seed + seed, seeds=None, run_name=None
        )
        with tracker.child(f"prune-{label_of(config)}-s{seed}", tags_of(own)) as child:
            tables.append(prune(own, child).scores.assign(seed=seed))
            links[seed] = child.link()
    table = pd.concat(tables, ignore_index=True)
    differences = paired_differences(table)
    tracker.log_table(table, "seeds")
    tracker.log_table(differences, "paired_differences")
    last = "recovery" if config.recover else "surgery"
    score = score_name(table)
    rows = table[(table["model"] == "pruned") & (table["stage"] == last)]
    metrics = {f"test/{score}": float(rows.loc[rows["part"] == "test", score].mean())}
    metrics |= {f"best/{score}": float(rows.loc[rows["part"] == "validation", score].mean())}
    for row in differences[differences["stage"] == last].to_dict("records"):
        for end in ("", "_low", "_high"):
            metrics[f"test/{score}_minus_{row['other']}{end}"] = row[f"difference{end}"]
    tracker.log_metrics(metrics, config.num_train_epochs)
    summary = report(config, table, differences, links)
    tracker.note(summary)
    return PruneResult(None, table, summary)


def paired_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of the pruned model's test score less that of each other one at the same stage.

    Also less the dense model's before recovery (`dense_before`). Columns: stage, other, difference, its 95 % interval
    by Student's t (difference_low, difference_high), num_seeds.
    """
    score = score_name(table)
    test = table[table["part"] == "test"].pivot(index="seed", columns=["model", "stage"], values=score)
    rows = []
    for stage in dict.fromkeys(test.columns.get_level_values("stage")):
        for name, other_stage in test.columns:
            same = other_stage == stage and name not in ("pruned",) and (name, stage) != ("dense", "surgery")
            before = (name, other_stage) == ("dense", "surgery")
            if not (same or before) or ("pruned", stage) not in test:
                continue
            paired = (test["pruned", stage] - test[name, other_stage]).to_numpy()
            low, high = t_interval(paired, bounded=False)
            rows.append(
                {
                    "stage": stage,
                    "other": "dense_before" if before else name,
                    "difference": float(np.mean(paired)),
                    "difference_low": low,
                    "difference_high": high,
                    "num_seeds": len(paired),
                }
            )
    return pd.DataFrame(rows)


def report(config: PruneConfig, table: pd.DataFrame, differences: pd.DataFrame, links: Mapping[int, str]) -> str:
    """The page of a run over several seeds."""
    score = score_name(table)
    lines = [
        f"## Pruned: {label_of(config)}, seeds {config.seeds}",
        "",
        f"| test part | stage | {score}, mean over seeds | each seed | KL from the dense model, mean | same answers |",
        "|---|---|---|---|---|---|",
    ]
    test = table[table["part"] == "test"]
    for (model, stage), rows in test.groupby(["model", "stage"], sort=False):
        when = "before" if (model, stage) == ("dense", "surgery") else STAGES[stage]
        each = ", ".join(f"{value:.4f}" for value in rows[score])
        lines.append(
            f"| {CONTROL_WORDS[model]} | {when} | {rows[score].mean():.4f} | {each} | {rows['kl'].mean():.3g} "
            f"| {rows['agreement'].mean():.1%} |"
        )
    lines += ["", f"{score.capitalize()} of the pruned model less that of (points, paired seeds, 95 % interval):", ""]
    words = CONTROL_WORDS | {"dense_before": "the dense model before"}
    for row in differences.to_dict("records"):
        lines.append(
            f"- {STAGES[row['stage']]}, {words[row['other']]}: {100 * row['difference']:+.2f} "
            f"({100 * row['difference_low']:+.2f} to {100 * row['difference_high']:+.2f})"
        )
    lines += ["", "Each seed is a child run: " + ", ".join(f"seed {seed} {link}" for seed, link in links.items()) + "."]
    return "\n".join(lines)
