import math

import numpy as np
import pytest

from potstill import metrics
from potstill.errors import DataError
from potstill.tasks import FILL_MASK, METRICS, REGRESSION

# Sums of powers of two keep the hand computation exact but for square roots.
EXACT = 1e-12


def test_the_linear_correlation_by_hand():
    # deviations (-1.5, -0.5, 0.5, 1.5) and (-1, -1, 1, 1): 4 / sqrt(5 * 4)
    found = metrics.pearson(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.0, 2.0, 2.0]))
    assert found == pytest.approx(4 / math.sqrt(20), abs=EXACT)


def test_equal_values_share_the_mean_of_their_ranks():
    # ranks (1.5, 1.5, 3, 4) and (4, 2, 2, 2): deviations (-1, -1, 0.5, 1.5) and (1.5, -0.5, -0.5, -0.5)
    found = metrics.spearman(np.array([7.0, 7.0, 8.0, 100.0]), np.array([9.0, 1.0, 1.0, 1.0]))
    assert found == pytest.approx(-2.0 / math.sqrt(4.5 * 3), abs=EXACT)


def test_ranks_only_see_the_order():
    rng = np.random.default_rng(0)
    labels, predictions = rng.normal(size=50), rng.normal(size=50)
    expected = metrics.spearman(labels, predictions)
    assert metrics.spearman(labels, np.exp(3 * predictions)) == pytest.approx(expected, abs=EXACT)
    assert metrics.spearman(labels, -predictions) == pytest.approx(-expected, abs=EXACT)


def test_both_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 6, 200) / 2
    predictions = (labels + rng.normal(size=200)).round(1)
    assert metrics.pearson(labels, predictions) == pytest.approx(stats.pearsonr(labels, predictions)[0], abs=EXACT)
    assert metrics.spearman(labels, predictions) == pytest.approx(stats.spearmanr(labels, predictions)[0], abs=EXACT)


@pytest.mark.parametrize("correlation", [metrics.pearson, metrics.spearman])
def test_the_ends_of_a_correlation(correlation):
    values = np.array([0.1, 0.2, 0.3])
    assert correlation(values, values) == pytest.approx(1.0, abs=EXACT)
    assert correlation(values, -values) == pytest.approx(-1.0, abs=EXACT)
    assert correlation(values, values) <= 1.0


@pytest.mark.parametrize("correlation", [metrics.pearson, metrics.spearman])
@pytest.mark.parametrize("constant", [0.0, 0.1, 2.72])
def test_what_never_varies_correlates_with_nothing(correlation, constant):
    values = np.array([1.0, 2.0, 4.0])
    assert correlation(values, np.full(3, constant)) == 0.0
    assert correlation(np.full(3, constant), values) == 0.0
    assert correlation(values[:1], values[:1]) == 0.0


@pytest.mark.parametrize("correlation", [metrics.pearson, metrics.spearman])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_prediction_is_never_a_score(correlation, broken):
    assert math.isnan(correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, broken, 3.0])))


def test_tiny_and_huge_values_correlate_like_others():
    values, others = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])
    expected = metrics.pearson(values, others)
    assert metrics.pearson(values * 1e-100, others * 1e100) == pytest.approx(expected, abs=EXACT)


def test_regression_by_hand():
    found = metrics.regression_scores(
        np.array([1.0, 2.0, 3.0, 4.0]), np.array([[0.0], [0.0], [2.0], [2.0]], dtype=np.float32)
    )
    correlation = 4 / math.sqrt(20)  # the ranks (1, 2, 3, 4) and (1.5, 1.5, 3.5, 3.5) have the same
    expected = {"pearson": correlation, "spearman": correlation, "pearson_and_spearman": correlation, "mse": 2.5}
    assert found == pytest.approx(expected, abs=EXACT)
    assert tuple(found) == METRICS[REGRESSION]
    assert all(type(value) is float for value in found.values())


def test_the_mean_of_both_correlations_is_between_them():
    found = metrics.correlations(np.array([1.0, 2.0, 9.0]), np.array([1.0, 3.0, 2.0]))
    assert found["pearson_and_spearman"] == pytest.approx((found["pearson"] + found["spearman"]) / 2, abs=EXACT)
    assert found["pearson"] != pytest.approx(found["spearman"], abs=0.01)


def test_cosines_are_taken_row_by_row():
    first = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    second = np.array([[4.0, 3.0], [-2.0, 0.0], [1.0, 1.0]], dtype=np.float32)
    assert metrics.row_cosines(first, second) == pytest.approx([24 / 25, -1.0, 0.0], abs=EXACT)


def test_perplexity_of_a_fair_choice_is_the_number_of_choices():
    assert metrics.perplexity(10 * math.log(8), 10) == pytest.approx(8.0, abs=EXACT * 8)
    assert metrics.perplexity(0.0, 3) == 1.0


def test_a_perplexity_beyond_all_floats_is_infinite():
    assert metrics.perplexity(1e6, 1) == math.inf
    assert metrics.perplexity(math.inf, 1) == math.inf
    assert math.isnan(metrics.perplexity(math.nan, 1))


def test_no_masked_token_is_an_error_and_no_perfect_score():
    with pytest.raises(DataError, match=r"^no token was masked"):
        metrics.perplexity(0.0, 0)
    with pytest.raises(DataError, match=r"^no token was masked"):
        metrics.masked_lm_scores(0.0, count=0, hits=0)


def test_masked_words_by_hand():
    found = metrics.masked_lm_scores(4 * math.log(2), count=4, hits=3)
    assert found == pytest.approx({"perplexity": 2.0, "loss": math.log(2), "accuracy": 0.75}, abs=EXACT)
    assert tuple(found) == METRICS[FILL_MASK.name]
