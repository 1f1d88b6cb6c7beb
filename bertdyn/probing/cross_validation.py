"""Nested cross-validation of many probes at once: every row is judged by a probe that it neither fitted nor selected.

The outer folds are the inner ones, too: the penalty of the probe that will judge fold k is chosen by the other folds.
A probe that leaves out folds k and j serves both, so that K folds take K(K - 1)/2 inner fits a penalty, not K(K - 1).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from bertdyn.probing.linear import Fits, LinearProbes, centred

Fitter = Callable[[Tensor, Tensor, Tensor, Fits], LinearProbes]
"""(features, targets [rows, targets], training [rows, sets], fits) → probes"""


class CrossValidated(NamedTuple):
    """What was found for each of the targets."""

    scores: Tensor
    """[rows, targets, outputs]: what the probes say of rows that they have not seen."""
    fitted: Tensor
    """[folds, targets]: share of their own training rows that the probes get right (classes), or their R² (numbers)."""
    penalties: Tensor
    """[folds, targets]: the inverse penalty that was chosen without each fold."""
    of_folds: LinearProbes
    """[folds × targets], float64: fold by fold, the probes that have not seen it."""
    final: LinearProbes
    """[targets], float64: fitted to all rows, with the penalty that is best on average; not scored on anything."""
    halves: LinearProbes
    """[2 × targets], float64: likewise, fitted to the even and to the odd folds: how far chance moves a direction."""


def make_folds(strata: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Fold number of each text, [texts]; each fold has its share of every stratum.

    Parameters
    ----------
    strata
        [texts]: classes, or quantiles of numbers.
    """
    folds = np.empty(len(strata), dtype=np.int64)
    split = StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(strata, strata)
    for number, (_, held_out) in enumerate(split):
        folds[held_out] = number
    return folds


def cross_validate(
    fit: Fitter, features: Tensor, targets: Tensor, folds: Tensor, penalties: Sequence[float], classes: bool = True
) -> CrossValidated:
    """Held-out scores of probes whose penalties were chosen by the other folds.

    Parameters
    ----------
    fit
        Fits probes: `closed_form.fit_ridge`, or `logistic.fit_logistic` with its classes.
    features
        [rows, width]
    targets
        [rows, targets]; class ids or numbers.
    folds
        [rows], 0 to K - 1; rows of one text have the same.
    penalties
        Inverse penalties to choose from, by the mean loss (cross-entropy, or squared error) over held-out rows.
    classes
        Whether targets are classes.
    """
    features, mean = centred(features)
    num_folds, num_targets = int(folds.max()) + 1, targets.shape[1]
    pairs = list(itertools.combinations(range(num_folds), 2)) if len(penalties) > 1 else []
    numbers = range(num_folds)
    kept = [set(numbers) - set(out) for out in (*pairs, *((fold,) for fold in numbers), ())]
    kept += [set(numbers[::2]), set(numbers[1::2])]
    training = torch.stack([torch.stack([folds == fold for fold in of_set]).any(dim=0) for of_set in kept], dim=1)
    values = torch.tensor(penalties, dtype=torch.float64, device=folds.device)
    losses = values.new_zeros(num_folds, num_folds, num_targets, len(values))  # of fold k by probes without k and j
    if pairs:
        grid = torch.cartesian_prod(*(torch.arange(n) for n in (len(pairs), num_targets, len(values)))).to(folds.device)
        inner = fit(features, targets, training, Fits(grid[:, 1], grid[:, 0], values[grid[:, 2]]))
        for number, (k, j) in enumerate(pairs):
            of_pair = grid[:, 0] == number
            probes, which = inner.only(of_pair), grid[of_pair, 1]
            for judge, other in ((k, j), (j, k)):
                rows = folds == judge
                loss = losses_of(probes.scores(features[rows]), targets[rows][:, which], classes).sum(dim=0)
                losses[judge, other] = loss.double().view(num_targets, len(values))
    # Without fold k the other folds choose: the sum over j of what fold j loses.
    chosen = values[losses.sum(dim=0).argmin(dim=2)]
    overall = values[losses.sum(dim=(0, 1)).argmin(dim=1)]
    # The last sets: without each fold, all, and both halves; for all targets.
    sets, which = (
        torch.cartesian_prod(torch.arange(len(pairs), len(kept)), torch.arange(num_targets)).to(folds.device).T
    )
    probes = fit(features, targets, training, Fits(which, sets, torch.cat([chosen.flatten(), overall.repeat(3)])))
    ends = [0, num_folds * num_targets, (num_folds + 1) * num_targets, len(sets)]
    of_folds, final, halves = (
        LinearProbes(*(part[start:end] for part in probes)) for start, end in itertools.pairwise(ends)
    )
    said = of_folds.scores(features).view(len(features), num_folds, num_targets, -1)
    held_out = said[torch.arange(len(features), device=folds.device), folds]
    fitted = [_fitted(said[folds != k, k], targets[folds != k], classes) for k in numbers]
    return CrossValidated(
        held_out, torch.stack(fitted), chosen, *(group.of_uncentred(mean) for group in (of_folds, final, halves))
    )


def losses_of(scores: Tensor, targets: Tensor, classes: bool) -> Tensor:
    """Cross-entropy in nats, or squared error: [rows, probes] of scores [rows, probes, outputs]."""
    if not classes:
        return (scores.squeeze(2) - targets).square()
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def _fitted(scores: Tensor, targets: Tensor, classes: bool) -> Tensor:
    if classes:
        return (scores.argmax(dim=2) == targets).double().mean(dim=0)
    rest = (scores.squeeze(2) - targets).double().square().sum(dim=0)
    return 1 - rest / (targets.double() - targets.double().mean(dim=0)).square().sum(dim=0)
