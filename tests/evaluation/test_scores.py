"""Marks: the scores of whole data sets and of draws, of every kind, and what an answer that is no number costs."""

import numpy as np
import pytest

from potstill import metrics
from potstill.data import Examples
from potstill.evaluation.scores import agreement, score
from potstill.tasks import METRICS

TAGS = ("O", "B-PER", "I-PER")


def draw(seed=0):
    return np.random.default_rng(seed)


def examples(labels, names=(), texts=None):
    texts = [f"text {number}" for number in range(len(labels))] if texts is None else texts
    return Examples(name="data", split="test", texts=texts, labels=labels, label_names=tuple(names), sha256="0" * 64)


def single(count=40):
    labels = draw(1).integers(3, size=count)
    values = draw(2).normal(size=(count, 3)) + 1.5 * np.eye(3)[labels]
    return {"values": values.astype(np.float32)}, examples(labels, ("x", "y", "z"))


def several(count=40):
    labels = (draw(3).random((count, 2)) < 0.4).astype(float)
    return {"values": (draw(4).normal(size=(count, 2)) + 2 * labels - 1).astype(np.float32)}, examples(labels, "ab")


def amounts(count=40):
    labels = draw(5).uniform(0, 5, size=count)
    return {"values": (labels + draw(6).normal(size=count)).astype(np.float32)[:, None]}, examples(labels)


def words(count=30):
    labels = [draw(seed).integers(3, size=1 + seed % 5) for seed in range(count)]
    flat = np.concatenate(labels)
    values = draw(7).normal(size=(len(flat), 3)) + 2 * np.eye(3)[flat]
    arrays = {
        "values": values.astype(np.float32),
        "texts": np.repeat(np.arange(count), list(map(len, labels))),
        "seen": draw(8).random(len(flat)) < 0.9,
    }
    return arrays, examples(labels, TAGS, [["word"] * len(row) for row in labels])


def questions():
    """Four contexts; right, half right, wrong, and one without an answer."""
    golds = ["red fox", "brown cow", "sky", None]
    labels = [{"text": [gold] if gold else [], "answer_start": []} for gold in golds]
    arrays = {
        "answers": np.array(["red fox", "brown", "blue", "nothing"]),
        "answers_or_none": np.array(["red fox", "brown", "blue", ""]),
        "scores": np.array([0.9, 0.8, 0.7, 0.1]),
    }
    return arrays, examples(labels, texts=[("what?", "a context")] * 4)


def hidden():
    arrays = {
        "nll": np.log(np.array([2.0, 4, 8, 16])),
        "choices": np.array([1, 2, 3, 9]),
        "wanted": np.array([1, 2, 3, 4]),
        "texts": np.array([0, 0, 3, 4]),
        "vocabulary": np.array(100),
    }
    return arrays, examples(None, texts=list("abcde"))


KINDS = {
    "single_label_classification": (single, ("accuracy", "macro_f1", "matthews_correlation")),
    "multi_label_classification": (several, METRICS["multi_label_classification"]),
    "regression": (amounts, METRICS["regression"]),
    "feature-extraction": (amounts, METRICS["feature-extraction"]),
    "token-classification": (words, METRICS["token-classification"]),
    "question-answering": (questions, METRICS["question-answering"]),
    "fill-mask": (hidden, METRICS["fill-mask"]),
}
CASES = [(kind, metric) for kind, (_, names) in KINDS.items() for metric in names]


@pytest.mark.parametrize(("kind", "metric"), CASES)
def test_the_draw_of_every_text_once_is_the_score(kind, metric):
    found = score(*KINDS[kind][0](), kind=kind, metric=metric)
    once = found.statistic(np.ones((1, found.num_texts)))
    assert once[0] == pytest.approx(found.scores[metric], abs=1e-9)
    assert found.num_not_finite == 0


def test_scores_are_those_of_the_metrics():
    arrays, data = single()
    found = score(arrays, data, kind="single_label_classification", metric="accuracy")
    assert found.scores == metrics.classification_scores(data.labels, arrays["values"])
    assert found.correct.sum() == round(found.scores["accuracy"] * 40)
    arrays, data = amounts()
    found = score(arrays, data, kind="feature-extraction", metric="spearman")
    assert found.scores == metrics.correlations(data.labels, arrays["values"])
    assert found.correct is found.decisions is found.calibration is None


def test_a_word_that_was_not_seen_counts_as_outside():
    arrays, data = words()
    tags = np.where(arrays["seen"], arrays["values"].argmax(axis=1), 0)
    given = [[TAGS[tag] for tag in tags[arrays["texts"] == text]] for text in range(30)]
    expected = metrics.entity_scores(metrics.tag_names(data.labels, TAGS), given)
    assert score(arrays, data, kind="token-classification", metric="f1").scores == expected
    assert (~arrays["seen"]).sum() > 3


def test_questions_by_hand():
    arrays, data = questions()
    found = score(arrays, data, kind="question-answering", metric="f1")
    # "red fox" is right; "brown" has one word of two: F1 2/3; "blue" has none; and no answer is right.
    assert found.scores["f1"] == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    assert found.scores["exact_match"] == 0.5
    assert found.correct.tolist() == [True, False, False, True]
    # Where every question has an answer, none is left without.
    data.labels[3]["text"].append("nothing")
    assert score(arrays, data, kind="question-answering", metric="f1").scores["exact_match"] == 0.5


def test_hidden_words_by_hand():
    found = score(*hidden(), kind="fill-mask", metric="perplexity")
    # 2 * 4 * 8 * 16 = 2 ** 10, and its fourth root is 2 ** 2.5.
    assert found.scores == pytest.approx({"perplexity": 2**2.5, "loss": 2.5 * np.log(2), "accuracy": 0.75})
    assert found.num_texts == 3
    # The first text twice: (2 * 4) ** 2 over 4 words; the last: 16.
    assert found.statistic(np.array([[2.0, 0, 0], [0, 0, 1]])) == pytest.approx([8**0.5, 16])


def spoil(arrays, rows, value=np.nan):
    name = next(name for name in ("nll", "scores", "values") if name in arrays)
    changed = arrays[name].copy()
    changed[rows] = value
    return arrays | {name: changed}


@pytest.mark.parametrize(("kind", "metric"), CASES)
def test_what_is_no_number_is_counted_and_costs(kind, metric):
    arrays, data = KINDS[kind][0]()
    sound = score(arrays, data, kind=kind, metric=metric)
    for value in (np.nan, np.inf)[: 2 if "values" in arrays else 1]:
        rows = list(range(8 if kind == "token-classification" else 2))
        found = score(spoil(arrays, rows, value), data, kind=kind, metric=metric)
        assert found.num_not_finite == len(np.unique(np.asarray(arrays.get("texts", rows))[rows]))
        worse = found.scores[metric] - sound.scores[metric]
        assert (worse > 0) if metric in ("mse", "perplexity", "loss") else (worse < 0)
        assert found.statistic(np.ones((1, found.num_texts)))[0] == pytest.approx(found.scores[metric], abs=1e-9)
    everything = score(spoil(arrays, slice(None)), data, kind=kind, metric=metric)
    assert np.isfinite(list(everything.scores.values())).all()
    assert agreement(everything, everything) in (None, 0.0)
    if everything.correct is not None:
        assert not everything.correct.any()


def test_a_lost_class_is_never_right_by_chance():
    """argmax takes a NaN for the largest: here it would point at the label."""
    arrays = {"values": np.array([[np.nan, 0], [0, np.nan], [5, 0]], dtype=np.float32)}
    found = score(arrays, examples(np.array([0, 1, 0]), "ab"), kind="single_label_classification", metric="accuracy")
    assert found.correct.tolist() == [False, False, True]
    assert found.scores["accuracy"] == 1 / 3


def test_a_lost_tag_finds_no_entity():
    """The tag after `B-PER` is `I-PER`, which begins the same entity."""
    labels = [np.array([1, 0]), np.array([0])]
    values = np.array([[np.nan, 9, 0], [9, 0, 0], [9, np.inf, 0]], dtype=np.float32)
    arrays = {"values": values, "texts": np.array([0, 0, 1]), "seen": np.ones(3, bool)}
    found = score(arrays, examples(labels, TAGS, [["a", "b"], ["c"]]), kind="token-classification", metric="f1")
    assert found.scores == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 1 / 3}
    assert (found.num_not_finite, found.correct.tolist()) == (2, [False, False])


def test_a_lost_amount_is_the_far_end_of_the_others():
    arrays = {"values": np.array([[np.nan], [1], [3], [np.inf]], dtype=np.float32)}
    found = score(arrays, examples(np.array([0.0, 1, 3, 5])), kind="regression", metric="mse")
    # 3 in place of 0, and 1 in place of 5.
    assert found.scores["mse"] == (9 + 16) / 4


def test_agreement_is_the_share_of_equal_decisions():
    data = examples(np.array([0, 1, 0, 1]), "ab")
    first = {"values": np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)}
    second = {"values": np.array([[1, 0], [0, 1], [0, 1], [np.nan, 1]], dtype=np.float32)}
    ours, theirs = (score(a, data, kind="single_label_classification", metric="accuracy") for a in (first, second))
    assert agreement(ours, theirs) == 0.5
    assert agreement(ours, ours) == 1.0
    assert agreement(theirs, theirs) == 0.75
    # The last one's label is 1, so what is lost counts as 0, and so does this one decide.
    third = {"values": np.array([[1, 0], [0, 1], [0, 1], [1, 0]], dtype=np.float32)}
    other = score(third, data, kind="single_label_classification", metric="accuracy")
    assert agreement(theirs, other) == agreement(other, theirs) == 0.75


def test_calibration_is_drawn_as_it_is_measured():
    for make, kind in (
        (single, "single_label_classification"),
        (words, "token-classification"),
        (several, "multi_label_classification"),
    ):
        arrays, data = make()
        found = score(arrays, data, kind=kind, metric=METRICS[kind][0])
        values = arrays["values"].astype(np.float64)
        if kind.startswith("multi"):
            shares = 1 / (1 + np.exp(-np.abs(values)))
            hits = (values > 0) == (data.labels > 0.5)
        else:
            seen = arrays.get("seen", np.ones(len(values), bool))
            labels = np.concatenate(data.labels) if isinstance(data.labels, list) else data.labels
            values, labels = values[seen], labels[seen]
            shares = np.exp(values).max(axis=1) / np.exp(values).sum(axis=1)
            hits = values.argmax(axis=1) == labels
        expected = metrics.expected_calibration_error(shares.ravel(), hits.ravel())
        assert found.calibration(np.ones((1, found.num_texts)))[0] == pytest.approx(expected, abs=1e-6)


def test_a_draw_is_calibrated_like_its_texts_written_out():
    arrays, data = single()
    found = score(arrays, data, kind="single_label_classification", metric="accuracy")
    chosen = draw(9).integers(40, size=40)
    again = score(
        {"values": arrays["values"][chosen]},
        examples(data.labels[chosen], data.label_names),
        kind="single_label_classification",
        metric="accuracy",
    )
    counts = np.bincount(chosen, minlength=40).astype(float)[None]
    assert found.calibration(counts) == pytest.approx(again.calibration(np.ones((1, 40))), abs=1e-9)
