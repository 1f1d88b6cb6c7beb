"""The options of fine-tuning, of extraction and of comparisons; every field is a flag of the command."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.data.config import PARTS, DataConfig
from bertdyn.errors import InputError
from bertdyn.models.config import SITES, ModelConfig
from bertdyn.steps.lists import choices, layer_numbers, several_seeds
from bertdyn.training.config import PRECISIONS, TrainingConfig

ROWS = ("first", "mean", "tokens")
DTYPES = ("float16", "float32")


@dataclass
class FineTuneConfig(DataConfig, ModelConfig, TrainingConfig):
    """All options of fine-tuning."""

    seeds: Optional[str] = HfArg(
        default=None, help="'0,1,2': one child run a seed, and their mean with a 95 percent interval."
    )
    store_features: bool = HfArg(
        default=True, help="Store pooled features of the probe part after every epoch (first token and mean)."
    )
    store_attention: bool = HfArg(default=False, help="Store the first token's attention too, averaged over heads.")
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: <dataset>-<model>-s<seed>.")
    register_as: Optional[str] = HfArg(
        default=None, help="Register the best model: '<name>' or '<name>@<alias>'; loads as models:/<name>@<alias>."
    )
    resume_run_id: Optional[str] = HfArg(
        default=None, help="Go on with this interrupted run; all other options are taken from it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_seeds()
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
        return several_seeds(self.seeds)

    def check_seeds(self) -> None:
        """Raise `InputError` if `--seeds` is not accepted."""
        if self.seed_list() and self.register_as:
            raise InputError("--register_as with --seeds: register the model of one seed, by a run of its own")

    def tags(self) -> dict[str, str]:
        """What a run is searched by in MLflow."""
        tags = {"bertdyn.model": self.model_name_or_path, "bertdyn.dataset": self.dataset}
        if self.model_name_or_path.startswith("runs:/"):
            tags["bertdyn.source_run_id"] = self.model_name_or_path.removeprefix("runs:/").split("/")[0]
        return tags

    def label(self) -> str:
        """What is trained on what: `sst2-minilm-s0`, or `sst2-minilm-conv2d3-scratch-3-seeds`"""
        dataset, model = (name.rstrip("/").split("/")[-1] for name in (self.dataset, self.model_name_or_path))
        if self.embeddings:
            model += f"-{self.embeddings}" + (str(self.conv_kernel_size) if self.conv_kernel_size else "")
        scratch = "-scratch" if self.from_scratch else ""
        seeds = f"{len(self.seed_list())}-seeds" if self.seeds else f"s{self.seed}"
        return f"{dataset}-{model}{scratch}-{seeds}"


@dataclass
class ExtractConfig(DataConfig):
    """All options of extraction. Data options go with --model_name_or_path; a run brings its own."""

    source_run_id: Optional[str] = HfArg(
        default=None, help="A fine-tune (or prune) run: its texts go through the model in each of --states."
    )
    states: str = HfArg(
        default="pretrained,best",
        help="'pretrained', 'best', 'last', 'epoch_001', 'step_000004', or 'all' that were kept, in the order of time.",
    )
    model_name_or_path: Optional[str] = HfArg(
        default=None,
        help="Instead of --source_run_id: any model, as fine-tune takes it, on the texts of the data options. "
        "Its one state is called 'model'.",
    )
    tokenizer_name: Optional[str] = HfArg(
        default=None, help="Hub id or folder of the tokenizer, with --model_name_or_path. Default: that of the model."
    )
    parts: str = HfArg(
        default="train,probe",
        help="Of train, validation, probe, test; fewer examples of a part by "
        "--max_train_samples, --max_probe_samples, … (seeded, nested).",
    )
    layers: str = HfArg(
        default="all",
        help="'all', or numbers: '0,3,6'; 0 is the output of the embeddings, -1 the last (--layers=-2,-1).",
    )
    rows: str = HfArg(
        default="tokens",
        help="tokens (every token, special ones flagged), first (the first token), mean (over the text); '…,…' for "
        "several. Question answering: first and mean are those of the first window.",
    )
    activations: str = HfArg(
        default="hidden",
        help="hidden (states), context (what the heads give out), attention_output (what attention adds), ffn_pre and "
        "ffn_post (neurons before and after the activation function), attention (of the first token, mean over heads); "
        "'…,…' for several.",
    )
    dtype: str = HfArg(default="float16", help="float16, or float32; a value that float16 cannot hold is an error.")
    per_device_eval_batch_size: int = HfArg(default=64, help="Texts a forward pass on each device.")
    mixed_precision: str = HfArg(default="no", help="no (float32), bf16 or fp16: of the forward pass.")
    trust_remote_code: bool = HfArg(
        default=False, help="Run the Python code that comes with a checkpoint. Only for sources you trust."
    )
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: extract-<dataset>-<model>-s<seed>.")
    resume_run_id: Optional[str] = HfArg(
        default=None, help="Go on with this interrupted run; only the missing rows are computed."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.resume_run_id and bool(self.source_run_id) == bool(self.model_name_or_path):
            raise InputError("give --source_run_id <fine-tune run> or --model_name_or_path <model>, one of the two")
        if self.model_name_or_path and self.states != type(self).states:
            raise InputError(f"--states {self.states!r}: a model has one state, called 'model'; leave it out")
        if self.tokenizer_name and self.source_run_id:
            raise InputError("--tokenizer_name: a run brings its own tokenizer; leave it out with --source_run_id")
        for name, accepted in (("dtype", DTYPES), ("mixed_precision", PRECISIONS)):
            if getattr(self, name) not in accepted:
                raise InputError(f"--{name} {getattr(self, name)!r}: accepted are {', '.join(accepted)}")
        if self.per_device_eval_batch_size < 1:
            raise InputError(f"--per_device_eval_batch_size {self.per_device_eval_batch_size}: accepted: 1 or more")
        choices(self.parts, "parts", PARTS)
        choices(self.rows, "rows", ROWS)
        choices(self.activations, "activations", SITES)
        choices(self.states, "states")
        layer_numbers(self.layers)


@dataclass
class CompareConfig:
    """All options of comparing."""

    source_run_id: Optional[str] = HfArg(default=None, help="An extract run: its states are compared.")
    run_ids: Optional[str] = HfArg(
        default=None,
        help="'a,b,c': several extract runs (seeds, datasets, sizes, variants) instead of one; each is compared with "
        "its own reference, and runs on the same texts with each other.",
    )
    states: str = HfArg(default="all", help="States of the extract run, in this order: 'pretrained,best'; or all.")
    reference: Optional[str] = HfArg(
        default=None, help="What every other state is compared with: a state, or 'previous'. Default: the first state."
    )
    between_runs: str = HfArg(
        default="auto",
        help="With --run_ids: compare the last states of different runs row by row. auto: where texts and tokens are "
        "the same; true: refuse runs where they are not; false: never.",
    )
    part: str = HfArg(default="probe", help="Part of the data: train, validation, probe, test.")
    max_examples: Optional[int] = HfArg(default=None, help="At most so many of its texts (seeded, nested).")
    layers: str = HfArg(default="all", help="'all' that were extracted, or numbers: '0,3,6'; -1 is the last.")
    num_neighbours: int = HfArg(default=10, help="Neighbours a row, for the overlap of neighbourhoods.")
    tsne: bool = HfArg(default=False, help="Also a t-SNE figure of first-token features (slow).")
    example_id: Optional[str] = HfArg(
        default=None, help="Text of the token heat map. Default: the first one of 8 to 16 tokens."
    )
    seed: int = HfArg(default=0, help="Of samples, resamples and folds.")
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: compare-<dataset>-<model>-s<seed>.")

    def __post_init__(self) -> None:
        self.between_runs = str(self.between_runs).lower()  # YAML's true and Python's True are meant, too
        if bool(self.source_run_id) == bool(self.run_ids):
            raise InputError("give --source_run_id <extract run> or --run_ids <run>,<run>, one of the two")
        if self.run_ids and len(choices(self.run_ids, "run_ids")) < 2:
            raise InputError(f"--run_ids {self.run_ids!r}: accepted are two or more runs; for one, --source_run_id")
        if self.between_runs not in ("auto", "true", "false"):
            raise InputError(f"--between_runs {self.between_runs!r}: accepted are auto, true, false")
        if self.part not in PARTS:
            raise InputError(f"--part {self.part!r}: accepted are {', '.join(PARTS)}")
        choices(self.states, "states")
        layer_numbers(self.layers)
        for name, least in (("max_examples", 4), ("num_neighbours", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} {value}: accepted are values from {least}")

    @property
    def runs(self) -> list[str]:
        """The extract runs."""
        return choices(self.run_ids or self.source_run_id or "", "run_ids")
