"""The grid: what it covers, and that seeded faults do not get through."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper

from potstill.errors import ParityError
from potstill.export.checks import FP32_TOLERANCE, check_parity, left_out, masks, measure_difference, plan_grid
from potstill.export.graph import build_graph
from potstill.export.onnx_files import save_model
from potstill.export.source import load_source
from potstill.serve import OnnxSession
from potstill.tasks import FEATURE_EXTRACTION, TOKEN_CLASSIFICATION
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
    with pytest.raises(ParityError, match=r"differs from torch by .* at batch 1.*nothing was published"):
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


def tags_moved(at):
    """Return a graph of tags that are 1 larger `at` tokens that are "seen" or that are "padding"."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["seen"]),
        helper.make_node("Sub", ["one", "seen"], ["padding"]),
        helper.make_node("Add", ["rows", at], ["logits"]),
    ]
    constants = {"table": small.table(3), "two": [2], "one": np.float32(1)}
    return small.model(nodes, ["logits"], constants=constants)


def test_a_tokens_answer_counts_where_the_mask_lets_it_be_seen(tmp_path):
    source = source_of(small.tokenwise(small.table(3)), TOKEN_CLASSIFICATION, tmp_path)
    evidence = check_parity(source, small.session(tmp_path, tags_moved("padding")))
    assert (evidence.max_abs_difference, evidence.label_agreement, evidence.cells) == (0, 1, 18)
    with pytest.raises(ParityError, match="the file it was made from by 1 at batch 1, length 1, full mask"):
        check_parity(source, small.session(tmp_path, tags_moved("seen")))


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
