"""Metrics of classification and calibration, against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest

from potstill import metrics
from potstill.tasks import METRICS, MULTI_LABEL, SINGLE_LABEL

# Six examples of three classes. Row is the label, column the prediction:
#   [2 0 0]   F1: 2*2/(3+2) = 0.8
#   [0 0 2]       2*0/(1+2) = 0 (the pages of scikit-learn give this example the macro F1 0.2666...)
#   [1 1 0]       2*0/(2+2) = 0
LABELS = np.array([0, 1, 2, 0, 1, 2])
PREDICTIONS = np.array([0, 2, 1, 0, 2, 0])
MATRIX = [[2, 0, 0], [0, 0, 2], [1, 1, 0]]


def one_hot(predictions, num_classes):
    return np.eye(num_classes)[predictions]


def test_softmax_of_logarithms_is_the_shares():
    assert metrics.softmax(np.log([[1.0, 2.0, 5.0]])) == pytest.approx(np.array([[0.125, 0.25, 0.625]]))


def test_softmax_of_huge_logits_does_not_overflow():
    assert metrics.softmax(np.array([[1e4, 1e4], [0.0, -1e4]])).tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_softmax_of_float16_is_computed_in_float64():
    found = metrics.softmax(np.array([[0.0, 10.0]], dtype=np.float16))
    assert found.dtype == np.float64
    assert found[0, 0] == pytest.approx(1 / (1 + math.exp(10)), rel=1e-12)


def test_the_rows_of_a_confusion_matrix_are_labels():
    assert metrics.confusion_matrix(LABELS, PREDICTIONS, 3).tolist() == MATRIX


def test_a_confusion_matrix_has_room_for_classes_that_never_occur():
    assert metrics.confusion_matrix(np.array([0]), np.array([1]), 4).shape == (4, 4)
    assert metrics.confusion_matrix(np.array([0]), np.array([1]), 4).sum() == 1


def columns(rows, *names):
    return [[row[name] for row in rows] for name in names]


def test_precision_recall_and_f1_by_hand():
    rows = metrics.classification_report(LABELS, PREDICTIONS, "abc")
    precision, recall, f1 = columns(rows, "precision", "recall", "f1")
    assert precision == pytest.approx([2 / 3, 0.0, 0.0])
    assert recall == pytest.approx([1.0, 0.0, 0.0])
    assert f1 == pytest.approx([0.8, 0.0, 0.0])


def test_what_never_occurs_has_0_without_a_warning():
    labels, predictions = np.array([0, 0]), np.array([0, 1])
    precision, recall = columns(metrics.classification_report(labels, predictions, "abc"), "precision", "recall")
    assert precision == [1.0, 0.0, 0.0]
    assert recall == [0.5, 0.0, 0.0]
    assert columns(metrics.classification_report(labels, labels, "ab"), "f1") == [[1.0, 0.0]]


def test_the_table_of_classes_has_a_row_for_each():
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    first, second = metrics.classification_report(labels, predictions, ["no", "yes"])
    assert first == pytest.approx(
        {"label": "no", "precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3, "predicted": 2}
    )
    assert second == pytest.approx(
        {"label": "yes", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1, "predicted": 2}
    )
    assert json.loads(json.dumps([first, second])) == [first, second]


def test_the_matthews_correlation_of_scikit_learns_own_example():
    # y_true = [+1, +1, +1, -1], y_pred = [+1, -1, +1, +1] -> -0.33
    labels, predictions = np.array([1, 1, 1, 0]), np.array([1, 0, 1, 1])
    assert metrics.matthews_correlation(labels, predictions, 2) == pytest.approx(-1 / 3)


def test_the_matthews_correlation_of_two_classes_is_the_textbook_formula():
    tp, fp, fn, tn = 90, 4, 5, 1
    labels = np.repeat([1, 0, 1, 0], [tp, fp, fn, tn])
    predictions = np.repeat([1, 1, 0, 0], [tp, fp, fn, tn])
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert metrics.matthews_correlation(labels, predictions, 2) == pytest.approx(expected)


def test_the_matthews_correlation_of_three_classes_by_hand():
    # hits 2, total 6, labels (2, 2, 2), predictions (3, 1, 2): (2*6 - 12) / ... = 0
    assert metrics.matthews_correlation(LABELS, PREDICTIONS, 3) == 0.0
    # labels (2, 1, 1), predictions (1, 2, 1), hits 3: (3*4 - 5) / sqrt((16 - 6) * (16 - 6)) = 0.7
    labels, predictions = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])
    assert metrics.matthews_correlation(labels, predictions, 3) == pytest.approx(0.7)


@pytest.mark.parametrize(("predictions", "expected"), [([0, 1, 0, 1], 1.0), ([1, 0, 1, 0], -1.0), ([1, 1, 1, 1], 0.0)])
def test_the_ends_of_the_matthews_correlation(predictions, expected):
    found = metrics.matthews_correlation(np.array([0, 1, 0, 1]), np.array(predictions), 2)
    assert found == pytest.approx(expected)


def test_the_matthews_correlation_of_one_label_is_0():
    assert metrics.matthews_correlation(np.array([1, 1]), np.array([0, 1]), 2) == 0.0


def test_classification_judges_the_most_likely_class():
    found = metrics.classification_scores(LABELS, one_hot(PREDICTIONS, 3) * 7 - 3)
    assert found == pytest.approx({"accuracy": 1 / 3, "macro_f1": 0.8 / 3, "matthews_correlation": 0.0})
    assert tuple(found) == METRICS[SINGLE_LABEL][:3]
    assert all(type(value) is float for value in found.values())


def test_a_class_that_is_neither_label_nor_prediction_is_left_out_of_the_macro_f1():
    found = metrics.classification_scores(np.array([0, 1]), one_hot(np.array([0, 1]), 3))
    assert found["macro_f1"] == 1.0
    assert found["accuracy"] == 1.0


def test_two_classes_have_the_f1_of_the_positive_one():
    labels, predictions = np.array([1, 1, 1, 0]), np.array([1, 0, 1, 1])
    found = metrics.classification_scores(labels, one_hot(predictions, 2))
    assert found["f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["accuracy_and_f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.0) / 2)
    assert set(found) == {*METRICS[SINGLE_LABEL]}
    assert all(type(value) is float for value in found.values())


# Label 0: wanted 2, given 2, hits 1. Label 1: wanted 1, given 1, hits 1. Label 2: neither.
SEVERAL = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=np.float64)
SEVERAL_LOGITS = np.array([[2.0, 0.1, -1.0], [-3.0, 0.0, -0.1], [0.5, -2.0, -9.0]])


def test_several_labels_by_hand():
    found = metrics.multi_label_scores(SEVERAL, SEVERAL_LOGITS)
    assert found == pytest.approx(
        {"micro_f1": 2 * 2 / (3 + 3), "macro_f1": (0.5 + 1.0 + 0.0) / 3, "subset_accuracy": 1 / 3}
    )
    assert tuple(found) == METRICS[MULTI_LABEL]


def test_the_table_of_several_labels_has_a_row_for_each():
    rows = metrics.multi_label_report(SEVERAL, SEVERAL_LOGITS, ["a", "b", "c"])
    assert rows == [
        {"label": "a", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2, "predicted": 2},
        {"label": "b", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1, "predicted": 1},
        {"label": "c", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "predicted": 0},
    ]


def test_a_probability_of_one_half_is_no_label():
    assert metrics.multi_label_scores(np.zeros((1, 2)), np.zeros((1, 2)))["subset_accuracy"] == 1.0


def test_several_labels_of_which_none_is_there_are_0_without_a_warning():
    found = metrics.multi_label_scores(np.zeros((2, 2)), np.full((2, 2), -1.0))
    assert found == {"micro_f1": 0.0, "macro_f1": 0.0, "subset_accuracy": 1.0}


def test_the_calibration_error_by_hand():
    """Bins of 15: 0.62 and 0.65 share one (9 to 10 fifteenths), 0.95 and 0.99 another (14 to 15)."""
    confidences = np.array([0.62, 0.65, 0.95, 0.99])
    right = np.array([True, False, True, True])
    # |0.5 - 0.635| * 2/4 + |1 - 0.97| * 2/4
    assert metrics.expected_calibration_error(confidences, right) == pytest.approx(0.135 / 2 + 0.03 / 2)


def test_errors_of_two_bins_do_not_cancel_and_those_of_one_do():
    right = np.array([True, False])
    assert metrics.expected_calibration_error(np.array([0.6, 0.9]), right, bins=2) == pytest.approx(abs(0.5 - 0.75))
    assert metrics.expected_calibration_error(np.array([0.6, 0.9]), right, bins=10) == pytest.approx((0.4 + 0.9) / 2)


def test_a_bin_holds_its_upper_end():
    assert metrics.confidence_bins(np.array([0.0, 0.1, 0.100001, 0.5, 1.0]), 10).tolist() == [0, 0, 1, 4, 9]


def test_a_model_that_is_always_sure_and_always_right_is_calibrated():
    assert metrics.expected_calibration_error(np.ones(5), np.ones(5, bool)) == 0
    assert metrics.expected_calibration_error(np.ones(5), np.zeros(5, bool)) == 1
