"""The options of probing; every field is a flag of the command."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.data.config import PARTS
from bertdyn.errors import InputError
from bertdyn.steps.lists import choices, layer_numbers, numbers

PROBES = ("logistic", "ridge", "mlp", "nearest_centroid", "mean_difference")


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
