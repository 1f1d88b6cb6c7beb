"""Small random models and plans to cut."""

from itertools import pairwise

import torch
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from bertdyn.models import pruned  # noqa: F401  # registers the classes
from bertdyn.pruning.cost import Costs
from bertdyn.pruning.plan import Plan
from bertdyn.pruning.shape import Shape, shape_of

AUTO = {
    "encoder": AutoModel,
    "classification": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
}
LENGTHS = (9, 4, 7)


def load(folder, head="classification", dtype=torch.float64, **options) -> PreTrainedModel:
    """The encoder in `folder` with a random head, weights large enough to matter, dropout off."""
    torch.manual_seed(1)
    model = AUTO[head].from_pretrained(folder, **options).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(model: PreTrainedModel, lengths=LENGTHS, seed=0) -> dict[str, torch.Tensor]:
    """Texts of random tokens, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, model.config.vocab_size, mask.shape, generator=generator)
    return {"input_ids": ids.masked_fill(~mask, model.config.pad_token_id or 0), "attention_mask": mask.long()}


def random_plan(shape: Shape, seed: int = 0, least: int = 1) -> Plan:
    """Another random set of units in every block."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for site in shape.sites:
        units = shape.units(site)
        count = int(torch.randint(least, units + 1, (), generator=generator))
        kept[site] = tuple(sorted(torch.randperm(units, generator=generator)[:count].tolist()))
    return Plan(shape, kept)


def gates_of(plan: Plan, dtype=torch.float64) -> dict:
    """1 for units that stay, 0 for the others."""
    gates = {}
    for site, units in plan.kept.items():
        gates[site] = torch.zeros(plan.shape.units(site), dtype=dtype)
        gates[site][list(units)] = 1
    return gates


def outputs(model: PreTrainedModel, inputs, **options) -> list[torch.Tensor]:
    """Logits, start and end logits, or the last hidden states at real tokens."""
    with torch.no_grad():
        found = model(**inputs, **options)
    names = ("logits", "start_logits", "end_logits")
    scores = [found[name] for name in names if name in found]
    if not scores:
        return [found.last_hidden_state[inputs["attention_mask"].bool()]]
    if "logits" in found:
        return scores
    return [score.masked_fill(inputs["attention_mask"] == 0, 0) for score in scores]


def rises(costs: Costs, kind: str, width: int) -> bool:
    """Whether a block's cost never falls with its number of units."""
    return all(low <= high for low, high in pairwise(costs.block(kind, units) for units in range(width + 1)))


__all__ = ["AUTO", "batch", "gates_of", "load", "outputs", "random_plan", "rises", "shape_of"]
