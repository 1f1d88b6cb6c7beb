"""The sweeps that there are."""

from bertdyn.steps import sweep_freezing, sweep_freezing_end, sweep_pruning, sweep_pruning_end
from bertdyn.steps.sources import label_of, tags_of
from bertdyn.steps.sweep import Sweep
from bertdyn.steps.sweep_config import SweepFreezingConfig, SweepPruningConfig


def _pruning_name(config: SweepPruningConfig) -> str:
    return f"{label_of(config)}-sweep-pruning"


def _freezing_tags(config: SweepFreezingConfig) -> dict[str, str]:
    return config.tags()


def _freezing_name(config: SweepFreezingConfig) -> str:
    name = config.training().default_run_name().removesuffix("-fine-tune")
    return f"{name.removesuffix(f'-s{config.seed}')}-sweep-freezing"


SWEEPS = {
    "pruning": Sweep(
        stage="sweep-pruning",
        name=_pruning_name,
        tags=tags_of,
        space=sweep_pruning.space_of,
        directions=sweep_pruning.directions,
        first_trials=sweep_pruning.first_trials,
        prepare=sweep_pruning.prepare,
        objective=sweep_pruning.objective,
        conclude=sweep_pruning_end.conclude,
    ),
    "freezing": Sweep(
        stage="sweep-freezing",
        name=_freezing_name,
        tags=_freezing_tags,
        space=sweep_freezing.space_of,
        directions=sweep_freezing.directions,
        first_trials=sweep_freezing.first_trials,
        prepare=sweep_freezing.prepare,
        objective=sweep_freezing.objective,
        conclude=sweep_freezing_end.conclude,
    ),
}
