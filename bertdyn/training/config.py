"""How to train: the optimiser, its schedule, precision, seeds, and what is kept."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

import math
from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.errors import InputError

OPTIMIZERS = ("adamw", "sgd")
SCHEDULERS = ("linear", "cosine", "constant")
PRECISIONS = ("no", "bf16", "fp16")
CHECKPOINT_DTYPES = ("float32", "bfloat16", "float16")
UNPADDED = ("auto", "true", "false")


@dataclass
class TrainingConfig:
    """Everything that decides the course of a training, apart from model and data."""

    num_train_epochs: int = HfArg(default=3, help="Passes over the train part.")
    per_device_train_batch_size: int = HfArg(default=32, help="Examples a step on each device.")
    per_device_eval_batch_size: int = HfArg(default=64, help="Examples a step in evaluation and feature passes.")
    gradient_accumulation_steps: int = HfArg(default=1, help="Batches summed up before one update.")
    optimizer: str = HfArg(default="adamw", help="adamw, or sgd (with --momentum).")
    learning_rate: float = HfArg(default=5e-5, help="The peak learning rate.")
    weight_decay: float = HfArg(default=0.01, help="Decoupled decay of all weights but biases and LayerNorms.")
    layerwise_lr_decay: float = HfArg(
        default=1.0,
        help="The learning rate of a layer is this times that of the layer above it, the head having --learning_rate "
        "(ELECTRA takes 0.8); 1: all alike.",
    )
    momentum: float = HfArg(default=0.9, help="Momentum of sgd.")
    lr_scheduler_type: str = HfArg(default="linear", help="linear, cosine or constant, after the warm-up.")
    warmup_ratio: float = HfArg(default=0.1, help="Share of all updates in which the learning rate rises from 0.")
    max_grad_norm: float = HfArg(default=1.0, help="Gradients are clipped to this global norm; 0: no clipping.")
    mixed_precision: str = HfArg(default="no", help="no (float32), bf16 or fp16; weights stay float32.")
    unpadded: str = HfArg(
        default="auto",
        help="Compute no padding: same logits and gradients, less work. auto: wherever the model can (all families "
        "but FlauBERT); true: refuse a model that cannot; false: compute the padding, too.",
    )
    class_weights: Optional[str] = HfArg(
        default=None,
        help="Weights of the classes in the training loss: 'balanced' (rare classes count more), or one number a "
        "class: '1,2.5'. Default: all alike. Scores are never weighted.",
    )
    seed: int = HfArg(default=0, help="Seed of the new weights, the order of batches and dropout.")
    early_stopping_patience: int = HfArg(
        default=0, help="Stop after so many epochs without a better validation score; 0: never."
    )
    keep_checkpoints: int = HfArg(
        default=-1,
        help="How many of the newest epochs' checkpoints stay, besides epoch_000 and the best; -1: all.",
    )
    checkpoint_dtype: str = HfArg(
        default="float32",
        help="float32, bfloat16 or float16: type of the weights in checkpoints from epoch 1 on. The half types take "
        "half the disk; resuming stays exact, and the scores are those of the rounded best checkpoint.",
    )
    log_spaced_checkpoints: bool = HfArg(
        default=False, help="Also keep the model after 1, 2, 4, 8, … updates (checkpoints/step_000004)."
    )

    def __post_init__(self) -> None:
        self.unpadded = str(self.unpadded).lower()  # YAML's true and Python's True are meant, too
        for name, accepted in (
            ("optimizer", OPTIMIZERS),
            ("lr_scheduler_type", SCHEDULERS),
            ("mixed_precision", PRECISIONS),
            ("checkpoint_dtype", CHECKPOINT_DTYPES),
            ("unpadded", UNPADDED),
        ):
            if getattr(self, name) not in accepted:
                raise InputError(f"--{name} {getattr(self, name)!r}: accepted are {', '.join(accepted)}")
        for name, least in (
            ("num_train_epochs", 1),
            ("per_device_train_batch_size", 1),
            ("per_device_eval_batch_size", 1),
            ("gradient_accumulation_steps", 1),
            ("weight_decay", 0),
            ("momentum", 0),
            ("max_grad_norm", 0),
            ("seed", 0),
            ("early_stopping_patience", 0),
            ("keep_checkpoints", -1),
        ):
            if not getattr(self, name) >= least:
                raise InputError(f"--{name} {getattr(self, name)}: accepted are values from {least}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"--learning_rate {self.learning_rate}: accepted are finite values above 0")
        if not 0 < self.layerwise_lr_decay <= 1:
            raise InputError(f"--layerwise_lr_decay {self.layerwise_lr_decay}: accepted are values above 0, at most 1")
        if self.seed >= 2**32:
            raise InputError(f"--seed {self.seed}: accepted are values below 2**32")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"--warmup_ratio {self.warmup_ratio}: accepted are values from 0 to 1")
        parent = getattr(super(), "__post_init__", None)
        if parent:
            parent()
