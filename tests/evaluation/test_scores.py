"""Scores of draws: each draw's must be what `potstill.metrics` says of the same texts written out."""

import numpy as np
import pytest
import scipy.stats
from potstill.evaluation.answers import Answers

from potstill.evaluation.scores import IGNORED, group, right, score, score_draws
from potstill.tasks import METRICS

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = 30


def draw(seed=0):
    return np.random.default_rng(seed)


def answers(values, kind, texts=None):
    values = np.asarray(values, dtype=np.float32)
    return Answers(values, np.arange(len(values)) if texts is None else np.asarray(texts), kind)


def single(classes):
    labels = draw(1).integers(classes, size=TEXTS)
    logits = draw(2).normal(size=(TEXTS, classes)) + 1.5 * np.eye(classes)[labels]
    return answers(logits, "single_label_classification"), labels


def several():
    labels = (draw(3).random((TEXTS, 4)) < [0.5, 0.3, 0.1, 0.0]).astype(float)
    return answers(draw(4).normal(size=(TEXTS, 4)) + 2 * labels - 1, "multi_label_classification"), labels


def amounts():
    labels = draw(5).integers(0, 6, size=TEXTS) / 2  # many ties
    return answers((labels + draw(6).normal(size=TEXTS).round(1))[:, None], "regression"), labels


def tokens():
    """Texts of 1 to 8 tokens; some have no label, all those of one text."""
    lengths = draw(7).integers(1, 9, size=TEXTS)
    texts = np.repeat(np.arange(TEXTS) * 2, lengths)  # numbers with holes
    labels = draw(8).integers(len(TAGS), size=len(texts))
    logits = draw(9).normal(size=(len(texts), len(TAGS))) + 2.5 * np.eye(len(TAGS))[labels]
    labels[draw(10).random(len(texts)) < 0.2] = IGNORED
    labels[texts == 4] = IGNORED
    return answers(logits, "token-classification", texts), labels


CASES = [
    *((single, (2,), metric) for metric in METRICS["single_label_classification"]),
    *((single, (5,), metric) for metric in ("accuracy", "macro_f1", "matthews_correlation")),
    *((several, (), metric) for metric in METRICS["multi_label_classification"]),
    *((amounts, (), metric) for metric in METRICS["regression"]),
    *((tokens, (), metric) for metric in METRICS["token-classification"]),
]


def written_out(given, labels, counts):
    """Repeat each text as often as it was drawn."""
    where = group(given)
    chosen = [np.flatnonzero(where == text) for text, count in enumerate(counts) for _ in range(int(count))]
    texts = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
    rows = np.concatenate(chosen)
    return Answers(given.values[rows], texts, given.kind), labels[rows]


@pytest.mark.parametrize(("make", "arguments", "metric"), CASES)
def test_draws_score_as_the_texts_written_out(make, arguments, metric):
    given, labels = make(*arguments)
    counts = draw(11).multinomial(TEXTS, np.full(TEXTS, 1 / TEXTS), size=20).astype(float)
    counts[0] = 1
    found = score_draws(given, labels, metric=metric, names=TAGS)(counts)
    expected = [score(*written_out(given, labels, row), names=TAGS)[metric] for row in counts]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[0] == pytest.approx(score(given, labels, names=TAGS)[metric], abs=1e-12)
    assert len(set(found.round(6))) > 5


def test_correlations_of_draws_agree_with_scipy():
    given, labels = amounts()
    once = np.ones((1, TEXTS))
    values = given.values[:, 0].astype(float)
    assert score_draws(given, labels, metric="pearson")(once)[0] == pytest.approx(
        scipy.stats.pearsonr(labels, values).statistic, abs=1e-12
    )
    assert score_draws(given, labels, metric="spearman")(once)[0] == pytest.approx(
        scipy.stats.spearmanr(labels, values).statistic, abs=1e-12
    )


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_draw_of_one_text_again_and_again_correlates_with_nothing(metric):
    given, labels = amounts()
    counts = np.zeros((1, TEXTS))
    counts[0, 7] = TEXTS
    assert score_draws(given, labels, metric=metric)(counts).tolist() == [0.0]


def test_a_text_is_right_if_all_of_it_is():
    given, labels = tokens()
    choices, where = given.values.argmax(axis=1), group(given)
    expected = [
        all(choice == label for choice, label in zip(choices[where == text], labels[where == text], strict=True)
            if label != IGNORED)
        for text in range(TEXTS)
    ]  # fmt: skip
    assert right(given, labels).tolist() == expected
    assert 0 < sum(expected) < TEXTS
    assert right(*several()).sum() == round(score(*several())["subset_accuracy"] * TEXTS)
    assert right(*amounts()) is None


def test_tags_without_names_are_refused():
    given, labels = tokens()
    with pytest.raises(ValueError, match="names"):
        score_draws(given, labels, metric="f1")
