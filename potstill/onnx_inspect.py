"""Read an ONNX file without the onnx package and without reading its weights, and check the precision it declares.

An ONNX file is one protobuf message: fields of a number, a wire type and a value, where a value may be a message again
(https://protobuf.dev/programming-guides/encoding). Nearly all of its bytes are weights, which are skipped. What is
left tells what a serving box must know before onnxruntime sees the file: that it is whole, which other files it would
open, and in which numbers it computes.
"""

import math
import mmap
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from potstill.errors import BundleError, TamperedError

FLOAT, UINT8, INT8, INT32, FLOAT16, DOUBLE, BFLOAT16, UINT4, INT4 = 1, 2, 3, 6, 10, 11, 16, 21, 22
"""Element types, by their numbers in TensorProto.DataType."""

# Which field of which message holds which message (onnx/onnx.proto); tensors sit in all of these places.
_HOLDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_VERSION, _GRAPH, _OPSETS = 1, 7, 8  # fields of a model that every file has
_INITIALIZER = 5  # field of a graph
_TENSOR_DATA = frozenset({4, 5, 6, 7, 9, 10, 11})  # fields of a tensor that hold its values
_LARGEST_CONSTANT = 1024  # bytes; shapes and axes are smaller, and shape inference needs them
_FIRST_BYTE = b"\x08"  # every writer begins with the version of the format
_HIGHEST_TAG = 2**32 - 1  # parsers differ on larger ones
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}

_Data: TypeAlias = "mmap.mmap | bytes"


class External(NamedTuple):
    """Where a tensor's values are, when not in the file itself."""

    location: str
    offset: int = 0
    length: int = 0
    """0 where the file does not say."""


class Tensor(NamedTuple):
    """One constant of a graph, without its values."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    external: External | None

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.dims)


class Node(NamedTuple):
    """One operator."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """All operators and constants of a file, those of subgraphs, functions and attributes among them."""

    nodes: tuple[Node, ...]
    """In the order of the file; those of subgraphs and functions come after those of the graph."""
    tensors: tuple[Tensor, ...]

    @property
    def locations(self) -> frozenset[str]:
        """The other files that hold values, as the file names them."""
        return frozenset(tensor.external.location for tensor in self.tensors if tensor.external)


def read_outline(file: Path, content: bytes | None = None) -> Outline:
    """Return what an ONNX file consists of.

    Args:
        file: the file; only a name for messages where there is `content`.
        content: its bytes, where they were read already.

    Raises:
        TamperedError: if the file is cut short or damaged.
        BundleError: if it is no ONNX file at all.
    """
    with _opened(file, content) as data:
        return _outline(data)


def without_weights(file: Path) -> bytes:
    """Return an ONNX file's bytes without the values of its larger initializers, enough to infer shapes.

    Raises:
        TamperedError: if the file is cut short or damaged.
        BundleError: if it is no ONNX file at all.
    """
    with _opened(file) as data:
        return _stripped(data, "model", slice(0, len(data)))


class _DamageError(ValueError):
    """The bytes are not what they should be."""


class _Field(NamedTuple):
    number: int
    value: int | slice
    """A number, or where the bytes are."""
    whole: slice


@contextmanager
def _opened(file: Path, content: bytes | None = None) -> Iterator[_Data]:
    """Map a file into memory, so that only the bytes that are looked at are read; or give its `content`."""
    with nullcontext(content) if content is not None else _mapped(file) as data:
        try:
            _check_complete(data)
            yield data
        except (_DamageError, UnicodeDecodeError) as error:
            if data[:1] in {b"", _FIRST_BYTE}:
                raise TamperedError(f"{file} is cut short or damaged: {error}; fetch it or export it again") from error
            raise BundleError(f"{file} is not an ONNX file: {error}; expected a model as onnx writes it") from error


@contextmanager
def _mapped(file: Path) -> Iterator[_Data]:
    with file.open("rb") as stream:
        try:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # nothing to map
            yield b""
            return
    with data:
        yield data


def _outline(data: _Data) -> Outline:
    nodes: list[Node] = []
    tensors: list[Tensor] = []
    pending = deque([("model", slice(0, len(data)), "")])
    while pending:
        message, span, owner = pending.popleft()
        fields = list(_fields(data, span))
        if message == "tensor":
            tensors.append(_tensor(data, fields, owner))
        elif message == "node":
            nodes.append(_node(data, fields))
            owner = nodes[-1].outputs[0] if nodes[-1].op_type == "Constant" and nodes[-1].outputs else ""
        for field in fields:
            inner = _HOLDS[message].get(field.number)
            if inner and isinstance(field.value, slice):
                pending.append((inner, field.value, owner if message in {"node", "attribute"} else ""))
    return Outline(tuple(nodes), tuple(tensors))


def _check_complete(data: _Data) -> None:
    """Refuse a file that ends too early, be it between two fields."""
    present = {field.number for field in _fields(data, slice(0, len(data)))}
    for number, name in {_VERSION: "version", _GRAPH: "graph", _OPSETS: "operator set"}.items():
        if number not in present:
            raise _DamageError(f"it has no {name}")


def _node(data: _Data, fields: list[_Field]) -> Node:
    return Node(
        op_type=_text(data, fields, 4),
        inputs=tuple(_texts(data, fields, 1)),
        outputs=tuple(_texts(data, fields, 2)),
    )


def _tensor(data: _Data, fields: list[_Field], owner: str) -> Tensor:
    """Read a TensorProto; one that is the value of a Constant is called like what it gives (`owner`)."""
    dims: list[int] = []
    for field in fields:
        if field.number == 1 and isinstance(field.value, int):
            dims.append(field.value)
        elif field.number == 1 and isinstance(field.value, slice):
            dims += _packed(data, field.value)
    types = [field.value for field in fields if field.number == 2 and isinstance(field.value, int)]
    entries = [_entry(data, field.value) for field in fields if field.number == 13 and isinstance(field.value, slice)]
    return Tensor(
        name=owner or _text(data, fields, 8),
        data_type=types[-1] if types else 0,
        dims=tuple(dims),
        external=_external(entries),
    )


def _entry(data: _Data, span: slice) -> tuple[str, str]:
    fields = list(_fields(data, span))
    return _text(data, fields, 1), _text(data, fields, 2)


def _external(entries: list[tuple[str, str]]) -> External | None:
    if not entries:
        return None
    values = dict(entries)
    if len(values) < len(entries) or "location" not in values:
        raise _DamageError(f"a tensor has {entries} for the place of its values; expected one location")
    numbers = [values.get(key, "0") for key in ("offset", "length")]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise _DamageError(f"a tensor's values are at {numbers} of {values['location']!r}; expected two numbers")
    return External(values["location"], *map(int, numbers))


def _texts(data: _Data, fields: list[_Field], number: int) -> list[str]:
    return [data[field.value].decode() for field in fields if field.number == number and isinstance(field.value, slice)]


def _text(data: _Data, fields: list[_Field], number: int) -> str:
    """Return the last string in a field that should have one, as every parser does."""
    return (_texts(data, fields, number) or [""])[-1]


def _packed(data: _Data, span: slice) -> Iterator[int]:
    position = span.start
    while position < span.stop:
        value, position = _varint(data, position, span.stop)
        yield value


def _fields(data: _Data, span: slice) -> Iterator[_Field]:
    """Yield the fields of the message whose bytes are at `span`; nothing is read of a value that has a length."""
    position, end = span.start, span.stop
    while position < end:
        begin = position
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        value: int | slice = 0
        if wire == _VARINT:
            value, position = _varint(data, position, end)
        elif wire == _LENGTH:
            length, position = _varint(data, position, end)
            value = slice(position, position + length)
            position += length
        else:
            position += _WIDTHS.get(wire, 0)
        if number == 0 or tag > _HIGHEST_TAG or wire not in {_VARINT, _LENGTH, *_WIDTHS}:
            raise _DamageError(f"byte {begin} begins no field")
        if position > end:
            raise _DamageError(f"the field at byte {begin} needs {position - end} bytes more than there are")
        yield _Field(number, value, slice(begin, position))


def _varint(data: _Data, position: int, end: int) -> tuple[int, int]:
    """Return a number of seven bits per byte, the lowest first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise _DamageError(f"it ends within a number at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _DamageError(f"the number before byte {position} does not end")


def _stripped(data: _Data, message: str, span: slice) -> bytes:
    kept = []
    for field in _fields(data, span):
        inner = {("model", _GRAPH): "graph", ("graph", _INITIALIZER): "tensor"}.get((message, field.number))
        if inner and isinstance(field.value, slice):
            content = _stripped(data, inner, field.value)
            kept += [_number(field.number << 3 | _LENGTH), _number(len(content)), content]
        elif message != "tensor" or field.number not in _TENSOR_DATA or not _is_large(field.value):
            kept.append(data[field.whole])
    return b"".join(kept)


def _is_large(value: int | slice) -> bool:
    return isinstance(value, slice) and value.stop - value.start > _LARGEST_CONSTANT


def _number(value: int) -> bytes:
    """Write what `_varint` reads."""
    rest = value >> 7
    return bytes([value]) if not rest else bytes([value & 0x7F | 0x80]) + _number(rest)


# The precision of a file
#
# Files with a name that is not true are published elsewhere: fp16 with float32 weights, and int8 with nothing but a
# DequantizeLinear behind each weight. Such a matmul is one of floats: onnxruntime used to fold the weight back when it
# loaded the file, and 1.31 makes MatMulNBits of the pair, which took 75 ms where integer matmuls took 42. Others write
# Cast and Mul in place of DequantizeLinear, so that nothing but the type of the stored weights tells.

# Operator -> which of its inputs is the weight.
_INTEGER_MATMULS = {
    "MatMulInteger": 1,
    "QLinearMatMul": 3,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QGemm": 3,
    "QAttention": 1,
}
_WEIGHTS = _INTEGER_MATMULS | {
    "MatMul": 1,
    "Gemm": 1,
    "FusedMatMul": 1,
    "FusedGemm": 1,
    "Attention": 1,
    "MatMulNBits": 1,
}
DYNAMIC = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
_QUANTISED = DYNAMIC | {
    *_INTEGER_MATMULS,
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


def check_declared_precision(outline: Outline, precision: str, *, weight_only: bool = False) -> str | None:
    """Say why a file is not of this precision; None if it is.

    - `int8`: most matmuls with a weight multiply an int8 weight as integers.
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
        fault = _not_integer(outline)
        measured = sum(node.op_type in DYNAMIC for node in outline.nodes)
        if fault is None and precision == "int8-static" and measured:
            fault = f"{measured} of its activation scales are measured while it runs; expected none"
        return fault
    if found := sorted({node.op_type for node in outline.nodes} & _QUANTISED):
        return f"it is quantised already, with {', '.join(found)}; expected float weights"
    if stored := count_matmuls(outline)["weight_only"]:
        return f"it is quantised already: {stored} of its weights are stored as integers and cast"
    return _mostly_other(outline, precision)


def count_matmuls(outline: Outline) -> dict[str, int]:
    """Count the matmuls with a constant weight: `integer`, `float`, and of the floats those that are `weight_only`.

    onnxruntime turns a matmul of two dequantised inputs into an integer one; of a matmul whose weight alone is
    dequantised it does not.
    """
    flow = _Dataflow(outline)
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
        # Biases of integer matmuls are stored in 32 bits; so are sizes, which other operators take.
        or (tensor.data_type == INT32 and tensor.name in users and users[tensor.name].op_type in _SCALES)
    )


def _find_scales(outline: Outline) -> Iterator[str]:
    """Yield the constants that scale or shift stored integers, which a Cast and a Mul do as well as an operator."""
    types = {tensor.name: tensor.data_type for tensor in outline.tensors}
    sizes = {tensor.name: tensor.size for tensor in outline.tensors}
    roots = {name: name for name in types}  # tensor -> the constant whose numbers it is
    measured: set[str] = set()  # scales of activations, and sums of integer matmuls
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


class _Dataflow:
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
        """Return how a matmul runs: `integer`, `float`, `weight_only`, or `none` if it has no constant weight."""
        position = _WEIGHTS[node.op_type]
        weight = node.inputs[position] if position < len(node.inputs) else ""
        if weight not in self._constants:
            return "none"
        if node.op_type in _INTEGER_MATMULS:
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
    counts = count_matmuls(outline)
    matmuls = counts["integer"] + counts["float"]
    if counts["integer"] and 2 * counts["integer"] >= matmuls:
        return None
    why = f"{counts['integer']} of its {matmuls} matmuls with a weight multiply int8; expected most of them"
    if counts["weight_only"]:
        why += f" ({counts['weight_only']} int8 weights are only dequantised, so their matmuls are of floats)"
    return why


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
    counts = count_matmuls(outline)
    stored = counts["integer"] + counts["weight_only"]
    # Whoever leaves the table of words in floats, half of a small model, has int8 all the same.
    if sizes[True] > sizes[False] or 2 * stored > counts["integer"] + counts["float"]:
        return None
    return f"{sizes[True]} of its {sizes[True] + sizes[False]} weights are stored as int8; expected most of them"
