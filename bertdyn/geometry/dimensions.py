"""Single dimensions and norms: the few coordinates that dominate cosines, and how long vectors are."""

from collections.abc import Sequence

import numpy as np

MAD_TO_STD = 1.4826
"""Times the median absolute deviation is the standard deviation, of normal values."""


def _far(values: np.ndarray, threshold: float) -> np.ndarray:
    deviations = np.abs(values - np.median(values))
    return deviations > threshold * MAD_TO_STD * np.median(deviations)


def outlier_dimensions(mean: np.ndarray, std: np.ndarray, threshold: float = 6.0) -> np.ndarray:
    """Dimensions unlike the others: bool [width].

    A few coordinates of trained encoders are far from zero in every token and carry much of a cosine
    without carrying meaning. One counts where its mean or its standard deviation over tokens lies more
    than `threshold` robust standard deviations (median absolute deviation × 1.4826) from the median of all
    dimensions. Median and MAD, because the outliers themselves would stretch an ordinary one.

    Parameters
    ----------
    mean, std
        [width]: over the rows of one state, of the raw values (no mean subtracted).

    References
    ----------
    Kovaleva et al. 2021, "BERT Busters"; Timkey & van Schijndel 2021, "All Bark and No Bite".
    """
    mean, std = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    return _far(mean, threshold) | _far(std, threshold)


def norm_quantiles(norms: np.ndarray, quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> np.ndarray:
    """Quantiles of the norms of rows, [quantiles]; NaN without rows."""
    norms = np.asarray(norms, dtype=np.float64)
    return np.quantile(norms, quantiles) if len(norms) else np.full(len(quantiles), np.nan)
