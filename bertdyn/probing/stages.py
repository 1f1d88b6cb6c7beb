"""Stages of training: states between which the accuracy of the layers jumps, found in the data.

How many stages there are, and where they begin, comes from the segmentation; how sure that is, from resampled texts.
"""

from typing import NamedTuple

import numpy as np
import ruptures

from bertdyn.errors import InputError

MIN_STATES = 12
"""Fewer hold too few differences of neighbours to tell noise from change."""
PENALTY = 5.0
"""For each layer, times the logarithm of the number of states: what noise of single states stays below."""
QUANTILE = 0.99
"""Of what a cut gains in resampled texts around these: what the choice of texts stays below."""
NORMAL_MAD = 0.6745
"""Median of |x| for a standard normal x."""


class Stages(NamedTuple):
    """Runs of states within which the accuracies stay about the same."""

    change_points: list[int]
    """The states (numbers along the first axis) at which a new stage begins; the first stage begins at 0."""
    support: list[float]
    """For each: share of the resamples of texts that have a change point there or at a neighbouring state."""
    intervals: list[tuple[float, float]]
    """For each: 95 % of its positions among the resamples that have one nearer to it than to the others; NaN where
    none has."""
    levels: np.ndarray
    """[stages, layers]: mean accuracy."""
    drift: bool
    """A straight line for each layer describes the sequence as well: no stages, whatever else stands here."""


def find_stages(correct: np.ndarray, *, min_size: int = 2, seed: int, resamples: int = 1_000) -> Stages:
    """Change points of the accuracies of all layers together.

    The accuracies [states, layers], each layer divided by its noise (the typical size of its difference between
    neighbouring states), are cut where that lowers the sum of squares around the means of the stages by more than a
    penalty (exact, by dynamic programming).

    The penalty is the larger of two, since there are two ways to be misled. The states are noisy: one cut of pure
    noise gains about χ² with one degree of freedom for each layer at the best of all places, which 5 log(states) for
    each layer exceeds even where few states give too small a noise; layers are counted as if they moved together,
    which they nearly do since they share texts. And texts keep a changed answer for many states, so that the
    accuracy on these texts wanders where that on all texts stands still: the second is the 99 % quantile of what one
    cut gains in the differences between resampled texts and these. (Not 95 %, since a bump may pass with two cuts
    where none passes alone. With the first penalty only, such texts gave change points in 22 to 84 % of simulated
    sequences.)

    Simulated with 800 texts of which 80 % are right, 12 to 30 states, 1 or 13 layers: without change at most 4 % of
    the sequences get a change point in any setting, whether answers flip in one state only (5 %) or stay flipped
    (each drawn anew after 5 states, on average); 1 to 7 % where a state moves all layers by a point or two. A
    jump of 10 points after 7 of 14 states is found exactly there every time; one of 3 points in 98 % where answers
    flip and in a third where they stay. Beside a large jump a small one is harder to find, since the large one adds to
    what the choice of texts may gain.

    A slow rise is no stage, but it is cut all the same, into pieces of about equal height: one of 5 points over 14
    states every time, with a support of 0.7 on average, so that a good support does not make stages of it. `drift`
    says where a straight line is no worse under the same penalty (it was every time). For a rise that levels off, as
    most learning does, it is False: read the levels, too, and believe in stages only where the accuracies are flat
    inside and far apart. Nor does a change point say why: states that lie further apart in training differ more.

    Parameters
    ----------
    correct
        [states, layers, texts], 0/1, states in the order of training, the same texts in all.
    min_size
        States in the shortest stage.
    seed
        Of the resampled texts.

    Raises
    ------
    InputError
        Fewer than `MIN_STATES` states.
    ValueError
        A score is NaN.

    References
    ----------
    Killick, Fearnhead & Eckley 2012 (penalised exact segmentation); Truong, Oudre & Vayatis 2020 (`ruptures`).
    """
    correct = np.asarray(correct, dtype=np.float64)
    states, layers, texts = correct.shape
    if states < MIN_STATES:
        raise InputError(f"{states} states: too few to look for stages; accepted: {MIN_STATES} or more")
    if np.isnan(correct).any():
        raise ValueError("every text needs a score in every state and layer")
    noise = _noise(correct)
    signal = correct.mean(axis=2) / noise
    draws = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=resamples)
    resampled = np.moveaxis((correct.reshape(-1, texts) @ draws.T / texts).reshape(states, layers, resamples), 2, 0)
    resampled = resampled / noise
    by_texts = np.quantile(_gains(resampled - signal, min_size), QUANTILE)
    penalty = max(PENALTY * layers * np.log(states), by_texts)
    change_points = _segment(signal, min_size, penalty)
    # The yardstick stays that of all texts: a resample asks where the cuts are, not how noisy states are.
    found = [_segment(own, min_size, penalty) for own in resampled]
    near = [[any(abs(other - point) <= 1 for other in own) for own in found] for point in change_points]
    bounds = [0, *change_points, states]
    return Stages(
        change_points,
        [float(np.mean(own)) for own in near],
        [_interval(point, change_points, found) for point in change_points],
        np.stack([correct[first:last].mean(axis=(0, 2)) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]),
        bool(change_points) and _is_drift(signal, change_points, penalty),
    )


def _noise(correct: np.ndarray) -> np.ndarray:
    """[layers]: standard deviation of an accuracy around its stage, no less than one text is worth."""
    steps = np.diff(correct.mean(axis=2), axis=0)
    # Around 0, not around their median: inside a stage nothing moves on average, and a drift shall count as noise.
    typical = np.median(np.abs(steps), axis=0) / NORMAL_MAD / np.sqrt(2)
    return np.maximum(typical, 1 / correct.shape[2])


def _gains(signals: np.ndarray, min_size: int) -> np.ndarray:
    """[n]: by how much the best single cut lowers the sum of squares of each of `signals` [n, states, layers]."""
    states = signals.shape[1]
    before = np.arange(min_size, states - min_size + 1)
    sums = signals.cumsum(axis=1)
    totals = sums[:, -1:] - sums[:, before - 1]
    jumps = sums[:, before - 1] / before[:, None] - totals / (states - before)[:, None]
    return (np.square(jumps).sum(axis=2) * before * (states - before) / states).max(axis=1)


def _segment(signal: np.ndarray, min_size: int, penalty: float) -> list[int]:
    """Where the segments after the first begin, at the least Σ (x − mean of its segment)² + penalty · cuts."""
    algorithm = ruptures.KernelCPD(kernel="linear", min_size=min_size).fit(signal)
    return [int(end) for end in algorithm.predict(pen=penalty)[:-1]]


def _interval(point: int, change_points: list[int], found: list[list[int]]) -> tuple[float, float]:
    """Of the change point nearest to `point` in each resample, unless it is nearer to another one."""
    places = np.array(change_points)
    own = []
    for others in found:
        near = [other for other in others if places[np.abs(places - other).argmin()] == point]
        if near:
            own.append(min(near, key=lambda other: abs(other - point)))
    if not own:
        return float("nan"), float("nan")
    low, high = np.quantile(own, [0.025, 0.975], method="nearest")
    return float(low), float(high)


def _is_drift(signal: np.ndarray, change_points: list[int], penalty: float) -> bool:
    """A slope for each layer counts like one cut: as many numbers."""
    stages = sum(np.square(part - part.mean(axis=0)).sum() for part in np.split(signal, change_points))
    line = np.vander(np.arange(len(signal)), 2)
    residuals = signal - line @ np.linalg.lstsq(line, signal)[0]
    return bool(np.square(residuals).sum() + penalty <= stages + penalty * len(change_points))
