"""Metrics of numbers: regression, similarities of embeddings, and the likelihood of masked words."""

import math

import numpy as np
from numpy.typing import NDArray

from potstill.errors import DataError

Floats = NDArray[np.float64]


def regression_scores(labels: NDArray[np.floating], predictions: NDArray[np.floating]) -> dict[str, float]:
    """Return both correlations, their mean (GLUE's number for STS-B), and the mean squared error.

    Args:
        labels: shape (examples,).
        predictions: shape (examples,), or (examples, 1) as a head with one output gives them.
    """
    wanted, given = _flat(labels), _flat(predictions)
    return {**correlations(wanted, given), "mse": float(np.mean((wanted - given) ** 2))}


def correlations(labels: NDArray[np.floating], predictions: NDArray[np.floating]) -> dict[str, float]:
    """Return `pearson`, `spearman` and `pearson_and_spearman`, the mean of both."""
    both = {"pearson": pearson(labels, predictions), "spearman": spearman(labels, predictions)}
    return both | {"pearson_and_spearman": sum(both.values()) / 2}


def pearson(labels: NDArray[np.floating], predictions: NDArray[np.floating]) -> float:
    """Return the linear correlation, from -1 to 1.

    It is 0, and not undefined, where one side never varies: an answer that ignores its text shows no relation. It is
    NaN where a value is not finite.
    """
    first, second = _flat(labels), _flat(predictions)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return math.nan
    # By the range, not the variance: the mean of equal floats is rounded, and their variance then not exactly 0.
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    first, second = first - first.mean(), second - second.mean()
    # Normalised one by one: the product of both norms may overflow where neither does. Rounding may pass 1.
    return float(np.clip((first / np.linalg.norm(first)) @ (second / np.linalg.norm(second)), -1.0, 1.0))


def spearman(labels: NDArray[np.floating], predictions: NDArray[np.floating]) -> float:
    """Return the correlation of the ranks, where equal values share their mean rank; 0 and NaN as in `pearson`."""
    first, second = _flat(labels), _flat(predictions)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return math.nan
    # Pearson's formula on ranks is right with ties too; the shortcut 1 - 6 Σd² / (n³ - n) is not.
    return pearson(_ranks(first), _ranks(second))


def row_cosines(first: NDArray[np.floating], second: NDArray[np.floating]) -> Floats:
    """Return the cosine between the rows of two (N, H) arrays, shape (N,); 0 for a row that is all 0."""
    # float64: cosines close to 1 are compared, and float32 resolves only 6e-8 there.
    ours, theirs = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    result: Floats = (ours * theirs).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    return result


def masked_lm_scores(nll: float, *, count: int, hits: int) -> dict[str, float]:
    """Return `perplexity`, its logarithm `loss`, and `accuracy` at the masked positions.

    Args:
        nll: negative log-likelihood in nats, summed over the masked positions.
        count: how many masked positions.
        hits: at how many of them the true word was the likeliest.
    """
    return {"perplexity": perplexity(nll, count), "loss": nll / count, "accuracy": hits / count}


def perplexity(nll: float, count: int) -> float:
    """Return the exponential of the mean negative log-likelihood; infinite where that is too large for a float.

    Args:
        nll: in nats, summed.
        count: over how many tokens.

    Raises:
        DataError: if there are none.
    """
    if count < 1:
        raise DataError("no token was masked, so there is no perplexity; give longer texts or a greater mask_share")
    try:
        return math.exp(nll / count)
    except OverflowError:
        # exp overflows above a mean of 709 nats, which a broken model can reach.
        return math.inf


def _flat(values: NDArray[np.floating]) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Ranks from 1; equal values share the mean of the ranks first..last that they take up.
    last = np.cumsum(counts)
    result: Floats = (last - (counts - 1) / 2)[places]
    return result
