"""Which training texts units are looked at with."""

from typing import NamedTuple

import numpy as np
from datasets import Dataset

from bertdyn.errors import InputError

REFEREE_SHARE = 4
"""One in so many calibration texts is kept out of the statistics, to choose by."""


class CalibrationRows(NamedTuple):
    """Rows of the train part."""

    fit: Dataset
    """For statistics."""
    pairs: Dataset
    """The same (one less, if they are odd), two by two: partners are neighbours, the longest pair first."""
    referee: Dataset


def calibration_rows(train: Dataset, num_texts: int, min_length: int, seed: int) -> CalibrationRows:
    """A seeded sample of texts with at least `min_length` tokens.

    Parameters
    ----------
    train
        Tokenised, with a column length.
    num_texts
        As many as there are, if there are fewer.

    Raises
    ------
    InputError
        If too few are long enough.
    """
    lengths = np.asarray(train["length"])
    long_enough = np.flatnonzero(lengths >= min_length)
    if len(long_enough) < 2 * REFEREE_SHARE:
        raise InputError(
            f"--calibration_min_length {min_length}: {len(long_enough)} training texts are that long, too few to "
            f"calibrate with; accepted are lengths that {2 * REFEREE_SHARE} texts or more have"
        )
    chosen = np.random.default_rng(seed).permutation(long_enough)[:num_texts]
    num_referees = len(chosen) // REFEREE_SHARE
    referee, fit = chosen[:num_referees], chosen[num_referees:]
    partners = fit[: len(fit) // 2 * 2].reshape(-1, 2)
    longest_first = np.argsort(-lengths[partners].max(axis=1), kind="stable")
    return CalibrationRows(train.select(fit), train.select(partners[longest_first].ravel()), train.select(referee))
