"""Read an ONNX file without the onnx package and without reading its weights, and check the precision it declares.

An ONNX file is one protobuf message: a sequence of fields, each with a number, a wire type and a value, which may be a
message again (https://protobuf.dev/programming-guides/encoding). Nearly all of its bytes are weights, which are not
read. The rest tells what must be known before onnxruntime opens the file: that it is complete, which other files it
would open (external data), and whether its matrix products are of floats or of integers.

This is a parser of untrusted input and is written as one: every length is checked, nothing recurses with the input, and
what two readers of ONNX could understand differently is refused, or counted as the worse of both.
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
"""Element types, as numbered in onnx's TensorProto.DataType."""

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
    """Where a tensor's values are in another file; offset and length in bytes."""

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
        """The number of elements."""
        return math.prod(self.dims)


class Node(NamedTuple):
    """One operator."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """All operators and constants of a file, including those in subgraphs, local functions and attributes."""

    nodes: tuple[Node, ...]
    """In the order of the file; those of subgraphs and functions come after those of the graph."""
    tensors: tuple[Tensor, ...]

    @property
    def locations(self) -> frozenset[str]:
        """The external data files, as the tensors name them (relative to the model's folder)."""
        return frozenset(tensor.external.location for tensor in self.tensors if tensor.external)


def read_outline(file: Path, content: bytes | None = None) -> Outline:
    """Parse the operators and constants of an ONNX file, without the values of its tensors.

    Args:
        file: the path; with `content` only a name for error messages.
        content: the file's bytes; None maps the file into memory.

    Raises:
        TamperedError: if the file is cut short or damaged.
        BundleError: if it is no ONNX file at all.
    """
    with _opened(file, content) as data:
        return _outline(data)


def without_weights(file: Path) -> bytes:
    """Return an ONNX file's bytes without the values of initializers above 1 KiB; enough for shape inference.

    Raises:
        TamperedError: if the file is cut short or damaged.
        BundleError: if it is no ONNX file at all.
    """
    with _opened(file) as data:
        return _stripped(data, "model", slice(0, len(data)))


class _DamageError(ValueError):
    """The bytes break the encoding; `_opened` turns this into an error that names the file."""


class _Field(NamedTuple):
    number: int
    value: int | slice
    """The number of a varint, or the bytes of a value with a length; 0 for fixed-width values, which nobody needs."""
    whole: slice
    """All bytes of the field, tag included."""


@contextmanager
def _opened(file: Path, content: bytes | None = None) -> Iterator[_Data]:
    """Yield the file as a memory map, whose weights are never paged in, or `content`; name the file in errors."""
    with nullcontext(content) if content is not None else _mapped(file) as data:
        try:
            _check_complete(data)
            yield data
        except (_DamageError, UnicodeDecodeError) as error:
            # A cut ONNX file still begins like one; a Git LFS pointer or an HTML page does not.
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
    # A queue, because graphs nest without limit and a crafted file would exhaust the stack of a recursion.
    pending = deque([("model", slice(0, len(data)), "")])
    while pending:
        message, span, owner = pending.popleft()
        fields = list(_fields(data, span))
        if message == "tensor":
            tensors.append(_tensor(data, fields, owner))
        elif message == "node":
            nodes.append(_node(data, fields))
            owner = nodes[-1].outputs[0] if nodes[-1].op_type == "Constant" and nodes[-1].outputs else ""
        # Every occurrence counts, also of a field that should occur once: protobuf merges repeated messages.
        for field in fields:
            inner = _HOLDS[message].get(field.number)
            if inner and isinstance(field.value, slice):
                pending.append((inner, field.value, owner if message in {"node", "attribute"} else ""))
    return Outline(tuple(nodes), tuple(tensors))


def _check_complete(data: _Data) -> None:
    """Refuse a file without the required fields: one that is cut between two fields is still valid protobuf."""
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
    """Read a TensorProto; one that is the value of a Constant node is named after the node's output (`owner`)."""
    dims: list[int] = []
    for field in fields:
        # Parsers accept repeated numbers one by one and packed, whichever of them onnx.proto declares.
        if field.number == 1 and isinstance(field.value, int):
            dims.append(field.value)
        elif field.number == 1 and isinstance(field.value, slice):
            dims += _packed(data, field.value)
    types = [field.value for field in fields if field.number == 2 and isinstance(field.value, int)]
    # `external_data` counts whatever `data_location` says: readers need not agree on which of them decides.
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
    # Of a key that comes twice, one reader may take the first and another the last.
    if len(values) < len(entries) or "location" not in values:
        raise _DamageError(f"a tensor has {entries} for the place of its values; expected one location")
    numbers = [values.get(key, "0") for key in ("offset", "length")]
    # int() would also take "+5", " 5" and "1_000", which C++ readers take for something else.
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise _DamageError(f"a tensor's values are at {numbers} of {values['location']!r}; expected two numbers")
    return External(values["location"], *map(int, numbers))


def _texts(data: _Data, fields: list[_Field], number: int) -> list[str]:
    return [data[field.value].decode() for field in fields if field.number == number and isinstance(field.value, slice)]


def _text(data: _Data, fields: list[_Field], number: int) -> str:
    """Return a string field, "" if it is missing; of several the last one counts, as protobuf demands."""
    return (_texts(data, fields, number) or [""])[-1]


def _packed(data: _Data, span: slice) -> Iterator[int]:
    position = span.start
    while position < span.stop:
        value, position = _varint(data, position, span.stop)
        yield value


def _fields(data: _Data, span: slice) -> Iterator[_Field]:
    """Yield the fields of the message at `span`; the bytes of a value that has a length are not read."""
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
        # Wire types 3 and 4, the groups of old protobuf, are in no ONNX file.
        if number == 0 or tag > _HIGHEST_TAG or wire not in {_VARINT, _LENGTH, *_WIDTHS}:
            raise _DamageError(f"byte {begin} begins no field")
        if position > end:
            raise _DamageError(f"the field at byte {begin} needs {position - end} bytes more than there are")
        yield _Field(number, value, slice(begin, position))


def _varint(data: _Data, position: int, end: int) -> tuple[int, int]:
    """Decode a varint (seven bits per byte, lowest first); return it and the position behind it."""
    value = 0
    # Ten bytes hold 64 bits; a longer number is an attack or damage.
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
    # Only model, graph and initializer are taken apart, so the recursion is three deep; their lengths are written anew.
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
    """Encode a varint."""
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
    """Return why a file does not have the precision that it declares, or None if it has.

    - `int8`: at least half of the matmuls with a constant weight multiply int8 integers.
    - `int8-static`: the same, and no activation scale is computed at run time.
    - `fp16`, `fp32`: at least half of the weights have that type, and none is quantised.

    Args:
        outline: the file.
        precision: the declared precision.
        weight_only: whether the int8 file is declared to store int8 and multiply floats.
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
    """Count the matmuls with a constant weight: `integer`, `float`, and `weight_only`, which `float` includes.

    onnxruntime computes a matmul of two dequantised inputs (QDQ) in integers, but one whose weight alone is dequantised
    in floats.
    """
    flow = _Dataflow(outline)
    kinds = Counter(flow.kind(node) for node in outline.nodes if node.op_type in _WEIGHTS)
    return {
        "integer": kinds["integer"],
        "float": kinds["float"] + kinds["weight_only"],
        "weight_only": kinds["weight_only"],
    }


def count_parameters(outline: Outline, sizes: Mapping[str, int] = {}) -> int:
    """Count the weights of a file in any storage type, without scales, zero points and constant sizes.

    Args:
        outline: the file.
        sizes: the number of weights by constant, for packed ones such as those of MatMulNBits.
    """
    scales = set(_find_scales(outline))
    # Scalars are epsilons and factors of the graph, which no framework counts as parameters.
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
    """Yield the constants that are scales or zero points: inputs of quantised operators, or of a Mul behind a Cast."""
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
    """The producers of all tensors, and which tensors are constant."""

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
        # A MatMul of two activations, as in unfused attention, has no weight and does not count.
        position = _WEIGHTS[node.op_type]
        weight = node.inputs[position] if position < len(node.inputs) else ""
        if weight not in self._constants:
            return "none"
        if node.op_type in _INTEGER_MATMULS:
            return "integer" if self._is_int8(weight) else "float"
        stored = self._dequantised(weight)
        if stored is None or not self._is_int8(stored):
            return "weight_only" if self._stored_as_integers(weight) else "float"
        # A weight behind a DequantizeLinear stays a float product unless the activation is behind one, too.
        activation = self._dequantised(node.inputs[0])
        if activation is None or activation in self._constants:
            return "weight_only"
        return "integer" if node.op_type != "Gemm" or self._becomes_integer(node) else "float"

    def _becomes_integer(self, gemm: Node) -> bool:
        """Return whether onnxruntime computes a Gemm of dequantised inputs in integers.

        Found by trying each form with 1.31: the weight must have a zero point, and the bias be an integer one
        unless the result is quantised again at once.
        """
        weight = self._producers[gemm.inputs[1]]
        bias = gemm.inputs[2] if len(gemm.inputs) > 2 else ""
        return len(weight.inputs) > 2 and (
            not bias or self._dequantised(bias) is not None or gemm.outputs[0] in self._quantised
        )

    def _stored_as_integers(self, name: str) -> bool:
        """Return whether a constant is stored as integers, as it is (MatMulNBits) or behind a Cast and a Mul."""
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
        # The largest leaf is the weight; the others are its scale and zero point.
        largest = max(leaves, key=self._sizes.__getitem__, default=None)
        return largest is not None and self._types[largest] in _INTEGERS

    def _is_int8(self, name: str) -> bool:
        return self._types.get(self._source(name)) in _EIGHT_BITS

    def _source(self, name: str) -> str:
        """Follow a tensor back through operators that only rearrange its values."""
        seen: set[str] = set()
        while name not in seen:  # a damaged graph may go round in circles
            seen.add(name)
            node = self._producers.get(name)
            if node is None or node.op_type not in _TRANSPARENT or not node.inputs:
                break
            name = node.inputs[0]
        return name

    def _dequantised(self, name: str) -> str | None:
        """Return the input of the DequantizeLinear that produces this tensor; None if it is produced otherwise."""
        node = self._producers.get(name)
        return node.inputs[0] if node and node.op_type == "DequantizeLinear" and node.inputs else None


def _not_integer(outline: Outline) -> str | None:
    counts = count_matmuls(outline)
    matmuls = counts["integer"] + counts["float"]
    # Half is enough: a narrow head stays in floats, and layers that int8 harms are given back to fp32.
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
    # By values, not by tensors: many small constants of another type do not decide.
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
