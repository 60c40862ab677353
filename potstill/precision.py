"""Whether an ONNX file is what its name says: int8 that multiplies integers, fp16 that holds 16-bit floats.

Files with a name that is not true are published elsewhere: fp16 with float32 weights, and int8 with nothing but a
DequantizeLinear behind each weight. Such a product is one of floats: onnxruntime used to fold the weight back when it
loaded the file, and 1.31 makes MatMulNBits of the pair, which took 75 ms where integer products took 42. Others write
Cast and Mul in place of DequantizeLinear, so that nothing but the type of the stored weights tells.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from potstill.onnxwire import (
    BFLOAT16,
    DOUBLE,
    FLOAT,
    FLOAT16,
    INT4,
    INT8,
    INT32,
    UINT4,
    UINT8,
    Node,
    Outline,
)

# Operator -> which of its inputs is the weight.
_INTEGER_PRODUCTS = {
    "MatMulInteger": 1,
    "QLinearMatMul": 3,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QGemm": 3,
    "QAttention": 1,
}
_WEIGHTS = _INTEGER_PRODUCTS | {
    "MatMul": 1,
    "Gemm": 1,
    "FusedMatMul": 1,
    "FusedGemm": 1,
    "Attention": 1,
    "MatMulNBits": 1,
}
DYNAMIC = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
_QUANTISED = DYNAMIC | {
    *_INTEGER_PRODUCTS,
    "QuantizeLinear",
    "DequantizeLinear",
    "MatMulNBits",
    "GatherBlockQuantized",
}
# Operators that hand a weight on in the type that it has.
_TRANSPARENT = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Flatten"})
_FLOATS = (FLOAT, FLOAT16, DOUBLE, BFLOAT16)
_EIGHT_BITS = frozenset({INT8, UINT8})
_INTEGERS = _EIGHT_BITS | {INT4, UINT4}
# Operator -> which of its inputs say how numbers are quantised, and are no weights themselves.
_SCALES: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeMatMul": (2, 3),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearAdd": (1, 2, 4, 5, 6, 7),
    "QLinearMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "QAttention": (3, 4, 6, 7),
    "QEmbedLayerNormalization": tuple(range(8, 18)),
    "MatMulNBits": (2, 3, 4),
    "GatherBlockQuantized": (2, 3),
}
# What takes stored integers on their way to floats: it keeps the numbers, or some rows of them.
_CARRIES = _TRANSPARENT | {"Cast", "Gather", "Expand"}


def find_untruth(outline: Outline, precision: str, *, weight_only: bool = False) -> str | None:
    """Say why a file is not of this precision; None if it is.

    - `int8`: most products with a weight multiply an int8 weight as integers.
    - `int8-static`: the same, with no activation scale that is measured while it runs.
    - `fp16`, `fp32`: most weights are of that type, and none is quantised.

    Args:
        outline: the file.
        precision: what it is said to be.
        weight_only: whether an int8 file is said to multiply floats, with most of its weights stored as int8.
    """
    if weight_only and precision == "int8":
        return _not_stored_as_int8(outline)
    if precision in {"int8", "int8-static"}:
        return _not_integer(outline) or (_dynamic(outline) if precision == "int8-static" else None)
    return _quantised(outline) or _mostly_other(outline, precision)


def count_products(outline: Outline) -> dict[str, int]:
    """Count the products with a constant weight: `integer`, `float`, and of the floats those that are `weight_only`.

    onnxruntime turns a product of two dequantised inputs into an integer one; of a product whose weight alone is
    dequantised it does not.
    """
    flow = _Flow(outline)
    kinds = Counter(flow.kind(node) for node in outline.nodes if node.op_type in _WEIGHTS)
    return {
        "integer": kinds["integer"],
        "float": kinds["float"] + kinds["weight_only"],
        "weight_only": kinds["weight_only"],
    }


def count_parameters(outline: Outline, sizes: Mapping[str, int] = {}) -> int:
    """Count the weights of a file, whatever they are stored in; scales, zero points and sizes are none.

    Args:
        outline: the file.
        sizes: name of a constant -> how many weights it holds, for those that hold several in a byte.
    """
    scales = set(_find_scales(outline))
    weights = [tensor for tensor in outline.tensors if tensor.dims and tensor.name not in scales]
    users = {name: node for node in outline.nodes for name in node.inputs}
    return sum(
        sizes.get(tensor.name, tensor.size)
        for tensor in weights
        if tensor.data_type in {*_FLOATS, *_INTEGERS}
        # Biases of integer products are stored in 32 bits; so are sizes, which other operators take.
        or (tensor.data_type == INT32 and tensor.name in users and users[tensor.name].op_type in _SCALES)
    )


def _find_scales(outline: Outline) -> Iterator[str]:
    """Yield the constants that scale or shift stored integers, which a Cast and a Mul do as well as an operator."""
    types = {tensor.name: tensor.data_type for tensor in outline.tensors}
    sizes = {tensor.name: tensor.size for tensor in outline.tensors}
    roots = {name: name for name in types}  # tensor -> the constant whose numbers it is
    measured: set[str] = set()  # scales of activations, and sums of integer products
    for node in outline.nodes:
        if node.op_type in _SCALES:
            yield from (
                roots[name]
                for place, name in enumerate(node.inputs)
                if place in _SCALES[node.op_type] and name in roots
            )
        if node.op_type == "DynamicQuantizeLinear":
            measured.update(node.outputs[1:])
        elif node.op_type in {"MatMulInteger", "ConvInteger"} or (
            node.op_type == "Cast" and measured.intersection(node.inputs)
        ):
            measured.update(node.outputs)
        elif node.op_type in _CARRIES and node.inputs and node.inputs[0] in roots:
            roots |= dict.fromkeys(node.outputs, roots[node.inputs[0]])
        elif node.op_type in {"Mul", "Sub", "Div"} and len(node.inputs) == 2:
            both = [roots[name] for name in node.inputs if name in roots]
            if len(both) == 1 and measured.intersection(node.inputs):
                yield both[0]
            elif len(both) == 2 and any(types[root] in _INTEGERS for root in both):
                small, large = sorted(both, key=sizes.__getitem__)
                yield small
                if node.op_type == "Sub":  # a zero point goes; the scale is yet to come
                    roots |= dict.fromkeys(node.outputs, large)


class _Flow:
    """Where the inputs of operators come from, and where their outputs go."""

    def __init__(self, outline: Outline) -> None:
        self._types = {tensor.name: tensor.data_type for tensor in outline.tensors}
        self._sizes = {tensor.name: tensor.size for tensor in outline.tensors}
        self._producers = {name: node for node in outline.nodes for name in node.outputs if name}
        self._quantised = {node.inputs[0] for node in outline.nodes if node.op_type == "QuantizeLinear" and node.inputs}
        self._constants = set(self._types)
        for node in outline.nodes:  # a graph's operators are sorted: what they read comes first
            if node.op_type == "Constant" or (node.inputs and self._constants.issuperset(filter(None, node.inputs))):
                self._constants.update(node.outputs)

    def kind(self, node: Node) -> str:
        """Return how a product runs: `integer`, `float`, `weight_only`, or `none` if it has no constant weight."""
        position = _WEIGHTS[node.op_type]
        weight = node.inputs[position] if position < len(node.inputs) else ""
        if weight not in self._constants:
            return "none"
        if node.op_type in _INTEGER_PRODUCTS:
            return "integer" if self._is_int8(weight) else "float"
        stored = self._dequantised(weight)
        if stored is None or not self._is_int8(stored):
            return "weight_only" if self._stored_as_integers(weight) else "float"
        activation = self._dequantised(node.inputs[0])
        if activation is None or activation in self._constants:
            return "weight_only"
        return "integer" if node.op_type != "Gemm" or self._becomes_integer(node) else "float"

    def _becomes_integer(self, gemm: Node) -> bool:
        """Return whether onnxruntime (1.31, tried form by form) takes a Gemm of dequantised inputs.

        It wants a zero point of the weight, and a bias in integers unless the result is quantised at once.
        """
        weight = self._producers[gemm.inputs[1]]
        bias = gemm.inputs[2] if len(gemm.inputs) > 2 else ""
        return len(weight.inputs) > 2 and (
            not bias or self._dequantised(bias) is not None or gemm.outputs[0] in self._quantised
        )

    def _stored_as_integers(self, name: str) -> bool:
        """Return whether a constant is computed of integers, such as by Cast and Mul, or is read in blocks of them."""
        pending, seen = [name], set()
        leaves: list[str] = []
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self._producers.get(name)
            if node is None or node.op_type == "Constant":
                leaves += [name] if name in self._sizes else []
            else:
                pending += node.inputs
        largest = max(leaves, key=self._sizes.__getitem__, default=None)
        return largest is not None and self._types[largest] in _INTEGERS

    def _is_int8(self, name: str) -> bool:
        return self._types.get(self._source(name)) in _EIGHT_BITS

    def _source(self, name: str) -> str:
        """Follow a name back through operators that only rearrange."""
        seen: set[str] = set()
        while name not in seen:  # a damaged graph may go round in circles
            seen.add(name)
            node = self._producers.get(name)
            if node is None or node.op_type not in _TRANSPARENT or not node.inputs:
                break
            name = node.inputs[0]
        return name

    def _dequantised(self, name: str) -> str | None:
        """Return what a DequantizeLinear makes this of; None if none does it directly."""
        node = self._producers.get(name)
        return node.inputs[0] if node and node.op_type == "DequantizeLinear" and node.inputs else None


def _not_integer(outline: Outline) -> str | None:
    counts = count_products(outline)
    products = counts["integer"] + counts["float"]
    if counts["integer"] and 2 * counts["integer"] >= products:
        return None
    why = f"{counts['integer']} of its {products} products with a weight multiply int8; expected most of them"
    if counts["weight_only"]:
        why += f" ({counts['weight_only']} int8 weights are only dequantised, so their products are of floats)"
    return why


def _dynamic(outline: Outline) -> str | None:
    count = sum(node.op_type in DYNAMIC for node in outline.nodes)
    return f"{count} of its activation scales are measured while it runs; expected none" if count else None


def _quantised(outline: Outline) -> str | None:
    found = sorted({node.op_type for node in outline.nodes} & _QUANTISED)
    if found:
        return f"it is quantised already, with {', '.join(found)}; expected float weights"
    stored = count_products(outline)["weight_only"]
    return f"it is quantised already: {stored} of its weights are stored as integers and cast" if stored else None


def _mostly_other(outline: Outline, precision: str) -> str | None:
    sizes = Counter[int]()
    for tensor in outline.tensors:
        sizes[tensor.data_type] += tensor.size
    bits = 16 if precision == "fp16" else 32
    wanted = sizes[FLOAT16 if precision == "fp16" else FLOAT]
    floats, integers = (sum(sizes[kind] for kind in kinds) for kinds in (_FLOATS, _INTEGERS))
    if 2 * wanted >= floats + integers:
        return None
    if 2 * integers > floats + integers:
        return f"it is quantised already: {integers} of its {floats + integers} weights are stored as integers"
    return f"{wanted} of its {floats} float weights have {bits} bits; expected most of them"


def _not_stored_as_int8(outline: Outline) -> str | None:
    sizes = Counter[bool]()
    for tensor in outline.tensors:
        if tensor.data_type in {*_FLOATS, *_INTEGERS}:
            sizes[tensor.data_type in _EIGHT_BITS] += tensor.size
    counts = count_products(outline)
    stored = counts["integer"] + counts["weight_only"]
    # Whoever leaves the table of words in floats, half of a small model, has int8 all the same.
    if sizes[True] > sizes[False] or 2 * stored > counts["integer"] + counts["float"]:
        return None
    return f"{sizes[True]} of its {sizes[True] + sizes[False]} weights are stored as int8; expected most of them"
