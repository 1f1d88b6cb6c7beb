"""Optimiser and learning-rate schedule from a `TrainingConfig`."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from bertdyn.training.config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over *all* parameters of `model`, frozen ones too.

    A parameter without a gradient is skipped by both, so that freezing and unfreezing never touch
    the optimiser: the moments of the others go on. Vectors (biases, LayerNorms) are not decayed.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    not_decayed = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    # With a fused optimiser, accelerate cannot tell that a float16 overflow skipped an update.
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=config.mixed_precision != "fp16")


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
