"""k-sparse probing: how well a label can be read off one latent, or off five.

Features of a text are the means of its rows' codes. Within the training texts of each fold the latents are chosen
whose means differ most between classes, a logistic regression is fitted to these, and the fold's own texts are
scored; so every text is judged by latents and weights that it had no part in. Principal components and raw
dimensions go the same way, which makes bases comparable.

References
----------
Gurnee et al. 2023, "Finding Neurons in a Haystack: Case Studies with Sparse Probing"; Kantamneni et al. 2025, "Are
Sparse Autoencoders Useful?" (latents by difference of means).
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Features: TypeAlias = np.ndarray | scipy.sparse.csr_array
"""[rows, latents], dense or sparse."""


class SparseProbe(NamedTuple):
    """One k."""

    k: int
    """Latents that a probe reads."""
    correct: np.ndarray
    """[texts], bool: whether the probe that has not seen the text is right."""
    chosen: np.ndarray
    """[folds, k]: the latents that were chosen without each fold, the best first."""


def text_means(codes: Features, texts: np.ndarray, num_texts: int) -> Features:
    """Mean over the rows of each text: [texts, latents], float64, sparse if the codes are; 0 for a text without rows.

    Parameters
    ----------
    texts
        [rows]: number of the text of each row.
    """
    counts = np.maximum(np.bincount(texts, minlength=num_texts), 1)
    member = scipy.sparse.csr_array((np.ones(len(texts)), (texts, np.arange(len(texts)))), (num_texts, len(texts)))
    sums = member @ codes.astype(np.float64)
    if not scipy.sparse.issparse(sums):
        return sums / counts[:, None]
    sums.data /= np.repeat(counts, np.diff(sums.indptr))  # divided last: 2 of 6 rows and 1 of 3 are the same mean
    return sums


def sparse_probes(
    features: Features, labels: np.ndarray, folds: np.ndarray, num_latents: Sequence[int] = (1, 5)
) -> list[SparseProbe]:
    """A probe for each of `num_latents`, cross-validated.

    Parameters
    ----------
    features
        [texts, latents], from `text_means`.
    labels
        [texts], class ids.
    folds
        [texts], 0 to K - 1, from `probing.cross_validation.make_folds`.
    num_latents
        Values of k; where there are fewer latents, all are read.

    Raises
    ------
    ValueError
        If the texts of `features`, `labels` and `folds` are not equally many.
    """
    if not features.shape[0] == len(labels) == len(folds):
        raise ValueError(f"features of {features.shape[0]} texts, {len(labels)} labels, {len(folds)} folds")
    most = min(max(num_latents), features.shape[1])
    correct = {k: np.zeros(len(labels), dtype=bool) for k in num_latents}
    best = np.empty((int(folds.max()) + 1, most), dtype=np.int64)
    for fold in range(len(best)):
        train, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        differences = class_differences(features[train], labels[train])
        best[fold] = np.argsort(-differences, kind="stable")[:most]
        read = features[:, best[fold]]
        read = read if isinstance(read, np.ndarray) else read.toarray()
        for k in num_latents:
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
            probe.fit(read[train, :k], labels[train])
            correct[k][held_out] = probe.predict(read[held_out, :k]) == labels[held_out]
    return [SparseProbe(k, correct[k], best[:, :k]) for k in num_latents]


def class_differences(features: Features, labels: np.ndarray) -> np.ndarray:
    """How far the texts of a class lie from the others: |mean of class − mean of rest| / std over all texts, [latents].

    The largest over classes. 0 for a latent that is the same in all texts.
    """
    if isinstance(features, np.ndarray):
        features = features - features.mean(axis=0)  # else a large mean would take the spread's digits
    classes = np.unique(labels)
    member = (labels[:, None] == classes).astype(np.float64)  # [texts, classes]
    counts = member.sum(axis=0)[:, None]
    of_class = (features.T @ member).T
    total = of_class.sum(axis=0)
    rest = len(labels) - counts
    means = of_class / counts
    of_rest = np.divide(total - of_class, rest, out=means.copy(), where=rest > 0)
    squares = np.asarray((features * features).sum(axis=0)).ravel()
    mean = total / len(labels)
    variance = squares / len(labels) - mean**2
    std = np.sqrt(np.where(variance > 1e-12 * squares / len(labels), variance, np.inf))  # less is rounding
    return np.abs(means - of_rest).max(axis=0) / std
