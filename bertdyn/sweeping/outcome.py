"""What a study found, as tables and numbers."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bertdyn.sweeping import studies


def trials_table(study: Study, values: Sequence[str]) -> pd.DataFrame:
    """One row a trial that was begun, in the order of their numbers.

    Parameters
    ----------
    values
        What to call the values of a trial.

    Returns
    -------
    table
        number; state; the values; feasible; origin (what it was queued as, else `sampler`); retry_of (the number of
        the trial whose process died); run_id; seconds; param/…; noted/… of what else the objective noted.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING:
            continue
        history = studies.retried(trial)
        row: dict[str, Any] = {"number": trial.number, "state": trial.state.name.lower()}
        row |= dict(zip(values, trial.values or [np.nan] * len(values), strict=True))
        row |= {
            "feasible": is_feasible(trial),
            "origin": trial.user_attrs.get(studies.ORIGIN, "sampler"),
            "retry_of": history[-1] if history else None,
            "run_id": trial.user_attrs.get(studies.RUN),
            "seconds": trial.duration.total_seconds() if trial.duration else np.nan,
        }
        row |= {f"param/{name}": value for name, value in trial.params.items()}
        row |= {f"noted/{name}": value for name, value in studies.noted(trial).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps all constraints that it has."""
    return all(value <= 0 for value in trial.constraints.values())


def complete(study: Study) -> list[FrozenTrial]:
    """The trials that came to their end and keep all constraints."""
    return [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if is_feasible(trial)]


def front(study: Study) -> list[FrozenTrial]:
    """The trials of a study of two low values that no other one beats in both, by the second value; of equals one."""
    best: list[FrozenTrial] = []
    for trial in sorted(complete(study), key=lambda trial: (trial.values[1], trial.values[0], trial.number)):
        if not best or trial.values[0] < best[-1].values[0]:
            best.append(trial)
    return best


def area_history(values: np.ndarray, reference: Sequence[float]) -> np.ndarray:
    """How much of the rectangle below `reference` the front beats, after each trial: the hypervolume in two dimensions.

    Parameters
    ----------
    values
        [trials, 2], both low, in the order of the trials.
    reference
        The worst values that count.

    Returns
    -------
    shares
        [trials], from 0 to 1, never falling.
    """
    worst = np.asarray(reference, dtype=np.float64)
    scaled = np.clip(values / np.where(worst > 0, worst, 1), 0, 1)
    shares = []
    for seen in range(1, len(scaled) + 1):
        area, lowest = 0.0, 1.0
        for x, y in sorted(map(tuple, scaled[:seen])):
            if y < lowest:
                area += (1 - x) * (lowest - y)
                lowest = y
        shares.append(area)
    return np.array(shares)


def knee(points: np.ndarray) -> int:
    """Which point of a front bends it most: the farthest below the line between its ends, both axes scaled to 0..1.

    Parameters
    ----------
    points
        [points, 2], both low, in the order of the front. With fewer than three, or none below the line, the last.

    Source: the knee of Satopää et al. 2011 ("Kneedle") without its smoothing.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    if len(points) < 3 or (high == low).any():
        return len(points) - 1
    scaled = (points - low) / (high - low)
    below = 1 - scaled.sum(axis=1)  # the ends of a front are (0, 1) and (1, 0)
    return int(np.argmax(below)) if below.max() > 1e-12 else len(points) - 1


def importances(study: Study, values: Sequence[str]) -> pd.DataFrame:
    """How much each parameter decides whether a trial is among the best: value, parameter, importance (sum 1).

    By Optuna's PED-ANOVA (Watanabe et al. 2023) over the trials that came to their end within all constraints; empty
    where there are too few, or all are alike.
    """
    within = optuna.create_study(directions=study.directions)
    within.add_trials(complete(study))
    rows = []
    for i, name in enumerate(values):
        if np.ptp([trial.values[i] for trial in complete(study)] or [0.0]) == 0:
            continue

        sign = -1 if study.directions[i] == StudyDirection.MAXIMIZE else 1

        def one(trial: FrozenTrial, i: int = i, sign: int = sign) -> float:
            return sign * float(trial.values[i])  # for which low is taken to be good

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = optuna.importance.get_param_importances(within, target=one)
        except (ValueError, RuntimeError):
            continue
        rows += [{"value": name, "parameter": key, "importance": value} for key, value in found.items()]
    return pd.DataFrame(rows, columns=["value", "parameter", "importance"])
