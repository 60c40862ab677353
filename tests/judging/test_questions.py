"""Answers as parts of a text: from windows that overlap, by SQuAD's rules."""

import numpy as np
import pytest

from potstill.errors import DataError
from potstill.judging.ask import ask
from potstill.judging.spans import Spans, find_spans, read_spans
from tests.export import small
from tests.judging.asking import Table


def window(question, tokens, starts, ends):
    """Return a window of one-character tokens from `tokens` on, behind one special token."""
    places = np.array([-1, *tokens])
    return question, places, np.where(places >= 0, places + 1, -1), np.array(starts, float), np.array(ends, float)


def test_the_best_span_of_all_windows_wins():
    windows = [
        window(0, [0, 1, 2], [-4, 1, 5, 0], [1, 9, 1, 2]),  # an end before its start is no span: 5 + 2, not 5 + 9
        window(0, [2, 3], [0, 3, 9], [0, 0, 1]),
        window(1, [0], [2, 1], [1, 3]),
    ]
    spans = find_spans(windows, questions=3)
    # 1 + 9 at the first token of the first window; 9 + 1 is no better and comes later.
    assert spans.places.tolist() == [[0, 1], [0, 1], [0, 0]]
    assert spans.best.tolist() == [10, 4, -np.inf]
    assert spans.null.tolist() == [-3, 3, np.inf]
    assert find_spans(windows, questions=2, n_best=1).best.tolist() == [10, 4]


def test_a_span_is_not_longer_than_asked():
    windows = [window(0, [0, 1, 2], [0, 8, 0, 0], [0, 0, 1, 7])]
    assert find_spans(windows, questions=1).places.tolist() == [[0, 3]]
    assert find_spans(windows, questions=1, longest=2).places.tolist() == [[0, 2]]


def test_no_answer_is_said_only_where_it_may_be_and_scores_more():
    spans = Spans(places=np.array([[0, 2], [1, 3]]), best=np.array([5.0, 5.0]), null=np.array([5.5, 4.0]))
    assert read_spans(spans, ["abcd", "abcd"], null_threshold=None) == ["ab", "bc"]
    assert read_spans(spans, ["abcd", "abcd"], null_threshold=0.0) == ["", "bc"]
    assert read_spans(spans, ["abcd", "abcd"], null_threshold=1.0) == ["ab", "bc"]


@pytest.mark.parametrize("place", [0, 2])
def test_one_score_that_is_no_number_loses_its_question_and_no_other(place):
    starts = [0.0, 1.0, 2.0]
    starts[place] = np.nan
    good = window(1, [0], [0, 1], [0, 1])
    for order in (1, -1):
        windows = [window(0, [0, 1], starts, [0, 1, 2]), window(0, [2], [0, 50], [0, 50]), good][::order]
        spans = find_spans(windows, questions=2)
        assert np.isnan(spans.best).tolist() == [True, False]
    assert read_spans(spans, ["abc", "abc"], null_threshold=0.0)[1] == "a"


def tell(letter, width=1):
    """Return scores by token that are high for one letter, at a word's beginning or within it."""
    scores = np.zeros(len(small.VOCABULARY), dtype=np.float32)
    scores[[small.VOCABULARY.index(letter), small.VOCABULARY.index(f"##{letter}")]] = width
    return scores


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_answer_far_behind_is_found_in_a_later_window(tmp_path, side):
    """The longest input is 32: 3 special tokens, 2 of the question, 27 of the context."""
    tokenizer = small.bundle_tokenizer(tmp_path, padding_side=side)
    context = "a" * 10 + " " + "b" * 30 + " xyz " + "c" * 9
    session = Table(start_logits=tell("x", 9), end_logits=tell("z", 9))
    outputs = ["start_logits", "end_logits"]
    found = ask(session, tokenizer, [(" qq", context), ("xz", "qqxz")], kind="question-answering", outputs=outputs)
    first, last = context.index("x"), context.index("z") + 1
    assert found["spans"].tolist() == [[first, last], [2, 4]]
    assert found["best"].tolist() == [18, 18]
    assert found["null"].tolist() == [0, 0]
    assert session.largest > 2


def test_a_long_question_is_cut_and_a_short_input_refused(tmp_path):
    tokenizer = small.bundle_tokenizer(tmp_path, max_length=13)
    session = Table(start_logits=tell("x", 9), end_logits=tell("x", 9))
    asked = {"kind": "question-answering", "outputs": ["start_logits", "end_logits"]}
    # 10 places beside the special tokens, half of them for the question; all of it would leave none.
    found = ask(session, tokenizer, [("a" * 20, "bbbbbbbbbbbbx")], **asked)
    assert found["spans"].tolist() == [[12, 13]]
    with pytest.raises(DataError, match="need more"):
        ask(session, small.bundle_tokenizer(tmp_path, max_length=4), [("a", "b")], **asked)
