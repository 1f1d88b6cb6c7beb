"""The sweeps that there are."""

from bertdyn.steps import (
    sweep_freezing_end,
    sweep_freezing_trials,
    sweep_pruning_end,
    sweep_pruning_space,
    sweep_pruning_trials,
)
from bertdyn.steps.sources import label_of, tags_of
from bertdyn.steps.sweep import SweepResult, find, lead
from bertdyn.steps.sweep_config import SweepFreezingConfig, SweepPruningConfig
from bertdyn.steps.sweep_worker import Config, Sweep
from bertdyn.tracking.tracker import Tracker


def _freezing_tags(config: SweepFreezingConfig) -> dict[str, str]:
    return config.tags()


def _freezing_label(config: SweepFreezingConfig) -> str:
    return config.training().label().removesuffix(f"-s{config.seed}")


SWEEPS = {
    "pruning": Sweep(
        stage="sweep-pruning",
        label=label_of,
        tags=tags_of,
        space=sweep_pruning_space.space_of,
        directions=sweep_pruning_space.directions,
        first_trials=sweep_pruning_space.first_trials,
        prepare=sweep_pruning_trials.prepare,
        objective=sweep_pruning_trials.objective,
        conclude=sweep_pruning_end.conclude,
    ),
    "freezing": Sweep(
        stage="sweep-freezing",
        label=_freezing_label,
        tags=_freezing_tags,
        space=sweep_freezing_trials.space_of,
        directions=sweep_freezing_trials.directions,
        first_trials=sweep_freezing_trials.first_trials,
        prepare=sweep_freezing_trials.prepare,
        objective=sweep_freezing_trials.objective,
        conclude=sweep_freezing_end.conclude,
    ),
}


def sweep_pruning(config: SweepPruningConfig, tracker: Tracker) -> SweepResult:
    """An Optuna study over thresholds of pruning: trials are children of the tracker's run; and the winner in full.

    Workers are processes of their own: a script that calls this needs `if __name__ == "__main__":`.

    Raises
    ------
    InputError
        Whatever is wrong with the source, the search space, the storage or the study of that name; if another process
        leads it.
    WorkersFailed
        If trials fail again and again.
    """
    return _sweep(SWEEPS["pruning"], config, tracker)


def sweep_freezing(config: SweepFreezingConfig, tracker: Tracker) -> SweepResult:
    """An Optuna study over what learns when, and how fast: trials are children of the tracker's run; and the winner.

    Raises
    ------
    InputError, WorkersFailed
        As `sweep_pruning`.
    """
    return _sweep(SWEEPS["freezing"], config, tracker)


def _sweep(kind: Sweep, config: Config, tracker: Tracker) -> SweepResult:
    space = kind.space(config)
    return lead(kind, config, space, tracker, find(kind, config, space))
