"""The options of pruning; every field is a flag of the command."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

import math
from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.data.config import DataConfig
from bertdyn.errors import InputError
from bertdyn.pruning.config import CONTROLS, PruningConfig
from bertdyn.steps.lists import choices, several_seeds
from bertdyn.training.config import TrainingConfig


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
