"""Is a model better than an answer that ignores the text? By an interval, for every task."""

import json
import math

import numpy as np
import pytest

from potstill.data import Examples
from potstill.evaluation.scores import score
from potstill.evaluation.trivial import against_trivial, trivial_scores, uniform_scores
from potstill.tasks import METRICS

SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"


def draw(seed=0):
    return np.random.default_rng(seed)


def best(kind, labels, names=()):
    """Return the best scores of the answers that ignore the text."""
    texts = ["text"] * (1 if labels is None else len(labels))
    data = Examples(name="d", split="s", texts=texts, labels=labels, label_names=tuple(names), sha256="0" * 64)
    return trivial_scores(data, kind=kind)


def hold(arrays, labels, *, kind, metric, names=(), texts=None):
    texts = ["text"] * len(labels) if texts is None else texts
    data = Examples(name="d", split="s", texts=texts, labels=labels, label_names=tuple(names), sha256="0" * 64)
    found = against_trivial(arrays, score(arrays, data, kind=kind, metric=metric), data, kind=kind, metric=metric)
    assert json.loads(json.dumps(found.model_dump(mode="json"), allow_nan=False))["better"] == found.better
    return found


def classes(right, *, count=400, positive=0.7):
    """Return answers to labels of which 70 % are 1, a share `right` of them right."""
    labels = (np.arange(count) < positive * count).astype(int)
    wrong = draw(1).permutation(count) >= right * count
    return {"values": np.eye(2)[np.where(wrong, 1 - labels, labels)]}, labels


def test_a_student_at_the_majority_share_is_told_so():
    labels = np.array([1] * 70 + [0] * 30)
    found = hold({"values": np.eye(2)[np.ones(100, int)]}, labels, kind=SINGLE, metric="accuracy", names=("no", "yes"))
    assert (found.value, found.trivial, found.better) == (0.7, 0.7, False)
    assert found.difference_interval == (0.0, 0.0)
    assert found.sentence == (
        "no better than an answer that ignores the text: its accuracy is 0.7000 (95 % interval "
        f"{found.interval[0]:.4f} to {found.interval[1]:.4f}, 100 examples), and always yes scores 0.7000"
    )


@pytest.mark.parametrize(
    ("right", "better", "said"),
    [
        (0.60, False, "no better than"),
        (0.72, False, "not shown to be better than"),
        (0.90, True, None),
    ],
)
def test_the_interval_decides_and_not_the_score_alone(right, better, said):
    found = hold(*classes(right), kind=SINGLE, metric="accuracy", names=("no", "yes"))
    assert found.better is better
    assert (found.sentence or "").startswith(said or "")
    assert (found.sentence is None) is better


def test_the_interval_is_that_of_the_paired_difference():
    """By scipy's bootstrap of the same difference."""
    import scipy.stats

    arrays, labels = classes(0.75)
    found = hold(arrays, labels, kind=SINGLE, metric="accuracy", names=("no", "yes"))
    sides = [(arrays["values"].argmax(axis=1) == labels).astype(float), (labels == 1).astype(float)]
    theirs = scipy.stats.bootstrap(
        sides,
        lambda one, two, axis: one.mean(axis=axis) - two.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=draw(3),
    ).confidence_interval
    assert found.difference_interval == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_f1_is_held_against_the_answer_that_f1_rewards():
    """Always positive: F1 of 2 * 0.7 / 1.7."""
    found = hold(*classes(0.65), kind=SINGLE, metric="f1", names=("no", "yes"))
    assert (found.trivial, found.trivial_answer) == (pytest.approx(1.4 / 1.7), "always yes")
    assert not found.better
    labels = (draw(5).random((200, 3)) < 0.45).astype(float)
    worse = np.where(draw(6).random((200, 3)) < 0.5, 1.0, -1.0)
    found = hold({"values": worse}, labels, kind=SEVERAL, metric="micro_f1", names="abc")
    share = labels.mean()
    assert (found.trivial, found.trivial_answer) == (pytest.approx(2 * share / (1 + share)), "every label")
    assert not found.better


def test_tags_that_find_nothing_and_amounts_that_go_with_nothing_are_told_so():
    labels = [np.array([0, 1, 2]), np.array([0, 0]), np.array([1])]
    words = {"values": np.eye(3)[np.zeros(6, int)], "texts": np.array([0, 0, 0, 1, 1, 2]), "seen": np.ones(6, bool)}
    names, texts = ("O", "B-X", "I-X"), [["w"] * 3, ["w"] * 2, ["w"]]
    found = hold(words, labels, kind="token-classification", metric="f1", names=names, texts=texts)
    assert (found.value, found.trivial, found.better) == (0.0, 0.0, False)
    assert "O for every word scores 0.0000" in found.sentence
    amounts = draw(1).uniform(0, 5, size=300)
    for kind in ("regression", "feature-extraction"):
        against = -0.03 * amounts + draw(2).normal(size=300)
        found = hold({"values": against[:, None]}, amounts, kind=kind, metric="pearson")
        assert found.value < 0.05
        assert not found.better
        assert hold(
            {"values": (amounts + draw(3).normal(size=300))[:, None]}, amounts, kind=kind, metric="spearman"
        ).better


def test_an_error_that_is_that_of_the_mean_is_no_better():
    amounts = draw(1).uniform(0, 5, size=300)
    found = hold({"values": np.full((300, 1), 2.5)}, amounts, kind="regression", metric="mse")
    assert not found.better
    assert found.sentence.startswith("no better than")
    close = hold({"values": (amounts + 0.1)[:, None]}, amounts, kind="regression", metric="mse")
    assert (close.better, close.value) == (True, pytest.approx(0.01))


def test_questions_and_hidden_words():
    labels = [{"text": ["Rome"], "answer_start": [0]}, {"text": [], "answer_start": []}] * 20
    silent = {"answers": np.array(["Rome"] * 40), "answers_or_none": np.array([""] * 40), "scores": np.ones(40)}
    texts = [("q", "c")] * 40
    found = hold(silent, labels, kind="question-answering", metric="f1", texts=texts)
    assert (found.value, found.trivial, found.better) == (0.5, 0.5, False)
    right = silent | {"answers_or_none": np.array(["Rome", ""] * 20)}
    assert hold(right, labels, kind="question-answering", metric="f1", texts=texts).better
    words = {
        "nll": np.full(30, np.log(50.0)),
        "choices": np.arange(30),
        "wanted": np.arange(30),
        "texts": np.arange(30),
        "vocabulary": np.array(50),
    }
    data = Examples(name="d", split="s", texts=["t"] * 30, labels=None, label_names=(), sha256="0" * 64)
    for nll, better in ((np.log(50.0), False), (np.log(20.0), True)):
        arrays = words | {"nll": np.full(30, nll)}
        scored = score(arrays, data, kind="fill-mask", metric="perplexity")
        assert against_trivial(arrays, scored, data, kind="fill-mask", metric="perplexity").better is better


def test_one_label_of_three_is_the_most_frequent():
    labels = np.array([2, 0, 2, 1, 2])
    found = best(SINGLE, labels, ("a", "b", "c"))
    assert found == pytest.approx({"accuracy": 0.6, "macro_f1": 0.75 / 3, "matthews_correlation": 0.0})


def test_a_class_without_examples_is_left_out_of_the_macro_f1_as_with_a_model():
    found = best(SINGLE, np.array([0, 0]), ("a", "b", "c"))
    assert found["macro_f1"] == 1.0


def test_of_two_labels_each_metric_gets_the_better_one():
    # Always 0: accuracy 3/4, F1 0, mean 3/8. Always 1: accuracy 1/4, F1 2/5, mean 13/40.
    found = best(SINGLE, np.array([0, 0, 1, 0]), ("no", "yes"))
    assert found == pytest.approx(
        {
            "accuracy": 0.75,
            "macro_f1": (6 / 7) / 2,
            "matthews_correlation": 0.0,
            "f1": 0.4,
            "accuracy_and_f1": 0.375,
        }
    )


def test_of_several_labels_those_that_most_texts_have():
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], dtype=np.float64)
    found = best(SEVERAL, labels, ("a", "b"))
    # All labels have the better macro F1, 6/7 and 2/5; the first alone is better by the other two.
    assert found == pytest.approx({"micro_f1": 6 / 8, "macro_f1": (6 / 7 + 2 / 5) / 2, "subset_accuracy": 0.5})
    assert tuple(found) == METRICS[SEVERAL]


def test_the_mean_correlates_with_nothing():
    found = best("regression", np.array([0.1, 0.2, 0.6]))
    assert found == {"pearson": 0.0, "spearman": 0.0, "pearson_and_spearman": 0.0, "mse": pytest.approx(0.14 / 3)}


def test_no_word_is_an_entity():
    labels = [np.array([1, 2, 0, 0]), np.array([1])]
    found = best("token-classification", labels, ("O", "B-PER", "I-PER"))
    assert found == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.4}


def test_tags_without_an_outside_are_the_most_frequent_tag():
    found = best("token-classification", [np.array([1, 1, 0])], ("NOUN", "VERB"))
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_no_question_has_an_answer():
    answers = [{"text": [], "answer_start": []}, {"text": ["Rome"], "answer_start": [0]}]
    found = best("question-answering", answers)
    assert (found["f1"], found["exact_match"], found["unanswerable_accuracy"]) == (0.5, 0.5, 1.0)


def test_every_word_is_equally_likely():
    found = uniform_scores(1000)
    assert found == {"perplexity": 1000.0, "loss": math.log(1000), "accuracy": 0.001}
    assert tuple(found) == METRICS["fill-mask"]


def test_the_same_similarity_for_every_pair():
    found = best("feature-extraction", np.array([1.0, 2.0]))
    assert found == {"pearson": 0.0, "spearman": 0.0, "pearson_and_spearman": 0.0}
    assert best("feature-extraction", None) == {}
