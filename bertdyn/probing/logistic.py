"""Softmax regression, many probes at once: folds, penalties and targets share every pass over the features.

Each probe minimises what scikit-learn's `LogisticRegression(C)` minimises on features that a `StandardScaler` was
fitted to on the probe's own training rows. No probe has a copy of the features: standardising is an affine map, which
goes into its weights, so that one matrix product serves all probes. The solver is L-BFGS with every probe's own
history and step, started in every iteration from a bound of the Hessian (Böhning 1992, "Multinomial logistic regression
algorithm") in the principal axes of all rows: six times fewer iterations. Along a direction the logits are linear in
the step, so that the search for it needs no further product with the features; it starts from Newton's step, which the
probabilities at hand already give.
"""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from bertdyn.probing.linear import Fits, LinearProbes, Scaling, scaling_of

logger = logging.getLogger(__name__)

TOLERANCE = 3e-5
"""Of the largest entry of the gradient, in scikit-learn's scale (loss a row; its default is 1e-4)."""
MAX_ITERATIONS = 1_000
HISTORY = 10
SEARCH = 6
"""Steps along a direction that are tried at most."""
FLATTER = 0.3
"""A step is taken where the slope along the direction is at most this share of what it was."""
ELEMENTS = 2**23
"""Logits of one group of probes at once: about ten arrays of this many elements."""


def fit_logistic(features: Tensor, classes: Tensor, training: Tensor, fits: Fits, num_classes: int) -> LinearProbes:
    """Softmax regressions with an L2 penalty on all weights but the intercepts.

    Parameters
    ----------
    features
        [rows, width], float32 or float64: that is the precision of everything. In float32 they should be centred.
    classes
        [rows, targets], 0 to K - 1.
    training
        [rows, sets], bool: training rows.
    fits
        Which of the targets, of the sets and which C each probe has.
    num_classes
        K. With two, the first class has weights 0, and the penalty is on the difference, as in scikit-learn.

    Returns
    -------
    LinearProbes
        Scores are logits.
    """
    rows, outputs = len(features), 1 if num_classes == 2 else num_classes
    scaling, steered_by = scaling_of(features, training), _curvatures(features)
    per_group = max(1, ELEMENTS // (rows * outputs))
    found = []
    for start in range(0, len(fits.penalties), per_group):
        group = Fits(*(column[start : start + per_group] for column in fits))
        found.append(_solve(_Problem.of(features, classes, training, scaling, steered_by, group, outputs)))
    weights, bias = (torch.cat(parts) for parts in zip(*found, strict=True))
    if outputs == 1:
        weights = torch.cat([torch.zeros_like(weights), weights], dim=2)
        bias = torch.cat([torch.zeros_like(bias), bias], dim=1)
    return LinearProbes(weights, bias)


class _Problem(NamedTuple):
    """Some probes, and all that their objective needs. Parameters are [probes, width + 1, outputs], intercepts last."""

    features: Tensor
    scaling: Scaling
    """Of the set of each probe: [probes, width]."""
    targets: Tensor
    """[rows, probes, outputs]: 1 where the row is of that class (of the second of two), else 0."""
    shares: Tensor
    """[rows, probes]: weight of a row in the mean loss, 0 for rows that are not trained on."""
    penalties: Tensor
    """[probes]: factor of half the squared weights, in the scale of the mean loss."""
    axes: Tensor
    """[width, width]: principal axes of the standardised features, one a column."""
    curvatures: Tensor
    """[width]: what the mean loss of two classes can bend along each of them at most."""

    @classmethod
    def of(
        cls,
        features: Tensor,
        classes: Tensor,
        training: Tensor,
        scaling: Scaling,
        steered_by: tuple[Tensor, Tensor],
        fits: Fits,
        outputs: int,
    ) -> "_Problem":
        labels = classes[:, fits.targets]
        kinds = torch.ones(1, dtype=labels.dtype) if outputs == 1 else torch.arange(outputs, dtype=labels.dtype)
        targets = (labels[:, :, None] == kinds.to(labels.device)).to(features.dtype)
        rows = training[:, fits.sets].to(features.dtype)
        counts = rows.sum(dim=0)
        penalties = 1 / (fits.penalties.to(features) * counts)
        scaling_of_probes = Scaling(*(part[fits.sets] for part in scaling))
        return cls(features, scaling_of_probes, targets, rows / counts, penalties, *steered_by)

    def only(self, kept: Tensor) -> "_Problem":
        scaling = Scaling(*(part[kept] for part in self.scaling))
        targets, shares = self.targets[:, kept], self.shares[:, kept]
        return self._replace(scaling=scaling, targets=targets, shares=shares, penalties=self.penalties[kept])

    def newton(self, gradient: Tensor) -> Tensor:
        """The gradient times the inverse of a bound of the Hessian that no row's probability enters (Böhning 1992)."""
        probes, width, outputs = gradient[:, :-1].shape
        along = self.axes.T @ gradient[:, :-1].permute(1, 0, 2).reshape(width, probes * outputs)
        bends = self.curvatures[:, None] + self.penalties
        along = (along.view(width, probes, outputs) / bends[:, :, None]).view(width, -1)
        weights = (self.axes @ along).view(width, probes, outputs).permute(1, 0, 2)
        return torch.cat([weights, 4 * gradient[:, -1:]], dim=1)

    def in_features(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [probes, width, outputs] and intercepts [probes, outputs] for features as they are."""
        weights = parameters[:, :-1] / self.scaling.std[:, :, None]
        return weights, parameters[:, -1] - (self.scaling.mean[:, :, None] * weights).sum(dim=1)

    def logits(self, parameters: Tensor) -> Tensor:
        """[rows, probes, outputs]"""
        weights, bias = self.in_features(parameters)
        probes, width, outputs = weights.shape
        products = self.features @ weights.permute(1, 0, 2).reshape(width, probes * outputs)
        return products.view(-1, probes, outputs) + bias

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if logits.shape[2] == 1 else logits.softmax(dim=2)

    def gradient(self, parameters: Tensor, probabilities: Tensor) -> Tensor:
        residuals = (probabilities - self.targets) * self.shares[:, :, None]
        rows, probes, outputs = residuals.shape
        products = (residuals.view(rows, -1).T @ self.features).view(probes, outputs, -1).transpose(1, 2)
        totals = residuals.sum(dim=0)
        weights = (products - self.scaling.mean[:, :, None] * totals[:, None]) / self.scaling.std[:, :, None]
        weights = weights + self.penalties[:, None, None] * parameters[:, :-1]
        return torch.cat([weights, totals[:, None]], dim=1)

    def slopes(self, probabilities: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative [probes] of the mean loss along a direction whose logits are `along`."""
        first = (((probabilities - self.targets) * along).sum(dim=2) * self.shares).sum(dim=0)
        moved = probabilities * along
        if along.shape[2] == 1:
            spread = (moved * (1 - probabilities) * along).squeeze(2)
        else:
            spread = (moved * along).sum(dim=2) - moved.sum(dim=2) ** 2
        return first, (spread * self.shares).sum(dim=0)


def _curvatures(features: Tensor) -> tuple[Tensor, Tensor]:
    """Axes and curvatures of all rows: near enough to those of any training set, as they only steer the search."""
    everything = torch.ones(len(features), 1, dtype=torch.bool, device=features.device)
    mean, std = scaling_of(features, everything)
    standardised = (features - mean) / std
    values, axes = torch.linalg.eigh(standardised.T @ standardised / len(features))
    return axes, values.clamp(min=0) / 4


def _solve(problem: _Problem) -> tuple[Tensor, Tensor]:
    """Weights and intercepts of all probes of a problem; those that have converged take no further part."""
    probes, width = problem.scaling.mean.shape
    outputs = problem.targets.shape[2]
    found = problem.features.new_zeros(probes, width + 1, outputs)
    active = torch.arange(probes, device=found.device)
    parameters, whole = found.clone(), problem
    logits = problem.logits(parameters)
    probabilities = problem.probabilities(logits)
    gradient = problem.gradient(parameters, probabilities)
    history: list[tuple[Tensor, Tensor]] = []
    for iteration in range(MAX_ITERATIONS):
        open_ = ~(gradient.abs().amax(dim=(1, 2)) <= TOLERANCE)  # what is no number has not converged
        if iteration % 5 == 0 or not open_.any():  # leaving probes out costs a copy of everything
            found[active] = parameters
            if not open_.any():
                return whole.in_features(found)
            if not open_.all():
                kept = open_.nonzero().squeeze(1)
                active, problem = active[kept], problem.only(kept)
                parameters, gradient, logits = parameters[kept], gradient[kept], logits[:, kept]
                probabilities = probabilities[:, kept]
                history = [(step[kept], change[kept]) for step, change in history]
        direction = _direction(problem, gradient, history)
        along = problem.logits(direction)
        step, logits, probabilities = _search(problem, parameters, direction, logits, along, probabilities, gradient)
        moved = step[:, None, None] * direction
        parameters = parameters + moved
        before, gradient = gradient, problem.gradient(parameters, probabilities)
        history = [*history[-HISTORY + 1 :], (moved, gradient - before)]
    found[active] = parameters
    largest = float(gradient.abs().max())
    logger.warning(
        "%d of %d logistic probes stopped after %d iterations at a gradient of %.1g (converged: %.0g)",
        len(active), probes, MAX_ITERATIONS, largest, TOLERANCE,
    )  # fmt: skip
    return whole.in_features(found)


def _direction(problem: _Problem, gradient: Tensor, history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Minus the gradient times an estimate of the inverse Hessian: the two loops of L-BFGS, for each probe."""
    direction, alphas = -gradient, []
    for step, change in reversed(history):
        curvature = _dot(step, change)
        rho = torch.where(curvature > 0, 1 / curvature, 0)
        alpha = rho * _dot(step, direction)
        direction = direction - alpha[:, None, None] * change
        alphas.append((alpha, rho))
    direction = problem.newton(direction)
    for (step, change), (alpha, rho) in zip(history, reversed(alphas), strict=True):
        direction = direction + (alpha - rho * _dot(change, direction))[:, None, None] * step
    downhill = _dot(direction, gradient) < 0  # rounding may end this; then the gradient itself
    return torch.where(downhill[:, None, None], direction, -gradient)


def _search(
    problem: _Problem,
    parameters: Tensor,
    direction: Tensor,
    logits: Tensor,
    along: Tensor,
    probabilities: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step [probes], and logits and probabilities after it.

    The objective along a direction is convex with a slope that is known exactly: Newton's steps, kept between the
    last step that was too short and the first that was too long.
    """
    slope_at_start = _dot(direction, gradient)
    weights, towards = parameters[:, :-1], direction[:, :-1]
    constant, linear = (problem.penalties * _dot(a, towards) for a in (weights, towards))
    _, curvature = problem.slopes(probabilities, along)
    step = -slope_at_start / (curvature + linear).clamp(min=torch.finfo(logits.dtype).tiny)
    short, long = torch.zeros_like(step), torch.full_like(step, torch.inf)
    for _ in range(SEARCH):
        moved = logits + step[:, None] * along
        probabilities = problem.probabilities(moved)
        slope, curvature = problem.slopes(probabilities, along)
        slope, curvature = slope + constant + step * linear, curvature + linear
        done = slope.abs() <= FLATTER * slope_at_start.abs()
        if done.all():
            break
        short, long = torch.where(slope < 0, step, short), torch.where(slope > 0, step, long)
        newton = step - slope / curvature
        middle = torch.where(long.isfinite(), (short + long) / 2, 4 * step)
        inside = (newton > short) & (newton < long) & (newton < 10 * step)
        step = torch.where(done, step, torch.where(inside, newton, middle))
    else:
        step = torch.where(done, step, short)  # never uphill
        moved = logits + step[:, None] * along
        probabilities = problem.probabilities(moved)
    return step, moved, probabilities


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[probes] of two [probes, …]."""
    return (a * b).sum(dim=(1, 2))
