"""The numbers that judge answers, on numpy arrays alone.

Everywhere: `labels` and `predictions` are integer arrays of shape (examples,), `logits` is (examples, classes).
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CLASSIFICATION = ("accuracy", "macro_f1", "matthews_correlation")
"""What `classification` returns."""


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Return the probabilities of `logits` along the last axis."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    result: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def accuracy(labels: Ints, predictions: Ints) -> float:
    """Return the share of predictions that equal their label."""
    return float(np.mean(labels == predictions))


def confusion_matrix(labels: Ints, predictions: Ints, num_classes: int) -> Ints:
    """Return counts of shape (classes, classes): row is the label, column the prediction."""
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def f1_per_class(labels: Ints, predictions: Ints, num_classes: int) -> Floats:
    """Return F1 of each class, shape (classes,); 0 for a class without labels and predictions."""
    matrix = confusion_matrix(labels, predictions, num_classes)
    total = matrix.sum(axis=0) + matrix.sum(axis=1)
    result: Floats = np.where(total > 0, 2 * np.diag(matrix) / np.maximum(total, 1), 0.0)
    return result


def matthews_correlation(labels: Ints, predictions: Ints, num_classes: int) -> float:
    """Return the Matthews correlation coefficient for any number of classes (Gorodkin 2004, eq. 8).

    It is 0 where labels or predictions are all of one class, as is the custom.
    """
    matrix = confusion_matrix(labels, predictions, num_classes).astype(np.float64)
    total, hits = matrix.sum(), np.trace(matrix)
    label_counts, prediction_counts = matrix.sum(axis=1), matrix.sum(axis=0)
    covariance = hits * total - label_counts @ prediction_counts
    spread = (total**2 - prediction_counts @ prediction_counts) * (total**2 - label_counts @ label_counts)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def classification(labels: Ints, logits: NDArray[np.floating]) -> dict[str, float]:
    """Return accuracy, macro F1 and the Matthews correlation of the most likely classes."""
    predictions, num_classes = logits.argmax(axis=-1), logits.shape[-1]
    return {
        "accuracy": accuracy(labels, predictions),
        "macro_f1": float(f1_per_class(labels, predictions, num_classes).mean()),
        "matthews_correlation": matthews_correlation(labels, predictions, num_classes),
    }


def agreement(logits: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """Return the share of examples for which both rows of logits name the same class."""
    return float(np.mean(logits.argmax(axis=-1) == others.argmax(axis=-1)))


def majority_share(labels: Ints) -> float:
    """Return the accuracy of always answering the most frequent label."""
    return float(np.bincount(labels).max() / len(labels))
