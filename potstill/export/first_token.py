"""Compute the last layer for the first token of a text alone, where the head reads no other.

A classifier of BERT's kind answers from one vector, that of the first token. In the last layer all tokens are then
needed as keys and values of attention, but only the first as a query, and everything behind attention works on one
token at a time. Ten of a layer's twelve products with (H, H) weights are left to do once per text: in a student of
three layers more than a quarter of all work, in BERT-base a fourteenth.

The pass knows operators and no families. It walks the graph backwards and notes of every tensor whether somebody reads
all of it, or everybody only the first position along an axis; then forwards, and narrows what may be. Where something
is needed as a whole anyway, such as the hidden states that make the keys, a Slice takes the first position from it. A
graph whose head reads every token, or that publishes its token vectors, stays as it is.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
import onnx
from onnx import helper, numpy_helper

from potstill.export.attention import OPERATORS
from potstill.export.graph import drop_dead, set_nodes
from potstill.export.onnx_files import tensor_shapes

# Operators that work element by element, with the broadcasting of numpy.
ELEMENTWISE = frozenset(
    {
        "Add",
        "BiasGelu",
        "Cast",
        "DequantizeLinear",
        "Div",
        "Erf",
        "FastGelu",
        "Gelu",
        "Identity",
        "Mul",
        "Pow",
        "QuantizeLinear",
        "QuickGelu",
        "Relu",
        "Sigmoid",
        "Sub",
        "Tanh",
    }
)
_ELEMENTWISE = ELEMENTWISE | {"And", "Equal", "Not", "Or", "Where"}
# Shapes are inferred for this batch size and length: primes, so that no other two axes of a model look like them.
TEXTS, LENGTH = 11, 13
# The inputs of a Slice that takes the first position along axis 1.
_START, _END = "first_token/start", "first_token/end"
_PRODUCTS = frozenset({"MatMul", *OPERATORS.values()})


def keep_first_token(model: onnx.ModelProto) -> None:
    """Narrow, in place, what is computed for every token and read for the first one alone.

    Args:
        model: the fp32 graph of an encoder, before `unpad`; its outputs stay the same.

    Raises:
        ParityError: if the graph has an operator whose shapes cannot be inferred.
    """
    graph, shapes = model.graph, tensor_shapes(model, TEXTS, LENGTH)
    narrowed = _find_narrow(graph, shapes)
    if not any(node.op_type in _PRODUCTS and node.output[0] in narrowed for node in graph.node):
        return
    narrow, cut = set[str](), set[str]()
    added: dict[str, list[int]] = {_START: [0], _END: [1]}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for position, axis in enumerate(narrowed.get(node.output[0], [])):
            name = node.input[position]
            if axis is None or name in narrow:
                continue
            piece, along = f"{name}/first", _END
            if axis != 1:
                piece, along = f"{name}/first_of_axis_{axis}", f"first_token/axis_{axis}"
                added[along] = [axis]
            if piece not in cut:
                cut.add(piece)
                nodes.append(helper.make_node("Slice", [name, _START, _END, along], [piece], name=piece))
            node.input[position] = piece
        if node.output[0] in narrowed:
            narrow.update(node.output)
            if node.op_type == "Reshape":
                # 0 copies the number of texts, unless `allowzero` is set.
                del node.attribute[:]
                node.input[1] = f"{node.output[0]}/shape"
                added[node.input[1]] = [0, 1, *(size or 0 for size in shapes[node.output[0]][2:])]
        nodes.append(node)
    set_nodes(graph, nodes)
    graph.initializer.extend(numpy_helper.from_array(np.array(values), name) for name, values in added.items())
    drop_dead(graph)


def is_first_token_only(model: onnx.ModelProto) -> bool:
    """Return whether a graph was changed by `keep_first_token`, or derived from one that was."""
    return any(_START in node.input for node in model.graph.node)


def takes_first_token(node: onnx.NodeProto) -> bool:
    """Return whether a node was written by `keep_first_token` to take the first token of every text."""
    return node.op_type == "Slice" and list(node.input[1:]) == [_START, _END, _END]


def _find_narrow(graph: onnx.GraphProto, shapes: Mapping[str, list[int | None]]) -> dict[str, list[int | None]]:
    """Return the nodes whose outputs are read at the first position only, by first output, with what they then read."""
    numbers = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) < 2}
    # Tensors that somebody reads as a whole; and the axis along which nobody reads more of the others than position 0.
    whole, first = {output.name for output in graph.output}, dict[str, int]()
    found: dict[str, list[int | None]] = {}
    for node in reversed(graph.node):  # users stand behind what they use
        axes = {None if name in whole else first[name] for name in node.output if name in whole or name in first}
        axis = axes.pop() if len(axes) == 1 else None
        reads = None if axis is None else _reads(node, axis, shapes)
        if reads is not None:
            found[node.output[0]] = reads
        elif _reads_first(node, numbers) and shapes.get(node.input[0], [])[:2] == [TEXTS, LENGTH]:
            reads = [1]
        for name, part in zip_longest(node.input, reads or []):
            if part is None or first.setdefault(name, part) != part:
                whole.add(name)
    return found


def _reads_first(node: onnx.NodeProto, numbers: Mapping[str, onnx.TensorProto]) -> bool:
    """Return whether a node reads only the first position along axis 1, as in `states[:, 0]`."""
    if not all(name in numbers for name in node.input[1:]):
        return False
    values = [numpy_helper.to_array(numbers[name]).reshape(-1).tolist() for name in node.input[1:]]
    if node.op_type == "Gather":
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        return axis == 1 and values == [[0]]
    return node.op_type == "Slice" and values[:3] == [[0], [1], [1]]


def _reads(node: onnx.NodeProto, axis: int, shapes: Mapping[str, list[int | None]]) -> list[int | None] | None:
    """Return what a node needs of its inputs, if nobody reads more of its outputs than position 0 along `axis`.

    Returns:
        For the first inputs the axis along which position 0 is enough, or None for a whole input; those that the list
        leaves out are whole. None instead of a list if the operator must be computed as a whole.
    """
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if not all(name in shapes for name in (*node.input, node.output[0]) if name):
        return None
    given, made = [shapes.get(name, []) for name in node.input], shapes[node.output[0]]
    operator, rank = node.op_type, len(made)
    if operator in _ELEMENTWISE:
        return [_same_axis(shape, rank - axis) for shape in given]
    if operator in {"LayerNormalization", "Softmax", "Split"}:
        return [axis] if axis < settings.get("axis", 0 if operator == "Split" else -1) % rank else None
    if operator == "Transpose":
        return [list(settings.get("perm", range(rank)[::-1]))[axis]]
    if operator == "MatMul":
        # Rows of the product are rows of its left side.
        rows = len(given[0]) - 2
        return [rows] if rows >= 0 and axis == rank - 2 else None
    if operator == "GatherElements":
        return [None if settings.get("axis", 0) % rank == axis else axis, axis]
    if operator == "Reshape":
        # Heads are split or merged behind the axis of the tokens.
        kept = [TEXTS, LENGTH]
        return [1] if axis == 1 and given[0][:2] == made[:2] == kept and None not in made else None
    return _attention_reads(node, given) if axis == 1 and rank == 3 else None


def _attention_reads(node: onnx.NodeProto, given: Sequence[Sequence[int | None]]) -> list[int | None] | None:
    """Return the same as `_reads` for attention over (B, T, width) and what belongs to it; `given` are input shapes."""
    operator = node.op_type
    if operator == "RotaryEmbedding":
        # onnxruntime's takes the positions second, the standard's last; (B, T) both.
        place = 1 if node.domain else 3
        return [1, *[None] * (place - 1), 1] if [len(shape) for shape in given[place : place + 1]] == [2] else None
    # Query, key, value and what is added to the scores, of which the last but one axis are the queries. No caches.
    if operator == OPERATORS["fused"] and len(given) <= 6:
        return [1, None, None, *(_same_axis(shape, 2) if len(shape) > 2 else None for shape in given[3:])]
    is_causal = any(attribute.name == "is_causal" and attribute.i for attribute in node.attribute)
    if operator == OPERATORS["onnx"] and not node.domain and len(given) <= 4 and not is_causal:
        return [1, None, None, *(_same_axis(shape, 2) for shape in given[3:])]
    return None


def _same_axis(shape: Sequence[int | None], from_end: int) -> int | None:
    """Return the axis that broadcasting pairs with that one, counted from the end; None if it is missing or 1 wide."""
    axis = len(shape) - from_end
    return None if axis < 0 or shape[axis] == 1 else axis
