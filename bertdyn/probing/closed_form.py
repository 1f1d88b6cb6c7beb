"""Probes that need no search: ridge regression, nearest centroid, difference of means. All linear, many at once."""

import torch
from torch import Tensor

from bertdyn.probing.linear import Fits, LinearProbes, scaling_of


def fit_ridge(features: Tensor, numbers: Tensor, training: Tensor, fits: Fits) -> LinearProbes:
    """Ridge regressions: scikit-learn's `Ridge(alpha)` behind a `StandardScaler`, with alpha = 1 / C.

    One matrix of products a set of training rows serves all penalties and targets.

    Parameters
    ----------
    features
        [rows, width]
    numbers
        [rows, targets]
    training
        [rows, sets], bool.
    fits
        What each probe is fitted to.

    Returns
    -------
    LinearProbes
        With one output.
    """
    # Sums of products lose half of the digits: in float64, relative to the first row.
    origin = features[0].double()
    rows, numbers = features.double() - origin, numbers.double()
    weights = rows.new_empty(len(fits.sets), rows.shape[1], 1)
    bias = rows.new_empty(len(fits.sets), 1)
    for number in fits.sets.unique():
        chosen = training[:, number]
        mine = fits.sets == number
        mean, std = scaling_of(rows, chosen[:, None])
        standardised = (rows[chosen] - mean) / std
        products = standardised.T @ standardised
        level = numbers[chosen].mean(dim=0)
        along = standardised.T @ (numbers[chosen] - level)
        penalties, which = fits.penalties[mine].unique(return_inverse=True)
        # A penalty that rounding would swallow leaves nothing that can be solved.
        alphas = (1 / penalties.to(rows)).clamp(min=torch.finfo(rows.dtype).eps * float(products.trace()))
        ridges = products + alphas[:, None, None] * torch.eye(len(products)).to(rows)
        solved = torch.cholesky_solve(along.expand(len(alphas), -1, -1), torch.linalg.cholesky(ridges))
        found = solved[which, :, fits.targets[mine]] / std
        weights[mine, :, 0] = found
        bias[mine, 0] = level[fits.targets[mine]] - found @ (origin + mean[0])
    return LinearProbes(weights.to(features.dtype), bias.to(features.dtype))


def fit_nearest_centroid(
    features: Tensor, classes: Tensor, training: Tensor, fits: Fits, num_classes: int
) -> LinearProbes:
    """scikit-learn's `NearestCentroid` behind a `StandardScaler`: the highest score is that of the nearest centroid.

    Parameters are those of `logistic.fit_logistic`; there is no penalty.
    """
    mean, std = (part[fits.sets] for part in scaling_of(features, training))
    centroids = (_class_means(features, classes, training, fits, num_classes) - mean[:, None]) / std[:, None]
    weights = centroids / std[:, None]
    bias = -(weights * mean[:, None]).sum(dim=2) - centroids.square().sum(dim=2) / 2
    return _without_absent(LinearProbes(weights.transpose(1, 2), bias))


def fit_mean_difference(
    features: Tensor, classes: Tensor, training: Tensor, fits: Fits, num_classes: int
) -> LinearProbes:
    """The difference between the mean of a class and that of all other rows, on features as they are.

    A score is the distance of a row from the plane half-way between both means. With two classes this is the
    difference-in-means direction (Marks & Tegmark 2024, "The Geometry of Truth"); it is moved by neither the
    covariance of features nor their scales. Parameters are those of `logistic.fit_logistic`; there is no penalty.
    """
    means = _class_means(features, classes, training, fits, num_classes)
    counts = _counts(classes, training, fits, num_classes).to(features.dtype)[:, :, None]
    others = ((means * counts).sum(dim=1, keepdim=True) - means * counts) / (counts.sum(dim=1, keepdim=True) - counts)
    directions = torch.nn.functional.normalize(means - others, dim=2)
    bias = -(directions * (means + others) / 2).sum(dim=2)
    return _without_absent(LinearProbes(directions.transpose(1, 2), bias))


def _without_absent(probes: LinearProbes) -> LinearProbes:
    """A class without training rows, which has no mean, is never said."""
    absent = probes.bias.isnan()
    return LinearProbes(probes.weights.masked_fill(absent[:, None], 0), probes.bias.masked_fill(absent, -torch.inf))


def _counts(classes: Tensor, training: Tensor, fits: Fits, num_classes: int) -> Tensor:
    """[probes, classes]: training rows of each."""
    kinds = torch.arange(num_classes, device=classes.device)
    return torch.einsum("rsk,rs->sk", *_one_hot(classes, training, fits, kinds))


def _one_hot(classes: Tensor, training: Tensor, fits: Fits, kinds: Tensor) -> tuple[Tensor, Tensor]:
    return (classes[:, fits.targets, None] == kinds).double(), training[:, fits.sets].double()


def _class_means(features: Tensor, classes: Tensor, training: Tensor, fits: Fits, num_classes: int) -> Tensor:
    """[probes, classes, width]"""
    kinds = torch.arange(num_classes, device=classes.device)
    of_class, of_set = _one_hot(classes, training, fits, kinds)
    members = of_class * of_set[:, :, None]
    members = (members / members.sum(dim=0)).to(features.dtype)
    origin = features[0]
    return origin + torch.einsum("rpk,rw->pkw", members, features - origin)
