"""Whether an ONNX file is what its name says: int8 that multiplies integers, fp16 that holds 16-bit floats.

Files with a name that is not true are published elsewhere: fp16 with float32 weights, and int8 with nothing but a
DequantizeLinear behind each weight. Such a product is one of floats: onnxruntime used to fold the weight back when it
loaded the file, and 1.31 makes MatMulNBits of the pair, which took 75 ms where integer products took 42.
"""

from collections import Counter

from potstill.onnxwire import BFLOAT16, DOUBLE, FLOAT, FLOAT16, INT8, UINT8, Node, Outline

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
_DYNAMIC = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
_QUANTISED = _DYNAMIC | {
    *_INTEGER_PRODUCTS,
    "QuantizeLinear",
    "DequantizeLinear",
    "MatMulNBits",
    "GatherBlockQuantized",
}
# Operators that hand a weight on in the type that it has.
_TRANSPARENT = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Flatten"})
_FLOATS = (FLOAT, FLOAT16, DOUBLE, BFLOAT16)


def find_untruth(outline: Outline, precision: str) -> str | None:
    """Say why a file is not of this precision; None if it is.

    - `int8`: most products with a weight multiply an int8 weight as integers.
    - `int8-static`: the same, with no activation scale that is measured while it runs.
    - `fp16`, `fp32`: most float weights are of that type; fp32 is not quantised.
    """
    if precision in {"int8", "int8-static"}:
        return _not_integer(outline) or (_dynamic(outline) if precision == "int8-static" else None)
    return (_quantised(outline) if precision == "fp32" else None) or _mostly_other(outline, precision)


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


class _Flow:
    """Where the inputs of operators come from, and where their outputs go."""

    def __init__(self, outline: Outline) -> None:
        self._types = {tensor.name: tensor.data_type for tensor in outline.tensors}
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
            return "float"
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

    def _is_int8(self, name: str) -> bool:
        return self._types.get(self._source(name)) in {INT8, UINT8}

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
    count = sum(node.op_type in _DYNAMIC for node in outline.nodes)
    return f"{count} of its activation scales are measured while it runs; expected none" if count else None


def _quantised(outline: Outline) -> str | None:
    found = sorted({node.op_type for node in outline.nodes} & _QUANTISED)
    return f"it is quantised already, with {', '.join(found)}; expected float weights" if found else None


def _mostly_other(outline: Outline, precision: str) -> str | None:
    sizes = {kind: sum(tensor.size for tensor in outline.tensors if tensor.data_type == kind) for kind in _FLOATS}
    wanted, total = sizes[FLOAT16 if precision == "fp16" else FLOAT], sum(sizes.values())
    if 2 * wanted >= total:
        return None
    bits = 16 if precision == "fp16" else 32
    return f"{wanted} of its {total} float weights have {bits} bits; expected most of them"
