"""What a sample can show: exactly for McNemar's test, and by simulation for what is approximated."""

import numpy as np
import pytest
import scipy.stats

from potstill.data import Examples
from potstill.evaluation.decision import LOST_OF_CHANGED, expected_score, power, smallest_share
from potstill.evaluation.intervals import bootstrap_together, mcnemar, percentiles
from potstill.evaluation.scores import pearson_statistic


def examples(labels, names=("no", "yes")):
    texts = [f"text {number}" for number in range(len(labels))]
    return Examples(name="x", split="test", texts=texts, labels=labels, label_names=tuple(names), sha256="")


def single(count, share=0.5):
    return examples((np.arange(count) < share * count).astype(int))


def test_277_examples_do_not_show_3_points_and_872_show_2():
    found = {count: smallest_share(count) for count in (277, 872)}
    assert 0.03 < found[277] < 0.06
    assert 0.01 < found[872] < 0.02
    told = power(single(277), kind="single_label_classification", metric="accuracy")
    assert told.num_examples == 277
    assert told.smallest_loss == found[277]
    assert told.sentence == (
        "With 277 examples, a loss of 5.0 points of accuracy or more is found 4 times in 5; "
        "a smaller one may well go unseen."
    )


@pytest.mark.parametrize("count", [71, 277, 2000])
def test_the_smallest_loss_is_found_4_times_in_5(count):
    """Simulated: every text changes or not, and of those that do 4 in 5 are lost."""
    loss = smallest_share(count)
    changed = loss / (2 * LOST_OF_CHANGED - 1)
    draw = np.random.default_rng(count)
    numbers = draw.binomial(count, changed, size=4000)
    lost = draw.binomial(numbers, LOST_OF_CHANGED)
    found = [2 * k > n and mcnemar(int(k), int(n - k)) <= 0.05 for k, n in zip(lost, numbers, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.025)
    assert mcnemar(8, 1) == pytest.approx(scipy.stats.binomtest(8, 9).pvalue)


def test_more_examples_show_less():
    losses = [smallest_share(count) for count in (25, 71, 277, 872, 10_000, 40_430)]
    assert losses == sorted(losses, reverse=True)
    # With many texts only the number of changed answers counts: 10 times the texts, a tenth of the loss.
    assert smallest_share(400_000) == pytest.approx(smallest_share(40_000) / 10, rel=0.02)


def test_a_handful_shows_nothing():
    assert smallest_share(1) is None
    assert smallest_share(15) is None
    told = power(single(15), kind="single_label_classification", metric="accuracy")
    assert told.smallest_loss is None
    assert "15 examples hardly any loss" in told.sentence
    assert "9 examples no loss" in power(examples(np.arange(9.0)), kind="regression", metric="pearson").sentence


def test_the_loss_of_answers_is_put_into_the_metrics_unit():
    """With equal classes and errors Matthews' correlation is 2 x accuracy - 1, and both F1 are the accuracy."""
    share = smallest_share(1000)
    found = {
        metric: power(single(1000), kind="single_label_classification", metric=metric).smallest_loss
        for metric in ("accuracy", "matthews_correlation", "f1", "macro_f1", "accuracy_and_f1")
    }
    assert found == pytest.approx(
        {"accuracy": share, "matthews_correlation": 2 * share, "f1": share, "macro_f1": share, "accuracy_and_f1": share}
    )
    rare = power(single(1000, share=0.1), kind="single_label_classification", metric="f1").smallest_loss
    assert rare > 1.5 * share


def test_the_loss_in_another_metric_is_that_of_the_counts():
    """Of 30 texts of class 1 and 70 of class 0, 9 in 10 are right: 27 hits, 34 given; F1 is 54 / 64."""
    assert expected_score(np.array([70.0, 30.0]), 0.9, metric="f1") == pytest.approx(54 / 64)
    hits, total, given, wanted = 90, 100, np.array([66, 34]), np.array([70, 30])
    expected = (hits * total - given @ wanted) / np.sqrt((total**2 - given @ given) * (total**2 - wanted @ wanted))
    assert expected_score(np.array([70.0, 30.0]), 0.9, metric="matthews_correlation") == pytest.approx(expected)
    # Three classes of 10: each loses 1 and is given 1 that is not its own.
    assert expected_score(np.array([10.0] * 3), 0.9, metric="macro_f1") == pytest.approx(0.9)


def test_steigers_test_finds_a_loss_of_correlation_4_times_in_5():
    """Simulated with normal amounts that correlate as assumed, tested by the bootstrap that judges them."""
    count = 400
    loss = power(examples(np.arange(float(count))), kind="regression", metric="pearson").smallest_loss
    assert 0.01 < loss < 0.04
    first, second, between = 0.88, 0.88 - loss, 0.95
    mixing = np.linalg.cholesky([[1, first, second], [first, 1, between], [second, between, 1]])
    draw, found = np.random.default_rng(1), []
    for _ in range(150):
        labels, ours, theirs = mixing @ draw.normal(size=(3, count))
        draws = {str(n): pearson_statistic(labels, side) for n, side in enumerate((ours, theirs))}
        resampled = bootstrap_together(draws, count, rng=draw, resamples=300)
        found.append(percentiles(resampled["0"] - resampled["1"])[0] > 0)
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)


def test_what_counts_as_one_answer():
    names = ("O", "B-PER", "I-PER")
    tags = [np.array([0, 1, 2, 0]), np.array([1, 0])] * 50
    words = power(examples(tags, names), kind="token-classification", metric="accuracy").smallest_loss
    assert words == smallest_share(300)
    assert power(examples(tags, names), kind="token-classification", metric="f1").smallest_loss == smallest_share(100)
    several = examples(np.array([[1.0, 0], [1, 1]] * 50))
    assert power(several, kind="multi_label_classification", metric="micro_f1").smallest_loss == smallest_share(150)
    assert power(several, kind="multi_label_classification", metric="subset_accuracy").smallest_loss == smallest_share(
        100
    )
    asked = examples([{"text": ["x"]}] * 100)
    for metric in ("f1", "exact_match"):
        assert power(asked, kind="question-answering", metric=metric).smallest_loss == smallest_share(100)


@pytest.mark.parametrize(("kind", "metric"), [("regression", "mse"), ("fill-mask", "perplexity")])
def test_where_nothing_is_known_before_nothing_is_said(kind, metric):
    data = examples(np.arange(500.0))
    told = power(data, kind=kind, metric=metric)
    assert told.smallest_loss is None
    assert told.sentence.startswith(f"What 500 examples can show of {metric}")
