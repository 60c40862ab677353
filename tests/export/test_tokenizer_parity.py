"""The bundle's tokenizer against the checkpoint's file: equal where it is, and caught where it is not."""

import json

import pytest
from tokenizers import Tokenizer

from potstill.errors import ParityError
from potstill.export import tokenizer_parity
from potstill.export.tokenizer_parity import NASTY, TEXTS, check_tokenizer_parity, nasty_texts
from tests.export import small

REAL = ["a good film", "it was 1.5 times as bad", ("is it?", "it is"), "d\u00e9j\u00e0 vu"] * 20
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


@pytest.fixture
def ours(tmp_path):
    return small.bundle_tokenizer(tmp_path, max_length=128, inputs=INPUTS)


@pytest.fixture
def short(monkeypatch):
    """Leave out the texts that take seconds."""
    monkeypatch.setattr(tokenizer_parity, "NASTY", tuple(text for text in NASTY if len(str(text)) < 5000))
    monkeypatch.setattr(tokenizer_parity, "TEXTS", 300)


def changed(edit):
    """Return the tokenizer with its file changed by `edit`."""
    content = json.loads(small.word_piece().to_str())
    edit(content)
    return Tokenizer.from_str(json.dumps(content))


def test_two_thousand_texts_are_read_alike(ours):
    found = check_tokenizer_parity(ours, small.word_piece(), REAL, max_length=128)
    assert found.model_dump() == {"texts": 2000, "nasty": 1920, "max_length": 128, "equal": True}


def test_inputs_that_the_model_does_not_take_are_not_compared(tmp_path, short):
    ours = small.bundle_tokenizer(tmp_path, max_length=128, inputs=["input_ids"])
    assert check_tokenizer_parity(ours, small.word_piece(), REAL, max_length=128).equal


def keep_case(content):
    content["normalizer"]["lowercase"] = False


def swap_words(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def leave_out_the_end(content):
    content["post_processor"]["single"].pop()


def second_text_as_first(content):
    for piece in content["post_processor"]["pair"]:
        next(iter(piece.values()))["type_id"] = 0


def split_no_chinese(content):
    content["normalizer"]["handle_chinese_chars"] = False


def give_up_on_short_words(content):
    content["model"]["max_input_chars_per_word"] = 99


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (keep_case, "input_ids"),
        (swap_words, "input_ids"),
        (leave_out_the_end, "input_ids"),
        (second_text_as_first, "token_type_ids"),
        (split_no_chinese, "input_ids"),
        (give_up_on_short_words, "input_ids"),
    ],
)
def test_a_fault_is_named_with_the_text_and_both_lists(ours, short, fault, names):
    message = rf"differently from the checkpoint's: {names} \[\d.*, expected \[\d"
    with pytest.raises(ParityError, match=message) as caught:
        check_tokenizer_parity(ours, changed(fault), ["good"], max_length=128)
    assert len(str(caught.value)) < 400


def test_another_length_is_a_fault(ours, short):
    with pytest.raises(ParityError, match="expected"):
        check_tokenizer_parity(ours, small.word_piece(), REAL, max_length=127)


def test_nasty_texts_are_seeded_and_as_many_as_asked_for():
    first, second, other = (list(nasty_texts(["real", ("a", "b")], count=300, seed=seed)) for seed in (0, 0, 1))
    assert first == second != other
    assert len(first) == 300
    assert first[: len(NASTY)] == list(NASTY)
    assert list(nasty_texts([], count=5, seed=0)) == list(NASTY[:5])
    assert TEXTS == 2000


def test_nasty_texts_hold_what_breaks_tokenizers():
    singles = [text for text in NASTY if isinstance(text, str)]
    together = "".join(singles)
    assert max(map(len, singles)) == 100_000
    assert "" in singles
    for piece in ("\ufdfa", "\u200d", "\x00", "\u0301", "[CLS]", "\u202e", "\u05e9", "\u4e2d", "\U00020000", "\x1b"):
        assert piece in together
    assert not any("\ud800" <= character <= "\udfff" for character in together)  # transformers refuses surrogates
    assert sum(isinstance(text, tuple) for text in NASTY) > 5
