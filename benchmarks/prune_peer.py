"""Torch-Pruning, restricted to what can be compared: whole heads and feed-forward neurons, not the residual stream.

Set up as in its own example for BERT (`examples/transformers/prune_hf_bert.py`): query, key and value are grouped by
heads, heads are removed whole, the attributes of the attention modules are updated afterwards (heads keep their size,
so the softmax scale is the dense one). On top of the example, all in its favour:

- embeddings, pooler, classifier and both output projections are ignored, else it halves the residual stream, too;
- every layer keeps its best head and neuron (`KeepsOne`). Where a layer would lose all, Torch-Pruning leaves it whole,
  in silence, with `pruner.num_heads` at 0, by which the example's update divides;
- `pruning_ratio` and `head_pruning_ratio` are one number, found by bisection, each try on a fresh copy, so that the
  encoder's FLOPs are the largest within the budget; whole heads make steps, so what is left is then given back to the
  neurons by a second bisection. Every variant is also tried with all heads kept;
- `ActivationImportance` counts the last batch only: it gets all texts as one batch (padding counts, as it is);
- `GroupTaylorImportance` is also tried without its default normalisation by each layer's mean, which takes from it what
  is comparable between layers.
"""

import copy
import gc
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertSelfAttention

from bertdyn.data.batching import Batch, model_inputs
from bertdyn.pruning.cost import Costs
from bertdyn.pruning.shape import Site, shape_of
from bertdyn.tasks.task import Task

CRITERIA = ("magnitude", "taylor", "taylor_unnormalised", "activation", "random")
RATIO_TRIES, FILL_TRIES = 13, 11
MOST = 0.97
"""Share of neurons that goes at most."""
KEPT = 1e30
"""Importance of what must stay."""


class Variant(NamedTuple):
    """A way of using Torch-Pruning."""

    criterion: str
    global_ranking: bool
    heads: bool
    """Whether heads are pruned, too."""

    def __str__(self) -> str:
        ranking = "global" if self.global_ranking else "per layer"
        return f"{self.criterion}, {ranking}{'' if self.heads else ', heads kept'}"


VARIANTS = [
    Variant(criterion, ranking, heads)
    for criterion in CRITERIA
    for ranking in (False, True)
    for heads in (True, False)
    if (criterion != "random" or heads) and (criterion != "taylor_unnormalised" or ranking)
]
"""A constant factor a layer changes nothing where layers are ranked alone."""


class PeerPruned(NamedTuple):
    """A pruned model of the stock class."""

    model: PreTrainedModel
    pruning_ratio: float
    head_pruning_ratio: float
    seconds: float
    """Statistics and one pruning at ratios that are known."""
    bisection_seconds: float
    """To know them; 0 where another criterion's are the same."""


@dataclass
class Peer:
    """Torch-Pruning's view of a dense model: a copy with gradients and activations, from which others are copied."""

    source: PreTrainedModel
    costs: Costs
    seconds: dict[str, float]
    """Criterion → seconds of its statistics."""
    seed: int
    _ratios: dict[tuple[bool, float], tuple[float, float]] = field(default_factory=dict)
    """Ratios within a budget where layers are ranked alone: sizes do not depend on the criterion then."""

    @classmethod
    def look(
        cls, dense: PreTrainedModel, batches: Sequence[Batch], whole: Batch, task: Task, costs: Costs, seed: int
    ) -> "Peer":
        """Accumulate gradients of the mean loss over `batches`; activations of `whole`, the same texts as one batch."""
        source = copy.deepcopy(dense).eval()
        start = time.perf_counter()
        total = sum(len(batch["labels"]) for batch in batches)
        for batch in batches:
            (task.loss(source, batch) * (len(batch["labels"]) / total)).backward()
        gradients = time.perf_counter() - start
        with torch.no_grad(), tp.importance.ActivationImportance().compute_importance(source):
            source(**model_inputs(whole))
        activations = time.perf_counter() - start - gradients
        return cls(
            source, costs, {"taylor": gradients, "taylor_unnormalised": gradients, "activation": activations}, seed
        )

    def prune(self, variant: Variant, budget: float) -> PeerPruned:
        """The largest encoder within `budget`, a share of the dense one's cost."""
        start = time.perf_counter()
        known = None if variant.global_ranking else self._ratios.get((variant.heads, budget))
        ratio, head_ratio = known or self._bisect(variant, budget)
        if not variant.global_ranking:
            self._ratios[variant.heads, budget] = ratio, head_ratio
        found = time.perf_counter()
        model = self.attempt(variant, ratio, head_ratio)
        spent = time.perf_counter() - found
        gc.collect()  # its dependency graphs are cycles that hold whole models: 9 GB after a few dozen prunings
        if not self._fits(model, budget):
            raise SystemExit(f"Torch-Pruning, {variant}: no encoder within {budget}")
        return PeerPruned(model, ratio, head_ratio, self.seconds.get(variant.criterion, 0.0) + spent, found - start)

    def _fits(self, model: PreTrainedModel, budget: float) -> bool:
        return self.costs.of(shape_of(model)) <= budget * self.costs.of(shape_of(self.source)) * (1 + 1e-9)

    def _bisect(self, variant: Variant, budget: float) -> tuple[float, float]:
        """The smallest ratios of neurons and heads that are within `budget`."""

        def smallest(high: float, tries: int, head_ratio: float | None) -> float:
            low = 0.0
            for _ in range(tries):
                middle = (low + high) / 2
                of_heads = head_share(variant, middle) if head_ratio is None else head_ratio
                if self._fits(self.attempt(variant, middle, of_heads), budget):
                    high = middle
                else:
                    low = middle
            return high

        ratio = smallest(MOST, RATIO_TRIES, None)
        head_ratio = head_share(variant, ratio)
        return (smallest(ratio, FILL_TRIES, head_ratio), head_ratio) if variant.heads else (ratio, head_ratio)

    def attempt(self, variant: Variant, ratio: float, head_ratio: float) -> PreTrainedModel:
        """A pruned copy at these ratios."""
        model = copy.deepcopy(self.source)
        for parameter, original in zip(model.parameters(), self.source.parameters(), strict=True):
            parameter.grad = original.grad  # a deep copy of a parameter has none
        attentions = [module for module in model.modules() if isinstance(module, BertSelfAttention)]
        num_heads = {
            layer: attention.num_attention_heads
            for attention in attentions
            for layer in (attention.query, attention.key, attention.value)
        }
        texts = torch.full((2, 8), 5)
        layers = model.base_model.encoder.layer
        ignored = [model.base_model.embeddings, model.base_model.pooler, model.classifier]
        ignored += [layer.attention.output.dense for layer in layers] + [layer.output.dense for layer in layers]
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(self.seed)
            pruner = tp.pruner.MetaPruner(
                model,
                {"input_ids": texts, "attention_mask": torch.ones_like(texts)},
                importance=KeepsOne(importance_of(variant.criterion), dict(num_heads)),
                global_pruning=variant.global_ranking,
                pruning_ratio=ratio,
                num_heads=num_heads,
                prune_num_heads=True,
                prune_head_dims=False,
                head_pruning_ratio=head_ratio,
                ignored_layers=ignored,
                output_transform=lambda output: output.logits.sum(),
            )
            pruner.step()
        for attention in attentions:
            attention.num_attention_heads = pruner.num_heads[attention.query]
            attention.all_head_size = attention.query.out_features
            if attention.num_attention_heads * attention.attention_head_size != attention.all_head_size:
                raise SystemExit(f"Torch-Pruning, {variant}: heads of another size")
        for module in model.modules():
            module.__dict__.pop("_importance", None)
        model.zero_grad(set_to_none=True)
        return model


class KeepsOne:
    """An importance by which no layer loses all: its best head, or its best neuron, is worth most."""

    def __init__(self, importance: Any, num_heads: dict[nn.Module, int]) -> None:
        self.importance, self.num_heads = importance, num_heads

    def __call__(self, group: Any) -> Tensor | None:
        scores = self.importance(group)
        if scores is None:
            return None
        units = max((self.num_heads.get(dep.target.module, 0) for dep, _ in group), default=0) or len(scores)
        by_unit = scores.clone().view(units, -1)
        by_unit[by_unit.mean(dim=1).argmax()] = KEPT
        return by_unit.flatten()


def importance_of(criterion: str) -> Any:
    """Torch-Pruning's, by its defaults but where the name says otherwise."""
    importances = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
        "taylor_unnormalised": lambda: tp.importance.GroupTaylorImportance(normalizer=None),
        "activation": tp.importance.ActivationImportance,
        "random": tp.importance.RandomImportance,
    }
    return importances[criterion]()


def head_share(variant: Variant, ratio: float) -> float:
    """The ratio of heads that goes with one of neurons: less than all, of twelve heads."""
    return min(ratio, 11 / 12 - 1e-9) if variant.heads else 0.0


def kept_units(dense: PreTrainedModel, pruned: PreTrainedModel) -> dict[Site, list[int]]:
    """Which heads and neurons are left: rows of the pruned layers, found among the dense ones."""
    head_size, kept = shape_of(dense).head_size, {}
    pairs = zip(dense.base_model.encoder.layer, pruned.base_model.encoder.layer, strict=True)
    for number, (before, after) in enumerate(pairs, start=1):
        heads = _rows(before.attention.self.query, after.attention.self.query)[::head_size]
        kept[Site("attention", number)] = [row // head_size for row in heads]
        kept[Site("ffn", number)] = _rows(before.intermediate.dense, after.intermediate.dense)
    return kept


def _rows(dense: nn.Module, pruned: nn.Module) -> list[int]:
    places = {row.numpy().tobytes(): place for place, row in enumerate(dense.weight.detach())}
    return [places[row.numpy().tobytes()] for row in pruned.weight.detach()]
