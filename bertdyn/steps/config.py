"""The options of each step; every field is a flag of its command."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.data.config import PARTS, DataConfig
from bertdyn.errors import InputError
from bertdyn.models.config import SITES, ModelConfig
from bertdyn.pruning.config import CONTROLS, PruningConfig
from bertdyn.sae.config import ACTIVATIONS, COMPARISONS
from bertdyn.training.config import PRECISIONS, TrainingConfig

ROWS = ("first", "mean", "tokens")
DTYPES = ("float16", "float32")
PROBES = ("logistic", "ridge", "mlp", "nearest_centroid", "mean_difference")


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
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: fine-tune-<dataset>-<model>-s<seed>.")
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
class PruneConfig(DataConfig, TrainingConfig, PruningConfig):
    """All options of pruning. Training options are those of the recovery."""

    source_run_id: Optional[str] = HfArg(
        default=None, help="A fine-tune (or prune) run: the model in --state is pruned, on the run's own data."
    )
    state: str = HfArg(default="best", help="Which model of the run: best, last, epoch_001, …")
    model_name_or_path: Optional[str] = HfArg(
        default=None,
        help="Instead of --source_run_id: any fine-tuned model, as fine-tune takes it, with the data options.",
    )
    trust_remote_code: bool = HfArg(
        default=False, help="Run the Python code that comes with a checkpoint. Only for sources you trust."
    )
    recover: bool = HfArg(
        default=True, help="Train the pruned model (and the controls, alike) after surgery: the training options."
    )
    num_train_epochs: int = HfArg(default=2, help="Of the recovery: passes over the train part.")
    distillation: float = HfArg(
        default=0.5, help="Of the recovery: weight of the dense model's answers beside the labels, 0 to 1."
    )
    temperature: float = HfArg(default=2.0, help="Softens both models' answers for --distillation.")
    hidden_distillation: float = HfArg(
        default=0.0, help="Weight of the distance from the dense model's hidden states, in all layers; 0: none."
    )
    controls: str = HfArg(
        default="dense,random,magnitude",
        help="What the pruned model stands beside, trained equally long: the unpruned model (dense), and other units "
        "pruned to the same sizes (random, magnitude); 'none' for none.",
    )
    seeds: Optional[str] = HfArg(
        default=None, help="'0,1,2': one child run a seed, and paired differences with a 95 percent interval."
    )
    latency_shapes: str = HfArg(
        default="1x32,1x128,16x32", help="Batches to time, texts x tokens, before and after; 'none' to leave it out."
    )
    latency_rounds: int = HfArg(default=40, help="Of the timing; both models run in each.")
    export_onnx: bool = HfArg(default=True, help="Also write onnx/model.onnx, checked against PyTorch, and time it.")
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: prune-<dataset>-<model>-s<seed>.")
    register_as: Optional[str] = HfArg(
        default=None, help="Register the pruned model: '<name>' or '<name>@<alias>'; loads as models:/<name>@<alias>."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.source_run_id) == bool(self.model_name_or_path):
            raise InputError("give --source_run_id <fine-tune run> or --model_name_or_path <model>, one of the two")
        if self.model_name_or_path and self.state != type(self).state:
            raise InputError(f"--state {self.state!r}: a model has one state; leave it out")
        for name in ("state", "reference_state"):
            if getattr(self, name) == "all" or "," in getattr(self, name):
                raise InputError(f"--{name} {getattr(self, name)!r}: accepted is one state, such as best or epoch_001")
        if self.criterion == "state_change" and not self.source_run_id:
            raise InputError("--criterion state_change compares two states of a run: give --source_run_id")
        if self.early_stopping_patience and self.recover and self.control_list():
            raise InputError(
                f"--early_stopping_patience {self.early_stopping_patience}: controls are trained equally long; "
                "accepted is 0, or --controls none"
            )
        if not 0 <= self.distillation <= 1:
            raise InputError(f"--distillation {self.distillation}: accepted are values from 0 to 1")
        for name, least in (("temperature", 0.1), ("hidden_distillation", 0), ("latency_rounds", 3)):
            if not least <= getattr(self, name) < math.inf:
                raise InputError(f"--{name} {getattr(self, name)}: accepted are values from {least}")
        self.check_seeds()
        self.control_list()
        self.shapes()

    def check_seeds(self) -> None:
        """Raise `InputError` if `--seeds` is not accepted."""
        if several_seeds(self.seeds) and self.register_as:
            raise InputError("--register_as with --seeds: register the model of one seed, by a run of its own")

    def control_list(self) -> list[str]:
        """The controls, of `CONTROLS`."""
        return [] if self.controls == "none" else choices(self.controls, "controls", CONTROLS)

    def shapes(self) -> list[tuple[int, int]]:
        """(texts, tokens) of the batches to time.

        Raises
        ------
        InputError
            If they are no such pairs.
        """
        if self.latency_shapes == "none":
            return []
        pairs = [word.split("x") for word in choices(self.latency_shapes, "latency_shapes")]
        if not all(len(pair) == 2 and all(number.isdigit() and int(number) for number in pair) for pair in pairs):
            raise InputError(f"--latency_shapes {self.latency_shapes!r}: accepted are pairs such as '1x32,16x128'")
        return [(int(texts), int(tokens)) for texts, tokens in pairs]


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


@dataclass
class ProbeConfig:
    """All options of probing."""

    source_run_id: Optional[str] = HfArg(default=None, help="An extract run: its layers and states are probed.")
    targets: Optional[str] = HfArg(
        default=None,
        help="What is read off the features: 'label'; a property of the text: flesch_kincaid, num_words, "
        "num_characters, word_length, type_token_ratio, and with ':3' in three classes of equal size; any column of "
        "the data; 'span' (SQuAD 2.0: start and end of the answer). '…,…' for several. Default: label, or span.",
    )
    probes: str = HfArg(
        default="logistic,ridge",
        help="Of logistic, nearest_centroid, mean_difference (classes), ridge (numbers), mlp (both): "
        "those that fit a target are fitted.",
    )
    states: str = HfArg(default="all", help="States of the extract run, in this order: 'pretrained,best'; or all.")
    layers: str = HfArg(default="all", help="'all' that were extracted, or numbers: '0,3,6'; -1 is the last.")
    rows: str = HfArg(
        default="first,mean",
        help="What a probe sees of a text: first (token), mean (over content tokens), content (every content token "
        "alone, each with its text's target); '…,…' for several.",
    )
    part: str = HfArg(
        default="probe", help="Part of the data: probe or test, which the encoder has never seen; of a model: any."
    )
    max_examples: Optional[int] = HfArg(default=None, help="At most so many of its texts (seeded, nested).")
    num_folds: int = HfArg(default=5, help="Of the cross-validation, stratified; a text is in one of them.")
    inverse_penalties: str = HfArg(
        default="0.0001,0.001,0.01,0.1,1",
        help="Values among which an inner cross-validation chooses: scikit-learn's C; ridge has alpha = 1 / C.",
    )
    hidden_size: int = HfArg(default=64, help="Neurons of the mlp.")
    random_init: bool = HfArg(
        default=True, help="Also probe an encoder of the same architecture with random weights (a control)."
    )
    compare_run_id: Optional[str] = HfArg(
        default=None,
        help="A compare run of the same extract run: correlate its measures with accuracy over layers and states.",
    )
    num_train_epochs: int = HfArg(default=5, help="Of span probes: passes over the rows.")
    per_device_train_batch_size: int = HfArg(default=32, help="Of span probes: windows a step.")
    learning_rates: str = HfArg(
        default="0.0001,0.001,0.01", help="Of span probes: for each layer the one that is best on validation."
    )
    normalize_features: bool = HfArg(
        default=True, help="Of span probes: features of mean 0 and variance 1, by the train rows."
    )
    position_weights: bool = HfArg(
        default=False, help="Of span probes: weigh a window by how rare the position of its answer is (system 3)."
    )
    max_answer_length: int = HfArg(default=30, help="Of span probes: longest answer in tokens.")
    seed: int = HfArg(default=0, help="Of folds, resamples, shuffled labels and random weights.")
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: probe-<dataset>-<model>-s<seed>.")

    def __post_init__(self) -> None:
        if not self.source_run_id:
            raise InputError("give --source_run_id <extract run>")
        if self.part not in PARTS:
            raise InputError(f"--part {self.part!r}: accepted are {', '.join(PARTS)}")
        choices(self.probes, "probes", PROBES)
        choices(self.rows, "rows", ("first", "mean", "content"))
        choices(self.states, "states")
        layer_numbers(self.layers)
        numbers(self.inverse_penalties, "inverse_penalties")
        numbers(self.learning_rates, "learning_rates")
        for name, least in (
            ("max_examples", 10),
            ("num_folds", 3),
            ("hidden_size", 1),
            ("num_train_epochs", 1),
            ("per_device_train_batch_size", 1),
            ("max_answer_length", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} {value}: accepted are values from {least}")


@dataclass
class SaeConfig:
    """All options of sparse autoencoders."""

    source_run_id: Optional[str] = HfArg(
        default=None, help="An extract run with the parts train and probe: dictionaries of its layers and states."
    )
    states: str = HfArg(
        default="all", help="States of the extract run in the order of training: 'pretrained,best'; or all."
    )
    layers: str = HfArg(default="all", help="'all' that were extracted, or numbers: '2,4,6'; -1 is the last.")
    rows: str = HfArg(
        default="content",
        help="What a row is: content (every token of the text, special ones left out), first (token), mean (over "
        "the text; extract with --rows mean).",
    )
    train_parts: str = HfArg(default="train", help="Parts of the data that dictionaries are trained on: '…,…'.")
    part: str = HfArg(default="probe", help="Part on which everything is measured and shown: probe or test.")
    max_examples: Optional[int] = HfArg(default=None, help="At most so many texts of --part (seeded, nested).")
    comparisons: Optional[str] = HfArg(
        default=None,
        help="How states are compared: shared (one dictionary for the rows of all states), stagewise (trained on the "
        "first state, continued on each later one), independent (one for each state, matched; always trained, since "
        "the others are measured beside them); '…,…' for several. Default: all three, or independent with one state.",
    )
    activation: str = HfArg(
        default="topk", help="topk (k latents a row), batch_topk (k on average) or relu (with --l1_coefficient)."
    )
    expansion_factor: float = HfArg(default=4.0, help="Latents of a dictionary per dimension of the rows.")
    width: Optional[int] = HfArg(default=None, help="Latents of a dictionary, instead of --expansion_factor.")
    k: int = HfArg(default=32, help="Latents that are on in a row, of topk and batch_topk.")
    l1_coefficient: float = HfArg(
        default=0.1, help="Of relu: weight of the L1 norm of codes beside the unexplained share of variance."
    )
    frontier: Optional[str] = HfArg(
        default=None,
        help="Further sparsities for the curve of error against sparsity, with the first seed: values of --k (relu: of "
        "--l1_coefficient): '8,16,64'. Default: none.",
    )
    seeds: str = HfArg(
        default="0,1,2",
        help="Dictionaries of each kind, from other starting points: two states are compared beside what seeds of one "
        "state differ by, for which independent ones need three.",
    )
    num_train_epochs: int = HfArg(default=5, help="Passes over the rows.")
    per_device_train_batch_size: int = HfArg(default=512, help="Rows a step of each dictionary.")
    learning_rate: float = HfArg(default=3e-3, help="The peak; short warm-up, linear decay over the last fifth.")
    random_init: bool = HfArg(
        default=True, help="Also train dictionaries on an encoder with random weights (a control)."
    )
    fidelity: bool = HfArg(
        default=True, help="Also run the classifier with reconstructions in place of a layer's rows."
    )
    page_latents: int = HfArg(default=60, help="Latents on each page of features.")
    mixed_precision: str = HfArg(
        default="no",
        help="no (float32), bf16 (topk, batch_topk: chooses the latents in half precision, values stay float32).",
    )
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: sae-<dataset>-<model>-s<seed>.")
    resume_run_id: Optional[str] = HfArg(default=None, help="Go on with this interrupted run; other options stay.")

    def __post_init__(self) -> None:
        if not self.source_run_id and not self.resume_run_id:
            raise InputError("give --source_run_id <extract run>")
        for name, accepted in (
            ("part", ("probe", "test")),
            ("rows", ("content", "first", "mean")),
            ("activation", ACTIVATIONS),
            ("mixed_precision", ("no", "bf16")),
        ):
            if getattr(self, name) not in accepted:
                raise InputError(f"--{name} {getattr(self, name)!r}: accepted are {', '.join(accepted)}")
        choices(self.states, "states")
        choices(self.train_parts, "train_parts", PARTS)
        if self.comparisons:
            choices(self.comparisons, "comparisons", COMPARISONS)
        layer_numbers(self.layers)
        self.seed_list()
        self.sparsities()
        for name, least in (
            ("max_examples", 10),
            ("width", 2),
            ("k", 1),
            ("l1_coefficient", 0),
            ("num_train_epochs", 1),
            ("per_device_train_batch_size", 1),
            ("page_latents", 1),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InputError(f"--{name} {value}: accepted are values from {least}")
        for name in ("learning_rate", "expansion_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name} {getattr(self, name)}: accepted are finite values above 0")
        if self.part in choices(self.train_parts, "train_parts"):
            raise InputError(f"--part {self.part!r}: dictionaries are trained on it (--train_parts {self.train_parts})")
        if self.activation == "relu" and self.mixed_precision != "no":
            raise InputError(f"--mixed_precision {self.mixed_precision!r}: relu has float32 only; accepted is no")

    def seed_list(self) -> list[int]:
        """The seeds, as numbers.

        Raises
        ------
        InputError
            If they are no different whole numbers.
        """
        try:
            seeds = [int(seed) for seed in self.seeds.split(",")]
        except ValueError:
            seeds = []
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise InputError(f"--seeds {self.seeds!r}: accepted are different whole numbers: '0,1'")
        return seeds

    def sparsities(self) -> list[float]:
        """The main value of k (relu: the L1 coefficient), and those of the frontier.

        Raises
        ------
        InputError
            If the frontier is no list of such values.
        """
        main = self.l1_coefficient if self.activation == "relu" else self.k
        further = numbers(self.frontier, "frontier") if self.frontier else []
        if self.activation != "relu" and any(value != int(value) for value in further):
            raise InputError(f"--frontier {self.frontier!r}: accepted are whole numbers, values of --k")
        return [main, *(value for value in further if value != main)]


def several_seeds(value: str | None) -> list[int]:
    """The seeds of a list such as '0,1,2'; empty without one.

    Raises
    ------
    InputError
        If they are not two or more different whole numbers.
    """
    if not value:
        return []
    try:
        seeds = [int(seed) for seed in value.split(",")]
    except ValueError:
        seeds = []
    if len(set(seeds)) < 2 or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds {value!r}: accepted are at least two different whole numbers: '0,1,2'")
    return seeds


def numbers(value: str, flag: str) -> list[float]:
    """The numbers of a list such as '0.1,1', ascending, each once.

    Raises
    ------
    InputError
        If it is no list of positive numbers.
    """
    try:
        found = sorted({float(number) for number in value.split(",")})
    except ValueError:
        found = [math.nan]
    if not all(0 < number < math.inf for number in found):
        raise InputError(f"--{flag} {value!r}: accepted are numbers above 0, such as '0.1,1'")
    return found


def layer_numbers(value: str, depth: int | None = None) -> list[int]:
    """The layers that a list such as '0,3,-1' names, 0 to `depth`, in order; unchecked without a depth.

    Raises
    ------
    InputError
        If it is no such list, or there is no such layer.
    """
    if value == "all":
        return list(range((depth or 0) + 1))
    try:
        numbers = [int(number) for number in value.split(",")]
    except ValueError:
        raise InputError(f"--layers {value!r}: accepted are 'all', or numbers such as '0,3,6'") from None
    if depth is None:
        return numbers
    wrong = [number for number in numbers if not -depth - 1 <= number <= depth]
    if wrong:
        raise InputError(
            f"--layers {value!r}: the model has no layer {wrong[0]}; accepted are 0 (embeddings) to {depth}, "
            "or -1 for the last"
        )
    return sorted({number % (depth + 1) for number in numbers})


def choices(value: str, flag: str, accepted: Sequence[str] | None = None) -> list[str]:
    """The words of a list such as 'train,probe', each once.

    Raises
    ------
    InputError
        If there is none, or one that is not accepted.
    """
    words = list(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
    wrong = [word for word in words if accepted is not None and word not in accepted]
    if wrong or not words:
        among = f"accepted are {', '.join(accepted)}" if accepted else "accepted are one or more names"
        raise InputError(f"--{flag} {value!r}: {among}")
    return words
