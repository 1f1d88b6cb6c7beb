"""Optimiser and learning-rate schedule from a `TrainingConfig`."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, get_scheduler

from bertdyn.models.anatomy import EMBEDDING_COMPONENTS, anatomy_of, places
from bertdyn.training.config import TrainingConfig


def make_optimizer(model: PreTrainedModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over *all* parameters of `model`, frozen ones too.

    A parameter without a gradient is skipped by both, so that freezing and unfreezing never touch
    the optimiser: the moments of the others go on. Vectors (biases, LayerNorms) are not decayed.
    With `layerwise_lr_decay` d, parameters that are k steps below the head (the last layer: 1, the embeddings of L
    layers: L + 1) learn at dᵏ times the learning rate (Clark et al. 2020, ELECTRA).
    """
    by_rate: dict[float, list[nn.Parameter]] = {}
    below = steps_below_head(model) if config.layerwise_lr_decay < 1 else {}
    for name, parameter in model.named_parameters():
        rate = config.learning_rate * config.layerwise_lr_decay ** below.get(name, 0)
        by_rate.setdefault(rate, []).append(parameter)
    groups: list[dict[str, Any]] = []
    for rate, parameters in sorted(by_rate.items(), reverse=True):  # the head's first: it is the one that is logged
        matrices, vectors = ([p for p in parameters if (p.ndim > 1) is decayed] for decayed in (True, False))
        groups.append({"params": matrices, "weight_decay": config.weight_decay, "lr": rate})
        groups.append({"params": vectors, "weight_decay": 0.0, "lr": rate})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    # With a fused optimiser, accelerate cannot tell that a float16 overflow skipped an update.
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=config.mixed_precision != "fp16")


def steps_below_head(model: PreTrainedModel) -> dict[str, int]:
    """Parameter name → how far below the head it is: head and pooler 0, the last of L layers 1, embeddings L + 1."""
    depth = len(anatomy_of(model).layers)
    steps = {}
    for name, place in places(model).items():
        if place.layer is not None:
            steps[name] = depth + 1 - place.layer
        else:
            steps[name] = depth + 1 if place.component in EMBEDDING_COMPONENTS else 0
    return steps


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig, num_updates: int) -> LRScheduler:
    """Warm-up over `warmup_ratio` of `num_updates`, then linear, cosine or constant."""
    name = "constant_with_warmup" if config.lr_scheduler_type == "constant" else config.lr_scheduler_type
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=math.ceil(config.warmup_ratio * num_updates),
        num_training_steps=num_updates,
    )


def updates_per_epoch(num_examples: int, config: TrainingConfig, num_processes: int = 1) -> int:
    """Optimiser updates in one epoch, the last incomplete batch and accumulation included."""
    batches = math.ceil(num_examples / (config.per_device_train_batch_size * num_processes))
    return math.ceil(batches / config.gradient_accumulation_steps)
