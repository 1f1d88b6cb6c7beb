"""Samplers and pruners by name."""

import math

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from bertdyn.sweeping.space import Space


def make_sampler(name: str, space: Space, seed: int) -> BaseSampler:
    """One of `SAMPLERS`.

    Parameters
    ----------
    seed
        Each process needs its own: with the same one, all would begin with the same random trials. For a grid all need
        the same: it says which point has which number.

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
        # Trials above a budget report nothing, so that complete ones alone are no standard.
        return MedianPruner(n_startup_trials=5, n_warmup_steps=0, n_min_trials=5)
    if name == "successive_halving":
        return SuccessiveHalvingPruner()
    return NopPruner()


def is_exhausted(study: optuna.Study, name: str, space: Space) -> bool:
    """Whether a grid has no point left that nobody has taken; those of failed trials are left."""
    if name != "grid":
        return False
    failed = TrialState.FAIL
    taken = {t.system_attrs.get("grid_id") for t in study.get_trials(deepcopy=False) if t.state != failed} - {None}
    return len(taken) >= math.prod(len(values) for values in space.grid().values())
