"""What all tables of `benchmarks.prune` share: the model, its texts and scores, and bertdyn's side."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.prune_peer import Peer
from benchmarks.tables import Row
from bertdyn.data.batching import Batch, make_batches
from bertdyn.data.config import DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.tokenization import tokenize_parts
from bertdyn.files import cache_folder
from bertdyn.models.loading import load_model, load_tokenizer
from bertdyn.pruning.agreement import Referee
from bertdyn.pruning.calibration import calibration_rows
from bertdyn.pruning.compensation import compensate
from bertdyn.pruning.config import PruningConfig
from bertdyn.pruning.cost import flop_costs
from bertdyn.pruning.scores import IN_LOSS, NEED_MOMENTS
from bertdyn.pruning.search import Calibration, Looked, search
from bertdyn.pruning.shape import projection, shape_of
from bertdyn.pruning.surgery import prune
from bertdyn.pruning.targets import plan_maker
from bertdyn.tasks.classification import Classification


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

    def batches(self, rows: Dataset, size: int = 64, *, by_length: bool = True) -> list[Batch]:
        return list(make_batches(rows, self.tokenizer, size, shuffle=False, by_length=by_length))

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
        fit, pairs = self.batches(rows.fit), self.batches(rows.pairs, by_length=False)  # partners are neighbours
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
