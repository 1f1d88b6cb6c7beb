"""Tables of `benchmarks.prune` about models that are pruned: what must be equal, training after pruning, latency."""

import copy
import json
import tempfile
import time

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.prune_peer import VARIANTS, Peer, PeerPruned, Variant, kept_units
from benchmarks.prune_sides import Bench
from benchmarks.tables import Row, say
from bertdyn.data.batching import Batch, make_batches, model_inputs
from bertdyn.models.unpadded import run_unpadded
from bertdyn.probing.paired import paired_difference
from bertdyn.pruning.gates import gated
from bertdyn.pruning.latency import torch_latency
from bertdyn.pruning.shape import shape_of
from bertdyn.steps.seeds import t_interval
from bertdyn.tasks.distillation import Distillation
from bertdyn.training.config import TrainingConfig
from bertdyn.training.loop import train
from bertdyn.training.optimization import make_optimizer, make_scheduler

LATENCY_SHAPES = ((1, 32), (1, 128), (16, 32), (32, 64))
Texts = list[dict[str, np.ndarray]]
"""`Bench.texts` of each seed."""


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


def best_of_peer(bench: Bench, peer: Peer, budget: float) -> tuple[Variant, PeerPruned]:
    """Torch-Pruning's variant with the lowest KL on the test part."""
    found = {variant: peer.prune(variant, budget) for variant in VARIANTS}
    best = min(found, key=lambda variant: bench.texts(found[variant].model)["kl"].mean())
    return best, found[best]


def recovery(bench: Bench) -> Row:
    """The table of training after pruning."""
    options, rows, pairs = bench.options, [], []
    ours, peer = bench.looks(options.calibration_seeds[0])
    for budget in options.recovery_budgets:
        variant, found = best_of_peer(bench, peer, budget)
        systems = {
            "bertdyn": ("fisher, auto", ours.search("fisher", budget, "auto", 1)[0]),
            "torch_pruning": (str(variant), found.model),
            "random": ("random, auto", ours.search("random", budget, "auto", 1)[0]),
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
