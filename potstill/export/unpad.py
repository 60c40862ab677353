"""Rewrite a graph so that padding is left out of its products: a batch costs what its tokens cost.

Nearly everything in an encoder works on one token at a time: products with weights, activations, norms. Between two
attentions the rows of a batch can therefore be one long list of tokens without padding. The graph makes this list
itself from the attention mask, so inputs and outputs stay as they are. ByteTransformer (arXiv 2210.03052) and
ModernBERT (arXiv 2412.13663, "unpadding") do the same in kernels of their own; here it is two Gathers:

    unpad  (B, T, width) -> (1, N, width)   the N tokens that the mask shows
    pad    (1, N, width) -> (B, T, width)   before attention, and before all else that reads more than one token

The list keeps three dimensions because onnxruntime makes Gemms of products of two, and loses its integer forms by that
(int8-static of a MiniLM: 8.5 ms for 25 tokens instead of 1.6, docs/log.md).

The first position of every text is always in the list, even if masked, so that a head that reads it gets torch's value.
Any other padding position gets the vector of the last token before it, which is not torch's value; attention and
pooling, which have the mask, do not read it.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from potstill.export.first_token import ELEMENTWISE, LENGTH, TEXTS, takes_first_token
from potstill.export.graph import drop_dead
from potstill.export.onnx_files import tensor_shapes

MASK = "attention_mask"
# These work on one token at a time if their axis is the last.
_ALONG_WIDTH = frozenset({"LayerNormalization", "Split"})
# Tensors: the shape (B, T); for each of the N tokens its position in the flat batch; for each position, (B, T), the
# number of its token or of the last one before it; and of the first positions alone, (B, 1).
_SIZE, _INDEX, _ROW, _FIRST = "unpad/size", "unpad/index", "unpad/row", "unpad/first"


def unpad(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of an encoder's graph in which no product with a weight sees padding.

    Args:
        model: a graph whose inputs are (batch_size, sequence_length), one of them the attention mask.

    Returns:
        The copy; `model` itself if it has no mask, or no product of tokens with a weight.

    Raises:
        ParityError: if the graph has an operator whose shapes cannot be inferred.
    """
    if MASK not in {value.name for value in model.graph.input}:
        return model
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    tokens = _Tokens(copied.graph, tensor_shapes(copied, TEXTS, LENGTH))
    nodes = [part for node in list(copied.graph.node) for part in tokens.rewritten(node)]
    if not tokens.is_used:
        return model
    del copied.graph.node[:]
    copied.graph.node.extend([*_list_tokens(copied.graph), *nodes])
    drop_dead(copied.graph)
    return copied


def is_unpadded(model: onnx.ModelProto) -> bool:
    """Return whether a graph was made by `unpad`, or derived from one that was."""
    return any(_INDEX in node.output for node in model.graph.node)


class _Tokens:
    """Rewrites nodes in order, and keeps which tensors exist as a list of tokens and which as padded rows."""

    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, list[int | None]]) -> None:
        self._graph, self._shapes = graph, shapes
        self._constants = {tensor.name for tensor in graph.initializer}
        # Tensor -> the name of its list of tokens; and those of them that exist as padded rows, too.
        self._listed: dict[str, str] = {}
        self._padded: set[str] = set()
        self._flat: set[str] = set()
        self.is_used = False

    def rewritten(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that replace a node: the node on tokens or on rows, after what converts its inputs."""
        if all(name in self._constants or not name for name in node.input):
            self._constants.update(node.output)
        if takes_first_token(node) and node.input[0] in self._listed:
            # Straight from the list, where the first position of every text is; nothing need be padded for it.
            return self._take(node.input[0], self._listed[node.input[0]], _FIRST, node.output[0])
        before: list[onnx.NodeProto] = []
        # Unpad before a QuantizeLinear and not behind it: it must stay beside DequantizeLinear and MatMul, or
        # onnxruntime does not fuse them into an integer product.
        is_product = self._is_product(node) or (node.op_type == "QuantizeLinear" and self._is_rows(node.input[0]))
        if is_product and node.input[0] not in self._listed:
            before += self._unpad(node.input[0])
        if self._is_tokenwise(node):
            for name in node.input:
                if self._is_rows(name) and name not in self._listed:
                    before += self._unpad(name)
            return [*before, self._on_tokens(node), *self._outputs(node)]
        for name in node.input:
            before += self._pad(name)
        return [*before, node]

    def _is_product(self, node: onnx.NodeProto) -> bool:
        return (
            node.op_type == "MatMul"
            and node.input[1] in self._constants
            and len(self._shapes.get(node.input[1], [])) == 2
            and self._is_rows(node.input[0])
        )

    def _is_tokenwise(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "MatMul":
            return self._is_product(node)
        if node.op_type not in ELEMENTWISE | _ALONG_WIDTH or not _is_along_width(node):
            return False
        moving = [name for name in node.input if name and name not in self._constants]
        if not any(name in self._listed for name in moving):
            return False
        fixed = [name for name in node.input if name in self._constants]
        if any(size != 1 for name in fixed for size in self._shapes.get(name, [None, None])[:-1]):
            return False  # a constant per position, such as a position table
        # Everything must be a list already, so that a mask is never multiplied into one: what it sets to 0 would come
        # back when the list is padded. Add may unpad its other input, the residual.
        return all(name in self._listed or (node.op_type == "Add" and self._is_rows(name)) for name in moving)

    def _is_rows(self, name: str) -> bool:
        """Return whether a tensor has one vector per position, (B, T, width), padding included."""
        dims = self._shapes.get(name, [])
        return len(dims) == 3 and dims[:2] == [TEXTS, LENGTH] and dims[2] is not None

    def _unpad(self, name: str) -> list[onnx.NodeProto]:
        self.is_used = True
        self._listed[name] = f"{name}/tokens"
        self._padded.add(name)
        return self._take(name, name, _INDEX, self._listed[name])

    def _pad(self, name: str) -> list[onnx.NodeProto]:
        if name not in self._listed or name in self._padded:
            return []
        self._padded.add(name)
        return self._take(name, self._listed[name], _ROW, name)

    def _take(self, name: str, source: str, places: str, target: str) -> list[onnx.NodeProto]:
        """Return the nodes that flatten `source` to rows of vectors, and gather those at `places` as `target`."""
        width = self._shapes[name][2]
        shape, flat = f"unpad/width_{width}", f"{source}/flat"
        if shape not in self._constants:
            self._constants.add(shape)
            self._graph.initializer.append(_numbers(shape, [-1, width]))
        taken = helper.make_node("Gather", [flat, places], [target], name=f"{target}/taken", axis=0)
        if flat in self._flat:
            return [taken]
        self._flat.add(flat)
        return [helper.make_node("Reshape", [source, shape], [flat], name=flat), taken]

    def _on_tokens(self, node: onnx.NodeProto) -> onnx.NodeProto:
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        moved.input[:] = [self._listed.get(name, name) for name in node.input]
        moved.output[:] = [f"{name}/tokens" if name else "" for name in node.output]
        self._listed.update((name, f"{name}/tokens") for name in node.output if name)
        return moved

    def _outputs(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that pad a node's outputs that are outputs of the graph."""
        given = {value.name for value in self._graph.output}
        return [part for name in node.output if name in given for part in self._pad(name)]


def _is_along_width(node: onnx.NodeProto) -> bool:
    """Return whether a LayerNormalization or Split works along the last axis; True for other operators."""
    if node.op_type not in _ALONG_WIDTH:
        return True
    default = -1 if node.op_type == "LayerNormalization" else 0
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), default) in {-1, 2}


def _list_tokens(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that compute `_SIZE`, `_INDEX`, `_ROW` and `_FIRST` from the attention mask."""
    constants = {
        "unpad/0": 0,
        "unpad/1": 1,
        "unpad/begin": [0],
        "unpad/second": [1],
        "unpad/end": [np.iinfo(np.int64).max],
        "unpad/all": [-1],
        "unpad/front": [0, 1, 0, 0],
    }
    graph.initializer.extend(_numbers(name, values) for name, values in constants.items())

    def node(operator: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
        return helper.make_node(operator, inputs, [output], name=output, **attributes)

    return [
        node("Shape", [MASK], _SIZE),
        node("Cast", [MASK], "unpad/seen", to=TensorProto.BOOL),  # a mask may have other numbers than 0 and 1
        node("Cast", ["unpad/seen"], "unpad/mask", to=TensorProto.INT64),
        # The first column is replaced by ones: the first position of every text stays in the list.
        node("Slice", ["unpad/mask", "unpad/second", "unpad/end", "unpad/second"], "unpad/rest"),
        node("Pad", ["unpad/rest", "unpad/front", "unpad/1"], "unpad/kept"),
        node("Reshape", ["unpad/kept", "unpad/all"], "unpad/flat"),
        node("NonZero", ["unpad/flat"], _INDEX),
        # The running count of tokens, less one, is the number of the last token up to each position.
        node("CumSum", ["unpad/flat", "unpad/0"], "unpad/count"),
        node("Sub", ["unpad/count", "unpad/1"], "unpad/number"),
        node("Reshape", ["unpad/number", _SIZE], _ROW),
        node("Slice", [_ROW, "unpad/begin", "unpad/second", "unpad/second"], _FIRST),
    ]


def _numbers(name: str, values: object) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)
