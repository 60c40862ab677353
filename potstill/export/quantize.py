"""Int8: weights once, activations at each run (dynamic) or by ranges seen on real texts (static).

Both forms are standard ONNX, which onnxruntime fuses into one integer product per layer when it loads the file:

    dynamic  DynamicQuantizeLinear, MatMulInteger, Cast, Mul. One scale per activation tensor, measured at each run, so
             a text's answer depends a little on its batch mates (microsoft/onnxruntime#10111).
    static   QuantizeLinear, DequantizeLinear, MatMul with a dequantised weight. The scales are constants, so that a
             text's answer is its own.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from potstill import machine
from potstill.errors import CheckpointError
from potstill.export.clean import drop_dead
from potstill.export.integer_attention import find_attention
from potstill.export.matmuls import (
    FEWEST_COLUMNS,
    Feeds,
    Layer,
    Range,
    and_bias,
    find_layers,
    layer_name,
    measure_ranges,
    replace_nodes,
    split_gemms,
)
from potstill.export.smooth import ALPHA, smooth

# Tables with fewer rows, such as token types, are not worth two nodes more.
_SMALLEST_TABLE = 16
# Two products of 255 and 64 fit into 16 bits, which is how CPUs without VNNI add them up.
_LARGEST_WEIGHT = {8: 127, 7: 64}
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Recipe:
    """How a graph is quantised."""

    method: Literal["dynamic", "static"] = "dynamic"
    weight_bits: Literal[7, 8] = 8
    per_channel: bool = True
    """One scale per output channel, or one per matrix."""
    smoothing: float | None = ALPHA
    """How much of the activations' outliers moves into the weights; None leaves them."""
    attention: Literal["float", "integer"] = "float"
    """integer: query, key and value in one product within onnxruntime's QAttention."""
    gelu: Literal["exact", "tanh"] = "exact"

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says, as JSON."""
        return (
            asdict(self)
            | {"weights": "int8", "activations": "uint8", "embeddings": "int8 per row"}
            | ({"calibration": "minmax"} if self.method == "static" else {})
        )


def int8_recipe(method: Literal["dynamic", "static"] = "dynamic") -> Int8Recipe:
    """Return how to quantise for this CPU.

    With VNNI, AMX or ARM's dot product, eight bits are multiplied exactly. Older x86 adds two products in 16 bits and
    saturates (microsoft/onnxruntime#5849), which 7-bit weights avoid. One scale per output channel costs no time here
    and halves the int8 error: a MiniLM on SST-2 agreed with its fp32 form on 97.9 % of the texts, with one scale per
    tensor on 95.6 %.
    """
    return Int8Recipe(method=method, weight_bits=8 if machine.has_fast_int8() else 7)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An fp32 graph that is ready to be quantised, in this way or that."""

    model: onnx.ModelProto
    layers: tuple[str, ...]
    """The names of its layers, in order."""
    ranges: dict[str, Range]
    """Activation -> what it was on real texts."""


def prepare(model: onnx.ModelProto, batches: Iterable[Feeds]) -> Prepared:
    """Copy a graph and measure its activations on real texts.

    Raises:
        CheckpointError: if no product is worth integers.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    split_gemms(copied.graph)
    layers = find_layers(copied.graph)
    if not layers:
        raise CheckpointError(
            f"there is nothing to quantise: no matrix of the model has {FEWEST_COLUMNS} columns; export it as fp32"
        )
    ranges = measure_ranges(copied, [layer.activation for layer in layers], batches)
    return Prepared(copied, tuple(layer.name for layer in layers), ranges)


def quantize(prepared: Prepared, recipe: Int8Recipe, *, keep: frozenset[str] = frozenset()) -> onnx.ModelProto:
    """Return the int8 form of a prepared graph.

    Args:
        prepared: the graph with its ranges.
        recipe: how.
        keep: names of the layers that stay in floats.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    graph = model.graph
    _quantize_tables(graph, recipe=recipe, keep=keep)
    for layer in find_layers(graph):
        if layer.name in keep:
            continue
        found = prepared.ranges.get(layer.activation)
        if recipe.smoothing is not None and found is not None and not layer.tied and not layer.shared:
            layer, found = smooth(graph, layer, found, alpha=recipe.smoothing)
        _quantize_layer(graph, layer, found, recipe=recipe)
    if recipe.gelu == "tanh":
        _approximate_gelu(graph)
    drop_dead(graph)
    _declare_foreign(model)
    return model


def static_scale(found: Range) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return scale and zero point that hold everything between the smallest and the largest value seen (MinMax).

    Percentiles clip the few large activations that BERT's attention hangs on: F1 on SQuAD fell from 92 to 6 with
    99.999 % of the values kept (microsoft/onnxruntime#10571).
    """
    low, high = min(float(found.low.min()), 0.0), max(float(found.high.max()), 0.0)
    scale = max((high - low) / 255, _TINY)
    return np.array(scale, np.float32), np.array(np.clip(round(-low / scale), 0, 255), np.uint8)


def _quantize_layer(graph: onnx.GraphProto, layer: Layer, found: Range | None, *, recipe: Int8Recipe) -> None:
    """Replace the products of a layer by integer ones, in place."""
    entry = f"{layer.activation}_quantised"
    enter = [helper.make_node("DynamicQuantizeLinear", [layer.activation], _triple(entry), name=entry)]
    if recipe.method == "static":
        assert found is not None, "static scales need texts"
        scale, zero = static_scale(found)
        graph.initializer.extend([_tensor(scale, f"{entry}_scale"), _tensor(zero, f"{entry}_zero")])
        enter = [helper.make_node("QuantizeLinear", [layer.activation, *_triple(entry)[1:]], [entry], name=entry)]
    attention = find_attention(graph, layer) if recipe.attention == "integer" else None
    if attention is not None:
        name = f"{layer.name}_attention"
        _store_matrix(graph, name, attention.matrix, recipe=recipe)
        graph.initializer.append(_tensor(attention.bias, f"{name}_bias"))
        replacements = {attention.operator.output[0]: [attention.node(name, entry)]}
    else:
        weights = {tensor.name: tensor for tensor in graph.initializer}
        replacements = {}
        for node in layer.nodes:
            name = node.input[1]
            if layer.tied:
                replacements[node.output[0]] = _tied_product(graph, node, entry, method=recipe.method)
            else:
                _store_matrix(graph, name, numpy_helper.to_array(weights[name]), recipe=recipe)
                replacements[node.output[0]] = _product(entry, name, node.output[0], method=recipe.method)
        if recipe.method == "static":
            enter.append(
                helper.make_node("DequantizeLinear", _triple(entry), [f"{entry}_float"], name=f"{entry}_float")
            )
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        new = replacements.get(node.output[0])
        nodes += [node] if new is None else [*enter, *new]
        enter = [] if new is not None else enter
    replace_nodes(graph, nodes)


def _triple(name: str) -> list[str]:
    return [name, f"{name}_scale", f"{name}_zero"]


def _store_matrix(graph: onnx.GraphProto, name: str, matrix: NDArray[np.float32], *, recipe: Int8Recipe) -> None:
    """Add the int8 form of a matrix to a graph: `name`_int8, _scale and _zero. Another layer may have done it."""
    if any(tensor.name == f"{name}_int8" for tensor in graph.initializer):
        return
    integers, scales = quantize_matrix(
        matrix, largest=_LARGEST_WEIGHT[recipe.weight_bits], axis=0 if recipe.per_channel else None
    )
    flat = scales.reshape(-1 if recipe.per_channel else ())
    graph.initializer.extend(
        [_tensor(integers, f"{name}_int8"), _tensor(flat, f"{name}_scale"),
         _tensor(np.zeros(flat.shape, np.int8), f"{name}_zero")]
    )  # fmt: skip


def _product(entry: str, weight: str, result: str, *, method: str) -> list[onnx.NodeProto]:
    """Return the nodes that multiply the quantised activation `entry` with the quantised `weight` into `result`."""
    if method == "static":
        dequantised = f"{weight}_dequantised"
        inputs = [f"{weight}_int8", f"{weight}_scale", f"{weight}_zero"]
        return [
            helper.make_node("DequantizeLinear", inputs, [dequantised], name=dequantised, axis=1),
            helper.make_node("MatMul", [f"{entry}_float", dequantised], [result], name=f"{result}_int8"),
        ]
    sums, scales = f"{result}_sums", f"{result}_scales"
    inputs = [entry, f"{weight}_int8", f"{entry}_zero", f"{weight}_zero"]
    return [
        helper.make_node("MatMulInteger", inputs, [sums], name=sums),
        helper.make_node("Cast", [sums], [f"{sums}_float"], name=f"{sums}_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{entry}_scale", f"{weight}_scale"], [scales], name=scales),
        helper.make_node("Mul", [f"{sums}_float", scales], [result], name=f"{result}_scaled"),
    ]


def _tied_product(graph: onnx.GraphProto, node: onnx.NodeProto, entry: str, *, method: str) -> list[onnx.NodeProto]:
    """Return the nodes for a product with the vocabulary, which takes the quantised table itself: it is stored once.

    The table's scale per row is the product's scale per column.
    """
    table, (product, added) = node.input[1], and_bias(node)
    turned = f"{table}_turned"
    scales = next(tensor for tensor in graph.initializer if tensor.name == f"{table}_scale")
    columns = numpy_helper.to_array(scales).reshape(-1)
    graph.initializer.extend(
        [_tensor(columns, f"{turned}_scale"), _tensor(np.zeros(len(columns), np.int8), f"{turned}_zero")]
    )
    return [
        helper.make_node("Transpose", [f"{table}_int8"], [f"{turned}_int8"], name=turned, perm=[1, 0]),
        *_product(entry, turned, product, method=method),
        *added,
    ]


def quantize_matrix(
    matrix: NDArray[np.float32], *, largest: int, axis: int | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values and the float32 scales that give the matrix back, symmetric around zero.

    Args:
        matrix: shape (rows, columns).
        largest: the largest absolute integer.
        axis: what shares a scale: 0 gives one per column (1, columns), 1 one per row (rows, 1), None one in all.
    """
    peak = np.abs(matrix).max(axis=axis, keepdims=axis is not None)
    scales = np.maximum(np.asarray(peak, np.float32) / largest, _TINY).astype(np.float32)
    return np.clip(np.rint(matrix / scales), -largest, largest).astype(np.int8), scales


def _quantize_tables(graph: onnx.GraphProto, *, recipe: Int8Recipe, keep: frozenset[str]) -> None:
    """Turn every embedding table into int8 with one scale per row, in place, except those of `keep`.

    onnxruntime's own quantiser has one scale for a whole table of 30,000 rows, whose sizes differ; a scale per row
    costs 4 bytes a row and cut the error of a student's logits by a tenth.
    """
    tables = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        # Words are gathered by their ids; positions, which come in order, are sliced.
        table = tables.get(node.input[0]) if node.op_type in {"Gather", "Slice"} else None
        if table is None or table.dims[0] < _SMALLEST_TABLE or layer_name(table.name) in keep:
            nodes.append(node)
            continue
        name, rows = table.name, node.output[0]
        if name not in done:
            largest = _LARGEST_WEIGHT[recipe.weight_bits]
            integers, scales = quantize_matrix(numpy_helper.to_array(table), largest=largest, axis=1)
            graph.initializer.extend([_tensor(integers, f"{name}_int8"), _tensor(scales, f"{name}_scale")])
            done.add(name)
        for part in ("int8", "scale"):
            picked = onnx.NodeProto()
            picked.CopyFrom(node)
            picked.input[0], picked.output[0], picked.name = f"{name}_{part}", f"{rows}_{part}", f"{rows}_{part}"
            nodes.append(picked)
        nodes += [
            helper.make_node("Cast", [f"{rows}_int8"], [f"{rows}_float"], name=f"{rows}_float", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{rows}_float", f"{rows}_scale"], [rows], name=f"{rows}_rows"),
        ]
    replace_nodes(graph, nodes)


def _approximate_gelu(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.op_type == "Gelu":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("approximate", "tanh"))


def _declare_foreign(model: onnx.ModelProto) -> None:
    """Name onnxruntime's own operators' domain, if the graph has come to use it."""
    known = {entry.domain for entry in model.opset_import}
    for domain in {node.domain for node in model.graph.node} - known - {"", "ai.onnx"}:
        model.opset_import.append(helper.make_opsetid(domain, 1))


def _tensor(values: NDArray[Any], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)
