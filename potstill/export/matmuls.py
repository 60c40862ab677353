"""The products with a constant matrix in a graph, which are what int8 is about, and what flows into them."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from potstill.export.onnx_files import save_model

Feeds = Mapping[str, NDArray[np.int64]]
# A head with fewer columns costs no time, and its rounding goes straight into the answer.
FEWEST_COLUMNS = 16


@dataclass(frozen=True, slots=True)
class Layer:
    """The products of one activation, such as query, key and value: they share its scale."""

    name: str
    """The first one's weight, without what all of them end in."""
    activation: str
    """The tensor that comes in."""
    nodes: tuple[onnx.NodeProto, ...]
    """MatMul nodes with the weight as their second input."""
    tied: bool = False
    """Whether it is one Gemm with the table of word embeddings itself, as in masked language models."""
    shared: bool = False
    """Whether other layers have the same weights, as in ALBERT: then they cannot take a set of factors each."""


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value of each channel of an activation, over all tokens seen; shape (channels,) each."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def peak(self) -> NDArray[np.float32]:
        """The largest absolute value of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def divided(self, factors: NDArray[np.float32]) -> "Range":
        """Return the range after each channel was divided by its (positive) factor."""
        return Range(self.low / factors, self.high / factors)


def find_layers(graph: onnx.GraphProto) -> list[Layer]:
    """Return the layers of a graph whose products are worth integers, in the graph's order."""
    uses = Counter(name for node in graph.node for name in node.input)
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    # A table that is quantised already is looked up under its new name, while a product still has the old one.
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
            name = before.name if before else layer_name(weight.name)
            shared = uses[weight.name] > 1 or bool(before and before.shared)
            layers[node.input[0]] = Layer(name, node.input[0], nodes, tied, shared)
    return list(layers.values())


def layer_name(weight: str) -> str:
    """Return what a layer is called whose first weight has this name."""
    return weight.removesuffix(".weight")


def split_gemms(graph: onnx.GraphProto) -> None:
    """Write every Gemm with a wide enough constant matrix as MatMul and Add, in place, so that it can be quantised."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        flags = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = not flags.get("transA") and flags.get("alpha", 1.0) == flags.get("beta", 1.0) == 1.0
        weight = weights.get(node.input[1]) if node.op_type == "Gemm" and plain else None
        if weight is None or min(weight.dims) < FEWEST_COLUMNS:
            nodes.append(node)
            continue
        if uses[weight.name] > 1:  # the table of word embeddings, or a weight that another product wants as it is
            nodes.append(node)
            continue
        name = weight.name
        if flags.get("transB"):
            weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(weight).T), name))
        product, added = and_bias(node)
        nodes += [helper.make_node("MatMul", [node.input[0], name], [product], name=f"{name}_product"), *added]
    replace_nodes(graph, nodes)


def and_bias(gemm: onnx.NodeProto) -> tuple[str, list[onnx.NodeProto]]:
    """Return what the product within a Gemm shall be called, and the node that adds its bias, if it has one."""
    if len(gemm.input) < 3:
        return gemm.output[0], []
    product = f"{gemm.output[0]}_product"
    return product, [helper.make_node("Add", [product, gemm.input[2]], list(gemm.output), name=f"{product}_bias")]


def measure_ranges(model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Feeds]) -> dict[str, Range]:
    """Run real texts through a graph and return the range of each named tensor, padding left out.

    Args:
        model: an fp32 graph.
        names: activations of shape (B, T, channels) or (B, channels).
        batches: inputs of the graph, with `attention_mask`.
    """
    outputs = {output.name for output in model.graph.output}
    added = [name for name in names if name not in outputs]
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in added)
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_model(model, Path(folder) / "watched.onnx")
            session = _plain_session(Path(folder) / "watched.onnx")
            return _run_ranges(session, list(names), batches)
    finally:
        for _ in added:
            model.graph.output.pop()


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Make `nodes` the nodes of a graph."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def _plain_session(file: Path) -> Any:
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run_ranges(session: Any, names: list[str], batches: Iterable[Feeds]) -> dict[str, Range]:
    inputs = [entry.name for entry in session.get_inputs()]
    found: dict[str, Range] = {}
    for feeds in batches:
        tokens = feeds["attention_mask"].astype(bool)
        for name, values in zip(names, session.run(names, {key: feeds[key] for key in inputs}), strict=True):
            rows = values[tokens] if values.ndim == 3 and values.shape[:2] == tokens.shape else values
            rows = rows.reshape(-1, rows.shape[-1])
            low, high = rows.min(axis=0), rows.max(axis=0)
            if name in found:
                low, high = np.minimum(low, found[name].low), np.maximum(high, found[name].high)
            found[name] = Range(low, high)
    return found
