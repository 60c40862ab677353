"""Drift between alone and in batches: nothing where there is none, exactly what there is where there is some."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from potstill.errors import CheckError
from potstill.export.checks import measure_batch_invariance
from potstill.serve import OnnxSession
from tests.export import small

SINGLE = {"kind": "single_label_classification", "outputs": ["logits"]}


@pytest.fixture
def tokenizer(tmp_path):
    return small.bundle_tokenizer(tmp_path)


def texts(count, *, longest=12):
    generator = np.random.default_rng(0)
    return ["".join(generator.choice(list("abcdefgh"), size=generator.integers(1, longest))) for _ in range(count)]


def test_a_graph_of_rows_does_not_drift(tokenizer, tmp_path):
    session = small.session(tmp_path, small.textwise(small.table(3)))
    found = measure_batch_invariance(session, tokenizer, tokenizer.rows(texts(100)), **SINGLE)
    assert (found.texts, found.rows, found.flips, found.invariant) == (100, 100, 0, True)
    assert list(found.batches) == ["8", "32"]
    assert found.max_drift < 1e-5
    assert found.spread > 0.1


def test_what_the_batch_adds_is_the_drift(tokenizer, tmp_path):
    """The graph adds a thousandth of the batch's length, padding included, to the first class."""
    nodes = [
        *small.mean_nodes("table", "own"),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Cast", ["length"], ["long"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["long", "first"], ["added"]),
        helper.make_node("Add", ["own", "added"], ["logits"]),
    ]
    table = small.table(2)
    first = np.array([[0.001, 0.0]], dtype=np.float32)
    session = small.session(
        tmp_path, small.model(nodes, ["logits"], constants={"table": table, "one": [1], "two": [2], "first": first})
    )
    rows = tokenizer.rows(["a", "aaaaaaaaa"])
    found = measure_batch_invariance(session, tokenizer, rows, batch_sizes=(2,), **SINGLE)
    assert found.max_drift == pytest.approx(0.008, abs=1e-6)  # the short text in a batch 8 tokens longer
    assert found.batches["2"].mean_drift == pytest.approx(0.002, abs=1e-6)
    assert found.flips == 0
    assert found.invariant == (found.max_drift <= 0.01 * found.spread)


def test_no_number_in_a_batch_is_an_error(tokenizer, tmp_path):
    """The graph adds the root of 2 less the number of texts."""
    nodes = [
        *small.mean_nodes("table", "own"),
        helper.make_node("Shape", ["input_ids"], ["texts"], start=0, end=1),
        helper.make_node("Cast", ["texts"], ["size"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["most", "size"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
        helper.make_node("Add", ["own", "root"], ["logits"]),
    ]
    constants = {"table": small.table(2), "one": [1], "two": [2], "most": np.array([2.0], np.float32)}
    session = small.session(tmp_path, small.model(nodes, ["logits"], constants=constants))
    with pytest.raises(CheckError, match="NaN"):
        measure_batch_invariance(session, tokenizer, tokenizer.rows(texts(8)), **SINGLE)


def test_flips_of_different_batches_are_counted_once(tokenizer, tmp_path):
    """The graph says class 1 for a text alone and class 0 for one among others."""
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["texts"], start=0, end=1),
        helper.make_node("Cast", ["texts"], ["size"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMax", ["rows", "one"], ["own"], keepdims=0),
        helper.make_node("Div", ["own", "size"], ["share"]),
        helper.make_node("Sub", ["share", "half"], ["logits"]),
    ]
    table = np.tile(np.array([[0.0, 1.0]], dtype=np.float32), (len(small.VOCABULARY), 1))
    constants = {"table": table, "one": [1], "half": np.array([[0.0, 0.4]], dtype=np.float32)}
    session = small.session(tmp_path, small.model(nodes, ["logits"], constants=constants))
    found = measure_batch_invariance(session, tokenizer, tokenizer.rows(texts(20)), batch_sizes=(5, 10), **SINGLE)
    assert found.flips == found.batches["5"].flips == found.batches["10"].flips == 20
    assert not found.invariant
    assert found.batches["10"].max_drift == pytest.approx(0.9)


def test_dynamic_int8_drifts_and_fp32_does_not(tokenizer, tmp_path):
    """Words of very different size: a scale for the whole batch suits none of them."""
    generator = np.random.default_rng(1)
    table = small.table(16) * generator.lognormal(sigma=1.5, size=(len(small.VOCABULARY), 1)).astype(np.float32)
    nodes = [*small.mean_nodes("table", "mean"), helper.make_node("MatMul", ["mean", "weight"], ["logits"])]
    constants = {"table": table, "one": [1], "two": [2], "weight": generator.normal(size=(16, 3)).astype(np.float32)}
    session = small.session(tmp_path, small.model(nodes, ["logits"], constants=constants), "fp32.onnx")
    quantize_dynamic(
        tmp_path / "fp32.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8
    )
    rows = tokenizer.rows(texts(200))
    exact = measure_batch_invariance(session, tokenizer, rows, **SINGLE)
    int8 = measure_batch_invariance(OnnxSession(tmp_path / "int8.onnx", threads=1), tokenizer, rows, **SINGLE)
    assert exact.invariant
    assert not int8.invariant
    assert int8.max_drift > 0.01 * int8.spread > 100 * exact.max_drift
    assert int8.flips > 0


def test_every_kind_has_rows_that_drift(tokenizer, tmp_path):
    rows = tokenizer.rows(texts(20, longest=30))
    session = small.session(tmp_path, small.tokenwise(small.table(5)), "tokens.onnx")
    tags = measure_batch_invariance(session, tokenizer, rows, kind="token-classification", outputs=["logits"])
    assert tags.rows == sum(len(row["input_ids"]) - 2 for row in rows)
    words = measure_batch_invariance(
        session, tokenizer, rows, kind="fill-mask", outputs=["logits"], mask_id=small.MASK, batch_sizes=(8,)
    )
    assert (tags.flips, tags.max_drift, words.flips, words.max_drift) == (0, 0.0, 0, 0.0)
    vectors = small.session(tmp_path, small.textwise(small.table(4), "sentence_embedding"), "vectors.onnx")
    found = measure_batch_invariance(
        vectors, tokenizer, rows, kind="feature-extraction", outputs=["sentence_embedding"], limit=7
    )
    assert (found.texts, found.flips, found.batches["8"].flips, found.invariant) == (7, None, None, True)
