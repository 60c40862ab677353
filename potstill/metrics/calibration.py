"""Whether a model is as often right as it says."""

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15


def expected_calibration_error(
    confidences: NDArray[np.floating], right: NDArray[np.bool_], *, bins: int = CALIBRATION_BINS
) -> float:
    """Return how far confidence and accuracy are apart, from 0 to 1: the expected calibration error.

    Decisions are put into bins by confidence, all of one width; each bin's |accuracy - mean confidence| counts by its
    share of the decisions (Guo et al. 2017, arXiv 1706.04599, eq. 3, with their 15 bins).

    Args:
        confidences: the probability that a model gave to what it decided, shape (decisions,), at least one.
        right: whether the decision was right, shape (decisions,).
        bins: how many.
    """
    gaps = np.bincount(
        confidence_bins(confidences, bins), weights=np.asarray(right, dtype=np.float64) - confidences, minlength=bins
    )
    return float(np.abs(gaps).sum() / len(confidences))


def confidence_bins(confidences: NDArray[np.floating], bins: int = CALIBRATION_BINS) -> NDArray[np.int64]:
    """Return the bin of each confidence, from 0; one that ends at a confidence holds it."""
    places: NDArray[np.int64] = np.ceil(np.asarray(confidences, dtype=np.float64) * bins).astype(np.int64) - 1
    return np.clip(places, 0, bins - 1)
