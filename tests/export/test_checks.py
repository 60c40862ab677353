"""The gates: parity over the grid, answers in batches, and speed; seeded faults do not get through."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from pydantic import ValidationError

from potstill.config import ExportConfig
from potstill.errors import CheckError, ParityError
from potstill.export import checks
from potstill.export.checks import (
    FP32_TOLERANCE,
    check_parity,
    compare_speed,
    left_out,
    masks,
    measure_batch_invariance,
    measure_difference,
    plan_grid,
)
from potstill.export.graph import build_graph
from potstill.export.onnx_files import save_model
from potstill.export.source import load_source
from potstill.serve import OnnxSession
from potstill.tasks import FEATURE_EXTRACTION, TOKEN_CLASSIFICATION
from potstill.timing import Race
from tests.cli.conftest import potstill  # noqa: F401 (a fixture)
from tests.export import small


@pytest.fixture(scope="module")
def source(tiny_teacher):
    return load_source(str(tiny_teacher))


@pytest.fixture(scope="module")
def graph(source):
    return build_graph(source.model, inputs=source.inputs, outputs=source.outputs).SerializeToString()


def session_of(model, folder):
    save_model(model, folder / "model.onnx")
    return OnnxSession(folder / "model.onnx")


def test_the_grid_covers_batches_lengths_and_masks(source, graph, tmp_path):
    evidence = check_parity(source, session_of(onnx.load_from_string(graph), tmp_path))
    cells = {(cell.batch_size, cell.length, cell.mask) for cell in evidence.grid}
    masks = ("full", "ragged right", "ragged left", "hole")
    assert cells == {(b, t, "full") for b in (1, 2, 8) for t in (1, 2)} | {
        (b, t, mask) for b in (1, 2, 8) for t in (33, 64) for mask in masks
    }
    assert evidence.cells == len(evidence.grid) == 30
    assert evidence.max_abs_difference < FP32_TOLERANCE / 10
    assert evidence.label_agreement == 1
    assert evidence.reference == "torch"


def test_masks_are_what_they_are_called():
    found = dict(masks(8, 5, np.random.default_rng(0)))
    assert list(found) == ["full", "ragged right", "ragged left", "hole"]
    assert found["full"].all()
    kept = found["ragged right"].sum(axis=1)
    assert (kept >= 1).all()
    assert len(set(kept)) > 2
    assert [row.tolist() for row in found["ragged right"]] == [[1] * count + [0] * (5 - count) for count in kept]
    assert np.array_equal(found["ragged left"], found["ragged right"][:, ::-1])
    assert found["hole"].tolist() == [[1, 1, 0, 1, 1]] * 8
    assert list(dict(masks(8, 2, np.random.default_rng(0)))) == ["full"]


def _scaled_weight(graph):
    tensor = max(graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))


def _ignored_mask(graph):
    for node in graph.node:
        if node.op_type == "MultiHeadAttention":
            node.input[4] = ""


def _swapped_labels(graph):
    name = next(node for node in reversed(graph.node) if node.op_type == "Gemm").input[1]
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    weight = onnx.numpy_helper.to_array(tensor)
    flipped = np.ascontiguousarray(weight[::-1] if weight.shape[0] == 2 else weight[:, ::-1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(flipped, name))


def _dropped_token_types(graph):
    for node in graph.node:
        if node.op_type == "Gather":
            node.input[:] = ["attention_mask" if name == "token_type_ids" else name for name in node.input]


def _shifted_positions(graph):
    """Roll the position table by one row."""
    tensor = next(tensor for tensor in graph.initializer if tensor.name.endswith("position_embeddings.weight"))
    rolled = np.roll(onnx.numpy_helper.to_array(tensor), 1, axis=-2)
    tensor.CopyFrom(onnx.numpy_helper.from_array(rolled, tensor.name))


FAULTS = [_scaled_weight, _ignored_mask, _swapped_labels, _dropped_token_types, _shifted_positions]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault, source, graph, tmp_path):
    model = onnx.load_from_string(graph)
    fault(model.graph)
    with pytest.raises(ParityError, match=r"differs from torch by .* at batch [18], .*nothing was published"):
        check_parity(source, session_of(model, tmp_path))


def test_a_fault_in_batches_alone_is_caught(source, graph, tmp_path):
    """Every row gets the first one's answer."""
    model = onnx.load_from_string(graph)
    last = next(node for node in reversed(model.graph.node) if "logits" in node.output)
    last.output[0] = "own"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "first"))
    model.graph.node.extend(
        [
            onnx.helper.make_node("Gather", ["own", "first"], ["one"], axis=0),
            onnx.helper.make_node("Shape", ["own"], ["shape"]),
            onnx.helper.make_node("Expand", ["one", "shape"], ["logits"]),
        ]
    )
    with pytest.raises(ParityError, match="at batch 2, length 1"):
        check_parity(source, session_of(model, tmp_path))


def test_lower_precision_is_measured_against_fp32_and_refused_only_without_numbers(source, graph, tmp_path):
    fp32 = session_of(onnx.load_from_string(graph), tmp_path)
    worse, broken = onnx.load_from_string(graph), onnx.load_from_string(graph)
    _scaled_weight(worse.graph)
    (tmp_path / "worse").mkdir()
    evidence = measure_difference(source, session_of(worse, tmp_path / "worse"), fp32.run)
    assert evidence.max_abs_difference > FP32_TOLERANCE
    assert evidence.reference == "fp32"
    tensor = max(broken.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), np.nan, np.float32), tensor.name))
    (tmp_path / "broken").mkdir()
    with pytest.raises(ParityError, match="no number at batch 1"):
        measure_difference(source, session_of(broken, tmp_path / "broken"), fp32.run)


def test_an_output_of_another_shape_is_a_mismatch(source, graph, tmp_path):
    model = onnx.load_from_string(graph)
    last = next(node for node in reversed(model.graph.node) if "logits" in node.output)
    last.output[0] = "own"
    model.graph.node.append(onnx.helper.make_node("Transpose", ["own"], ["logits"], perm=[1, 0]))
    with pytest.raises(ParityError, match="differs from torch by inf"):
        check_parity(source, session_of(model, tmp_path))


def test_the_longest_text_is_the_sources(source, graph, tmp_path):
    short = replace(source, max_length=20)
    evidence = check_parity(short, session_of(onnx.load_from_string(graph), tmp_path))
    assert {cell.length for cell in evidence.grid} == {1, 2, 20}


def source_of(graph, task, folder):
    """Return a source whose reference is a small graph."""
    reference = small.session(folder, graph, "reference.onnx").run
    config = SimpleNamespace(num_attention_heads=1, vocab_size=len(small.VOCABULARY))
    return SimpleNamespace(
        task=task, onnx_source=True, config=config, inputs=small.INPUTS, max_length=33, reference=lambda: reference
    )


def tags_moved(at, by=1):
    """Return a graph of tags that are larger `at` tokens that are "seen" or that are "padding", by `by`."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["seen"]),
        helper.make_node("Sub", ["one", "seen"], ["padding"]),
        helper.make_node("Mul", [at, "by"], ["more"]),
        helper.make_node("Add", ["rows", "more"], ["logits"]),
    ]
    constants = {"table": small.table(3), "two": [2], "one": np.float32(1), "by": np.float32(by)}
    return small.model(nodes, ["logits"], constants=constants)


def test_a_tokens_answer_counts_where_the_mask_lets_it_be_seen(tmp_path):
    source = source_of(small.tokenwise(small.table(3)), TOKEN_CLASSIFICATION, tmp_path)
    evidence = check_parity(source, small.session(tmp_path, tags_moved("padding")))
    assert (evidence.max_abs_difference, evidence.label_agreement, evidence.cells) == (0, 1, 18)
    with pytest.raises(ParityError, match="the file it was made from by 1 at batch 1, length 1, full mask"):
        check_parity(source, small.session(tmp_path, tags_moved("seen")))


def test_large_numbers_at_padding_allow_no_larger_difference(tmp_path):
    source = source_of(tags_moved("padding", by=1e4), TOKEN_CLASSIFICATION, tmp_path)
    with pytest.raises(ParityError, match=r"by 0\.01 at .*, where 0\.0001\d* is allowed"):
        check_parity(source, small.session(tmp_path, tags_moved("seen", by=0.01)))


def test_another_clear_label_is_a_mismatch_however_small_the_difference(tmp_path):
    """Of answers as large as 1000 a difference of 0.1 is allowed; these differ by 0.01."""
    table = np.tile(np.array([[1000, 1000.01]], np.float32), (len(small.VOCABULARY), 1))
    source = source_of(small.tokenwise(table), TOKEN_CLASSIFICATION, tmp_path)
    swapped = small.tokenwise(np.ascontiguousarray(table[:, ::-1]))
    with pytest.raises(ParityError, match=r"by 0\.01 at .*, where 0\.1 is allowed, and 0\.0% of its clear labels"):
        check_parity(source, small.session(tmp_path, swapped))
    source.task = FEATURE_EXTRACTION  # whose numbers are no labels
    assert check_parity(source, small.session(tmp_path, swapped)).label_agreement == 1


def sized(heads, max_length):
    config = SimpleNamespace(num_attention_heads=heads)
    return SimpleNamespace(config=config, max_length=max_length)


@pytest.mark.parametrize(("heads", "longest"), [(12, 8192), (12, 512), (16, 8192), (4, 100_000), (64, 32_768)])
def test_no_cell_of_the_grid_has_more_attention_scores_than_fit(heads, longest):
    """ModernBERT's 8 x 12 heads x 8192 x 8192 floats are 25.8 GB."""
    cells = [(length, size) for length, sizes in plan_grid(sized(heads, longest)) for size in sizes]
    assert max(4 * size * heads * length**2 for length, size in cells) <= 2**32
    lengths = {length for length, _ in cells}
    assert {1, 2, 33, 128} <= lengths
    whole = 4 * heads * longest**2 <= 2**32
    assert (longest in lengths) == whole
    # Not one cell less than fits.
    assert all(
        ((length, size) in cells) == (4 * size * heads * length**2 <= 2**32) for length in lengths for size in (1, 2, 8)
    )
    assert (left_out(sized(heads, longest)) is not None) == (not whole or 4 * 8 * heads * longest**2 > 2**32)


def test_what_the_grid_leaves_out_is_told():
    assert left_out(sized(12, 512)) is None
    assert left_out(sized(12, 8192)) == (
        "batch 2 and 8 of 8192 tokens: a layer's attention scores would take more than 4.3 GB"
    )
    assert "texts of more than 8192 tokens" in left_out(sized(16, 8193))


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


CELL = (1, 16)


def measured(monkeypatch, **more):
    rounds = {
        name: {CELL: [np.full(3, milliseconds * (1 + turn / 100)) for turn in range(5)]}
        for name, milliseconds in (("fp32", 20.0), ("int8", 10.0))
    }
    monkeypatch.setattr(checks, "race", lambda *_, **__: Race((CELL,), rounds=rounds, **more))
    return compare_speed(
        Path("fp32.onnx"),
        Path("int8.onnx"),
        fp32_disabled=(),
        int8_disabled=(),
        vocab_size=90,
        max_length=16,
        rounds=5,
        cells=[CELL],
    )


def test_an_undisturbed_race_gives_a_ratio(monkeypatch):
    found = measured(monkeypatch)
    assert found.ratio == pytest.approx(2.0)
    assert found.verdict == "faster"


def test_a_disturbed_race_gives_no_figure_but_the_reason(monkeypatch):
    found = measured(monkeypatch, disturbances={CELL: ["other processes took 60% of the time of the cores"]})
    assert found.verdict == "not measured"
    assert found.model_dump().keys() == {"verdict", "failures"}
    assert "other processes took 60%" in found.failures["the machine"]


def test_one_turn_has_no_interval_and_is_refused_before_anything_is_loaded(potstill, tmp_path):  # noqa: F811
    with pytest.raises(ValidationError, match="rounds is 1, and an interval needs 2 turns"):
        ExportConfig(rounds=1)
    ExportConfig(rounds=0)
    code, _, said = potstill("export", tmp_path, "--out", tmp_path / "out", "--rounds", "1")
    assert code == 2
    assert "rounds is 1, and an interval needs 2 turns" in said.splitlines()[-1]
