"""The options of a pipeline: which steps, on which data and model."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.errors import InputError

_EVERY = "Of every fine-tuning, instead of the preset's."


@dataclass
class PipelineConfig:
    """All options of a pipeline; those of its steps stand in the preset and in `overrides`."""

    preset: str = HfArg(
        default="quick",
        help="quick (some minutes on two cores, no hub, no files), full (every layer, state and seed), or a YAML file "
        "of steps, such as those in experiments/.",
    )
    dataset: Optional[str] = HfArg(default=None, help=f"{_EVERY} As fine-tune takes it.")
    data_dir: Optional[str] = HfArg(default=None, help="Folder of the files of --dataset. Default: under BERTDYN_DATA.")
    model_name_or_path: Optional[str] = HfArg(default=None, help=f"{_EVERY} As fine-tune takes it.")
    num_train_epochs: Optional[int] = HfArg(default=None, help=_EVERY)
    max_train_samples: Optional[int] = HfArg(default=None, help=f"{_EVERY} Nested subsets.")
    max_test_samples: Optional[int] = HfArg(default=None, help=f"{_EVERY} Nested subsets.")
    seed: Optional[int] = HfArg(default=None, help=_EVERY)
    overrides: Optional[str] = HfArg(
        default=None, help="Options of steps by name, YAML: '{fine-tune: {learning_rate: 1e-4}, sae: {k: 16}}'."
    )
    reuse: bool = HfArg(
        default=True,
        help="Take a step's finished run, if there is one of the same options, data, sources and code, instead of "
        "doing it again. An interrupted pipeline goes on by the same command.",
    )
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: <preset>-<dataset>-<model>.")

    def __post_init__(self) -> None:
        for name, least in (("num_train_epochs", 1), ("max_train_samples", 1), ("max_test_samples", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} {value}: accepted are values from {least}")
