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
    be missing (`potstill.onnx_inspect.without_weights`). `model` is changed.

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


def tensor_shapes(model: onnx.ModelProto, batch_size: int, num_tokens: int) -> dict[str, list[int | None]]:
    """Return the dimensions of every tensor of an encoder's graph for so many texts of so many tokens.

    With sizes, because inference does not know that a table of positions is cut to the length of the texts.

    Args:
        model: is not changed, and may be larger than protobuf's 2 GiB.
        batch_size: the first dimension of every input.
        num_tokens: the second one.

    Returns:
        None stands for an unknown dimension; a tensor without a known rank is not there.

    Raises:
        ParityError: if there is an operator that nobody can infer through.
    """
    slim = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    slim.graph.CopyFrom(onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output))
    for value in slim.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, (batch_size, num_tokens), strict=True):
            dim.dim_value = size
    for tensor in graph.initializer:
        # Vectors may be sizes, whose values count.
        outline = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        slim.graph.initializer.append(outline if len(tensor.dims) > 1 else tensor)
    inferred = infer_shapes(slim).graph
    found: dict[str, list[int | None]] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    return found


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


def _blockwise_product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """MatMulNBits(A, B, scales, ...): A, (..., K), times a matrix of K rows and N columns that is read in blocks."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    sizes, matrix = f"{node.output[0]}/sizes", f"{node.output[0]}/matrix"
    return [
        helper.make_node("Constant", [], [sizes], value_ints=[settings["K"], settings["N"]]),
        helper.make_node("ConstantOfShape", [sizes], [matrix]),
        *_product(onnx.NodeProto(name=node.name, input=[node.input[0], matrix], output=node.output), like=0),
    ]


def _quantised_product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """QGemm(A, scale, zero, B, scale, zero, C, ...): the result is quantised if it has a scale, else float."""
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    right = f"{node.output[0]}/turned" if turned else node.input[3]
    product, scale = f"{node.output[0]}/product", node.input[7] if len(node.input) > 7 else ""
    return [
        *([helper.make_node("Transpose", [node.input[3]], [right], perm=[1, 0])] if turned else []),
        *_product(
            onnx.NodeProto(name=node.name, input=[node.input[0], right, node.input[1]], output=[product]), like=2
        ),
        helper.make_node("CastLike", [product, node.input[0] if scale else node.input[1]], [node.output[0]]),
    ]


def _of_both(operator: str) -> Callable[[onnx.NodeProto], list[onnx.NodeProto]]:
    """QLinearAdd and its like (A, scale, zero, B, scale, zero, ...): of the type of A."""
    return lambda node: [helper.make_node(operator, [node.input[0], node.input[3]], [node.output[0]], name=node.name)]


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
    "MatMulNBits": _blockwise_product,
    "MultiHeadAttention": _like_first,
    "QAttention": _attention,
    "QGemm": _quantised_product,
    "QLinearAdd": _of_both("Add"),
    "QLinearLeakyRelu": _like_first,
    "QLinearMul": _of_both("Mul"),
    "QLinearSigmoid": _like_first,
    "QLinearSoftmax": _like_first,
    "QuantizeLinear": _renamed,
    "QuickGelu": _like_first,
    "RotaryEmbedding": _like_first,
    "SkipLayerNormalization": _skip_norm,
}
