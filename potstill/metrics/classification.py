"""Metrics of text classification, with one label per text or several; and how well probabilities are calibrated."""

from collections.abc import Sequence
from typing import NotRequired, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.integer]

CALIBRATION_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017."""
# GLUE's MRPC and QQP number "paraphrase" and "duplicate" 1.
_POSITIVE = 1


class ClassRow(TypedDict):
    """One class in a classification report."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """Examples that have the label."""
    predicted: int
    """Examples that are predicted to have it."""
    recall_interval: NotRequired[list[float]]
    """The recall's 95 % interval, where the class occurs; `potstill.evaluation` adds it."""


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Return the probabilities of `logits` along the last axis, computed in float64."""
    shifted = np.asarray(logits, dtype=np.float64)
    # Shifted by the highest logit: exp overflows above 709, and the shift cancels in the division.
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    result: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def confusion_matrix(labels: Ints, predictions: Ints, num_classes: int) -> Ints:
    """Return counts of shape (classes, classes): row is the label, column the prediction."""
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def occurring_classes(labels: Ints, predictions: Ints, num_classes: int) -> NDArray[np.bool_]:
    """Return whether each class occurs among labels or predictions, shape (classes,)."""
    matrix = confusion_matrix(labels, predictions, num_classes)
    found: NDArray[np.bool_] = matrix.sum(axis=0) + matrix.sum(axis=1) > 0
    return found


def classification_report(labels: Ints, predictions: Ints, names: Sequence[str]) -> list[ClassRow]:
    """Return precision, recall, F1 and counts of each class; what would be divided by 0 is 0.

    Args:
        labels: ids of shape (examples,).
        predictions: likewise.
        names: the classes by id.
    """
    matrix = confusion_matrix(labels, predictions, len(names))
    return _report(names, hits=np.diag(matrix), support=matrix.sum(axis=1), predicted=matrix.sum(axis=0))


def multi_label_report(
    labels: NDArray[np.floating], logits: NDArray[np.floating], names: Sequence[str]
) -> list[ClassRow]:
    """Return the rows of `classification_report` for label sets; arguments as `multi_label_scores`."""
    wanted, given = np.asarray(labels) > 0.5, np.asarray(logits) > 0
    return _report(names, hits=(wanted & given).sum(axis=0), support=wanted.sum(axis=0), predicted=given.sum(axis=0))


def _report(names: Sequence[str], *, hits: Counts, support: Counts, predicted: Counts) -> list[ClassRow]:
    precision, recall, f1 = _shares(hits, predicted), _shares(hits, support), _shares(2 * hits, support + predicted)
    return [
        ClassRow(
            label=name,
            precision=float(precision[place]),
            recall=float(recall[place]),
            f1=float(f1[place]),
            support=int(support[place]),
            predicted=int(predicted[place]),
        )
        for place, name in enumerate(names)
    ]


def matthews_correlation(labels: Ints, predictions: Ints, num_classes: int) -> float:
    """Return the Matthews correlation coefficient for any number of classes (Gorodkin 2004, eq. 8).

    It is 0 where labels or predictions are all of one class, as is the custom.
    """
    matrix = confusion_matrix(labels, predictions, num_classes).astype(np.float64)
    total, hits = matrix.sum(), np.trace(matrix)
    label_counts, prediction_counts = matrix.sum(axis=1), matrix.sum(axis=0)
    # In float64: products of four counts pass int64 from some 55,000 examples on.
    covariance = hits * total - label_counts @ prediction_counts
    spread = (total**2 - prediction_counts @ prediction_counts) * (total**2 - label_counts @ label_counts)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def classification_scores(labels: Ints, logits: NDArray[np.floating]) -> dict[str, float]:
    """Return accuracy, macro F1 and the Matthews correlation of the most likely classes.

    Macro F1 is the mean over the classes that labels or predictions have, as scikit-learn's: a class that the model
    knows and these examples do not ask for tells nothing.

    With two classes there are two more: `f1`, that of the positive class 1 alone, and `accuracy_and_f1`, the mean of
    both, which is GLUE's number for MRPC and QQP (Wang et al. 2018, arXiv 1804.07461, section 3).
    """
    predictions, num_classes = logits.argmax(axis=-1), logits.shape[-1]
    matrix = confusion_matrix(labels, predictions, num_classes)
    totals = matrix.sum(axis=0) + matrix.sum(axis=1)
    f1 = _shares(2 * np.diag(matrix), totals)
    result = {
        "accuracy": float(np.mean(labels == predictions)),
        # A class in neither labels nor predictions has F1 0 / 0 and is left out, as scikit-learn does.
        "macro_f1": float(f1[totals > 0].mean()),
        "matthews_correlation": matthews_correlation(labels, predictions, num_classes),
    }
    if num_classes == 2:
        # GLUE's F1 of MRPC and QQP: of class 1 alone, scikit-learn's average="binary".
        result["f1"] = float(f1[_POSITIVE])
        result["accuracy_and_f1"] = (result["accuracy"] + result["f1"]) / 2
    return result


def multi_label_scores(labels: NDArray[np.floating], logits: NDArray[np.floating]) -> dict[str, float]:
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
        # Every label counts here, unlike in `classification_scores`: scikit-learn's rule for label indicators.
        "macro_f1": float(_shares(2 * hits, total).mean()),
        "subset_accuracy": float((wanted == given).all(axis=1).mean()),
    }


def expected_calibration_error(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_], *, bins: int = CALIBRATION_BINS
) -> float:
    """Return how far confidence and accuracy are apart, from 0 to 1: the expected calibration error.

    Decisions are put into bins by confidence, all of one width; each bin's |accuracy - mean confidence| counts by its
    share of the decisions (Guo et al. 2017, arXiv 1706.04599, eq. 3, with their 15 bins).

    Args:
        confidences: the probability that a model gave to what it decided, shape (decisions,), at least one.
        correct: whether the decision was right, shape (decisions,).
        bins: how many.
    """
    # |sum(correct - confidence)| of a bin is its |accuracy - mean confidence| times its size: no division per bin.
    gaps = np.bincount(
        confidence_bins(confidences, bins), weights=np.asarray(correct, dtype=np.float64) - confidences, minlength=bins
    )
    return float(np.abs(gaps).sum() / len(confidences))


def confidence_bins(confidences: NDArray[np.floating], bins: int = CALIBRATION_BINS) -> NDArray[np.int64]:
    """Return the bin of each confidence, counted from 0; a bin includes its upper end."""
    places: NDArray[np.int64] = np.ceil(np.asarray(confidences, dtype=np.float64) * bins).astype(np.int64) - 1
    # A confidence of 0 would be in bin -1, and one that is rounded to just above 1 behind the last bin.
    return np.clip(places, 0, bins - 1)


def _shares(parts: Counts, totals: Counts) -> Floats:
    # np.where evaluates both sides, so the divisor is made safe as well.
    result: Floats = np.where(totals > 0, parts / np.maximum(totals, 1), 0.0)
    return result
