"""What this machine reaches at best in a matrix product, measured: `python -m potstill.bench.engines.peaks THREADS`.

A row's share of that peak says how far it is from what the machine could do. The product is run by onnxruntime, whose
kernels the rows run too, with a constant weight as in a model. No BLAS is asked: in numpy's, the threads are not ours
to set, and it has no int8.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.bench.contract import Peaks
from potstill.errors import CheckError
from potstill.onnxwire import FLOAT, INT8, UINT8
from potstill.timing.client import environment, python_module

# Rows, columns and inner size of the products: those of a feed-forward layer of BERT-base over 256 and 512 tokens, and
# a square one. Larger ones were not faster on the CPUs tried.
SHAPES = ((256, 3072, 768), (512, 3072, 768), (768, 768, 768))
_BLOCK_S, _BLOCKS = 0.06, 4
_TIMEOUT_S = 60.0
_INT32 = 6  # TensorProto.DataType
_LENGTH, _VARINT = 2, 0  # protobuf's wire types


def measure_peaks(threads: int) -> Peaks:
    """Measure the peaks with so many threads, in a process of its own; it takes about 2 seconds.

    Raises:
        CheckError: if that process failed.
    """
    command = (*python_module("potstill.bench.engines.peaks"), str(threads))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"the machine's peaks were not measured within {_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CheckError(f"the machine's peaks could not be measured: {lines[-1]}")
    return Peaks.model_validate_json(done.stdout)


def best_rate(
    call: Callable[[], object],
    operations: float,
    *,
    block_s: float = _BLOCK_S,
    blocks: int = _BLOCKS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return operations per second in the fastest of several blocks of calls, after one call to warm up."""
    call()
    best = 0.0
    for _ in range(blocks):
        start, calls = clock(), 0
        while calls == 0 or clock() - start < block_s:
            call()
            calls += 1
        best = max(best, operations * calls / (clock() - start))
    return best


def product_model(operator: str, left: int, right: NDArray[Any], result: int) -> bytes:
    """Return an ONNX file of one product: `y = x · right`, with `right` as a constant, and any number of rows in `x`.

    The bytes are those of protobuf (https://protobuf.dev/programming-guides/encoding) for the messages of
    onnx/onnx.proto, written here because the bench does without the onnx package.

    Args:
        operator: `MatMul` or `MatMulInteger`.
        left: the element type of `x`, as `potstill.onnxwire` numbers them.
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


def _measure(threads: int) -> Peaks:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    draw = np.random.default_rng(0)
    rates: dict[str, list[float]] = {"fp32": [], "int8": []}
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
        for name, (model, values) in made.items():
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            operations = 2.0 * rows * columns * inner
            rates[name].append(best_rate(partial(session.run, None, {"x": values}), operations))
    return Peaks(threads=threads, fp32_flops_per_s=max(rates["fp32"]), int8_ops_per_s=max(rates["int8"]))


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


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(int(sys.argv[1])).model_dump()))
