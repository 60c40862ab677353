"""Check whether an int8 file would overflow on an x86 CPU without VNNI, by emulating its sums on real texts.

On such CPUs onnxruntime multiplies uint8 activations by int8 weights with VPMADDUBSW, which adds the products of two
neighbours along K in 16 bits and saturates: 2 * 255 * 127 = 64770, and 32767 is the largest sum that fits
(microsoft/onnxruntime#5849, #6004). Weights of 7 bits always fit: 2 * 255 * 64 = 32640.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from potstill import machine
from potstill.bundle import Saturation
from potstill.export.onnx_files import Feeds

Integers: TypeAlias = NDArray[np.integer]

_HIGHEST, _LOWEST = 2**15 - 1, -(2**15)
_LARGEST_U8 = 255
# onnxruntime shifts the int8 activations of a QDQ file to uint8 before it multiplies.
_S8_TO_U8 = 128

# Sample sizes per product and batch: tokens, sums (of those that could saturate at all), and columns from which the
# spread of the outputs is estimated.
_MAX_TOKENS, _MAX_SUMS, _MAX_COLUMNS = 256, 8192, 512
_SEED = 0

# A file breaks if the error of a product's outputs, as a share of their spread, is above this. Emulated through a whole
# MiniLM on SST-2, an error of 0.21 in the worst product raised the mean logit error from 0.106 to 0.149; one of 0.004
# did not raise it (docs/log.md).
MAX_ERROR = 0.01

# Operators that multiply integers -> which of their inputs are activation and weight.
_INTEGER_PRODUCTS = {
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "QAttention": (0, 1),
}
_QUANTISES_ITSELF = "DynamicQuantizeMatMul"
_FLOAT_PRODUCTS = ("MatMul", "Gemm")


@dataclass(slots=True)
class _Product:
    """One integer product with constant weights, and the counts of its saturated sums."""

    name: str
    activations: str
    """The name of the tensor with the activations."""
    floats: bool
    """Whether that tensor is float, because the operator quantises it itself."""
    turned: bool
    """Whether onnxruntime shifts int8 activations to uint8, as it does for QDQ."""
    first: Integers
    """Rows 0, 2, ... of the weights along K, int8 (pairs, N)."""
    second: Integers
    """Rows 1, 3, ..., likewise."""
    risky: Integers = field(init=False)
    """The (pair, column) of weights that saturate for some activations, (sums, 2)."""
    sums: int = 0
    saturated: float = 0.0
    largest: int = 0
    noise: float = 0.0
    """The sum of squared output errors by saturation."""
    signal: float = 0.0
    """The sum of squared differences of the outputs from their column's mean."""

    def __post_init__(self) -> None:
        high, low = (
            np.add(limit(self.first, 0), limit(self.second, 0), dtype=np.int16) for limit in (np.maximum, np.minimum)
        )
        # With activations up to 255, weights whose positive part sums to 128, or negative to -128, always fit.
        self.risky = np.argwhere((high > _HIGHEST // _LARGEST_U8) | (low < -(-_LOWEST // _LARGEST_U8)))

    @property
    def error(self) -> float:
        """The RMS error by saturation as a share of the outputs' standard deviation."""
        return float(np.sqrt(self.noise / max(self.signal, 1.0)))


def measure_saturation(model_file: Path, batches: Iterable[Feeds]) -> Saturation:
    """Count the sums of two products that would saturate without VNNI on real texts, and the error they make.

    If no weights can saturate for any activations, the file is not run, and `pairs` is 0.

    Args:
        model_file: the int8 file.
        batches: real texts as inputs of the graph; positions outside of `attention_mask` are not counted.
    """
    model = onnx.load(model_file, load_external_data=False)
    products, unchecked = _find_products(model.graph, model_file.parent)
    at_risk = [product for product in products if len(product.risky)]
    if at_risk:
        generator = np.random.default_rng(_SEED)
        for feeds, values in _run(model, model_file.parent, at_risk, batches):
            for product in at_risk:
                activations = _as_rows(values[product.activations], product, feeds.get("attention_mask"))
                if activations is not None:
                    _count(product, activations, generator)
    worst = max(products, key=lambda product: product.error, default=None)
    error = 0.0 if worst is None else worst.error
    pairs, saturated = sum(product.sums for product in products), sum(product.saturated for product in products)
    return Saturation(
        products=len(products),
        unchecked=unchecked,
        saturating_products=sum(product.saturated > 0 for product in products),
        pairs=pairs,
        saturated_pairs=round(saturated),
        share=saturated / max(pairs, 1),
        largest_sum=max((product.largest for product in products), default=0, key=abs),
        worst=worst.name if worst is not None and error > 0 else None,
        worst_error=error,
        breaks_without_vnni=error > MAX_ERROR,
    )


def _find_products(graph: onnx.GraphProto, folder: Path) -> tuple[list[_Product], int]:
    """Return the integer products with constant int8 weights, and the number of those that cannot be checked."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    tensors |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    found, unchecked = [], 0
    for node in graph.node:
        factors = _factors(node, made_by)
        if factors is None:
            continue
        activations, weights = factors
        # A tied vocabulary projection reads the int8 embedding table through a Transpose.
        turn = made_by.get(weights)
        turned = turn is not None and turn.op_type == "Transpose"
        tensor = tensors.get(turn.input[0] if turn is not None and turned else weights)
        if tensor is None or len(tensor.dims) != 2 or _flag(node, "transA"):
            unchecked += 1
            continue
        if tensor.data_type != onnx.TensorProto.INT8:
            continue  # unsigned weights are multiplied in 32 bits
        values = numpy_helper.to_array(tensor, base_dir=str(folder))
        first, second = _pairs(values.T if turned != _flag(node, "transB") else values, axis=0)
        found.append(
            _Product(
                name=node.name or node.output[0],
                activations=activations,
                floats=node.op_type == _QUANTISES_ITSELF,
                turned=node.op_type in _FLOAT_PRODUCTS,
                first=first,
                second=second,
            )
        )
    return found, unchecked


def _factors(node: onnx.NodeProto, made_by: Mapping[str, onnx.NodeProto]) -> tuple[str, str] | None:
    """Return the names of activation and weight of an integer product; None for any other node.

    For a float product of two dequantised tensors (QDQ) they are the inputs of the DequantizeLinear nodes, because
    onnxruntime fuses the three into an integer product.
    """
    places = _INTEGER_PRODUCTS.get(node.op_type)
    if places is not None:
        return node.input[places[0]], node.input[places[1]]
    if node.op_type not in _FLOAT_PRODUCTS:
        return None
    before = [made_by.get(name) for name in node.input[:2]]
    first, second = (None if maker is None or maker.op_type != "DequantizeLinear" else maker for maker in before)
    return None if first is None or second is None else (first.input[0], second.input[0])


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def _pairs(values: Integers, *, axis: int) -> tuple[Integers, Integers]:
    """Return the even and the odd elements along K; an odd length is padded with a 0."""
    if values.shape[axis] % 2:
        ends = [(0, 0)] * values.ndim
        ends[axis] = (0, 1)
        values = np.pad(values, ends)
    first, second = (np.take(values, np.arange(start, values.shape[axis], 2), axis=axis) for start in (0, 1))
    return first, second


def _run(
    model: onnx.ModelProto, folder: Path, products: list[_Product], batches: Iterable[Feeds]
) -> Iterator[tuple[Feeds, dict[str, NDArray[Any]]]]:
    """Yield each batch with the products' activations, from a session without graph optimisations."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    # An activation may be an input of the graph, which onnxruntime does not return; it is in the feeds.
    names = sorted({product.activations for product in products} - {value.name for value in watched.graph.input})
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = machine.available_cores()
    options.log_severity_level = 3
    # The model is passed as bytes, so onnxruntime has to be told where its weight files are.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = [value.name for value in session.get_inputs()]
    for feeds in batches:
        found = session.run(names, {name: feeds[name] for name in taken}) if names else ()
        yield feeds, {**feeds, **dict(zip(names, found, strict=True))}


def _as_rows(values: NDArray[Any], product: _Product, mask: NDArray[np.int64] | None) -> Integers | None:
    """Return uint8 activations (tokens, K) without padding; None for int8 ones, which are multiplied in full."""
    if product.floats:
        values = _quantize(values)
    elif values.dtype == np.int8 and product.turned:
        values = (values.astype(np.int16) + _S8_TO_U8).astype(np.uint8)
    if values.dtype != np.uint8:
        return None
    if mask is not None and values.ndim == 3 and values.shape[:2] == mask.shape:
        return np.asarray(values[mask > 0])
    return values.reshape(-1, values.shape[-1])


def _quantize(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise as ONNX's DynamicQuantizeLinear: one scale for the whole tensor, with 0 exact."""
    low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.clip(np.rint(values / scale) + zero, 0, 255).astype(np.uint8)


def _count(product: _Product, activations: Integers, generator: np.random.Generator) -> None:
    """Add one batch, activations (tokens, K), to a product's counts."""
    if len(activations) > _MAX_TOKENS:
        activations = activations[generator.choice(len(activations), _MAX_TOKENS, replace=False)]
    product.sums += len(activations) * product.first.size
    first, second = _pairs(activations.astype(np.int32).T, axis=0)
    some = slice(None, None, -(-product.first.shape[1] // _MAX_COLUMNS))
    halves = ((product.first, first), (product.second, second))
    outputs = sum(weights[:, some].T.astype(np.float32) @ values.astype(np.float32) for weights, values in halves)
    # Summed over tokens and columns, extrapolated from the sampled columns.
    product.signal += float(np.var(outputs, axis=1).mean()) * len(activations) * product.first.shape[1]
    pairs, columns = product.risky.T
    # Bound each sum by the largest activations of the batch; only sums that could saturate are computed per token.
    ours, theirs = (side[pairs, columns].astype(np.int32) for side in (product.first, product.second))
    peaks, others = first.max(axis=1)[pairs], second.max(axis=1)[pairs]
    high = peaks * np.maximum(ours, 0) + others * np.maximum(theirs, 0) > _HIGHEST
    low = peaks * np.minimum(ours, 0) + others * np.minimum(theirs, 0) < _LOWEST
    possible = np.flatnonzero(high | low)
    looked_at = possible if len(possible) <= _MAX_SUMS else generator.choice(possible, _MAX_SUMS, replace=False)
    if not len(looked_at):
        return
    # Counts of a sample are scaled up to all possible sums.
    pair, scale = pairs[looked_at], len(possible) / len(looked_at)
    sums = first[pair] * ours[looked_at, None] + second[pair] * theirs[looked_at, None]
    excess = sums - np.clip(sums, _LOWEST, _HIGHEST)
    product.saturated += int(np.count_nonzero(excess)) * scale
    product.largest = max(product.largest, int(sums.max()), int(sums.min()), key=abs)
    # Errors of one output add up over its pairs, so they are summed per column before they are squared.
    touched, places = np.unique(columns[looked_at], return_inverse=True)
    errors = np.zeros((len(touched), len(activations)))
    np.add.at(errors, places, excess)
    product.noise += float((errors**2).sum()) * scale
