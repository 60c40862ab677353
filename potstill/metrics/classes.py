"""How well classes were named: one class per example, or several."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.integer]

CLASSIFICATION = ("accuracy", "macro_f1", "matthews_correlation")
"""What `classification` returns for any number of classes."""
_POSITIVE = 1


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


def precision_per_class(labels: Ints, predictions: Ints, num_classes: int) -> Floats:
    """Return the share of each class's predictions that are right, shape (classes,); 0 for a class never predicted."""
    matrix = confusion_matrix(labels, predictions, num_classes)
    return _shares(np.diag(matrix), matrix.sum(axis=0))


def recall_per_class(labels: Ints, predictions: Ints, num_classes: int) -> Floats:
    """Return the share of each class's examples that were found, shape (classes,); 0 for a class without examples."""
    matrix = confusion_matrix(labels, predictions, num_classes)
    return _shares(np.diag(matrix), matrix.sum(axis=1))


def occurring(labels: Ints, predictions: Ints, num_classes: int) -> NDArray[np.bool_]:
    """Return which classes are a label or a prediction, shape (classes,)."""
    matrix = confusion_matrix(labels, predictions, num_classes)
    found: NDArray[np.bool_] = matrix.sum(axis=0) + matrix.sum(axis=1) > 0
    return found


def f1_per_class(labels: Ints, predictions: Ints, num_classes: int) -> Floats:
    """Return F1 of each class, shape (classes,); 0 for a class without labels and predictions."""
    matrix = confusion_matrix(labels, predictions, num_classes)
    return _shares(2 * np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1))


def per_class(labels: Ints, predictions: Ints, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per class: `label`, `precision`, `recall`, `f1`, `support` (its examples), `predicted`.

    Args:
        labels: ids of shape (examples,).
        predictions: likewise.
        names: the classes by id.
    """
    matrix = confusion_matrix(labels, predictions, len(names))
    return _table(names, hits=np.diag(matrix), wanted=matrix.sum(axis=1), given=matrix.sum(axis=0))


def per_label(labels: NDArray[np.floating], logits: NDArray[np.floating], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of `per_class` for a model that may give several labels; arguments as `multi_label`."""
    wanted, given = np.asarray(labels) > 0.5, np.asarray(logits) > 0
    return _table(names, hits=(wanted & given).sum(axis=0), wanted=wanted.sum(axis=0), given=given.sum(axis=0))


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
    """Return accuracy, macro F1 and the Matthews correlation of the most likely classes.

    Macro F1 is the mean over the classes that labels or predictions have, as scikit-learn's: one that the model knows
    and these examples do not ask for tells nothing.

    Of two classes there are two numbers more: `f1`, that of the positive class 1 alone, and `accuracy_and_f1`, the
    mean of both, which is GLUE's number for MRPC and QQP (Wang et al. 2018, arXiv 1804.07461, section 3).
    """
    predictions, num_classes = logits.argmax(axis=-1), logits.shape[-1]
    f1 = f1_per_class(labels, predictions, num_classes)
    result = {
        "accuracy": accuracy(labels, predictions),
        "macro_f1": float(f1[occurring(labels, predictions, num_classes)].mean()),
        "matthews_correlation": matthews_correlation(labels, predictions, num_classes),
    }
    if num_classes == 2:
        result["f1"] = float(f1[_POSITIVE])
        result["accuracy_and_f1"] = (result["accuracy"] + result["f1"]) / 2
    return result


def multi_label(labels: NDArray[np.floating], logits: NDArray[np.floating]) -> dict[str, float]:
    """Return micro F1, macro F1 and subset accuracy of the labels that are likelier than not.

    F1 of what is neither there nor predicted is 0, for one label as for all together; macro F1 counts every label, also
    one that no text has. Both are scikit-learn's rules for label sets.

    Args:
        labels: 0 or 1, shape (examples, labels).
        logits: same shape; above 0 is a probability above one half.
    """
    wanted, given = np.asarray(labels) > 0.5, np.asarray(logits) > 0
    hits, total = (wanted & given).sum(axis=0), wanted.sum(axis=0) + given.sum(axis=0)
    return {
        "micro_f1": float(_shares(2 * hits.sum(keepdims=True), total.sum(keepdims=True))[0]),
        "macro_f1": float(_shares(2 * hits, total).mean()),
        "subset_accuracy": float((wanted == given).all(axis=1).mean()),
    }


def agreement(logits: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """Return the share of examples for which both rows of logits name the same class."""
    return float(np.mean(logits.argmax(axis=-1) == others.argmax(axis=-1)))


def majority_share(labels: Ints) -> float:
    """Return the accuracy of always answering the most frequent label."""
    return float(np.bincount(labels).max() / len(labels))


def _table(names: Sequence[str], *, hits: Counts, wanted: Counts, given: Counts) -> list[dict[str, Any]]:
    columns = (_shares(hits, given), _shares(hits, wanted), _shares(2 * hits, wanted + given), wanted, given)
    keys = ("label", "precision", "recall", "f1", "support", "predicted")
    rows = zip(names, *(column.tolist() for column in columns), strict=True)
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _shares(parts: Counts, totals: Counts) -> Floats:
    result: Floats = np.where(totals > 0, parts / np.maximum(totals, 1), 0.0)
    return result
