"""What the text alone tells of a target: the most frequent class or the mean, and words with their neighbours.

The folds, and the choice of the penalty inside them, are those of the probes, so that the scores of the same texts
can be compared one by one.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.sparse import spmatrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error

from bertdyn.probing.targets import Target


def majority_scores(target: Target, folds: np.ndarray) -> np.ndarray:
    """What is predicted of every text without looking at it, from the other folds.

    Parameters
    ----------
    folds
        [texts]: fold number 0..K-1.

    Returns
    -------
    np.ndarray
        Classes: [texts, classes], their shares; the largest is the majority class. Numbers: [texts], the mean.
    """
    values = target.values if target.class_names is None else np.eye(len(target.class_names))[target.values]
    predictions = np.empty(values.shape)
    for fold in np.unique(folds):
        predictions[folds == fold] = values[folds != fold].mean(axis=0)
    return predictions


def tfidf_predictions(
    texts: Sequence[str], target: Target, folds: np.ndarray, inverse_penalties: Sequence[float]
) -> np.ndarray:
    """Held-out predictions of a linear model of TF-IDF (words and pairs of neighbours), nothing of it seen in advance.

    Fold k is predicted by logistic or ridge regression on all other folds. Its penalty is the one with the least
    loss (log loss, squared error) where the other folds are predicted in turn without k: the mean over folds j of
    fits that leave out k and j. Such a fit serves j as the outer fold, too, so K (K − 1)/2 of them are enough.

    Parameters
    ----------
    texts
        One a row; the two of a pair joined.
    folds
        [texts]: fold number 0..K-1, K at least 3.
    inverse_penalties
        C of `LogisticRegression`, 1/alpha of `Ridge`. Among equal losses the first one counts.

    Returns
    -------
    np.ndarray
        Class probabilities [texts, classes], or numbers [texts].
    """
    rows = np.asarray(texts, dtype=object)
    num_folds = int(folds.max()) + 1
    losses = np.full((len(inverse_penalties), num_folds, num_folds), np.nan)
    for one, other in combinations(range(num_folds), 2):
        kept = ~np.isin(folds, (one, other))
        features, held_out = _features(rows, kept, folds == one, folds == other)
        for number, inverse_penalty in enumerate(inverse_penalties):
            model = _model(target, inverse_penalty).fit(features, target.values[kept])
            # [outer fold, fold that is predicted]
            losses[number, other, one] = _loss(model, held_out[0], target, folds == one)
            losses[number, one, other] = _loss(model, held_out[1], target, folds == other)
    chosen = np.nanmean(losses, axis=2).argmin(axis=0)
    predictions = np.empty(majority_scores(target, folds).shape)
    for fold in range(num_folds):
        kept = folds != fold
        features, held_out = _features(rows, kept, ~kept)
        model = _model(target, inverse_penalties[chosen[fold]]).fit(features, target.values[kept])
        predictions[~kept] = _predict(model, held_out[0], target)
    return predictions


def _features(rows: np.ndarray, kept: np.ndarray, *held_out: np.ndarray) -> tuple[spmatrix, list[spmatrix]]:
    """Vocabulary and document frequencies are those of `kept` alone."""
    # as the baseline of a fine-tuned classifier: punctuation counts as words, so that no text is empty
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    return tfidf.fit_transform(rows[kept]), [tfidf.transform(rows[chosen]) for chosen in held_out]


def _model(target: Target, inverse_penalty: float) -> LogisticRegression | Ridge:
    if target.class_names is None:
        return Ridge(alpha=1 / inverse_penalty)
    return LogisticRegression(C=inverse_penalty, max_iter=1000)


def _predict(model: LogisticRegression | Ridge, features: spmatrix, target: Target) -> np.ndarray:
    if target.class_names is None:
        return model.predict(features)
    probabilities = np.zeros((features.shape[0], len(target.class_names)))
    probabilities[:, model.classes_] = model.predict_proba(features)  # a class may be missing in a fit
    return probabilities


def _loss(model: LogisticRegression | Ridge, features: spmatrix, target: Target, chosen: np.ndarray) -> float:
    predicted, truth = _predict(model, features, target), target.values[chosen]
    if target.class_names is None:
        return float(mean_squared_error(truth, predicted))
    return float(log_loss(truth, predicted, labels=range(len(target.class_names))))
