"""A teacher's answers in a column: every form that people write them in, and one clear line for what is none."""

import json

import numpy as np
import pytest

from potstill.data import load_vectors
from potstill.data.answers import names_in_answers, read_answers, read_vectors
from potstill.errors import AbsentError, DataError

NAMES = ("negative", "positive")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def read(*values, kind=SINGLE, names=NAMES, texts=()):
    cells = list(enumerate(values, 1))
    return read_answers(cells, column="llm", names=names, kind=kind, texts=texts)


def refusal(*values, **how):
    with pytest.raises(DataError) as caught:
        read(*values, **how)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "cell",
    [
        [0.25, 0.75],
        {"positive": 0.75, "negative": 0.25},
        # What `potstill predict` and POST /predict answer, the best label first.
        [{"label": "positive", "score": 0.75}, {"label": "negative", "score": 0.25}],
        {"NEGATIVE": 0.25, "Positive": 0.75},
        "[0.25, 0.75]",
        '{"positive": 0.75, "negative": 0.25}',
        '[{"label": "positive", "score": 0.75}, {"label": "negative", "score": 0.25}]',
        np.array([0.25, 0.75]),
    ],
)
def test_probabilities_are_read_in_every_form(cell):
    np.testing.assert_allclose(read(cell), [[0.25, 0.75]])


@pytest.mark.parametrize("cell", ["positive", "pos", 1, "1", 1.0])
def test_a_label_alone_is_certain(cell):
    other = "neg" if cell == "pos" else "negative" if isinstance(cell, str) and not cell.isdigit() else 0
    np.testing.assert_array_equal(read(cell, other), [[0, 1], [1, 0]])


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_an_empty_cell_says_nothing(nothing):
    found = read([1.0, 0.0], nothing)
    assert np.isnan(found[1]).all()
    assert not np.isnan(found[0]).any()


def test_probabilities_that_were_rounded_are_divided_by_their_sum():
    found = read([0.33, 0.33, 0.33], names=("a", "b", "c"))
    np.testing.assert_allclose(found, [[1 / 3, 1 / 3, 1 / 3]])
    # The documented limit itself, which a difference of floats is beyond.
    np.testing.assert_allclose(read([0.49, 0.49], [0.51, 0.51]), [[0.5, 0.5], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ([0.5, 0.4], "row 2: the probabilities in column 'llm' add up to 0.9, not to 1; write more digits"),
        (
            [1.2, -0.2],
            "row 2: column 'llm' holds 1.2 for negative, and a probability is 0 to 1; of logits take the softmax",
        ),
        ([-2.0, 3.0], "holds -2 for negative"),
        ([float("nan"), 1.0], "row 2: column 'llm' holds nan for negative, and a probability is 0 to 1"),
        ([0.2, 0.3, 0.5], "row 2: column 'llm' holds 3 probabilities for 2 labels (negative, positive)"),
        ({"negative": 0.5, "neutral": 0.5}, "row 2: column 'llm': 'neutral' is none of the labels"),
        ([{"label": "positive", "score": 1.0}], "row 2: column 'llm': there is no probability for 'negative'"),
        ({"negative": "low", "positive": 0.5}, "row 2: column 'llm' holds 'low' for negative, not a probability"),
        ("neutral", "row 2: label 'neutral' in column 'llm' is none of the model's 2 labels (negative, positive)"),
        ([{"label": "positive", "score": 0.5}] * 2, "row 2: column 'llm' has a label twice: positive, positive"),
    ],
)
def test_what_is_no_answer_is_refused_in_one_line_with_its_row(cell, said):
    assert said in refusal([0.5, 0.5], cell)


def test_several_labels_are_judged_one_by_one():
    found = read([0.9, 0.8], {"positive": 0.1, "negative": 0.2}, ["positive"], kind=MULTI)
    np.testing.assert_allclose(found, [[0.9, 0.8], [0.2, 0.1], [0, 1]])
    assert "holds 1.5 for positive" in refusal([0.5, 1.5], kind=MULTI)


def test_a_regression_has_a_number_alone_or_as_it_is_served():
    found = read(2.5, "3", [{"label": "LABEL_0", "score": -1.0}], None, kind=REGRESSION, names=())
    np.testing.assert_allclose(found, [[2.5], [3], [-1], [np.nan]])
    assert "row 1: column 'llm' holds 'much', not a finite number" in refusal("much", kind=REGRESSION, names=())


def test_every_word_has_an_answer_of_its_own():
    texts = [["we", "saw", "Rome"], ["Rome"]]
    names = ("O", "B-loc")
    found = read(
        [[0.9, 0.1], "O", {"O": 0.2, "B-loc": 0.8}], None, kind="token-classification", names=names, texts=texts
    )
    np.testing.assert_allclose(found[0], [[0.9, 0.1], [1, 0], [0.2, 0.8]])
    assert found[1].shape == (1, 2)
    assert np.isnan(found[1]).all()
    said = refusal(["O", "O"], kind="token-classification", names=names, texts=[["a", "b", "c"]])
    assert said == "row 1: column 'llm' holds 2 answers for 3 words; each word needs one"


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([{"b": 0.5, "a": 0.5}], ("a", "b")),
        ([[{"label": "b", "score": 0.5}, {"label": "a", "score": 0.5}]], ("a", "b")),
        ([[0.2, 0.3, 0.5]], ("0", "1", "2")),
        ([None, "joy", "anger", "joy"], ("anger", "joy")),
        ([2, 10, 1], ("1", "2", "10")),
        ([["O", "B-loc"], [[0.5, 0.5]]], ("0", "1", "B-loc", "O")),
    ],
)
def test_without_a_model_the_labels_are_those_that_the_answers_name(cells, names):
    assert names_in_answers(list(enumerate(cells, 1))) == names


def test_vectors_come_with_their_texts_each_text_once(tmp_path):
    rows = [{"text": "a", "vector": [1, 0]}, {"text": "b", "vector": "[0.5, 2]"}, {"text": "a", "vector": [9, 9]}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts, vectors = load_vectors(str(tmp_path), split="train", column="vector")
    assert texts == ["a", "b"]
    np.testing.assert_array_equal(vectors, [[1, 0], [0.5, 2]])
    with pytest.raises(AbsentError, match="has no column 'vec'; it has text, vector"):
        load_vectors(str(tmp_path), split="train", column="vec")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ([1.0], "row 2: column 'v' holds a vector of 1 numbers, and 2 in the rows before"),
        ([0.0, 0.0], "row 2: column 'v' holds a vector of NaN, infinity or nothing but 0"),
        ([float("inf"), 1.0], "row 2: column 'v' holds a vector of NaN"),
        ("north", "row 2: column 'v' holds 'north', not a vector: a list of numbers"),
        (None, "row 2: column 'v' holds None, not a vector"),
    ],
)
def test_what_is_no_vector_is_refused_with_its_row(cell, said):
    with pytest.raises(DataError) as caught:
        read_vectors([(1, [1.0, 2.0]), (2, cell)], "v")
    assert said in str(caught.value)
