"""The options of the sweeps."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Optional

from transformers.hf_argparser import HfArg

from bertdyn.errors import InputError
from bertdyn.pruning.config import DEFAULT_BUDGET
from bertdyn.steps.config import FineTuneConfig
from bertdyn.steps.lists import choices
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.sweeping.config import SweepConfig, seeds_of

OBJECTIVES = {"prune": ("pareto", "constrained"), "freeze": ("loss", "constrained")}
SCORES = ("kl", "score")
FREEZE_CONTROLS = ("unfrozen", "unfrozen_same_rate")
_DECIDED = "The trials choose it: a space says from what, one value in it fixes it."


@dataclass
class SweepPruningConfig(SweepConfig, PruneConfig):
    """All options of a sweep over pruning thresholds. Training options are those of recoveries."""

    space: str = HfArg(default="sweeps/prune_thresholds.yaml", help="YAML file of what a trial chooses.")
    objective: str = HfArg(
        default="pareto",
        help="pareto: KL from the dense model on validation, and cost, both low (no trial can be stopped early: "
        "Optuna does not with two objectives); constrained: the best --score within --budget.",
    )
    score: str = HfArg(
        default="kl", help="Of constrained: kl (from the dense model on validation, low), or score (accuracy or F1)."
    )
    budget: Optional[float] = HfArg(
        default=None,
        help="Share of the encoder's cost (--budget_of). constrained: trials above it are infeasible; default 0.75. "
        "pareto: the winner is the best trial within it; default: the knee of the front.",
    )
    criterion: str = HfArg(default=PruneConfig.criterion, help=_DECIDED)
    compensation: str = HfArg(default="least_squares", help=_DECIDED)
    attention_thresholds: Optional[str] = HfArg(default=None, help=_DECIDED)
    ffn_thresholds: Optional[str] = HfArg(default=None, help=_DECIDED)
    trial_epochs: Optional[int] = HfArg(
        default=0,
        help="Recovery in every trial, epochs; 0: none, a trial takes seconds. constrained: the KL after surgery and "
        "after each epoch is reported, so that --pruner stops those that do not promise.",
    )
    controls: str = HfArg(
        default="dense,random",
        help="What the winner stands beside, trained equally long: dense, random, magnitude; 'none' for none.",
    )
    run_name: Optional[str] = HfArg(
        default=None, help="Name of the run. Default: sweep-pruning-<dataset>-<model>-s<seed>."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_words(self, objective=OBJECTIVES["prune"], score=SCORES)
        if self.trial_train_samples is not None and not self.trial_epochs:
            raise InputError(
                f"--trial_train_samples {self.trial_train_samples}: trials train with --trial_epochs 1 or more only"
            )
        if self.objective == "pareto" and self.score != "kl":
            raise InputError(
                f"--score {self.score}: a Pareto study is over the KL; accepted with --objective constrained"
            )

    def _check_way(self) -> None:
        for name in ("attention_thresholds", "ffn_thresholds", "attention_keep_ratios", "ffn_keep_ratios", "plan"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"--{name} {getattr(self, name)!r}: the trials choose thresholds; say from what in --space or "
                    "--space_overrides"
                )
        if self.pruning_rounds != 1:
            raise InputError(f"--pruning_rounds {self.pruning_rounds}: thresholds are one cut; accepted is 1")

    @property
    def limit(self) -> float | None:
        """The share of the cost that the winner may have."""
        return DEFAULT_BUDGET if self.budget is None and self.objective == "constrained" else self.budget

    def pruning(self, **others: Any) -> PruneConfig:
        """The options of one pruning, with others in place of some."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(PruneConfig)}
        # Thresholds say how much stays; a budget beside them would say it twice. Until a trial chooses, all stays.
        own |= {"attention_thresholds": "0", "ffn_thresholds": "0"}
        return PruneConfig(**own | {"budget": None, "budget_of": "flops", "seeds": None, "run_name": None} | others)


@dataclass
class SweepFreezingConfig(SweepConfig, FineTuneConfig):
    """All options of a sweep over freeze schedules: those of fine-tuning hold for whatever trials do not choose."""

    space: str = HfArg(default="sweeps/freeze_schedules.yaml", help="YAML file of what a trial chooses.")
    objective: str = HfArg(
        default="loss",
        help="loss: the lowest validation loss of an epoch; constrained: the same, within --budget.",
    )
    budget: Optional[float] = HfArg(
        default=None,
        help="Of constrained: share of the training FLOPs of nothing frozen that a trial may take; default 0.75.",
    )
    controls: str = HfArg(
        default="unfrozen",
        help="What the winner stands beside, trained with the same seeds: unfrozen (nothing frozen, the learning rate "
        "of the options), unfrozen_same_rate (nothing frozen, the winner's rates); '…,…' for both.",
    )
    run_name: Optional[str] = HfArg(default=None, help="Name of the run. Default: sweep-freezing-<dataset>-<model>.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_words(self, objective=OBJECTIVES["freeze"])
        if self.budget is not None and not (0 < self.budget <= 1 and self.objective == "constrained"):
            raise InputError(
                f"--budget {self.budget}: accepted are shares above 0, at most 1, with --objective constrained"
            )
        if (self.trial_train_samples or 0) > (self.max_train_samples or math.inf):
            raise InputError(
                f"--trial_train_samples {self.trial_train_samples}: the winner trains on --max_train_samples "
                f"{self.max_train_samples}; accepted are at most so many"
            )
        if self.trial_epochs == 0:
            raise InputError("--trial_epochs 0: accepted are whole numbers from 1")
        if self.resume_run_id:
            raise InputError("--resume_run_id: a sweep goes on by --study_name and --storage")
        self.control_list()

    @property
    def limit(self) -> float | None:
        """The share of the training FLOPs that a trial may take."""
        return DEFAULT_BUDGET if self.budget is None and self.objective == "constrained" else self.budget

    def control_list(self) -> list[str]:
        """The controls, of `FREEZE_CONTROLS`."""
        return choices(self.controls, "controls", FREEZE_CONTROLS)

    def seed_list(self) -> list[int]:
        """Of the winner; a trial has one seed."""
        return seeds_of(self.seeds)

    def training(self, **chosen: Any) -> FineTuneConfig:
        """The options of one fine-tuning with these choices."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(FineTuneConfig)}
        return FineTuneConfig(**own | {"seeds": None, "run_name": None, "register_as": None} | chosen)


def _check_words(config: Any, **accepted: tuple[str, ...]) -> None:
    for name, words in accepted.items():
        if getattr(config, name) not in words:
            raise InputError(f"--{name} {getattr(config, name)!r}: accepted are {', '.join(words)}")
