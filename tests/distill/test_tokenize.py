"""Labelled examples as rows of tokens (`batches.tokenize`)."""

import numpy as np
import pytest

from potstill.data import Examples
from potstill.distill.batches import tokenize
from potstill.distill.teacher import train_tokenizer
from potstill.errors import DataError
from tests import tiny

CLS, SEP = 2, 3
CONTEXT = "the old mill by the river was built in 1820 by two brothers from the north of the valley"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([CONTEXT, "who built when where it ? hello world"] * 5, vocab_size=200, max_length=64)


def examples(texts, labels):
    return Examples(name="made", split="train", texts=texts, labels=labels, label_names=(), sha256="")


def test_a_tokenizer_is_the_same_for_the_same_texts():
    texts = [text for text, _ in tiny.sentences(256, seed=3)] + ["CAFÉ naïve, 東京!"]
    one, two = (train_tokenizer(texts, vocab_size=100, max_length=64) for _ in range(2))
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert len(one) == 100
    assert one.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Pieces of words are no special tokens: a text that spells one is text.
    assert one.tokenize("##e") == ["[UNK]", "[UNK]", "e"]
    assert not any(one.unk_token_id in ids for ids in one(texts)["input_ids"])
    assert one.decode(one("Cafe 東京!")["input_ids"], skip_special_tokens=True) == "cafe 東 京!"


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


def test_words_that_are_cut_off_have_no_token(tokenizer):
    row = tokenize(examples([["the", "old", "mill"]], [[1, 2, 3]]), tokenizer, max_length=4)[0]
    assert row["labels"] == [-100, 1, 2, -100]


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
    rows = list(questions(tokenizer, "two brothers", ""))
    context = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    answered, unanswered = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert [row["input_ids"] for row in answered] == [row["input_ids"] for row in unanswered]
    covered = set()
    for row in answered:
        assert row["length"] <= 14
        window = row["input_ids"][row["token_type_ids"].index(1) : -1]
        starts = [at for at in range(len(context)) if context[at : at + len(window)] == window]
        covered |= {at + number for at in starts for number in range(len(window))}
    assert covered == set(range(len(context)))
    found = [row for row in answered if row["start_positions"] > 0]
    assert found
    for row in found:
        answer = row["input_ids"][row["start_positions"] : row["end_positions"] + 1]
        assert tokenizer.decode(answer) == "two brothers"
    for row in [row for row in answered if row not in found] + unanswered:
        assert (row["start_positions"], row["end_positions"]) == (0, 0)


def test_a_long_question_leaves_room_for_the_context(tokenizer):
    labels = [{"text": ["mill"], "answer_start": [8]}]
    rows = tokenize(examples([("when " * 200, CONTEXT)], labels), tokenizer, max_length=16)
    assert max(rows["length"]) <= 16
    assert max(rows["start_positions"]) > 0
    with pytest.raises(DataError, match="max_length is 4"):
        tokenize(examples([("who", CONTEXT)], labels), tokenizer, max_length=4)
