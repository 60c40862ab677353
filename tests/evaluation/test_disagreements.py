"""Where two models differ: the texts where they do so most, and what each said, in words."""

import numpy as np
import pytest

from potstill.data import Examples
from potstill.evaluation.comparison import disagreements
from potstill.evaluation.scores import NO_ANSWER, confusion

TAGS = ("O", "B-PER")


def examples(labels, names=(), texts=None):
    texts = [f"text {number}" for number in range(len(labels))] if texts is None else texts
    return Examples(name="data", split="test", texts=texts, labels=labels, label_names=tuple(names), sha256="0" * 64)


def logits(*shares):
    """Return the logits of probabilities."""
    return {"values": np.log(np.array(shares, dtype=np.float32))}


def several(*shares):
    """Return the logits of labels that each have a probability of their own."""
    shares = np.array(shares, dtype=np.float32)
    return {"values": np.log(shares / (1 - shares))}


def test_classes_are_as_far_apart_as_their_probabilities():
    first = logits([0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.6, 0.4])
    second = logits([0.7, 0.3], [0.5, 0.5], [0.9, 0.1], [0.5, 0.5])
    found = disagreements(first, second, examples(np.array([0, 1, 1, 0]), "ab"), kind="single_label_classification")
    assert [(row.text, row.label) for row in found] == [("text 2", "b"), ("text 0", "a"), ("text 3", "a")]
    assert [row.distance for row in found] == pytest.approx([0.7, 0.2, 0.1], abs=1e-6)
    assert (found[0].baseline_answer, found[0].candidate_answer) == ("b (80 %)", "a (90 %)")


def test_only_so_many_are_told_the_first_of_equals_first():
    first, second = logits(*[[0.9, 0.1]] * 30), logits(*[[0.1, 0.9]] * 30)
    data = examples(np.zeros(30, int), "ab")
    found = disagreements(first, second, data, kind="single_label_classification")
    assert [row.text for row in found] == [f"text {number}" for number in range(10)]
    assert len(disagreements(first, second, data, kind="single_label_classification", most=3)) == 3


def test_what_is_no_number_is_as_far_away_as_can_be():
    first, second = logits([0.9, 0.1], [0.5, 0.5]), logits([0.9, 0.1], [0.6, 0.4])
    second["values"][0, 1] = np.nan
    data = examples(np.array([0, 1]), "ab")
    found = disagreements(first, second, data, kind="single_label_classification")
    assert (found[0].distance, found[0].candidate_answer) == (1.0, NO_ANSWER)
    assert [row.text for row in disagreements(second, second, data, kind="single_label_classification")] == []


def test_several_labels():
    first, second = several([0.9, 0.2], [0.2, 0.4]), several([0.8, 0.9], [0.2, 0.3])
    found = disagreements(
        first, second, examples(np.array([[1.0, 0], [0, 0]]), "ab"), kind="multi_label_classification"
    )
    assert [row.distance for row in found] == pytest.approx([0.7, 0.1], abs=1e-6)
    assert (found[0].label, found[0].baseline_answer) == ("a", "a (90 %)")
    assert found[0].candidate_answer == "a (80 %), b (90 %)"
    assert (found[1].label, found[1].baseline_answer) == ("none", "none (40 % at most)")


@pytest.mark.parametrize("kind", ["regression", "feature-extraction"])
def test_amounts(kind):
    first = {"values": np.array([[1], [2], [np.nan]], dtype=np.float32)}
    second = {"values": np.array([[1.5], [4], [7]], dtype=np.float32)}
    texts = [("a", "b"), ("c", "d" * 400), ("e", "f")]
    found = disagreements(first, second, examples(np.array([1.0, 3.25, 0]), texts=texts), kind=kind)
    assert [(row.distance, row.label) for row in found] == [(2.0, "3.25"), (0.5, "1")]
    assert (found[0].baseline_answer, found[0].candidate_answer) == ("2", "4")
    assert found[0].text == ("c", "d" * 299 + "…")


def test_of_a_text_the_word_is_told_where_the_two_differ_most():
    first = logits([0.9, 0.1], [0.6, 0.4], [0.5, 0.5])
    second = logits([0.8, 0.2], [0.1, 0.9], [0.4, 0.6])
    more = {"texts": np.array([0, 0, 1]), "seen": np.ones(3, bool)}
    data = examples([np.array([0, 1]), np.array([0])], TAGS, [["so", "Ann"], ["yes"]])
    found = disagreements(first | more, second | more, data, kind="token-classification")
    assert [(row.text, row.label) for row in found] == [("so Ann", "Ann: B-PER"), ("yes", "yes: O")]
    assert (found[0].baseline_answer, found[0].candidate_answer) == ("Ann: O (60 %)", "Ann: B-PER (90 %)")
    assert found[0].distance == pytest.approx(0.5)


def test_questions_and_hidden_words():
    contexts = ["red fox jumps", "old cow"]
    labels = [{"text": ["red fox"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    data = examples(labels, texts=[("what?", context) for context in contexts])
    first, second = (
        {"answers": np.array(given), "answers_or_none": np.array(allowed), "scores": np.array([0.9, 0.3])}
        for given, allowed in ((["red fox", "old"], ["red fox", ""]), (["red", "old cow"], ["red", "old cow"]))
    )
    found = disagreements(first, second, data, kind="question-answering")
    assert [row.distance for row in found] == pytest.approx([1, 1 - 2 / 3])
    assert (found[0].label, found[0].baseline_answer, found[0].candidate_answer) == (NO_ANSWER, NO_ANSWER, "old cow")
    assert (found[1].label, found[1].baseline_answer, found[1].candidate_answer) == ("red fox", "red fox", "red")

    words = {
        "texts": np.array([1, 1]),
        "choices": np.array([4, 5]),
        "wanted": np.array([4, 6]),
        "choice_words": np.array(["sea", "sky"]),
        "wanted_words": np.array(["sea", "sun"]),
        "vocabulary": np.array(9),
    }
    sides = [words | {"nll": -np.log(np.array(shares))} for shares in ([0.5, 0.2], [0.4, 0.6])]
    found = disagreements(*sides, examples(None, texts=["", "sea and sun"]), kind="fill-mask")
    assert [(row.text, row.label) for row in found] == [("sea and sun", "sun")]
    assert found[0].baseline_answer == "sky (20 % for the true word)"
    assert found[0].distance == pytest.approx(0.4)


def test_answers_are_counted_against_labels_and_against_each_other():
    first = logits([0.9, 0.1], [0.1, 0.9], [0.2, 0.8])
    second = logits([0.9, 0.1], [0.9, 0.1], [0.1, 0.9])
    data = examples(np.array([0, 0, 1]), "ab")
    assert confusion(None, first, data) == (["a", "b"], [[1, 1], [0, 1]])
    assert confusion(first, second, data) == (["a", "b"], [[1, 0], [1, 1]])
    second["values"][0] = np.nan
    assert confusion(first, second, data) == (
        ["a", "b", NO_ANSWER],
        [[0, 0, 1], [1, 1, 0], [0, 0, 0]],
    )
