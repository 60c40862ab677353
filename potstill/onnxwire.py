"""Read an ONNX file without the onnx package, and without reading its weights.

An ONNX file is one protobuf message: fields of a number, a wire type and a value, where a value may be a message again
(https://protobuf.dev/programming-guides/encoding). Nearly all of its bytes are weights, which are skipped. What is
left tells what a serving box must know before onnxruntime sees the file: that it is whole, which other files it would
open, and in which numbers it computes.
"""

import math
import mmap
from collections import deque
from collections.abc import Iterator
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
