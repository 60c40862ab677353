"""What models are asked, kind by kind: the right tokens of the right texts, and numbers that need no tokenizer."""

import json

import numpy as np
import pytest

from potstill.errors import DataError, UsageError
from potstill.evaluation.predictions import load_predictions, predict
from tests.evaluation.sessions import Mean, Table
from tests.export import small

TEXTS = ["abc", "a", "hello good day", ("ab", "c"), "xyz xyz xyz xyz"]


@pytest.fixture(params=["right", "left"])
def tokenizer(request, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]"}))
    return small.bundle_tokenizer(tmp_path, padding_side=request.param)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_a_text_has_a_row_in_the_order_given(tokenizer, kind):
    session = Mean(logits=small.table(3))
    found = predict(session, tokenizer, TEXTS, kind=kind, outputs=["logits"])
    rows = tokenizer.rows(TEXTS)
    expected = [session.tables["logits"][row["input_ids"]].mean(axis=0) for row in rows]
    assert list(found) == ["values"]
    assert found["values"].dtype == (np.float64 if kind == "regression" else np.float32)
    if kind == "regression":  # a manifest's regression has one output; the mean of three is a list of amounts
        assert found["values"].shape == (5, 3)
    np.testing.assert_allclose(found["values"], expected, atol=1e-6)
    assert (session.runs, session.largest) == (5, 1)
    predict(session, tokenizer, TEXTS, kind=kind, outputs=["logits"], batch_size=4)
    assert (session.runs, session.largest) == (5 + 2, 4)


def test_a_probability_is_scored_where_the_server_gives_one(tokenizer):
    """A single output without a problem type of its own, as of a cross-encoder, is served through a sigmoid."""
    session = Mean(logits=small.table(1))
    plain, squashed = (
        predict(session, tokenizer, TEXTS, kind="regression", outputs=["logits"], function=function)["values"]
        for function in ("none", "sigmoid")
    )
    np.testing.assert_allclose(squashed, 1 / (1 + np.exp(-plain)), atol=1e-12)


def test_pairs_may_come_from_json(tokenizer):
    session = Mean(logits=small.table(2))
    settings = {"kind": "regression", "outputs": ["logits"]}
    tuples = predict(session, tokenizer, [("ab", "c"), ("d", "e")], **settings)
    lists = predict(session, tokenizer, [["ab", "c"], ["d", "e"]], **settings)
    np.testing.assert_allclose(tuples["values"], lists["values"], atol=1e-6)
    assert session.runs == 2 + 2


def test_a_word_is_answered_by_its_first_token(tokenizer):
    """One token per character, and 32 of them fit: 30 beside the special ones."""
    session = Table(logits=small.table(4))
    texts = [["ab", "c"], ["", "de"], ["x" * 29, "yz", "w"]]
    found = predict(session, tokenizer, texts, kind="token-classification", outputs=["logits"])
    assert found["texts"].tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert found["seen"].tolist() == [True, True, False, True, True, True, False]
    firsts = [small.VOCABULARY.index(letter) for letter in ("a", "c", "d", "x", "y")]
    np.testing.assert_array_equal(found["values"][found["seen"]], session.tables["logits"][firsts])
    assert found["values"].shape == (7, 4)


def test_texts_without_words_are_refused(tokenizer):
    with pytest.raises(DataError, match="no word"):
        predict(Table(), tokenizer, [[], []], kind="token-classification", outputs=["logits"])


def test_a_text_of_which_a_number_is_lost_is_lost_with_all_its_words(tokenizer):
    """A server answers it with an error, whatever its other words are."""
    logits = small.table(4)
    logits[small.VOCABULARY.index("c")] = np.nan
    texts = [["ab", "c"], ["d"]]
    found = predict(Table(logits=logits), tokenizer, texts, kind="token-classification", outputs=["logits"])
    assert np.isnan(found["values"]).all(axis=1).tolist() == [True, True, False]
    assert found["seen"].all()


def test_pairs_have_the_cosine_of_their_vectors(tokenizer):
    table = small.table(6)
    pairs = [("ab", "c"), ("d", "ef"), ("a", "a")]
    letters = [
        [[small.VOCABULARY.index(c if n == 0 else f"##{c}") for n, c in enumerate(side)] for side in pair]
        for pair in pairs
    ]
    vectors = [[table[[small.FIRST, *ids, small.LAST]].mean(axis=0) for ids in pair] for pair in letters]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in vectors]
    pooled = predict(
        Mean(sentence_embedding=table),
        tokenizer,
        pairs,
        kind="feature-extraction",
        outputs=["last_hidden_state", "sentence_embedding"][1:],
    )
    hidden = predict(
        Table(last_hidden_state=table), tokenizer, pairs, kind="feature-extraction", outputs=["last_hidden_state"]
    )
    for found in (pooled, hidden):
        assert found["values"].shape == (3, 1)
        np.testing.assert_allclose(found["values"][:, 0], cosines, atol=1e-6)
    first = predict(
        Table(last_hidden_state=table),
        tokenizer,
        pairs,
        kind="feature-extraction",
        outputs=["last_hidden_state"],
        pooling="cls",
    )
    np.testing.assert_allclose(first["values"][:, 0], 1.0, atol=1e-6)  # every text begins with the same token


def test_single_texts_have_no_cosine(tokenizer):
    for kind in ("feature-extraction", "question-answering"):
        with pytest.raises(DataError, match=f"{kind} is judged by pairs.*'abc' is one"):
            predict(Table(), tokenizer, ["abc"], kind=kind, outputs=["x"])


def test_hidden_words_are_the_same_ones_and_their_surprise_is_told(tokenizer):
    """The model gives the token after the one it sees, so at a hidden word always the one after the mask."""
    logits = np.roll(np.eye(len(small.VOCABULARY), dtype=np.float32) * 3, 1, axis=1)
    texts = ["", "a b xy c d e f g h i j k l", "q"]
    found = predict(Table(logits=logits), tokenizer, texts, kind="fill-mask", outputs=["logits"])
    vocabulary = len(small.VOCABULARY)
    # Of the words that are one token, "xy" being two: numbers 3 and 10 of the longer text, and the last.
    assert found["wanted_words"].tolist() == ["d", "k", "q"]
    assert found["texts"].tolist() == [1, 1, 2]
    assert found["choices"].tolist() == [small.MASK + 1] * 3
    assert found["choice_words"].tolist() == [small.VOCABULARY[small.MASK + 1]] * 3
    assert found["wanted"].tolist() == [small.VOCABULARY.index(word) for word in ("d", "k", "q")]
    assert int(found["vocabulary"]) == vocabulary
    np.testing.assert_allclose(found["nll"], np.log(vocabulary - 1 + np.exp(3)), rtol=1e-6)


def test_a_hidden_word_that_is_no_number_is_not_a_number_and_no_warning(tokenizer):
    logits = np.zeros((len(small.VOCABULARY), len(small.VOCABULARY)), dtype=np.float32)
    logits[small.MASK, 3] = np.inf
    found = predict(Table(logits=logits), tokenizer, ["a"], kind="fill-mask", outputs=["logits"])
    assert np.isnan(found["nll"]).all()


def test_nothing_to_ask_is_refused(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no texts"):
        predict(Table(), tokenizer, [], kind="regression", outputs=["logits"])
    with pytest.raises(DataError, match="no words to hide"):
        predict(Table(), tokenizer, ["", " "], kind="fill-mask", outputs=["logits"])
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UsageError, match="mask token"):
        predict(Table(), small.bundle_tokenizer(tmp_path), ["a"], kind="fill-mask", outputs=["logits"])


def test_answers_survive_a_file(tokenizer, tmp_path):
    found = predict(Table(logits=small.table(99)), tokenizer, ["a b c d e"], kind="fill-mask", outputs=["logits"])
    np.savez(tmp_path / "answers.npz", **found)
    stored = load_predictions(tmp_path / "answers.npz")
    assert {name: stored[name].tolist() for name in stored} == {name: v.tolist() for name, v in found.items()}
