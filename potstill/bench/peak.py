"""What this machine reaches at best in a matrix product: the bare product, which takes its turns among the rows.

A row's share of that peak says how far it is from what the machine could do. The product is run by onnxruntime, whose
kernels the rows run too, with a constant weight as in a model. No BLAS is asked: in numpy's, the threads are not ours
to set, and it has no int8.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.onnx_inspect import FLOAT, INT8, UINT8

# Rows, columns and inner size of the products: those of a feed-forward layer of BERT-base over 256 and 512 tokens, and
# a square one. Larger ones were not faster on the CPUs tried.
SHAPES = ((256, 3072, 768), (512, 3072, 768), (768, 768, 768))
_BLOCK_S = 0.03
_INT32 = 6  # TensorProto.DataType
_LENGTH, _VARINT = 2, 0  # protobuf's wire types


class Products:
    """Sessions of all shapes in every number type, ready to be run."""

    def __init__(self, threads: int) -> None:
        """Make the sessions, with so many threads each."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        draw = np.random.default_rng(0)
        self._calls: list[tuple[str, float, Callable[[], object]]] = []
        for rows, columns, inner in SHAPES:
            floats = draw.normal(size=(rows, inner)).astype(np.float32), draw.normal(size=(inner, columns))
            # Weights of 7 bits: nothing overflows where a CPU adds pairs of products in 16 bits.
            small = draw.integers(0, 256, size=(rows, inner)), draw.integers(-64, 64, size=(inner, columns))
            made = {
                "fp32": (product_model("MatMul", FLOAT, floats[1].astype(np.float32), FLOAT), floats[0]),
                "int8": (
                    product_model("MatMulInteger", UINT8, small[1].astype(np.int8), _INT32),
                    small[0].astype(np.uint8),
                ),
            }
            for kind, (model, values) in made.items():
                session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
                self._calls.append((kind, 2.0 * rows * columns * inner, partial(session.run, None, {"x": values})))

    def rates(self) -> dict[str, float]:
        """Return operations per second by number type, of the fastest shape; it takes about a quarter of a second."""
        found: dict[str, float] = {}
        for kind, operations, call in self._calls:
            found[kind] = max(found.get(kind, 0.0), rate(call, operations))
        return found


def rate(
    call: Callable[[], object],
    operations: float,
    *,
    block_s: float = _BLOCK_S,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return operations per second over the fastest of the calls of one block, after one call to warm up.

    The fastest and not the mean: what is asked for is what the machine can do, and a neighbour's work only delays.
    """
    call()
    begin = before = clock()
    fastest = float("inf")
    while fastest == float("inf") or before - begin < block_s:
        call()
        now = clock()
        fastest, before = min(fastest, now - before), now
    return operations / fastest


def product_model(operator: str, left: int, right: NDArray[Any], result: int) -> bytes:
    """Return an ONNX file of one product: `y = x · right`, with `right` as a constant, and any number of rows in `x`.

    The bytes are those of protobuf (https://protobuf.dev/programming-guides/encoding) for the messages of
    onnx/onnx.proto, written here because the bench does without the onnx package.

    Args:
        operator: `MatMul` or `MatMulInteger`.
        left: the element type of `x`, as `potstill.onnx_inspect` numbers them.
        right: the weight, float32 or int8, shape (inner, columns).
        result: the element type of `y`.
    """
    kind = {np.dtype(np.float32): FLOAT, np.dtype(np.int8): INT8}[right.dtype]
    inner, columns = right.shape
    node = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(4, operator)
    dims = b"".join(_field(1, size) for size in right.shape)
    weight = dims + _field(2, kind) + _text(8, "w") + _field(9, right.tobytes())
    graph = _field(1, node) + _text(2, "product") + _field(5, weight)
    graph += _field(11, _value("x", left, inner)) + _field(12, _value("y", result, columns))
    operators = _text(1, "") + _field(2, 13)
    return _field(1, 8) + _field(7, graph) + _field(8, operators)


def _value(name: str, kind: int, columns: int) -> bytes:
    shape = _field(1, _text(2, "rows")) + _field(1, _field(1, columns))
    return _text(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
