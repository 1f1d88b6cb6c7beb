"""Pruning a fine-tuned encoder: how much is left of its answers, before and after retraining, against Torch-Pruning.

    pip install torch-pruning
    python -m benchmarks.prune --checkpoint <fine-tuned BERT> --pretrained <its checkpoint before fine-tuning>
        --dataset sst2 --data_dir <GLUE SST-2>

All systems prune the same model in one process on one thread, look at the same calibration texts and are scored on the
part `test`. A budget is a share of the encoder's FLOPs at `--length` tokens. Four tables, which `--tables` selects, are
put into `--output`; a table of the same model and options that was measured with other budgets or seeds is added to
(recovery: other budgets). Each has the conditions of its runs:

    criteria     no retraining: KL(dense ‖ pruned), same answers, accuracy, seconds, cost reached, by calibration seed
    correctness  the largest difference between the logits of the pruned model and those of the masked dense one, on a
                 padded batch, without compensation; whether `from_pretrained` loads what `save_pretrained` wrote
    recovery     after the same short training with the dense model as a teacher (the loss is half the task's, half
                 distillation at temperature 2), paired by seed: fisher with auto, Torch-Pruning's best at that budget,
                 random with auto
    latency      of bertdyn's models (fisher, least squares) against the dense one, side by side

bertdyn: each criterion, with nothing in place of what goes (none) and with least squares; fisher also with the best
of all for each block (auto), and in several rounds. Statistics of the dense model are computed once and shared; the
seconds of a row count all that it needs. Torch-Pruning: see `benchmarks.prune_peer`; `torch_pruning_best` is that of
its variants with the lowest KL on the test part itself, which favours it. What no seed changes is measured once.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from benchmarks.prune_after import correctness, latency, recovery
from benchmarks.prune_peer import VARIANTS
from benchmarks.prune_sides import Bench
from benchmarks.tables import Row, conditions, read_tables, say, show, write_table
from bertdyn.pruning.config import CRITERIA

OURS = tuple(name for name in CRITERIA if name != "auto")
TABLES = ("criteria", "correctness", "recovery", "latency")
PACKAGES = ("torch", "transformers", "torch-pruning", "accelerate", "numpy")
PATHS = ("output", "checkpoint", "pretrained", "data_dir", "tables")
"""Options that say nothing on another machine, or nothing of a single table."""
SPLIT = {"criteria": ("budget", "seed", "system", "name"), "recovery": ("budget",)}
"""Tables that several runs may share, and what tells their rows apart."""
SPLIT_BY = ("budgets", "recovery_budgets", "calibration_seeds", "recovery_seeds", "criteria", "systems")
"""Options that such runs may differ in."""
BEST = "torch_pruning_best"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of a fine-tuned BertForSequenceClassification")
    parser.add_argument("--pretrained", help="the same before fine-tuning, for state_change")
    parser.add_argument("--dataset", default="sst2")
    parser.add_argument("--data_dir")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--systems", nargs="+", default=["bertdyn", "torch_pruning"], help="table criteria")
    parser.add_argument("--criteria", nargs="+", default=list(OURS), help="of bertdyn")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.75, 0.6, 0.4], help="table criteria")
    parser.add_argument("--recovery_budgets", type=float, nargs="+", default=[0.75, 0.4], help="the other tables")
    parser.add_argument("--length", type=int, default=64, help="tokens a text, for FLOPs")
    parser.add_argument("--calibration_texts", type=int, default=512)
    parser.add_argument("--calibration_min_length", type=int, default=20)
    parser.add_argument("--calibration_seeds", type=int, nargs="+", default=[0, 1, 2], help="the first: other tables")
    parser.add_argument("--rounds", type=int, default=4, help="of fisher in rounds; 1: leave it out")
    parser.add_argument("--recovery_steps", type=int, default=200)
    parser.add_argument("--recovery_seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--latency_rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/prune.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    bench = Bench(options)
    makers = {"criteria": criteria, "correctness": correctness, "recovery": recovery, "latency": latency}
    for name in options.tables.split(","):
        begun = [conditions(options, PACKAGES, PATHS)]
        table = {"conditions": begun, "dense": bench.row(bench.dense)} | makers[name](bench)
        table = merged(name, read_tables(options.output).get(name), table)
        write_table(options.output, name, table)
        show(name, table["summary"] if "summary" in table else table["rows"])


def criteria(bench: Bench) -> Row:
    """The table of pruning without retraining."""
    options, rows = bench.options, []

    def add(system: str, name: str, budget: float, seed: int, model: PreTrainedModel, seconds: float, **more: Any):
        rows.append({"system": system, "name": name, "budget": budget, "seed": seed, "seconds": seconds})
        rows[-1] |= bench.row(model) | more
        say(f"{system}, {name}, {budget}, seed {seed}: KL {rows[-1]['kl']:.4f}, {seconds:.1f} s")

    for seed in options.calibration_seeds:
        first = seed == options.calibration_seeds[0]
        ours, peer = bench.looks(seed)
        for budget in options.budgets:
            for criterion in options.criteria:
                if criterion == "state_change" and bench.before is None:
                    continue
                for compensation in ("none", "least_squares"):
                    if first or (criterion, compensation) != ("magnitude", "none"):
                        add(
                            "bertdyn",
                            f"{criterion}, {compensation}",
                            budget,
                            seed,
                            *ours.prune(criterion, budget, compensation),
                        )
            if "fisher" in options.criteria:
                add("bertdyn", "fisher, auto", budget, seed, *ours.search("fisher", budget, "auto", 1))
            if "fisher" in options.criteria and options.rounds > 1:
                name = f"fisher, least_squares, {options.rounds} rounds"
                add("bertdyn", name, budget, seed, *ours.search("fisher", budget, "least_squares", options.rounds))
            for variant in VARIANTS if "torch_pruning" in options.systems else ():
                if first or variant.criterion != "magnitude":
                    model, ratio, head_ratio, seconds, bisection = peer.prune(variant, budget)
                    more = {"pruning_ratio": ratio, "head_pruning_ratio": head_ratio, "bisection_seconds": bisection}
                    add("torch_pruning", str(variant), budget, seed, model, seconds, **more)
    return {"rows": rows, "summary": summary(rows)}


def summary(rows: list[Row]) -> list[Row]:
    """Over calibration seeds, the lowest KL first; and the best of Torch-Pruning, at each budget."""
    found = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if row["budget"] == budget:
                groups.setdefault((row["system"], row["name"]), []).append(row)
        lines = []
        for (system, name), group in groups.items():
            line = {"budget": budget, "system": system, "name": name, "seeds": len(group)}
            line |= {key: statistics.mean(row[key] for row in group) for key in ("kl", "same", "accuracy", "cost")}
            line |= {"kl_low": min(row["kl"] for row in group), "kl_high": max(row["kl"] for row in group)}
            lines.append(line | {"seconds": statistics.median(row["seconds"] for row in group)})
        peers = [line for line in lines if line["system"] == "torch_pruning"]
        if peers:
            best = min(peers, key=lambda line: line["kl"])
            for line in lines:
                line["kl_of_torch_pruning_best_to_this"] = best["kl"] / line["kl"] if line["kl"] else None
            lines.append(best | {"system": BEST})
        found += sorted(lines, key=lambda line: line["kl"])
    return found


def merged(name: str, old: Row | None, new: Row) -> Row:
    """A table with the rows of earlier runs that were not measured again, if they are of the same model and options."""

    def same_for_all(table: Row) -> Row:
        options = table["conditions"][-1]["options"]
        return {key: value for key, value in options.items() if key not in SPLIT_BY} | {"dense": table["dense"]}

    if old is None or name not in SPLIT or same_for_all(old) != same_for_all(new):
        return new

    def kept(key: str) -> list[Row]:
        measured = {tuple(row[column] for column in SPLIT[name]) for row in new[key]}
        return [row for row in old[key] if tuple(row[column] for column in SPLIT[name]) not in measured] + new[key]

    rows = kept("rows")
    both = {"conditions": old["conditions"] + new["conditions"], "rows": rows}
    return new | both | {"summary": summary(rows) if name == "criteria" else kept("summary")}


if __name__ == "__main__":
    main()
