"""What is said of one model's answers: tables counted by hand, every answer listed, and what no score shows."""

import numpy as np
import pytest
import scipy.stats

from potstill.data import Examples
from potstill.evaluation.scores import NO_ANSWER
from potstill.evaluation.summary import summarize

SINGLE = "single_label_classification"


def examples(texts, labels, names=()):
    return Examples(name="data", split="test", texts=texts, labels=labels, label_names=tuple(names), sha256="0" * 64)


def test_the_tables_of_single_labels_are_counted_by_hand():
    logits = np.array([[2, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2.0]], dtype=np.float32)
    given = examples(["a", "b", "c", "d"], np.array([0, 0, 1, 2]), ("x", "y", "z"))
    found = summarize({"values": logits}, given, kind=SINGLE, metric="accuracy", keep_predictions=True)
    assert found["labels"] == ["x", "y", "z"]
    assert found["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    half = scipy.stats.binomtest(1, 2)
    wilson = half.proportion_ci(method="wilson")
    # Of all three labels together.
    together = half.proportion_ci(1 - 0.05 / 3, method="wilson")
    assert found["per_class"][0] == {
        "label": "x",
        "precision": 1.0,
        "recall": 0.5,
        "f1": 2 / 3,
        "support": 2,
        "predicted": 1,
        "recall_interval": [pytest.approx(wilson.low), pytest.approx(wilson.high)],
    }
    assert found["worst_label"] == {
        "label": "x",
        "support": 2,
        "recall": 0.5,
        "interval": [pytest.approx(together.low), pytest.approx(together.high)],
    }
    assert found["value"] == found["scores"]["accuracy"] == 0.75
    share = round(float(np.exp(2) / (np.exp(2) + 2)), 6)
    assert found["predictions"][1] == {"text": "b", "label": "x", "prediction": "y", "probability": share}
    assert (found["trivial"], found["trivial_answer"]) == (0.5, "always x")


def test_the_tables_of_several_labels_are_counted_by_hand():
    logits = np.array([[1, -1], [1, 1], [-1, -1.0]])
    given = examples(["a", ("b", "c"), "d"], np.array([[1, 0], [0, 1], [1, 0.0]]), ("x", "y"))
    found = summarize(
        {"values": logits}, given, kind="multi_label_classification", metric="micro_f1", keep_predictions=True
    )
    assert [(row["precision"], row["recall"], row["support"]) for row in found["per_class"]] == [
        (0.5, 0.5, 2),
        (1, 1, 1),
    ]
    assert "confusion_matrix" not in found
    assert found["predictions"][1] == {"text": ("b", "c"), "label": ["y"], "prediction": ["x", "y"]}


def test_entities_are_counted_by_type_and_tags_listed():
    names = ("O", "B-LOC", "B-PER")
    given = examples([["in", "Rome"], ["Ann", "sat"]], [np.array([0, 1]), np.array([2, 0])], names)
    arrays = {"values": np.eye(3)[[0, 1, 1, 0]], "texts": np.array([0, 0, 1, 1]), "seen": np.array([1, 1, 1, 0], bool)}
    found = summarize(arrays, given, kind="token-classification", metric="f1", keep_predictions=True)
    table = {row["label"]: (row["precision"], row["recall"], row["support"]) for row in found["per_class"]}
    assert table == {"LOC": (0.5, 1.0, 1), "PER": (0.0, 0.0, 1)}
    assert found["predictions"][1] == {
        "tokens": ["Ann", "sat"],
        "label": ["B-PER", "O"],
        "prediction": ["B-LOC", "O"],
    }
    assert found["notes"] == [
        "1 of 4 words are not read, being behind the longest input or without a token; they count as answered with O."
    ]


def test_amounts_and_answers_are_listed_and_have_no_classes():
    given = examples(["a", "b"], np.array([1.0, 2.5]))
    values = np.array([[0.5], [2.0]])
    found = summarize({"values": values}, given, kind="regression", metric="mse", keep_predictions=True)
    assert "per_class" not in found
    assert found["predictions"][1] == {"text": "b", "label": 2.5, "prediction": 2.0}
    asked = examples([("where", "in old Rome")], [{"text": ["Rome"], "answer_start": [7]}])
    arrays = {"answers": np.array(["old Rome"]), "answers_or_none": np.array([""]), "scores": np.array([0.5])}
    found = summarize(arrays, asked, kind="question-answering", metric="f1", keep_predictions=True)
    assert found["predictions"] == [
        {
            "question": "where",
            "label": ["Rome"],
            "prediction": "old Rome",
            "f1": pytest.approx(2 / 3),
            "exact_match": 0.0,
        }
    ]


def test_an_answer_that_is_no_number_is_none_and_in_no_class():
    values = np.array([[np.nan, 0], [0, 1], [1, 0.0]])
    given = examples(["a", "b", "c"], np.array([0, 1, 0]), ("x", "y"))
    found = summarize({"values": values}, given, kind=SINGLE, metric="accuracy", keep_predictions=True)
    assert (found["lost_finite"], found["value"]) == (1, 2 / 3)
    assert [row["prediction"] for row in found["predictions"]] == [None, "y", "x"]
    assert found["labels"] == ["x", "y", NO_ANSWER]
    assert found["confusion_matrix"] == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
