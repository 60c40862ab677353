"""Convert an fp32 graph to int8, dynamic or static, or to fp16.

Both forms of int8 are standard ONNX operators, which onnxruntime fuses into integer products when it loads the file:

    dynamic  DynamicQuantizeLinear, MatMulInteger, Cast, Mul. One scale per activation tensor, measured at each run, so
             a text's answer depends a little on its batch mates (microsoft/onnxruntime#10111).
    static   QuantizeLinear, DequantizeLinear, MatMul with a dequantised weight. The scales are constants, from the
             ranges seen on calibration texts, so that a text's answer is its own.

The pairs are written here and not by onnxruntime's static quantiser, which needs tensor types that are missing behind a
fused attention operator: of 36 products it made 3 integer ones, without an error (docs/log.md).

Int8 has one scale for a whole activation tensor, so a few channels with large values leave the others few steps.
SmoothQuant (Xiao et al., arXiv 2211.10438, eq. 4) divides each channel of a product's input by a factor and multiplies
the matching row of the weight by it: the product stays, the outliers move into the weight, which has a scale per output
channel. BERT adds its layer norms' outputs to the residual, so the factors cannot go into them, as they do in the
paper; one Mul per input carries them.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from potstill import machine
from potstill.errors import CheckpointError
from potstill.export.attention import OPERATORS
from potstill.export.graph import drop_dead, set_nodes
from potstill.export.onnx_files import Feeds, save_model

# SmoothQuant's alpha: how much of the outliers moves into the weights. Mean and largest logit error of static int8 on
# SST-2, of a MiniLM and its 3-layer student: none 0.095, 0.77 and 0.071, 0.68; alpha 0.5 0.162, 1.56 and 0.146, 1.14;
# 0.65 0.063, 0.78 and 0.050, 0.60; 0.8 0.045, 0.54 and 0.036, 0.49; 0.9 0.045, 0.40 and 0.044, 0.38. Dynamic int8
# is within 0.005 of these (docs/log.md).
ALPHA = 0.9
# Factors are clipped to [1 / 100, 100], and peaks bounded from below, so that a dead channel gets no extreme factor.
_LARGEST_FACTOR = 100.0
_SMALLEST_PEAK = 1e-5
# A narrower product, such as a classifier of few labels, takes no time worth saving, and its rounding goes straight
# into the answer.
FEWEST_COLUMNS = 16
# Embedding tables with fewer rows, such as token types, save no memory worth two more nodes.
_SMALLEST_TABLE = 16
BLOCK_SIZE = 32
"""Numbers of a row that share a scale in a table of 4 bits."""
# The ends of a block's range that are tried, as shares of its furthest number, and the rows that are rounded at a time.
_ENDS = np.arange(76, 105, 4) / 100
_ROWS_AT_ONCE = 4096
# Largest absolute weight by bits. CPUs without VNNI add two products in 16 bits, and 2 * 255 * 64 = 32640 still fits.
_LARGEST_WEIGHT = {8: 127, 7: 64}
# The smallest scale: a matrix or channel of zeros must not divide by zero.
_TINY = float(np.finfo(np.float32).tiny)

Method = Literal["dynamic", "static"]
_EMBEDDINGS = {8: "int8 per row", 4: "words 4 bits in blocks of 32, others int8 per row"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Recipe:
    """How a graph is quantised."""

    method: Method = "dynamic"
    weight_bits: Literal[7, 8] = 8
    per_channel: bool = True
    """One scale per output channel, or one per matrix."""
    smoothing: float | None = ALPHA
    """SmoothQuant's alpha, from 0 to 1; None does not smooth."""
    attention: Literal["float", "integer"] = "float"
    """integer: onnxruntime's QAttention, with query, key and value as one product."""
    gelu: Literal["exact", "tanh"] = "exact"
    embedding_bits: Literal[4, 8] = 8
    """Of the table of words; all other tables have 8."""

    def describe(self) -> dict[str, object]:
        """Return the recipe as fields of `potstill.bundle.Quantization`."""
        return (
            asdict(self)
            | {"weights": "int8", "activations": "uint8", "embeddings": _EMBEDDINGS[self.embedding_bits]}
            | ({"calibration": "minmax"} if self.method == "static" else {})
        )


def int8_recipe(method: Method = "dynamic", *, embedding_bits: Literal[4, 8] = 8) -> Int8Recipe:
    """Return the default recipe for this CPU.

    VNNI, AMX and ARM's dot product multiply eight bits exactly. Older x86 adds two products in 16 bits and saturates
    (microsoft/onnxruntime#5849), which 7-bit weights avoid. One scale per output channel costs no time and halves the
    disagreement: a MiniLM on SST-2 agreed with fp32 on 97.9 % of the texts, with one scale per tensor on 95.6 %.
    """
    weight_bits: Literal[7, 8] = 8 if machine.has_fast_int8() else 7
    return Int8Recipe(method=method, weight_bits=weight_bits, embedding_bits=embedding_bits)


@dataclass(frozen=True, slots=True)
class Layer:
    """All products that read one activation, such as query, key and value; they share its scale and smoothing."""

    name: str
    """The name of the first product's weight, without ".weight"."""
    activation: str
    """The name of the input tensor."""
    nodes: tuple[onnx.NodeProto, ...]
    """MatMul nodes with the weight as their second input."""
    tied: bool = False
    """Whether it is a Gemm with the table of word embeddings, as in masked language models (`tie_vocabulary`)."""
    shared: bool = False
    """Whether other layers use the same weights, as in ALBERT; smoothing factors per layer are impossible then."""


@dataclass(frozen=True, slots=True)
class Range:
    """The smallest and largest value of each channel of an activation over all tokens; shape (channels,) each."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def peak(self) -> NDArray[np.float32]:
        """The largest absolute value of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


@dataclass(frozen=True)
class Prepared:
    """An fp32 graph with its activation ranges, from which any recipe can be made."""

    model: onnx.ModelProto
    layers: tuple[str, ...]
    """The names of the layers, in the graph's order."""
    ranges: dict[str, Range]
    """Activation -> its range on the calibration texts."""

    @cached_property
    def words(self) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """The table of words in 4 bits, see `quantize_blocks`; rounded once, which takes seconds, for all recipes.

        Raises:
            CheckpointError: if it cannot have 4 bits.
        """
        graph = self.model.graph
        name = _find_words(graph).input[0]
        table = next(tensor for tensor in graph.initializer if tensor.name == name)
        if any(layer.tied for layer in find_layers(graph)):
            raise CheckpointError(
                "embedding_bits is 4, and the masked-language head multiplies by the table of words, for which it has "
                "8; leave it out"
            )
        if table.dims[1] % 2:
            raise CheckpointError(
                f"embedding_bits is 4, and a word's vector has {table.dims[1]} numbers, of which two share a byte; "
                "leave it out"
            )
        return quantize_blocks(numpy_helper.to_array(table))


def prepare(model: onnx.ModelProto, batches: Iterable[Feeds]) -> Prepared:
    """Copy an fp32 graph, split its Gemms, and measure activation ranges on real texts.

    Args:
        model: the graph with its weights, before `unpad`; not changed.
        batches: real texts as inputs of the graph.

    Raises:
        CheckpointError: if the graph has no product that is wide enough.
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
        recipe: how to quantise.
        keep: names of layers that stay fp32.
    """
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    graph = model.graph
    if recipe.embedding_bits == 4:
        _pack_words(graph, *prepared.words)
    # First, because a tied product reads the int8 table and its scales.
    _quantize_tables(graph, recipe=recipe, keep=keep)
    for layer in find_layers(graph):
        if layer.name in keep:
            continue
        found = prepared.ranges.get(layer.activation)
        if recipe.smoothing is not None and found is not None and not layer.tied and not layer.shared:
            layer, found = smooth(graph, layer, found, alpha=recipe.smoothing)
        _quantize_layer(graph, layer, found, recipe=recipe)
    if recipe.gelu == "tanh":
        for node in graph.node:
            if node.op_type == "Gelu":
                del node.attribute[:]
                node.attribute.append(helper.make_attribute("approximate", "tanh"))
    drop_dead(graph)
    # QAttention may be the graph's first operator of com.microsoft, whose domain must then be declared.
    known = {entry.domain for entry in model.opset_import} | {"", "ai.onnx"}
    for domain in {node.domain for node in graph.node} - known:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def convert_to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with float16 weights and activations; inputs and outputs keep their types.

    onnxruntime's CPU provider runs it through casts to float32, slower than fp32: good for checks, not for serving.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    # Shape inference is off: onnx knows no shapes behind onnxruntime's own attention operator.
    converted: onnx.ModelProto = convert_float_to_float16(copied, keep_io_types=True, disable_shape_infer=True)
    return converted


def find_layers(graph: onnx.GraphProto) -> list[Layer]:
    """Return the layers of a graph that are worth quantising, in the graph's order."""
    uses = Counter(name for node in graph.node for name in node.input)
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    # After `_quantize_tables` the lookup reads NAME_int8, while a tied product still reads NAME.
    tables = {node.input[0].removesuffix("_int8") for node in graph.node if node.op_type == "Gather"}
    layers: dict[str, Layer] = {}
    for node in graph.node:
        weight = matrices.get(node.input[1]) if node.op_type in {"MatMul", "Gemm"} else None
        if weight is None or node.input[0] in matrices:
            continue
        tied = node.op_type == "Gemm" and weight.name in tables
        plain = node.op_type == "MatMul" and weight.dims[1] >= FEWEST_COLUMNS
        if tied or plain:
            before = layers.get(node.input[0])
            nodes = (*before.nodes, node) if before else (node,)
            name = before.name if before else _layer_name(weight.name)
            shared = uses[weight.name] > 1 or bool(before and before.shared)
            layers[node.input[0]] = Layer(name, node.input[0], nodes, tied, shared)
    return list(layers.values())


def split_gemms(graph: onnx.GraphProto) -> None:
    """Replace, in place, every Gemm with a constant matrix that is wide enough by MatMul and Add."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        flags = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = not flags.get("transA") and flags.get("alpha", 1.0) == flags.get("beta", 1.0) == 1.0
        weight = weights.get(node.input[1]) if node.op_type == "Gemm" and plain else None
        # A weight with several users is the embedding table, or one that another product needs untransposed.
        if weight is None or min(weight.dims) < FEWEST_COLUMNS or uses[weight.name] > 1:
            nodes.append(node)
            continue
        name = weight.name
        if flags.get("transB"):
            weight.CopyFrom(_tensor(numpy_helper.to_array(weight).T, name))
        product, bias = _separate_bias(node)
        nodes += [helper.make_node("MatMul", [node.input[0], name], [product], name=f"{name}_product"), *bias]
    set_nodes(graph, nodes)


def _separate_bias(gemm: onnx.NodeProto) -> tuple[str, list[onnx.NodeProto]]:
    """Return the output name for the product of a Gemm, and the Add of its bias as a list, empty without one."""
    if len(gemm.input) < 3:
        return gemm.output[0], []
    product = f"{gemm.output[0]}_product"
    return product, [helper.make_node("Add", [product, gemm.input[2]], list(gemm.output), name=f"{product}_bias")]


def measure_ranges(model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Feeds]) -> dict[str, Range]:
    """Run real texts through a graph and return the range of each named tensor, without padding positions.

    Args:
        model: an fp32 graph.
        names: activations of shape (B, T, channels) or (B, channels).
        batches: inputs of the graph, with `attention_mask`.
    """
    outputs = {output.name for output in model.graph.output}
    added = [name for name in names if name not in outputs]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in added)
    found: dict[str, Range] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            # By a file, because a graph above 2 GiB cannot be passed as bytes.
            file = Path(folder) / "watched.onnx"
            save_model(model, file)
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            inputs = [entry.name for entry in session.get_inputs()]
            for feeds in batches:
                tokens = feeds["attention_mask"].astype(bool)
                answers = session.run(list(names), {name: feeds[name] for name in inputs})
                for name, values in zip(names, answers, strict=True):
                    rows = values[tokens] if values.ndim == 3 and values.shape[:2] == tokens.shape else values
                    rows = rows.reshape(-1, rows.shape[-1])
                    low, high = rows.min(axis=0), rows.max(axis=0)
                    if name in found:
                        low, high = np.minimum(low, found[name].low), np.maximum(high, found[name].high)
                    found[name] = Range(low, high)
    finally:
        for _ in added:
            model.graph.output.pop()
    return found


def smooth(graph: onnx.GraphProto, layer: Layer, found: Range, *, alpha: float = ALPHA) -> tuple[Layer, Range]:
    """Move outliers of a layer's activation into its weights, in place (SmoothQuant, see above).

    Args:
        graph: an fp32 graph; its outputs stay the same, and it has one Mul more.
        layer: a layer of this graph.
        found: the range of the layer's activation on real texts.
        alpha: 0 leaves the outliers in the activation, 1 moves them into the weights.

    Returns:
        The layer that reads the output of the Mul, and the range there.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    matrices = [numpy_helper.to_array(weights[node.input[1]]) for node in layer.nodes]
    factors = smoothing_factors(found.peak, np.abs(np.concatenate(matrices, axis=1)).max(axis=1), alpha=alpha)
    for node, matrix in zip(layer.nodes, matrices, strict=True):
        weights[node.input[1]].CopyFrom(numpy_helper.from_array(matrix * factors[:, None], node.input[1]))
    smoothed, constant = f"{layer.activation}_smoothed", f"{layer.activation}_factors"
    graph.initializer.append(numpy_helper.from_array(np.reciprocal(factors), constant))
    own = {node.output[0] for node in layer.nodes}
    position = next(index for index, node in enumerate(graph.node) if node.output[0] in own)
    for node in layer.nodes:
        node.input[0] = smoothed
    graph.node.insert(position, helper.make_node("Mul", [layer.activation, constant], [smoothed], name=smoothed))
    nodes = tuple(node for node in graph.node if node.output[0] in own)
    return Layer(layer.name, smoothed, nodes), Range(found.low / factors, found.high / factors)


def smoothing_factors(
    activation: NDArray[np.float32], weight: NDArray[np.float32], *, alpha: float = ALPHA
) -> NDArray[np.float32]:
    """Return the divisor of each input channel, (channels,), from the peaks of activation and weight.

    As in eq. 4 of the paper, normalised to a geometric mean of 1 (a common factor changes nothing), and clipped.
    """
    raw = np.maximum(activation, _SMALLEST_PEAK) ** alpha / np.maximum(weight, _SMALLEST_PEAK) ** (1 - alpha)
    balanced = raw / np.exp(np.log(raw).mean())
    return np.clip(balanced, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR).astype(np.float32)


def static_scale(found: Range) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return uint8 scale and zero point that cover the whole range seen (MinMax).

    Percentiles clip the few large activations that BERT's attention depends on: with 99.999 % of the values kept, F1 on
    SQuAD fell from 92 to 6 (microsoft/onnxruntime#10571).
    """
    # The range includes 0, so that 0 has a zero point and is exact.
    low, high = min(float(found.low.min()), 0.0), max(float(found.high.max()), 0.0)
    scale = max((high - low) / 255, _TINY)
    return np.array(scale, np.float32), np.array(np.clip(round(-low / scale), 0, 255), np.uint8)


def quantize_matrix(
    matrix: NDArray[np.float32], *, largest: int, axis: int | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise a matrix symmetrically around zero; return int8 values and float32 scales, whose product restores it.

    Args:
        matrix: float32 (rows, columns).
        largest: the largest absolute integer.
        axis: the axis that shares a scale: 0 for one per column (1, columns), 1 for one per row (rows, 1), None for one
            in all.
    """
    peak = np.abs(matrix).max(axis=axis, keepdims=axis is not None)
    scales = np.maximum(np.asarray(peak, np.float32) / largest, _TINY).astype(np.float32)
    return np.clip(np.rint(matrix / scales), -largest, largest).astype(np.int8), scales


def quantize_blocks(matrix: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Round a matrix to 4 bits, with one scale per block of 32 numbers of a row.

    The number of a block that is furthest from 0 becomes the lowest of the 16 levels, which has no opposite (as in
    llama.cpp's Q4_0); of a few scales around that one, the one with the least squared error over the block is taken.

    Args:
        matrix: float32 (rows, columns); the number of columns is even.

    Returns:
        uint8 (rows, columns / 2) with two numbers in a byte, the first in the low bits, and scales (rows, blocks). A
        number is (its four bits - 8) * its scale.
    """
    columns, packed, chosen = matrix.shape[1], [], []
    for start in range(0, len(matrix), _ROWS_AT_ONCE):
        rows = np.pad(matrix[start : start + _ROWS_AT_ONCE], ((0, 0), (0, -columns % BLOCK_SIZE)))
        blocks = rows.reshape(len(rows), -1, BLOCK_SIZE)
        furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
        best, least = np.zeros(blocks.shape, np.uint8), np.full(furthest.shape, np.inf, np.float32)
        scales = np.ones(furthest.shape, np.float16)
        for end in _ENDS:
            tried = (furthest * (end / -8)).astype(np.float16)
            tried[tried == 0] = 1  # of a block of zeros, which any scale keeps
            step = tried.astype(np.float32)
            levels = np.clip(np.rint(blocks / step), -8, 7)
            error = np.square(levels * step - blocks).sum(axis=-1, keepdims=True)
            better = error < least
            best = np.where(better, levels + 8, best).astype(np.uint8)
            scales, least = np.where(better, tried, scales), np.minimum(error, least)
        flat = best.reshape(len(rows), -1)[:, :columns]
        packed.append(flat[:, 0::2] | flat[:, 1::2] << 4)
        chosen.append(scales[..., 0])
    return np.concatenate(packed), np.concatenate(chosen)


def _find_words(graph: onnx.GraphProto) -> onnx.NodeProto:
    """Return the lookup of the words.

    Raises:
        CheckpointError: if there is none, as in a file of another tool that looks them up otherwise.
    """
    tables = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    found = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tables]
    words = next((node for node in found if node.input[1] == "input_ids"), None)
    if words is None:
        raise CheckpointError("embedding_bits is 4, and no table is looked up by input_ids; leave it out")
    return words


def _pack_words(graph: onnx.GraphProto, packed: NDArray[np.uint8], scales: NDArray[np.float16]) -> None:
    """Look the words up in a table of 4 bits, in place, by onnxruntime's GatherBlockQuantized.

    With a table of bytes and without zero points, which are 8 then: onnxruntime 1.31's kernel took 45 microseconds for
    128 words of 384 numbers, and 1,600 with a table of UINT4 (docs/log.md). `bits` is left at its default of 4, because
    onnxruntime 1.22 does not know the attribute. The scales are a plain constant, as OpenVINO wants them; of 16 bits,
    which save 0.5 bits a number, and make the operator's output one of 16 bits.
    """
    words = _find_words(graph)
    name, rows = words.input[0], words.output[0]
    graph.initializer.extend([_tensor(packed, f"{name}_int4"), _tensor(scales, f"{name}_scale")])
    lookup = helper.make_node(
        "GatherBlockQuantized",
        [f"{name}_int4", words.input[1], f"{name}_scale"],
        [f"{rows}_half"],
        name=f"{rows}_half",
        domain="com.microsoft",
        block_size=BLOCK_SIZE,
        gather_axis=0,
        quantize_axis=1,
    )
    cast = helper.make_node("Cast", [f"{rows}_half"], [rows], name=words.name, to=TensorProto.FLOAT)
    set_nodes(graph, [part for node in graph.node for part in ([lookup, cast] if node.output[0] == rows else [node])])


def _quantize_tables(graph: onnx.GraphProto, *, recipe: Int8Recipe, keep: frozenset[str]) -> None:
    """Store every embedding table as int8 with one scale per row, in place, except those in `keep`.

    onnxruntime's quantiser has one scale for a whole table, whose 30,000 rows differ in size; a scale per row costs 4
    bytes each and cut the logit error of a 3-layer student from 0.075 to 0.068 (docs/log.md).
    """
    tables = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        # Words are gathered by id; positions are sliced (`slice_positions`).
        table = tables.get(node.input[0]) if node.op_type in {"Gather", "Slice"} else None
        if table is None or table.dims[0] < _SMALLEST_TABLE or _layer_name(table.name) in keep:
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
    set_nodes(graph, nodes)


def _quantize_layer(graph: onnx.GraphProto, layer: Layer, found: Range | None, *, recipe: Int8Recipe) -> None:
    """Replace the products of a layer by integer ones, in place; static scales come from the range `found`."""
    entry = f"{layer.activation}_quantised"
    parts = [entry, f"{entry}_scale", f"{entry}_zero"]
    before = [helper.make_node("DynamicQuantizeLinear", [layer.activation], parts, name=entry)]
    if recipe.method == "static":
        assert found is not None, "static scales need texts"
        scale, zero = static_scale(found)
        graph.initializer.extend([_tensor(scale, f"{entry}_scale"), _tensor(zero, f"{entry}_zero")])
        before = [helper.make_node("QuantizeLinear", [layer.activation, *parts[1:]], [entry], name=entry)]
    attention = _find_attention(graph, layer) if recipe.attention == "integer" else None
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
            before.append(helper.make_node("DequantizeLinear", parts, [f"{entry}_float"], name=f"{entry}_float"))
    # Layers that share a matrix, as ALBERT's do, share its DequantizeLinear, which stands before the first of them.
    shared = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        new = replacements.get(node.output[0])
        if new is None:
            nodes.append(node)
        else:
            nodes += [*before, *(part for part in new if part.output[0] not in shared)]
            before = []
    set_nodes(graph, nodes)


def _store_matrix(graph: onnx.GraphProto, name: str, matrix: NDArray[np.float32], *, recipe: Int8Recipe) -> None:
    """Add NAME_int8, NAME_scale and NAME_zero to a graph, unless another layer with this matrix has done so."""
    if any(tensor.name == f"{name}_int8" for tensor in graph.initializer):
        return
    integers, scales = quantize_matrix(
        matrix, largest=_LARGEST_WEIGHT[recipe.weight_bits], axis=0 if recipe.per_channel else None
    )
    flat = scales.reshape(-1 if recipe.per_channel else ())
    zeros = np.zeros(flat.shape, np.int8)
    graph.initializer.extend(
        [_tensor(integers, f"{name}_int8"), _tensor(flat, f"{name}_scale"), _tensor(zeros, f"{name}_zero")]
    )


def _product(entry: str, weight: str, result: str, *, method: Method) -> list[onnx.NodeProto]:
    """Return the nodes that multiply the quantised activation `entry` by the int8 `weight` into float `result`."""
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


def _tied_product(graph: onnx.GraphProto, node: onnx.NodeProto, entry: str, *, method: Method) -> list[onnx.NodeProto]:
    """Return the nodes for a vocabulary projection that reads the int8 embedding table, so that it is stored once.

    The table has one scale per row, which is the projection's one scale per column.
    """
    table, (product, bias) = node.input[1], _separate_bias(node)
    turned = f"{table}_turned"
    scales = next(tensor for tensor in graph.initializer if tensor.name == f"{table}_scale")
    columns = numpy_helper.to_array(scales).reshape(-1)
    graph.initializer.extend(
        [_tensor(columns, f"{turned}_scale"), _tensor(np.zeros(len(columns), np.int8), f"{turned}_zero")]
    )
    return [
        helper.make_node("Transpose", [f"{table}_int8"], [f"{turned}_int8"], name=turned, perm=[1, 0]),
        *_product(entry, turned, product, method=method),
        *bias,
    ]


@dataclass(frozen=True, slots=True)
class _IntegerAttention:
    """Weights and bias of the three products before one fused attention operator, joined for QAttention."""

    operator: onnx.NodeProto
    matrix: NDArray[np.float32]
    """Query, key and value beside each other, shape (hidden, 3 * hidden)."""
    bias: NDArray[np.float32]

    def node(self, name: str, entry: str) -> onnx.NodeProto:
        """Return the QAttention node for the quantised activation `entry` and the int8 matrix `name`."""
        mask = self.operator.input[4] if len(self.operator.input) > 4 else ""
        inputs = [entry, f"{name}_int8", f"{name}_bias", f"{entry}_scale", f"{name}_scale", mask, f"{entry}_zero"]
        node = helper.make_node(
            "QAttention", [*inputs, f"{name}_zero"], list(self.operator.output), name=name, domain="com.microsoft"
        )
        node.attribute.extend(self.operator.attribute)  # heads, scale and the value of a masked key
        return node


def _find_attention(graph: onnx.GraphProto, layer: Layer) -> _IntegerAttention | None:
    """Return the attention that a layer feeds, if QAttention can replace it: fused, and without a bias on scores."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = {node.output[0]: node for node in layer.nodes}
    producer = {name: node for node in graph.node for name in node.output}

    def product_and_bias(name: str) -> tuple[onnx.NodeProto, str] | None:
        """Return a product of the layer and the constant vector that is added to it to make `name`."""
        add = producer.get(name)
        if add is None or add.op_type != "Add":
            return None
        for product, bias in (tuple(add.input), tuple(reversed(add.input))):
            if product in products and bias in weights and len(weights[bias].dims) == 1:
                return products[product], bias
        return None

    for operator in graph.node:
        # MultiHeadAttention: input 3 is a bias of query, key and value, 4 the mask of keys, 5 a bias of the scores.
        if operator.op_type != OPERATORS["fused"] or any(operator.input[3:4]) or len(operator.input) > 5:
            continue
        parts = [part for name in operator.input[:3] if (part := product_and_bias(name)) is not None]
        if len(parts) == 3:
            matrix = np.concatenate([numpy_helper.to_array(weights[node.input[1]]) for node, _ in parts], axis=1)
            bias = np.concatenate([numpy_helper.to_array(weights[name]) for _, name in parts])
            return _IntegerAttention(operator, matrix, bias)
    return None


def _layer_name(weight: str) -> str:
    """Return the name of a layer by that of its first weight."""
    return weight.removesuffix(".weight")


def _tensor(values: NDArray[np.generic], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)
