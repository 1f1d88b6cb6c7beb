"""The options of each step; every field is a flag of its command."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.data.config import DataConfig
from bertdyn.errors import InputError
from bertdyn.models.config import ModelConfig
from bertdyn.training.config import TrainingConfig


@dataclass
class FineTuneConfig(DataConfig, ModelConfig, TrainingConfig):
    """All options of fine-tuning."""

    seeds: Optional[str] = HfArg(
        default=None, help="'0,1,2': one child run a seed, and their mean with a 95 percent interval."
    )
    store_features: bool = HfArg(
        default=True, help="Store pooled features of the probe part after every epoch (first token and mean)."
    )
    store_attention: bool = HfArg(
        default=False, help="Store the first token's attention too, averaged over heads (slower: eager attention)."
    )
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: <dataset>-<model>-s<seed>-fine-tune.")
    register_as: Optional[str] = HfArg(
        default=None, help="Register the best model: '<name>' or '<name>@<alias>'; loads as models:/<name>@<alias>."
    )
    resume_run_id: Optional[str] = HfArg(
        default=None, help="Go on with this interrupted run; all other options are taken from it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed_list() and self.register_as:
            raise InputError("--register_as with --seeds: register the model of one seed, by a run of its own")
        if self.store_attention and not self.store_features:
            raise InputError("--store_attention true needs --store_features true")
        if self.class_weights and self.task != "classification":
            raise InputError(f"--class_weights {self.class_weights!r}: {self.dataset!r} has no classes to weigh")
        if self.early_stopping_patience and self.early_stopping_patience >= self.num_train_epochs:
            raise InputError(
                f"--early_stopping_patience {self.early_stopping_patience}: accepted are values below "
                f"--num_train_epochs {self.num_train_epochs}"
            )

    def seed_list(self) -> list[int]:
        """The seeds of `--seeds`; empty without it."""
        if not self.seeds:
            return []
        try:
            seeds = [int(seed) for seed in self.seeds.split(",")]
        except ValueError:
            seeds = []
        if len(set(seeds)) < 2 or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise InputError(f"--seeds {self.seeds!r}: accepted are at least two different whole numbers: '0,1,2'")
        return seeds

    def tags(self) -> dict[str, str]:
        """What a run is searched by in MLflow."""
        tags = {"bertdyn.model": self.model_name_or_path, "bertdyn.dataset": self.dataset}
        if self.model_name_or_path.startswith("runs:/"):
            tags["bertdyn.source_run_id"] = self.model_name_or_path.removeprefix("runs:/").split("/")[0]
        return tags

    def default_run_name(self) -> str:
        """`sst2-minilm-s0-fine-tune`, or `sst2-minilm-conv2d3-scratch-3-seeds-fine-tune`"""
        dataset, model = (name.rstrip("/").split("/")[-1] for name in (self.dataset, self.model_name_or_path))
        if self.embeddings:
            model += f"-{self.embeddings}" + (str(self.conv_kernel_size) if self.conv_kernel_size else "")
        scratch = "-scratch" if self.from_scratch else ""
        seeds = f"{len(self.seed_list())}-seeds" if self.seeds else f"s{self.seed}"
        return f"{dataset}-{model}{scratch}-{seeds}-fine-tune"
