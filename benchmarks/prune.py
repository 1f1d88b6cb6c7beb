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
                 random without compensation
    latency      of bertdyn's models (fisher, least squares) against the dense one, side by side

bertdyn: each criterion, with nothing in place of what goes (none) and with least squares; fisher also with the best
of all for each block (auto), and in several rounds. Statistics of the dense model are computed once and shared; the
seconds of a row count all that it needs. Torch-Pruning: see `benchmarks.prune_peer`; `torch_pruning_best` is that of
its variants with the lowest KL on the test part itself, which favours it. What no seed changes is measured once.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from benchmarks.prune_peer import VARIANTS, Peer, PeerPruned, Variant, kept_units
from bertdyn.data.batching import Batch, make_batches, model_inputs
from bertdyn.data.config import DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.tokenization import tokenize_parts
from bertdyn.files import cache_folder
from bertdyn.models.loading import load_model, load_tokenizer
from bertdyn.models.unpadded import run_unpadded
from bertdyn.probing.paired import paired_difference
from bertdyn.pruning.agreement import Referee
from bertdyn.pruning.calibration import calibration_rows
from bertdyn.pruning.compensation import compensate
from bertdyn.pruning.config import CRITERIA, PruningConfig
from bertdyn.pruning.cost import flop_costs
from bertdyn.pruning.gates import gated
from bertdyn.pruning.latency import torch_latency
from bertdyn.pruning.scores import IN_LOSS, NEED_MOMENTS
from bertdyn.pruning.search import Calibration, Looked, search
from bertdyn.pruning.shape import projection, shape_of
from bertdyn.pruning.surgery import prune
from bertdyn.pruning.targets import plan_maker
from bertdyn.steps.seeds import t_interval
from bertdyn.tasks.classification import Classification
from bertdyn.tasks.distillation import Distillation
from bertdyn.training.config import TrainingConfig
from bertdyn.training.loop import train
from bertdyn.training.optimization import make_optimizer, make_scheduler

OURS = tuple(name for name in CRITERIA if name != "auto")
TABLES = ("criteria", "correctness", "recovery", "latency")
LATENCY_SHAPES = ((1, 32), (1, 128), (16, 32), (32, 64))
PATHS = ("output", "checkpoint", "pretrained", "data_dir", "tables")
"""Options that say nothing on another machine, or nothing of a single table."""
SPLIT = {"criteria": ("budget", "seed", "system", "name"), "recovery": ("budget",)}
"""Tables that several runs may share, and what tells their rows apart."""
SPLIT_BY = ("budgets", "recovery_budgets", "calibration_seeds", "recovery_seeds", "criteria")
"""Options that such runs may differ in."""
BEST = "torch_pruning_best"

Row = dict[str, Any]
Texts = list[dict[str, np.ndarray]]
"""`Bench.texts` of each seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of a fine-tuned BertForSequenceClassification")
    parser.add_argument("--pretrained", help="the same before fine-tuning, for state_change")
    parser.add_argument("--dataset", default="sst2")
    parser.add_argument("--data_dir")
    parser.add_argument("--tables", default=",".join(TABLES))
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
        table = {"conditions": [conditions(options)], "dense": bench.row(bench.dense)} | makers[name](bench)
        whole = json.loads(options.output.read_text()) if options.output.exists() else {}
        table = merged(name, whole.get(name), table)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(whole | {name: table}, indent=1) + "\n")
        show(name, table["summary"] if "summary" in table else table["rows"])


class Bench:
    """What all tables share: model, data, costs, scores."""

    def __init__(self, options: argparse.Namespace) -> None:
        data = load_data(DataConfig(dataset=options.dataset, data_dir=options.data_dir))
        self.options, self.task = options, Classification()
        self.tokenizer = load_tokenizer(options.checkpoint)
        self.tokens = tokenize_parts(data, self.tokenizer, 128, cache_folder("tokens"), 128)
        load = partial(load_model, task="classification", label_names=data.label_names)
        self.dense = load(options.checkpoint).eval()
        self.before = load(options.pretrained).eval() if options.pretrained else None
        self.shape = shape_of(self.dense)
        self.costs = flop_costs(self.shape, length=options.length)
        self.test, self.labels = self.batches(self.tokens["test"]), torch.tensor(self.tokens["test"]["label"])
        self.expected = self.answers(self.dense)

    def batches(self, rows: Dataset, size: int = 64) -> list[Batch]:
        return list(make_batches(rows, self.tokenizer, size, shuffle=False))

    @torch.inference_mode()
    def answers(self, model: PreTrainedModel) -> Tensor:
        """[texts, classes] of the part test: log-probabilities, float64."""
        found = torch.cat([self.task.log_probabilities(model.eval(), batch)[0] for batch in self.test])
        return found[torch.cat([batch["index"] for batch in self.test]).argsort()].double()

    def texts(self, model: PreTrainedModel) -> dict[str, np.ndarray]:
        """[texts] of the part test: KL from the dense model, same answer, right answer."""
        p, q = self.expected, self.answers(model)
        found = {"kl": (p.exp() * (p - q)).sum(-1).clamp(min=0), "same": p.argmax(-1) == q.argmax(-1)}
        return {k: v.numpy() for k, v in (found | {"accuracy": q.argmax(-1) == self.labels}).items()}

    def row(self, model: PreTrainedModel) -> Row:
        """Means of `texts`, and what the encoder costs."""
        shape = shape_of(model)
        row = {name: float(values.mean()) for name, values in self.texts(model).items()}
        row["cost"] = self.costs.of(shape) / self.costs.of(self.shape)
        return row | {"heads": list(shape.heads), "neurons": list(shape.neurons)}

    def looks(self, seed: int) -> tuple["Ours", Peer]:
        """Both sides, after a look at the same texts."""
        options = self.options
        rows = calibration_rows(self.tokens["train"], options.calibration_texts, options.calibration_min_length, seed)
        referee = Referee(self.dense, self.batches(rows.referee), self.task)
        fit, pairs = self.batches(rows.fit), self.batches(rows.pairs)
        calibration = Calibration(fit, pairs, referee, self.task, other_state=self.before, seed=seed)
        texts = concatenate_datasets([rows.fit, rows.referee])
        whole = self.batches(texts, len(texts))[0]
        peer = Peer.look(self.dense, self.batches(texts), whole, self.task, self.costs, seed)
        return Ours(self, calibration), peer


class Ours:
    """bertdyn after a look at the dense model; statistics are computed once, and timed."""

    def __init__(self, bench: Bench, calibration: Calibration) -> None:
        self.bench, self.calibration = bench, calibration
        self.looked = {
            "none": Looked(bench.dense, calibration, centred=False, covariance=False),
            "least_squares": Looked(bench.dense, calibration, centred=True, covariance=True),
        }
        self.seconds: dict[tuple[str, str], float] = {}

    def prune(self, criterion: str, budget: float, compensation: str) -> tuple[PreTrainedModel, float]:
        """The pruned model, and seconds from the dense one to it, by what `search` does in one round."""
        looked, dense = self.looked[compensation], self.bench.dense
        kind = "gradients" if criterion in IN_LOSS else "moments" if criterion in NEED_MOMENTS else criterion
        spent = 0.0
        if compensation != "none":
            spent += self._timed((compensation, "moments"), lambda: looked.moments)
        if compensation == "none" or kind != "moments":
            spent += self._timed((compensation, kind), lambda: looked.scores(criterion))
        start = time.perf_counter()
        plan = self._maker(budget)(self.bench.shape, looked.scores(criterion), criterion, 1.0)
        projections = {}
        for site in plan.kept:
            own, moments = projection(dense, site), None if compensation == "none" else looked.moments[site]
            weight, bias = own.weight.detach(), own.bias.detach()
            projections[site] = compensate(weight, bias, plan.inputs(site), moments, compensation)
        return prune(dense, plan, projections), spent + time.perf_counter() - start

    def search(self, criterion: str, budget: float, compensation: str, rounds: int) -> tuple[PreTrainedModel, float]:
        start = time.perf_counter()
        dense, maker = self.bench.dense, self._maker(budget)
        found = search(dense, self.calibration, criterion, maker, compensation=compensation, rounds=rounds)
        return found.model, time.perf_counter() - start

    def _maker(self, budget: float) -> Callable[..., Any]:
        return plan_maker(PruningConfig(budget=budget), self.bench.shape, self.bench.costs)

    def _timed(self, key: tuple[str, str], compute: Callable[[], Any]) -> float:
        start = time.perf_counter()
        compute()
        return self.seconds.setdefault(key, time.perf_counter() - start)


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
            add("bertdyn", "fisher, auto", budget, seed, *ours.search("fisher", budget, "auto", 1))
            if options.rounds > 1:
                name = f"fisher, least_squares, {options.rounds} rounds"
                add("bertdyn", name, budget, seed, *ours.search("fisher", budget, "least_squares", options.rounds))
            for variant in VARIANTS:
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
        best = min((line for line in lines if line["system"] == "torch_pruning"), key=lambda line: line["kl"])
        for line in lines:
            line["kl_of_torch_pruning_best_to_this"] = best["kl"] / line["kl"] if line["kl"] else None
        found += sorted([*lines, best | {"system": BEST}], key=lambda line: line["kl"])
    return found


def best_of_peer(bench: Bench, peer: Peer, budget: float) -> tuple[Variant, PeerPruned]:
    """Torch-Pruning's variant with the lowest KL on the test part."""
    found = {variant: peer.prune(variant, budget) for variant in VARIANTS}
    best = min(found, key=lambda variant: bench.texts(found[variant].model)["kl"].mean())
    return best, found[best]


def correctness(bench: Bench) -> Row:
    """The table of what must be equal."""
    options = bench.options
    texts = bench.tokens["test"].select(range(16))
    batch = model_inputs(next(iter(make_batches(texts, bench.tokenizer, 16, shuffle=False))))
    ours, peer = bench.looks(options.calibration_seeds[0])
    variants = [v for v in VARIANTS if v.criterion == "taylor"]
    rows = []
    for budget in options.recovery_budgets:
        models = {("bertdyn", "fisher, none"): ours.prune("fisher", budget, "none")[0]}
        models |= {("torch_pruning", str(variant)): peer.prune(variant, budget).model for variant in variants}
        for (system, name), model in models.items():
            logits = logits_of(model, batch)
            gates = {}
            for site, units in kept_units(bench.dense, model).items():
                gates[site] = torch.zeros(bench.shape.units(site)).index_fill(0, torch.tensor(units), 1.0)
            with gated(bench.dense, gates):
                masked = logits_of(bench.dense, batch)
            row = {"system": system, "name": name, "budget": budget}
            row["pruned_minus_masked"] = float((logits - masked).abs().max())
            row["pruned_minus_dense"] = float((logits - logits_of(bench.dense, batch)).abs().max())
            rows.append(row | reloaded(model, batch, logits))
    padding = 1 - float(batch["attention_mask"].float().mean())
    return {"padding_share": padding, "dtype": "float32", "rows": rows}


def reloaded(model: PreTrainedModel, batch: Batch, logits: Tensor) -> Row:
    """What `from_pretrained` makes of the saved model; where all layers are alike, the configuration says how wide."""
    model, widths = copy.deepcopy(model), set(shape_of(model).neurons)
    if len(widths) == 1:
        model.config.intermediate_size = widths.pop()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            again = logits_of(AutoModelForSequenceClassification.from_pretrained(folder).eval(), batch)
        except Exception as error:  # whatever a user would see
            said = " ".join(str(error).replace(folder, "<folder>").split())
            return {"reloads": False, "equal_logits": False, "error": f"{type(error).__name__}: {said[:300]}"}
    return {"reloads": True, "equal_logits": bool(torch.equal(again, logits)), "error": None}


@torch.inference_mode()
def logits_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    return model(**batch).logits


def recovery(bench: Bench) -> Row:
    """The table of training after pruning."""
    options, rows, pairs = bench.options, [], []
    ours, peer = bench.looks(options.calibration_seeds[0])
    for budget in options.recovery_budgets:
        variant, found = best_of_peer(bench, peer, budget)
        systems = {
            "bertdyn": ("fisher, auto", ours.search("fisher", budget, "auto", 1)[0]),
            "torch_pruning": (str(variant), found.model),
            "random": ("random, none", ours.prune("random", budget, "none")[0]),
        }
        scores: dict[str, Texts] = {name: [] for name in systems}
        for seed in options.recovery_seeds:
            for system, (name, model) in systems.items():
                start = time.perf_counter()
                trained = recover(bench, model, seed)
                seconds = time.perf_counter() - start
                scores[system].append(bench.texts(trained))
                row = {"system": system, "name": name, "budget": budget, "seed": seed, "seconds": seconds}
                row |= {f"{key}_before": float(values.mean()) for key, values in bench.texts(model).items()}
                rows.append(row | bench.row(trained))
                say(f"{system}, {budget}, seed {seed}: accuracy {rows[-1]['accuracy']:.4f}, KL {rows[-1]['kl']:.4f}")
        pairs += [
            {"budget": budget, "score": score, "ours_minus": other} | paired(scores["bertdyn"], scores[other], score)
            for other in ("torch_pruning", "random")
            for score in ("accuracy", "kl")
        ]
    return {"rows": rows, "summary": pairs}


def recover(bench: Bench, pruned: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy of `pruned`, trained; it and the dense model, its teacher, compute no padding meanwhile."""
    config = TrainingConfig(num_train_epochs=1, learning_rate=5e-5, seed=seed)
    size, steps = config.per_device_train_batch_size, bench.options.recovery_steps
    chosen = np.random.default_rng(seed).permutation(len(bench.tokens["train"]))[: size * steps]
    texts = bench.tokens["train"].select(chosen)
    batches = make_batches(texts, bench.tokenizer, size, shuffle=True, seed=seed, token_rows=True)
    model, teacher = copy.deepcopy(pruned), copy.deepcopy(bench.dense)
    for each in (model, teacher):
        run_unpadded(each)
    loss = Distillation(bench.task, teacher.eval(), 0.5, 2.0).loss
    optimizer = make_optimizer(model, config)
    scheduler = make_scheduler(optimizer, config, len(batches))
    clip, cpu = config.max_grad_norm, Accelerator(cpu=True)
    train(cpu, model, batches, loss, optimizer, scheduler, num_epochs=1, seed=seed, max_grad_norm=clip)
    return model.eval()


def paired(ours: Texts, other: Texts, score: str) -> Row:
    """Ours less the other: 95 % intervals by Student's t over seeds, and by a bootstrap over texts of the mean."""
    a, b = (np.stack([run[score] for run in runs]).astype(np.float64) for runs in (other, ours))  # [seeds, texts]
    by_seed = (b - a).mean(axis=1)
    low, high = t_interval(by_seed, bounded=False) if len(by_seed) > 1 else (None, None)
    texts = paired_difference(a.mean(axis=0), b.mean(axis=0), seed=0)
    row = {"difference": float(by_seed.mean()), "low_over_seeds": low, "high_over_seeds": high}
    row |= {"low_over_texts": texts.low, "high_over_texts": texts.high}
    return row | {"mean_ours": float(b.mean()), "mean_other": float(a.mean()), "seeds": len(by_seed)}


def latency(bench: Bench) -> Row:
    """The table of milliseconds a batch."""
    ours, _ = bench.looks(bench.options.calibration_seeds[0])
    models = {"dense": bench.dense}
    for budget in bench.options.recovery_budgets:
        models[f"bertdyn, {budget}"] = ours.prune("fisher", budget, "least_squares")[0]
    table = torch_latency(models, LATENCY_SHAPES, rounds=bench.options.latency_rounds)
    return {"rows": json.loads(table.to_json(orient="records"))}


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


def conditions(options: argparse.Namespace) -> Row:
    names = ("torch", "transformers", "torch-pruning", "accelerate", "numpy")
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "options": {name: value for name, value in vars(options).items() if name not in PATHS},
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {name: metadata.version(name) for name in names} | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def show(name: str, rows: Iterable[Row]) -> None:
    """Print a table, a line a row."""
    rows = [{key: shown(value) for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{name}")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 0.1 else f"{value:.4f}"
    return str(value)[:80]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
