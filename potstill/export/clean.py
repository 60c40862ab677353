"""Tidy an exported graph without changing its answers: no leftovers of the trace, weights as constants, real names."""

import ast
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from potstill.export.attention import OPERATORS

# The attribute of the module that is traced which holds the model, see graph.py.
WRAPPER = "model."
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Tidy `model` in place and return it.

    Nodes are called after their module, "bert.encoder.layer.0.output.dense/MatMul". Stored shapes go because
    `quantize_dynamic` refuses a graph whose shapes differ from those it infers itself.
    """
    graph = model.graph
    merge_heads(graph)
    fold_transposes(graph)
    share_equal_weights(graph)
    tie_vocabulary(graph)
    slice_positions(graph)
    drop_dead(graph)
    name_after_modules(graph)
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True))
    del graph.value_info[:]
    del graph.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    return model


def merge_heads(graph: onnx.GraphProto) -> None:
    """Remove the reshapes around attention: splitting and merging heads is what the operator does inside."""
    producer = {name: node for node in graph.node for name in node.output}
    consumers = _consumers(graph)
    for node in [node for node in graph.node if node.op_type in OPERATORS.values()]:
        for position in range(3):
            node.input[position] = _before_reshapes(node.input[position], producer)
        for user, old in list(_after_reshapes(node.output[0], consumers)):
            user.input[:] = [node.output[0] if name == old else name for name in user.input]


def _before_reshapes(name: str, producer: dict[str, onnx.NodeProto]) -> str:
    """Go back over pairs of reshapes, which split and merge; a single one merges what a Transpose has split."""
    while (merged := producer.get(name)) is not None and merged.op_type == "Reshape":
        split = producer.get(merged.input[0])
        if split is None or split.op_type != "Reshape":
            break
        name = split.input[0]
    return name


def _after_reshapes(name: str, consumers: dict[str, list[onnx.NodeProto]]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Yield who uses the tensor behind any number of reshapes, and under which name."""
    for node in consumers[name]:
        if node.op_type == "Reshape" and node.input[0] == name:
            yield from _after_reshapes(node.output[0], consumers)
        else:
            yield node, name


def fold_transposes(graph: onnx.GraphProto) -> None:
    """Store weights as they are multiplied; the exporter leaves a Transpose where a weight has several users."""
    weights, consumers = _weights(graph), _consumers(graph)
    for name, tensor in weights.items():
        users = consumers[name]
        if len(tensor.dims) != 2 or not users or any(node.op_type != "Transpose" for node in users):
            continue
        tensor.CopyFrom(_tensor(numpy_helper.to_array(tensor).T, name))
        for node in users:
            for user in consumers[node.output[0]]:
                user.input[:] = [name if read == node.output[0] else read for read in user.input]


def share_equal_weights(graph: onnx.GraphProto) -> None:
    """Store equal matrices once; the exporter turns a weight that ALBERT's layers share anew for each of them."""
    first: dict[tuple[tuple[int, ...], str], str] = {}
    names: dict[str, str] = {}
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name.startswith("val_")):
        if len(tensor.dims) == 2:
            content = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()
            names[tensor.name] = first.setdefault((tuple(tensor.dims), content), tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def tie_vocabulary(graph: onnx.GraphProto) -> None:
    """Let the product with the vocabulary use the table of word embeddings itself, where the model ties the two.

    MatMul needs the table turned, which is a second copy of the largest weight. Gemm takes it as it is, but takes two
    dimensions only.
    """
    weights, consumers = _weights(graph), _consumers(graph)
    tables = {name for name in weights if any(node.op_type == "Gather" for node in consumers[name])}
    producer = {name: node for node in graph.node for name in node.output}
    replacements: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        table = _table_of(node.input[1], tables, weights, producer) if node.op_type == "MatMul" else None
        if table is not None:
            last, bias = _bias_after(node, weights, consumers)
            nodes = _flat_gemm(graph, node, table=weights[table], bias=bias, output=last.output[0])
            replacements |= {node.output[0]: [], last.output[0]: nodes}
    _replace(graph, replacements)


def _table_of(
    name: str, tables: set[str], weights: dict[str, onnx.TensorProto], producer: dict[str, onnx.NodeProto]
) -> str | None:
    """Return which of `tables` the weight `name` is, turned; the exporter has turned small ones already."""
    if name in producer:
        turned = producer[name]
        return turned.input[0] if turned.op_type == "Transpose" and turned.input[0] in tables else None
    if name not in weights:
        return None
    matrix = weights[name]
    for table in (weights[other] for other in tables):
        alike = list(table.dims) == list(matrix.dims)[::-1]
        if alike and np.array_equal(numpy_helper.to_array(table), numpy_helper.to_array(matrix).T):
            return table.name
    return None


def _bias_after(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], consumers: dict[str, list[onnx.NodeProto]]
) -> tuple[onnx.NodeProto, str | None]:
    """Return the Add of a constant vector that alone uses the product, and the vector; else the product itself."""
    users = consumers[node.output[0]]
    if len(users) == 1 and users[0].op_type == "Add":
        for name in users[0].input:
            if name in weights and len(weights[name].dims) == 1:
                return users[0], name
    return node, None


def _flat_gemm(
    graph: onnx.GraphProto, product: onnx.NodeProto, *, table: onnx.TensorProto, bias: str | None, output: str
) -> list[onnx.NodeProto]:
    """Write (B, T, H) x (V, H) + (V) as a product of two dimensions."""
    words, width = table.dims
    hidden = product.input[0]
    tokens, answers, sizes, shape = (f"{output}_{part}" for part in ("tokens", "rows", "sizes", "shape"))
    graph.initializer.extend(
        [_tensor(np.array([-1, width]), f"{tokens}_shape"), _tensor(np.array([words]), f"{output}_width")]
    )
    nodes = [
        helper.make_node("Reshape", [hidden, f"{tokens}_shape"], [tokens]),
        helper.make_node("Gemm", [tokens, table.name, *([bias] if bias else [])], [answers], transB=1),
        helper.make_node("Shape", [hidden], [sizes], start=0, end=2),
        helper.make_node("Concat", [sizes, f"{output}_width"], [shape], axis=0),
        helper.make_node("Reshape", [answers, shape], [output]),
    ]
    for node in nodes:
        node.metadata_props.extend(product.metadata_props)
    return nodes


def slice_positions(graph: onnx.GraphProto) -> None:
    """Take the first T rows of a position table as a Slice, where the exporter gathers rows 0, 1, 2, ... of it."""
    weights, consumers = _weights(graph), _consumers(graph)
    producer = {name: node for node in graph.node for name in node.output}
    replacements: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        ids = producer.get(node.input[1]) if node.op_type == "Gather" and node.input[0] in weights else None
        # (1, T, H) becomes (T, H), which is the same to an Add.
        added = all(user.op_type == "Add" for user in consumers[node.output[0]])
        if ids is None or ids.op_type != "Slice" or not added or not _counts_from_zero(ids, weights):
            continue
        axis = f"{node.output[0]}_axis"
        graph.initializer.append(_tensor(np.array([0]), axis))
        rows = helper.make_node("Slice", [node.input[0], *ids.input[1:3], axis], list(node.output))
        rows.metadata_props.extend(node.metadata_props)
        replacements[node.output[0]] = [rows]
    _replace(graph, replacements)


def _counts_from_zero(ids: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if ids.input[0] not in weights or ids.input[1] not in weights:
        return False
    numbers, start = (numpy_helper.to_array(weights[name]) for name in ids.input[:2])
    return numbers.shape[0] == 1 and bool(start == 0) and np.array_equal(numbers[0], np.arange(numbers.size))


def name_after_modules(graph: onnx.GraphProto) -> None:
    """Call nodes, and weights that the exporter has turned, after their module: "classifier/Gemm"."""
    weights = _weights(graph)
    names = {name: name.removeprefix(WRAPPER) for name in weights}
    taken = Counter(names.values())
    for node in graph.node:
        path = _module_of(node)
        wanted = f"{path}/{node.op_type}" if path else node.op_type
        taken[wanted] += 1
        node.name = wanted if taken[wanted] == 1 else f"{wanted}_{taken[wanted]}"
        weight = node.input[1] if node.op_type in {"MatMul", "Gemm"} else ""
        if path and names.get(weight, "").startswith("val_") and not taken[f"{path}.weight"]:
            taken[f"{path}.weight"] += 1
            names[weight] = f"{path}.weight"
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _module_of(node: onnx.NodeProto) -> str:
    """Return the path of the module that wrote a node, as `named_modules` gives it, or nothing."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = [scope for scope in ast.literal_eval(entry.value)[:-1] if scope.startswith(WRAPPER)]
            return scopes[-1].removeprefix(WRAPPER) if scopes else ""
    return ""


def drop_dead(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that nothing uses any more."""
    used = {output.name for output in graph.output}
    dead: dict[str, list[onnx.NodeProto]] = {}
    for node in reversed(graph.node):  # users stand behind what they use
        if used.intersection(node.output):
            used.update(node.input)
        else:
            dead[node.output[0]] = []
    _replace(graph, dead)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]


def _weights(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    return consumers


def _replace(graph: onnx.GraphProto, replacements: dict[str, list[onnx.NodeProto]]) -> None:
    """Put other nodes in the places of some, which are named by their first output."""
    nodes = [new for node in graph.node for new in replacements.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(nodes)


def _tensor(values: NDArray[np.generic], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)
