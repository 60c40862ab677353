"""Labelled examples as rows."""

import numpy as np
import pytest

from potstill.data import Examples
from potstill.distill.batches import tokenize
from potstill.distill.scratch_teacher import train_tokenizer
from potstill.errors import DataError

CLS, SEP = 2, 3
CONTEXT = "the old mill by the river was built in 1820 by two brothers from the north of the valley"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([CONTEXT, "who built when where it ? hello world"] * 5, vocab_size=200, max_length=64)


def examples(texts, labels):
    return Examples(name="made", split="train", texts=texts, labels=labels, label_names=(), sha256="")


def test_texts_and_pairs_keep_their_labels(tokenizer):
    single = tokenize(examples(["the mill", "the old mill by the river"], np.array([1, 0])), tokenizer, max_length=5)
    assert list(single["length"]) == [4, 5]
    assert list(single["labels"]) == [1, 0]
    pairs = tokenize(examples([("the", "mill")], np.array([[0.0, 1.0]])), tokenizer, max_length=8)
    assert pairs[0]["token_type_ids"] == [0, 0, 0, 1, 1]
    assert pairs[0]["labels"] == [0.0, 1.0]
    assert "labels" not in tokenize(examples(["the mill"], None), tokenizer, max_length=8).column_names


def test_the_first_token_of_a_word_has_its_label(tokenizer):
    # The tokenizer knows "mill" and "river" whole; "millriver" takes several tokens, a zero-width space none.
    words = ["mill", "millriver", "\u200b", "river"]
    row = tokenize(examples([words], [np.array([4, 5, 6, 7])]), tokenizer, max_length=32)[0]
    pieces = len(tokenizer("millriver", add_special_tokens=False)["input_ids"])
    assert pieces > 1
    assert row["labels"] == [-100, 4, 5, *[-100] * (pieces - 1), 7, -100]
    assert row["word_starts"] == [1, 2, -1, 2 + pieces]


def test_words_that_are_cut_off_have_no_token(tokenizer):
    row = tokenize(examples([["the", "old", "mill"]], [[1, 2, 3]]), tokenizer, max_length=4)[0]
    assert row["labels"] == [-100, 1, 2, -100]
    assert row["word_starts"] == [1, 2, -1]


def test_words_without_a_label_are_refused(tokenizer):
    with pytest.raises(DataError, match="row 1 has 2 words and 1 labels"):
        tokenize(examples([["the", "old"]], [[1]]), tokenizer, max_length=8)


def questions(tokenizer, *answers, max_length=14):
    labels = [
        {"text": [text] if text else [], "answer_start": [CONTEXT.index(text)] if text else []} for text in answers
    ]
    texts = [(" who built it ?", CONTEXT)] * len(labels)
    return tokenize(examples(texts, labels), tokenizer, max_length=max_length)


def test_windows_cover_the_context_and_mark_the_answer_where_it_is_whole(tokenizer):
    rows = questions(tokenizer, "two brothers", "")
    covered = set()
    found = 0
    for row in rows:
        assert row["length"] <= 14
        spans = list(zip(row["offset_starts"], row["offset_ends"], strict=True))
        covered |= {(row["example"], *span) for span in spans if span[0] >= 0}
        assert spans[0] == (-1, -1)
        start, end = row["start_positions"], row["end_positions"]
        if start == 0:
            assert end == 0
            continue
        found += 1
        assert row["example"] == 0
        assert CONTEXT[row["offset_starts"][start] : row["offset_ends"][end]] == "two brothers"
    assert found >= 1
    pieces = tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert covered == {(example, *span) for example in (0, 1) for span in pieces}


def test_a_long_question_leaves_room_for_the_context(tokenizer):
    labels = [{"text": ["mill"], "answer_start": [8]}]
    rows = tokenize(examples([("when " * 200, CONTEXT)], labels), tokenizer, max_length=16)
    assert max(rows["length"]) <= 16
    assert max(rows["start_positions"]) > 0
    with pytest.raises(DataError, match="max_length is 4"):
        tokenize(examples([("who", CONTEXT)], labels), tokenizer, max_length=4)
