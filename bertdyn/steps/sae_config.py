"""The options of sparse dictionaries; every field is a flag of the command."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

import math
from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.data.config import PARTS
from bertdyn.errors import InputError
from bertdyn.sae.config import ACTIVATIONS, COMPARISONS
from bertdyn.steps.lists import choices, layer_numbers, numbers


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
