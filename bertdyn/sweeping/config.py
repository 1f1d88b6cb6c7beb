"""How a study is run: how many trials, by which sampler, where it is kept, by how many workers."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.errors import InputError

SAMPLERS = ("tpe", "gp", "nsga2", "random", "grid")
PRUNERS = ("median", "successive_halving", "none")
DEFAULT_STORAGE = "optuna.journal"


@dataclass
class SweepConfig:
    """All options of a study, whatever its trials do."""

    n_trials: int = HfArg(default=50, help="Trials of the study in all, those of earlier calls and other machines too.")
    workers: int = HfArg(default=1, help="Processes on this machine, a trial each at a time.")
    study_name: Optional[str] = HfArg(
        default=None,
        help="A study that exists is gone on with; while another machine leads it, this one joins. Default: a new one.",
    )
    storage: str = HfArg(
        default=DEFAULT_STORAGE,
        help="Where the study is kept: a file (one machine), postgresql+psycopg2://user@host/database (several; not "
        "the database of MLflow), or grpc://host:port (a proxy before either).",
    )
    sampler: str = HfArg(
        default="tpe", help="tpe, gp (Gaussian process), nsga2 (evolution), random, or grid (spaces with steps)."
    )
    pruner: str = HfArg(
        default="median",
        help="Stops bad trials early, by what they report each epoch: median, successive_halving, none. A Pareto "
        "study has two objectives, and Optuna stops no trial of such.",
    )
    space: str = HfArg(default="", help="YAML file of what a trial chooses.")
    space_overrides: Optional[str] = HfArg(
        default=None, help="Entries that replace those of the file: '{learning_rate: {low: 1e-5, high: 1e-4}}'."
    )
    enqueue: bool = HfArg(
        default=True, help="Begin with trials that a person would try first; they are named in the report."
    )
    trial_epochs: Optional[int] = HfArg(default=None, help="Epochs that a trial trains.")
    trial_train_samples: Optional[int] = HfArg(
        default=None, help="Examples that a trial trains on (seeded). Default: all. The winner trains on all."
    )
    seeds: Optional[str] = HfArg(
        default="0,1,2",
        help="The winner and its control are trained with each, and scored on test: paired differences.",
    )

    def __post_init__(self) -> None:
        for name, accepted in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if getattr(self, name) not in accepted:
                raise InputError(f"--{name} {getattr(self, name)!r}: accepted are {', '.join(accepted)}")
        for name in ("n_trials", "workers", "trial_epochs", "trial_train_samples"):
            value = getattr(self, name)
            if value is not None and value < (0 if name == "trial_epochs" else 1):
                raise InputError(f"--{name} {value}: accepted are whole numbers from {int(name != 'trial_epochs')}")
        parent = getattr(super(), "__post_init__", None)
        if parent:
            parent()

    def check_seeds(self) -> None:
        """Raise `InputError` if `--seeds` is not accepted; the model of the first may be registered."""
        seeds_of(self.seeds)

    @property
    def space_path(self) -> Path:
        """Where the space is; a file of the project is found from any folder."""
        path = Path(self.space)
        return path if path.exists() else Path(__file__).parents[2] / path


def seeds_of(value: str | None) -> list[int]:
    """The seeds of a list such as '0,1,2' or '0'.

    Raises
    ------
    InputError
        If they are no different whole numbers.
    """
    try:
        seeds = [int(seed) for seed in str(value).split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds {value!r}: accepted are different whole numbers: '0,1,2'")
    return seeds
