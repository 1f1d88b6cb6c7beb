"""How far labelled rows form classes: angles, scatter, collapse, centroids.

Rows are [n, width], labels [n] class ids, of which some may be absent. Where all rows are the same
(the first token at layer 0) there are no classes to see: ratios are NaN, decisions fall to the most
frequent class, silhouettes are 0.
"""

from typing import NamedTuple

import numpy as np
from sklearn import config_context
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import StratifiedKFold

from bertdyn.geometry.cosines import mean_between_groups, unit


class ClassCosines(NamedTuple):
    """Mean cosines over all pairs of rows; system 2's class cone took one text as its reference."""

    within: float
    """Over pairs of the same class; NaN where no class has two rows."""
    between: float
    """Over pairs of different classes; NaN where there is one class."""


def _from_first(rows: np.ndarray) -> np.ndarray:
    """Rows relative to the first: the same to every measure below, and exactly zero where all rows are the same."""
    rows = np.asarray(rows, dtype=np.float64)
    return rows - rows[0]


def _sums(rows: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """[classes, width]: sum of the rows of each class."""
    return np.eye(num_classes)[:, classes] @ rows


def class_cosines(rows: np.ndarray, labels: np.ndarray) -> ClassCosines:
    """Mean cosine within and between classes, exact over all pairs; 1 and 1 where all rows are the same."""
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    totals = _sums(unit(rows), classes, len(counts))
    pairs = np.sum(counts * (counts - 1))
    within = float((np.sum(np.square(totals)) - counts.sum()) / pairs) if pairs else float("nan")
    return ClassCosines(within, mean_between_groups(totals, counts))


def fisher_ratio(rows: np.ndarray, labels: np.ndarray) -> float:
    """Scatter of class means around the mean, over scatter of rows around their class means (both traces).

    0 for one class, infinite where the rows of each class are the same, NaN where all rows are.
    """
    rows = _from_first(rows)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = _sums(rows, classes, len(counts)) / counts[:, None]
    within = float(np.sum(np.square(rows - means[classes])))
    between = float(counts @ np.sum(np.square(means - rows.mean(axis=0)), axis=1))
    if within == 0:
        return float("inf") if between > 0 else float("nan")
    return between / within


def neural_collapse(rows: np.ndarray, labels: np.ndarray) -> float:
    """NC1 = tr(S_W S_B⁺)/C: variability within classes relative to their means; towards 0 as classes collapse.

    S_W and S_B are the covariances of rows around class means and of class means around the mean, both
    with every row's weight the same (as published where classes are equally large). S_B has rank below
    C, so all is computed in the span of the class means. NaN where that is empty (one class, or all rows
    the same).

    References
    ----------
    Papyan, Han & Donoho 2020, "Prevalence of neural collapse during the terminal phase of training".
    """
    rows = _from_first(rows)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = _sums(rows, classes, len(counts)) / counts[:, None]
    spread = np.sqrt(counts / len(rows))[:, None] * (means - rows.mean(axis=0))  # S_B = spreadᵀ spread
    _, singular, directions = np.linalg.svd(spread, full_matrices=False)
    # Means that coincide differ by rounding, which a pseudo-inverse would turn into an enormous value.
    noise = len(rows) * np.finfo(np.float64).eps * max(singular[0], np.sqrt(np.mean(np.square(rows))))
    kept = (singular > noise) & (np.arange(len(singular)) < len(counts) - 1)
    if not kept.any():
        return float("nan")
    along = (rows - means[classes]) @ (directions[kept] / singular[kept, None]).T
    return float(np.sum(np.square(along)) / len(rows) / len(counts))


def nearest_centroid_correct(rows: np.ndarray, labels: np.ndarray, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Whether each row is nearest (Euclidean) to the centroid of its own class, bool [n], cross-validated.

    Every row is judged by centroids that it took no part in, in stratified folds: fewer than `folds`
    where a class has fewer rows. The only row of its class has no centroid without it: it counts as
    wrong and takes no part. A tie falls to the more frequent class, so that rows that are all the same
    give the majority baseline.
    """
    rows, labels = _from_first(rows), np.asarray(labels)
    correct = np.zeros(len(rows), dtype=bool)
    values, counts = np.unique(labels, return_counts=True)
    values, counts = values[counts > 1], counts[counts > 1]
    if not len(values):
        return correct
    values = values[np.argsort(-counts, kind="stable")]  # argmin takes the first of equals
    judged = np.flatnonzero(np.isin(labels, values))
    rows = rows[judged]
    classes = np.argmax(labels[judged][:, None] == values, axis=1)
    split = StratifiedKFold(min(folds, int(counts.min())), shuffle=True, random_state=seed)
    for fitted, held_out in split.split(rows, classes):
        fitted_counts = np.bincount(classes[fitted], minlength=len(values))
        centroids = _sums(rows[fitted], classes[fitted], len(values)) / fitted_counts[:, None]
        distances = np.sum(np.square(centroids), axis=1) - 2 * rows[held_out] @ centroids.T
        correct[judged[held_out]] = distances.argmin(axis=1) == classes[held_out]
    return correct


def silhouettes(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Silhouette (Rousseeuw 1987) of each row, [n]: near 1 inside its class, negative nearer to another.

    Time grows with rows squared: pass a sample. NaN where there is one class or every row is its own.
    """
    rows, num_classes = _from_first(rows), len(np.unique(labels))
    if not 2 <= num_classes < len(rows):
        return np.full(len(rows), np.nan)
    with config_context(working_memory=64):  # MB of distances at once; the default is 1,024
        return silhouette_samples(rows - rows.mean(axis=0), labels)
