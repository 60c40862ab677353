"""Rows of outputs: the right number, of the right tokens, without padding, whatever the batch."""

import numpy as np
import pytest
from onnx import helper

from potstill.errors import DataError, UsageError
from potstill.evaluation import predictions
from potstill.evaluation.predictions import collect_outputs
from tests.export import small

TEXTS = ["abc", "a", "hello good day", ("ab", "c"), "xyz xyz xyz xyz"]


@pytest.fixture(params=["right", "left"])
def tokenizer(request, tmp_path):
    return small.bundle_tokenizer(tmp_path, padding_side=request.param)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_classifier_has_one_row_per_text_in_the_order_given(tokenizer, tmp_path, batch_size):
    table, rows = small.table(3), tokenizer.rows(TEXTS)
    session = small.session(tmp_path, small.textwise(table))
    found = collect_outputs(
        session, tokenizer, rows, kind="single_label_classification", outputs=["logits"], batch_size=batch_size
    )
    expected = np.stack([table[row["input_ids"]].mean(axis=0) for row in rows])
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.texts.tolist() == [0, 1, 2, 3, 4]
    assert found.decisions().tolist() == expected.argmax(axis=1)[:, None].tolist()


def test_shuffled_batches_give_the_same_rows_in_the_same_order(tokenizer, tmp_path):
    rows = tokenizer.rows(TEXTS)
    session = small.session(tmp_path, small.textwise(small.table(3)))
    asked = {"kind": "multi_label_classification", "outputs": ["logits"]}
    sorted_, shuffled = (
        collect_outputs(session, tokenizer, rows, batch_size=2, shuffle=shuffle, **asked)
        for shuffle in (None, np.random.default_rng(3))
    )
    np.testing.assert_allclose(shuffled.values, sorted_.values, atol=1e-6)
    assert sorted_.decisions().tolist() == (sorted_.values > 0).astype(int).tolist()


def test_tokens_between_the_special_ones_have_a_row_each(tokenizer, tmp_path):
    table, rows = small.table(4), tokenizer.rows([*TEXTS, "[SEP] \u4e2d\u6587"])
    session = small.session(tmp_path, small.tokenwise(table))
    found = collect_outputs(session, tokenizer, rows, kind="token-classification", outputs=["logits"], batch_size=3)
    ids = [number for row in rows for number in row["input_ids"] if number not in (small.FIRST, small.LAST)]
    np.testing.assert_array_equal(found.values, table[ids])
    assert small.UNKNOWN in ids  # an unknown word is a word
    assert np.bincount(found.texts).tolist() == [3, 1, 12, 3, 12, 2]


def test_a_question_has_a_row_for_start_and_one_for_end_without_padding(tokenizer, tmp_path):
    starts, ends = small.table(1, seed=1)[:, 0], small.table(1, seed=2)[:, 0]
    nodes = [helper.make_node("Gather", [name, "input_ids"], [f"{name}_logits"]) for name in ("start", "end")]
    outputs = ["start_logits", "end_logits"]
    session = small.session(tmp_path, small.model(nodes, outputs, constants={"start": starts, "end": ends}))
    rows = tokenizer.rows([("ab", "abc"), ("a", "b")])
    found = collect_outputs(session, tokenizer, rows, kind="question-answering", outputs=outputs)
    assert found.texts.tolist() == [0, 0, 1, 1]
    assert found.values.shape == (4, 8)
    np.testing.assert_array_equal(found.values[0], starts[rows[0]["input_ids"]])
    np.testing.assert_array_equal(found.values[3, :5], ends[rows[1]["input_ids"]])
    assert np.isneginf(found.values[2:, 5:]).all()


def test_every_seventh_word_is_masked_from_a_language_model(tokenizer, tmp_path):
    """The graph answers each token with its id in one of two columns, so what was asked shows."""
    ids = np.arange(len(small.VOCABULARY), dtype=np.float32)
    session = small.session(tmp_path, small.tokenwise(np.stack([ids, -ids], axis=1)))
    rows = tokenizer.rows(["abcdefghijklmnopqrst", "a", "", "ab"])
    found = collect_outputs(session, tokenizer, rows, kind="fill-mask", outputs=["logits"], mask_id=small.MASK)
    # Words 3, 10 and 17 of the first text, the only word of the second, the second of the last.
    assert found.texts.tolist() == [0, 0, 0, 1, 3]
    assert (found.values[:, 0] == small.MASK).all()
    assert small.MASK not in rows[0]["input_ids"]


def test_a_language_model_is_asked_about_so_many_words_and_no_more(tokenizer, tmp_path, monkeypatch):
    session = small.session(tmp_path, small.tokenwise(small.table(50)))
    rows = tokenizer.rows(["abcdefghijklmnopqrst"] * 5)
    asked = {"kind": "fill-mask", "outputs": ["logits"], "mask_id": small.MASK}
    monkeypatch.setattr(predictions, "_MAX_MASKED", 7)
    assert collect_outputs(session, tokenizer, rows, **asked).texts.tolist() == [0, 0, 0, 1, 1, 1, 2]
    monkeypatch.setattr(predictions, "_MAX_NUMBERS", 200)
    assert collect_outputs(session, tokenizer, rows, **asked).values.shape == (4, 50)


def test_vectors_are_pooled_by_the_graph_or_here(tokenizer, tmp_path):
    table, rows = small.table(6), tokenizer.rows(TEXTS)
    hidden = small.session(tmp_path, small.tokenwise(table, "last_hidden_state"), "hidden.onnx")
    pooled = small.session(tmp_path, small.textwise(table, "sentence_embedding"), "pooled.onnx")
    expected = np.stack([table[row["input_ids"]].mean(axis=0) for row in rows])
    for session, name in ((hidden, "last_hidden_state"), (pooled, "sentence_embedding")):
        found = collect_outputs(session, tokenizer, rows, kind="feature-extraction", outputs=[name])
        np.testing.assert_allclose(found.values, expected, atol=1e-6)
        assert found.decisions() is None


def test_texts_run_alone_where_the_graph_takes_no_mask(tmp_path):
    tokenizer = small.bundle_tokenizer(tmp_path, inputs=["input_ids"])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "one"], ["logits"], keepdims=0),
    ]
    table = small.table(2)
    graph = small.model(nodes, ["logits"], constants={"table": table, "one": [1]}, inputs=["input_ids"])
    rows = tokenizer.rows(TEXTS)
    found = collect_outputs(small.session(tmp_path, graph), tokenizer, rows, kind="regression", outputs=["logits"])
    np.testing.assert_allclose(found.values, [table[row["input_ids"]].sum(axis=0) for row in rows], atol=1e-5)


def test_what_cannot_be_asked_is_refused(tokenizer, tmp_path):
    session = small.session(tmp_path, small.tokenwise(small.table(3)))
    with pytest.raises(UsageError, match="mask token"):
        collect_outputs(session, tokenizer, tokenizer.rows(["abc"]), kind="fill-mask", outputs=["logits"])
    for texts in ([], ["", " "]):
        with pytest.raises(DataError, match="no words"):
            collect_outputs(session, tokenizer, tokenizer.rows(texts), kind="token-classification", outputs=["logits"])
