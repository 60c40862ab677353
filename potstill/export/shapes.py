"""Strict shape inference through onnxruntime's own operators, which onnx does not know.

onnx passes such an operator and everything behind it without a look: in a BERT with one fused attention operator per
layer that is all but the first four products. onnxruntime's symbolic inference gives up on current exports
("Incomplete symbolic shape inference", onnxruntime 1.31.1 on a graph of opset 20). So each of these operators is
replaced, for inference only, by standard ones that give the same shapes.
"""

from collections.abc import Callable

import onnx
from onnx import helper

from potstill.errors import ParityError

_STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


def has_foreign_operators(model: onnx.ModelProto) -> bool:
    """Return whether a graph uses operators that are not of the ONNX standard."""
    return any(node.domain not in _STANDARD_DOMAINS for node in model.graph.node)


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the type and shape of every tensor, as its inputs and operators make them.

    What the file says of its outputs and of the tensors between is not believed. The values of large initializers may
    be missing (`potstill.onnxwire.without_weights`). `model` is changed.

    Raises:
        ParityError: if there is an operator that nobody can infer through.
        onnx.shape_inference.InferenceError: if the shapes do not fit.
    """
    graph = model.graph
    local = {(function.domain, function.name) for function in model.functions}
    nodes = [part for node in graph.node for part in _standard(node, local)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for value in graph.output:
        value.ClearField("type")
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _standard(node: onnx.NodeProto, local: set[tuple[str, str]]) -> list[onnx.NodeProto]:
    """Return standard operators that give the shapes which `node` gives."""
    if node.domain in _STANDARD_DOMAINS or (node.domain, node.op_type) in local:
        return [node]
    stand_in = _STAND_INS.get(node.op_type) if node.domain == "com.microsoft" else None
    if stand_in is None:
        raise ParityError(
            f"the graph has the operator {node.domain}:{node.op_type}, whose shapes cannot be checked; expected "
            f"standard ones or {', '.join(sorted(_STAND_INS))}; export the checkpoint itself instead"
        )
    return stand_in(node)


def _like_first(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)]


def _skip_norm(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """SkipLayerNormalization(input, skip, ...): the normalised sum and, as fourth output, the sum."""
    sums = [name for position, name in enumerate(node.output) if position in {0, 3} and name]
    return [helper.make_node("Add", node.input[:2], [name], name=f"{node.name}/{name}") for name in sums]


def _product(node: onnx.NodeProto, *, like: int) -> list[onnx.NodeProto]:
    """Multiply A by B in the element type of input number `like`."""
    casts = [
        helper.make_node("CastLike", [name, node.input[like]], [f"{node.output[0]}/{side}"], name=f"{node.name}/{side}")
        for side, name in zip("AB", node.input[:2], strict=True)
    ]
    factors = [cast.output[0] for cast in casts]
    return [*casts, helper.make_node("MatMul", factors, [node.output[0]], name=node.name)]


def _attention(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """QAttention(input, weight, bias, input scale, ...): one product for query, key and value, side by side."""
    output, merged = node.output[0], f"{node.output[0]}/merged"
    product = onnx.NodeProto(name=node.name, input=node.input, output=[merged])
    parts = [output, f"{output}/key", f"{output}/value"]
    return [*_product(product, like=3), helper.make_node("Split", [merged], parts, axis=-1, num_outputs=3)]


def _renamed(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    standard = onnx.NodeProto()
    standard.CopyFrom(node)
    standard.domain = ""
    return [standard]


_STAND_INS: dict[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {
    "BiasGelu": _like_first,
    "DequantizeLinear": _renamed,
    "DynamicQuantizeMatMul": lambda node: _product(node, like=0),
    "FastGelu": _like_first,
    "Gelu": _like_first,
    "MatMulIntegerToFloat": lambda node: _product(node, like=2),
    "MultiHeadAttention": _like_first,
    "QAttention": _attention,
    "QuantizeLinear": _renamed,
    "QuickGelu": _like_first,
    "RotaryEmbedding": _like_first,
    "SkipLayerNormalization": _skip_norm,
}
