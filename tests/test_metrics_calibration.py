"""Expected calibration error against numbers worked out by hand."""

import numpy as np
import pytest

from potstill.metrics import confidence_bins, expected_calibration_error


def test_by_hand():
    """Bins of 15: 0.62 and 0.65 share one (9 to 10 fifteenths), 0.95 and 0.99 another (14 to 15)."""
    confidences = np.array([0.62, 0.65, 0.95, 0.99])
    right = np.array([True, False, True, True])
    # |0.5 - 0.635| * 2/4 + |1 - 0.97| * 2/4
    assert expected_calibration_error(confidences, right) == pytest.approx(0.135 / 2 + 0.03 / 2)


def test_errors_of_two_bins_do_not_cancel_and_those_of_one_do():
    right = np.array([True, False])
    assert expected_calibration_error(np.array([0.6, 0.9]), right, bins=2) == pytest.approx(abs(0.5 - 0.75))
    assert expected_calibration_error(np.array([0.6, 0.9]), right, bins=10) == pytest.approx((0.4 + 0.9) / 2)


def test_a_bin_holds_its_upper_end():
    assert confidence_bins(np.array([0.0, 0.1, 0.100001, 0.5, 1.0]), 10).tolist() == [0, 0, 1, 4, 9]


def test_a_model_that_is_always_sure_and_always_right_is_calibrated():
    assert expected_calibration_error(np.ones(5), np.ones(5, bool)) == 0
    assert expected_calibration_error(np.ones(5), np.zeros(5, bool)) == 1
