"""Samplers and pruners by name."""

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler

from bertdyn.sweeping.space import Space


def make_sampler(name: str, space: Space, seed: int) -> BaseSampler:
    """One of `SAMPLERS`.

    Parameters
    ----------
    seed
        Each process needs its own: with the same one, all would begin with the same random trials.

    Raises
    ------
    InputError
        If `name` is grid, and a range of the space has no steps.
    """
    if name == "grid":
        return GridSampler(space.grid(), seed=seed)
    makers = {"tpe": TPESampler, "gp": GPSampler, "nsga2": NSGAIISampler, "random": RandomSampler}
    return makers[name](seed=seed)


def make_pruner(name: str) -> BasePruner:
    """One of `PRUNERS`. Hyperband is not among them: beside TPE it needs hundreds of trials."""
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=0)
    if name == "successive_halving":
        return SuccessiveHalvingPruner()
    return NopPruner()


def is_exhausted(study: optuna.Study) -> bool:
    """Whether a grid has no point left."""
    return isinstance(study.sampler, GridSampler) and study.sampler.is_exhausted(study)
