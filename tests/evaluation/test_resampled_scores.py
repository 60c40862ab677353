"""Scores of draws: each draw's must be the score of the same texts written out as often as they were drawn."""

import numpy as np
import pytest
import scipy.stats

from potstill.data import Examples
from potstill.evaluation.scores import score
from potstill.tasks import METRICS

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = 30
SINGLE, SEVERAL, TOKENS = "single_label_classification", "multi_label_classification", "token-classification"


def draw(seed=0):
    return np.random.default_rng(seed)


def examples(labels, names=()):
    texts = [["word"] * len(row) for row in labels] if isinstance(labels, list) else ["text"] * len(labels)
    return Examples(name="data", split="test", texts=texts, labels=labels, label_names=tuple(names), sha256="0" * 64)


def single(classes):
    labels = draw(1).integers(classes, size=TEXTS)
    logits = draw(2).normal(size=(TEXTS, classes)) + 1.5 * np.eye(classes)[labels]
    return {"values": logits.astype(np.float32)}, examples(labels, map(str, range(classes)))


def several():
    labels = (draw(3).random((TEXTS, 4)) < [0.5, 0.3, 0.1, 0.0]).astype(float)
    return {"values": (draw(4).normal(size=(TEXTS, 4)) + 2 * labels - 1).astype(np.float32)}, examples(labels, "abcd")


def numbers():
    labels = draw(5).integers(0, 6, size=TEXTS) / 2  # many ties
    return {"values": (labels + draw(6).normal(size=TEXTS).round(1))[:, None]}, examples(labels)


def tokens():
    """Texts of 1 to 8 words, and one without any."""
    lengths = draw(7).integers(1, 9, size=TEXTS)
    lengths[4] = 0
    labels = [draw([8, text]).integers(len(TAGS), size=length) for text, length in enumerate(lengths)]
    logits = draw(9).normal(size=(lengths.sum(), len(TAGS))) + 2.5 * np.eye(len(TAGS))[np.concatenate(labels)]
    predictions = {"values": logits.astype(np.float32), "texts": np.repeat(np.arange(TEXTS), lengths)}
    return predictions, examples(labels, TAGS)


CASES = [
    *((SINGLE, single, (2,), metric) for metric in METRICS[SINGLE]),
    *((SINGLE, single, (5,), metric) for metric in ("accuracy", "macro_f1", "matthews_correlation")),
    *((SEVERAL, several, (), metric) for metric in METRICS[SEVERAL]),
    *(("regression", numbers, (), metric) for metric in METRICS["regression"]),
    *((TOKENS, tokens, (), metric) for metric in METRICS[TOKENS]),
]


def written_out(predictions, data, counts):
    """Repeat each text as often as it was drawn; only texts with a row can be drawn."""
    texts = predictions.get("texts", np.arange(len(data)))
    drawn = np.repeat(np.unique(texts), counts.astype(int))
    rows = [np.flatnonzero(texts == text) for text in drawn]
    repeated = {"values": predictions["values"][np.concatenate(rows)]}
    if "texts" in predictions:
        repeated["texts"] = np.repeat(np.arange(len(drawn)), [len(each) for each in rows])
        return repeated, examples([data.labels[text] for text in drawn], TAGS)
    return repeated, examples(data.labels[drawn], data.label_names)


@pytest.mark.parametrize(("kind", "make", "arguments", "metric"), CASES)
def test_draws_score_as_the_texts_written_out(kind, make, arguments, metric):
    predictions, data = make(*arguments)
    scored = score(predictions, data, kind=kind, metric=metric)
    texts = scored.num_texts
    counts = draw(11).multinomial(texts, np.full(texts, 1 / texts), size=20).astype(float)
    counts[0] = 1
    found = scored.statistic(counts)
    expected = [score(*written_out(predictions, data, row), kind=kind, metric=metric).scores[metric] for row in counts]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[0] == pytest.approx(scored.scores[metric], abs=1e-12)
    assert len(set(found.round(6))) > 5


def test_correlations_of_draws_agree_with_scipy():
    predictions, data = numbers()
    once, values = np.ones((1, TEXTS)), predictions["values"][:, 0]
    for metric, theirs in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
        found = score(predictions, data, kind="regression", metric=metric).statistic(once)[0]
        assert found == pytest.approx(theirs(data.labels, values).statistic, abs=1e-12)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_draw_of_one_text_again_and_again_correlates_with_nothing(metric):
    counts = np.zeros((1, TEXTS))
    counts[0, 7] = TEXTS
    assert score(*numbers(), kind="regression", metric=metric).statistic(counts).tolist() == [0.0]


def test_a_text_is_right_if_all_of_it_is():
    predictions, data = tokens()
    choices, texts = predictions["values"].argmax(axis=1), predictions["texts"]
    expected = [(choices[texts == text] == data.labels[text]).all() for text in np.unique(texts)]
    assert score(predictions, data, kind=TOKENS, metric="f1").correct.tolist() == expected
    assert 0 < sum(expected) < len(expected) == TEXTS - 1
    sets = score(*several(), kind=SEVERAL, metric="micro_f1")
    assert sets.correct.sum() == round(sets.scores["subset_accuracy"] * TEXTS)
    assert score(*numbers(), kind="regression", metric="mse").correct is None
