"""onnxruntime's QAttention: query, key and value in one integer product, in the layout that attention wants."""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from potstill.export.attention import OPERATORS
from potstill.export.matmuls import Layer

_DOMAIN = "com.microsoft"


@dataclass(frozen=True, slots=True)
class AttentionInput:
    """The three products that feed one fused attention operator."""

    operator: onnx.NodeProto
    matrix: NDArray[np.float32]
    """Query, key and value beside each other, shape (hidden, 3 * hidden)."""
    bias: NDArray[np.float32]

    def node(self, name: str, entry: str) -> onnx.NodeProto:
        """Return the QAttention that takes the quantised activation `entry` and the quantised matrix `name`."""
        mask = self.operator.input[4] if len(self.operator.input) > 4 else ""
        inputs = [entry, f"{name}_int8", f"{name}_bias", f"{entry}_scale", f"{name}_scale", mask, f"{entry}_zero"]
        node = helper.make_node(
            "QAttention", [*inputs, f"{name}_zero"], list(self.operator.output), name=name, domain=_DOMAIN
        )
        node.attribute.extend(self.operator.attribute)  # heads, scale and the value of a masked key
        return node


def find_attention(graph: onnx.GraphProto, layer: Layer) -> AttentionInput | None:
    """Return what a layer feeds if that is a fused attention operator without a bias on its scores."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = {node.output[0]: node for node in layer.nodes}
    producer = {name: node for node in graph.node for name in node.output}
    for operator in graph.node:
        if operator.op_type != OPERATORS["fused"] or any(operator.input[3:4]) or len(operator.input) > 5:
            continue
        found = [_product_and_bias(name, producer, products, weights) for name in operator.input[:3]]
        parts = [part for part in found if part is not None]
        if len(parts) == 3:
            matrix = np.concatenate([numpy_helper.to_array(weights[node.input[1]]) for node, _ in parts], axis=1)
            bias = np.concatenate([numpy_helper.to_array(weights[name]) for _, name in parts])
            return AttentionInput(operator, matrix, bias)
    return None


def _product_and_bias(
    name: str,
    producer: dict[str, onnx.NodeProto],
    products: dict[str, onnx.NodeProto],
    weights: dict[str, onnx.TensorProto],
) -> tuple[onnx.NodeProto, str] | None:
    """Return a product of the layer and the constant vector that is added to it to make `name`."""
    add = producer.get(name)
    if add is None or add.op_type != "Add":
        return None
    for product, bias in (tuple(add.input), tuple(reversed(add.input))):
        if product in products and bias in weights and len(weights[bias].dims) == 1:
            return products[product], bias
    return None
