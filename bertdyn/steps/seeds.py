"""One fine-tuning with several seeds: a child run each, and what they have in common."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
from accelerate.utils import broadcast_object_list
from scipy import stats

from bertdyn.steps.config import FineTuneConfig
from bertdyn.steps.findings import ROW_NAMES
from bertdyn.steps.fine_tuning import FineTuneResult, fine_tune
from bertdyn.steps.preparation import make_accelerator
from bertdyn.tracking.tracker import Tracker


def fine_tune_seeds(config: FineTuneConfig, tracker: Tracker) -> FineTuneResult:
    """One child run per seed of `config.seeds`, and what they have in common.

    Data and parts are the same for all seeds; new weights, order of batches and dropout differ.

    Raises
    ------
    InputError
        Whatever is wrong with data, model or options.
    """
    accelerator = make_accelerator(config.mixed_precision)
    tracker.log_config(dataclasses.asdict(config) | {"resume_run_id": None})
    results, links = {}, {}
    for seed in config.seed_list():
        child_config = dataclasses.replace(config, seed=seed, seeds=None, run_name=None)
        with tracker.child(child_config.label(), child_config.tags()) as child:
            # Only the main process has a run that can be gone on with: all do as it does.
            there = [child.run_id if child.resumed else None, earlier_result(child)]
            again, earlier = broadcast_object_list(there)
            results[seed] = earlier or fine_tune(dataclasses.replace(child_config, resume_run_id=again), child)
            links[seed] = child.link()
    table = pd.concat([result.scores.assign(seed=seed) for seed, result in results.items()], ignore_index=True)
    if not accelerator.is_main_process:
        return FineTuneResult(None, table, "")
    summary, intervals = seeds_report(config, table, links)
    tracker.log_table(table, "seeds")
    tracker.log_metrics(intervals, config.num_train_epochs)
    tracker.note(summary)
    return FineTuneResult(None, table, summary)


def earlier_result(tracker: Tracker) -> FineTuneResult | None:
    """What a child run found that had ended before its parent was interrupted."""
    try:
        summary = tracker.fetch("summary.md").read_text(encoding="utf-8")  # the last thing that a run writes
        return FineTuneResult(None, pd.read_parquet(tracker.fetch("scores.parquet")), summary)
    except FileNotFoundError:
        return None


def seeds_report(config: FineTuneConfig, table: pd.DataFrame, links: Mapping[int, str]) -> tuple[str, dict[str, float]]:
    """The report and the metrics of a run over several seeds.

    `table` holds every seed's scores, `links` leads to their runs. The 95 % interval is Student's t
    for the mean over seeds, on this test part; what another test part would give is in each
    child's own interval over examples.
    """
    score = "accuracy" if "accuracy" in table else "f1"

    def shown(value: float) -> str:  # each as its field writes it, and as the reports of the seeds do
        return f"{value:.3f}" if score == "accuracy" else f"{100 * value:.2f}"

    lines = [
        f"## Fine-tuning `{config.model_name_or_path}` on `{config.dataset}`, seeds {config.seeds}",
        "",
        f"| | test {score}, mean | 95 % interval (over seeds) | each seed | validation {score}, mean |",
        "|---|---|---|---|---|",
    ]
    metrics: dict[str, float] = {}
    for (state, baseline), name in ROW_NAMES.items():
        rows = table[(table["state"] == state) & (table["baseline"] == baseline)]
        if rows.empty:
            continue
        test = rows[rows["part"] == "test"][score].to_numpy()
        validation = rows[rows["part"] == "validation"][score].mean()
        low, high = t_interval(test)
        each = ", ".join(map(shown, test))
        interval = f"{shown(low)} – {shown(high)}"
        lines.append(f"| {name} | {shown(test.mean())} | {interval} | {each} | {shown(validation)} |")
        if state == "best":
            metrics = {
                f"test/{score}": float(test.mean()),
                f"test/{score}_low": low,
                f"test/{score}_high": high,
                f"test/{score}_std": float(test.std(ddof=1)),
                f"best/{score}": float(validation),
            }
    lines += ["", "Each seed is a child run: " + ", ".join(f"seed {seed} {link}" for seed, link in links.items()) + "."]
    return "\n".join(lines), metrics


def t_interval(values: np.ndarray, *, bounded: bool = True) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds, by Student's t; of scores (`bounded`) within 0 and 1."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return (max(float(low), 0.0), min(float(high), 1.0)) if bounded else (float(low), float(high))
