"""Whether a file's name is true, held against what onnxruntime makes of the file."""

from collections import Counter
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from potstill.onnx_inspect import (
    Node,
    Outline,
    check_declared_precision,
    count_matmuls,
    count_parameters,
    read_outline,
)
from tests import onnx_graphs as graphs

PRECISIONS = ("fp32", "fp16", "int8", "int8-static")
INTEGER = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm")
FLOAT = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")


def outline_of(graph, folder):
    onnx.save(graph, folder / "model.onnx")
    return read_outline(folder / "model.onnx")


def loaded_by_onnxruntime(folder):
    """Return the operators that onnxruntime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def gemm(*, zero_point=True, bias=None, quantised_output=False):
    """Give a product like `static_product` with a Gemm for the last one, whose input has two axes."""

    def product(number, x, weight, y):
        nodes, arrays = graphs.static_product(number, x, weight, y)
        if number != "c":
            return nodes, arrays
        arrays |= {"wzc": np.int8(0), "bc": np.zeros(2, np.float32), "bi": np.zeros(2, np.int32)}
        if zero_point:
            nodes[2].input.append("wzc")
        node = helper.make_node
        inputs = ["dc", "dwc", *([f"{bias}c"] if bias else [])]
        nodes = [*nodes[:3], node("DequantizeLinear", ["bi", "wsc"], ["dbc"]), node("Gemm", inputs, [y])]
        if quantised_output:
            nodes[-1].output[0] = "gc"
            nodes += [
                node("QuantizeLinear", ["gc", "sc", "zc"], ["gq"]),
                node("DequantizeLinear", ["gq", "sc", "zc"], [y]),
            ]
        return nodes, arrays

    return product


def transposed(number, x, weight, y, *, late):
    """Give the weight a Transpose: behind the DequantizeLinear it makes the product one of floats."""
    nodes, arrays = graphs.static_product(number, x, weight, y)
    arrays[f"w{number}"] = np.ascontiguousarray(arrays[f"w{number}"].T)
    user = nodes[-1] if late else nodes[2]
    position = 1 if late else 0
    turn = helper.make_node("Transpose", [user.input[position]], [f"t{number}"])
    user.input[position] = f"t{number}"
    return [*nodes[:-1], turn, nodes[-1]] if late else [turn, *nodes], arrays


@pytest.mark.parametrize(
    ("product", "integer", "weight_only", "true"),
    [
        (graphs.float_product, 0, 0, {"fp32"}),
        (graphs.dynamic_product, 4, 0, {"int8"}),
        (graphs.static_product, 4, 0, {"int8", "int8-static"}),
        (graphs.folded_product, 0, 4, set()),
        (graphs.cast_product, 0, 4, set()),
        (partial(transposed, late=False), 4, 0, {"int8", "int8-static"}),
        (partial(transposed, late=True), 0, 4, set()),
        (gemm(), 4, 0, {"int8", "int8-static"}),
        (gemm(zero_point=False), 3, 0, {"int8", "int8-static"}),
        (gemm(bias="db"), 4, 0, {"int8", "int8-static"}),
        (gemm(bias="b"), 3, 0, {"int8", "int8-static"}),
        (gemm(bias="b", quantised_output=True), 4, 0, {"int8", "int8-static"}),
    ],
)
def test_products_run_in_onnxruntime_as_we_count_them(tmp_path, product, integer, weight_only, true):
    outline = outline_of(graphs.classifier(product), tmp_path)
    assert count_matmuls(outline) == {"integer": integer, "float": 4 - integer, "weight_only": weight_only}
    assert {name for name in PRECISIONS if check_declared_precision(outline, name) is None} == true
    ran = Counter(loaded_by_onnxruntime(tmp_path))
    assert sum(ran[name] for name in INTEGER) == integer
    # Weight-only int8 was folded to floats by older ones.
    assert sum(ran[name] for name in FLOAT) + ran["MatMulNBits"] == 4 - integer


def test_int8_with_float_products_is_told_by_its_counts(tmp_path):
    outline = outline_of(graphs.classifier(), tmp_path)
    assert (
        check_declared_precision(outline, "int8")
        == "0 of its 4 matmuls with a weight multiply int8; expected most of them"
    )


def test_int8_whose_weights_are_only_dequantised_is_told(tmp_path):
    outline = outline_of(graphs.classifier(graphs.folded_product), tmp_path)
    assert check_declared_precision(outline, "int8") == (
        "0 of its 4 matmuls with a weight multiply int8; expected most of them (4 int8 weights are only dequantised, "
        "so their matmuls are of floats)"
    )


def test_int8_whose_weights_are_stored_in_floats_is_not_int8(tmp_path):
    outline = outline_of(graphs.classifier(graphs.late_product), tmp_path)
    assert count_matmuls(outline)["integer"] == 0
    assert "0 of its 4 matmuls" in check_declared_precision(outline, "int8")


@pytest.mark.parametrize(("layers", "is_int8"), [(("0",), False), (("0", "1"), True), (("0", "1", "c"), True)])
def test_int8_may_keep_up_to_half_of_its_products_in_floats(tmp_path, layers, is_int8):
    outline = outline_of(graphs.classifier(graphs.mixed(*layers)), tmp_path)
    assert count_matmuls(outline) == {"integer": len(layers), "float": 4 - len(layers), "weight_only": 0}
    assert (check_declared_precision(outline, "int8") is None) == is_int8


def test_static_int8_has_no_scale_that_depends_on_the_batch(tmp_path):
    outline = outline_of(graphs.classifier(graphs.dynamic_product), tmp_path)
    assert check_declared_precision(outline, "int8-static") == (
        "4 of its activation scales are measured while it runs; expected none"
    )


def test_fp16_that_holds_float32_is_not_fp16(tmp_path):
    outline = outline_of(graphs.classifier(), tmp_path)
    total = sum(weight.size for weight in graphs.weights().values())
    assert (
        check_declared_precision(outline, "fp16")
        == f"0 of its {total} float weights have 16 bits; expected most of them"
    )
    half = outline_of(graphs.classifier(dtype=np.float16), tmp_path)
    assert check_declared_precision(half, "fp16") is None
    assert (
        check_declared_precision(half, "fp32") == f"0 of its {total} float weights have 32 bits; expected most of them"
    )


def test_a_quantised_file_is_not_fp32(tmp_path):
    outline = outline_of(graphs.classifier(graphs.static_product), tmp_path)
    assert check_declared_precision(outline, "fp32") == (
        "it is quantised already, with DequantizeLinear, QuantizeLinear; expected float weights"
    )


def test_a_weight_that_a_constant_operator_holds_counts_too(tmp_path):
    def constant(number, x, weight, y):
        value = onnx.numpy_helper.from_array(weight)
        nodes, _ = graphs.float_product(number, x, weight, y)
        return [helper.make_node("Constant", [], [f"w{number}"], value=value), *nodes], {}

    outline = outline_of(graphs.classifier(constant), tmp_path)
    assert count_matmuls(outline) == {"integer": 0, "float": 4, "weight_only": 0}


def test_products_of_activations_are_no_weights(tmp_path):
    info = helper.make_tensor_value_info
    graph = graphs.model(
        [helper.make_node("MatMul", ["x", "x"], ["y"])],
        {},
        inputs=[info("x", TensorProto.FLOAT, ["n", "n"])],
        outputs=[info("y", TensorProto.FLOAT, ["n", "n"])],
    )
    assert count_matmuls(outline_of(graph, tmp_path)) == {"integer": 0, "float": 0, "weight_only": 0}


def test_operators_that_go_round_in_circles_end():
    nodes = (
        Node("Transpose", ("b",), ("a",)),
        Node("Identity", ("a",), ("b",)),
        Node("MatMul", ("x", "b"), ("y",)),
        Node("MatMul", (), ()),
    )
    assert count_matmuls(Outline(nodes, ()))["float"] == 0


def table_in_int8(graph):
    """Store the table of words in int8 with one scale per row, looked up like the words, as potstill does."""
    words = next(tensor for tensor in graph.graph.initializer if tensor.name == "words")
    values = onnx.numpy_helper.to_array(words)
    scales = (np.abs(values).max(axis=1, keepdims=True) / 127).astype(np.float32)
    words.CopyFrom(onnx.numpy_helper.from_array(np.rint(values / scales).astype(np.int8), "words"))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(scales, "words_scale"))
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["rows"]),
        node("Gather", ["words_scale", "input_ids"], ["scales"]),
        node("Cast", ["rows"], ["floats"], to=TensorProto.FLOAT),
        node("Mul", ["floats", "scales"], ["hidden0"]),
        *list(graph.graph.node)[1:],
    ]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph


def shifted_product(number, x, weight, y):
    """An int8 weight with a zero point and a scale per column, by Cast, Sub and Mul."""
    values, scale = graphs.int8(weight)
    node, n = helper.make_node, number
    columns = weight.shape[1]
    nodes = [
        node("Cast", [f"w{n}"], [f"c{n}"], to=TensorProto.FLOAT),
        node("Cast", [f"z{n}"], [f"cz{n}"], to=TensorProto.FLOAT),
        node("Sub", [f"c{n}", f"cz{n}"], [f"m{n}"]),
        node("Mul", [f"m{n}", f"ws{n}"], [f"dw{n}"]),
        node("MatMul", [x, f"dw{n}"], [y]),
    ]
    arrays = {f"w{n}": values, f"z{n}": np.zeros(columns, np.int8), f"ws{n}": np.full(columns, scale, np.float32)}
    return nodes, arrays


def blockwise_product(number, x, weight, y):
    """MatMulNBits of 8 bits: every column in blocks of 16."""
    (inner, columns), n = weight.shape, number
    values, scale = graphs.int8(weight)
    arrays = {
        f"w{n}": (values.T.reshape(columns, 1, inner).astype(np.int16) + 128).astype(np.uint8),
        f"ws{n}": np.full((columns, 1), scale, np.float32),
    }
    settings = {"K": inner, "N": columns, "bits": 8, "block_size": 16, "domain": "com.microsoft"}
    return [helper.make_node("MatMulNBits", [x, f"w{n}", f"ws{n}"], [y], **settings)], arrays


def with_bias(number, x, weight, y):
    """A float product and a bias, which is a weight as well."""
    nodes, arrays = graphs.float_product(number, x, weight, f"p{number}")
    arrays[f"b{number}"] = np.zeros(weight.shape[1], np.float32)
    return [*nodes, helper.make_node("Add", [f"p{number}", f"b{number}"], [y])], arrays


WEIGHTS = sum(weight.size for weight in graphs.weights().values())
BIASES = 3 * graphs.HIDDEN + graphs.LABELS


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (graphs.classifier(), WEIGHTS),
        (graphs.classifier(dtype=np.float16), WEIGHTS),
        (graphs.classifier(with_bias), WEIGHTS + BIASES),
        (graphs.classifier(graphs.dynamic_product), WEIGHTS),
        (graphs.classifier(graphs.static_product), WEIGHTS),
        (graphs.classifier(graphs.folded_product), WEIGHTS),
        (graphs.classifier(graphs.cast_product), WEIGHTS),
        (graphs.classifier(shifted_product), WEIGHTS),
        (graphs.classifier(blockwise_product), WEIGHTS),
        (table_in_int8(graphs.classifier(graphs.dynamic_product)), WEIGHTS),
        (table_in_int8(graphs.classifier(graphs.cast_product)), WEIGHTS),
    ],
)
def test_weights_are_counted_whatever_they_are_stored_in_and_scales_are_none(tmp_path, graph, expected):
    assert count_parameters(outline_of(graph, tmp_path)) == expected


@pytest.mark.parametrize(
    "product",
    [graphs.folded_product, graphs.cast_product, shifted_product, blockwise_product, partial(transposed, late=True)],
)
def test_int8_that_multiplies_floats_is_int8_where_it_says_so_and_nothing_else(tmp_path, product):
    outline = outline_of(graphs.classifier(product), tmp_path)
    assert {name for name in PRECISIONS if check_declared_precision(outline, name) is None} == set()
    assert check_declared_precision(outline, "int8", weight_only=True) is None
    plain = outline_of(graphs.classifier(), tmp_path)
    total = WEIGHTS
    assert check_declared_precision(plain, "int8", weight_only=True) == (
        f"0 of its {total} weights are stored as int8; expected most of them"
    )
