"""What this machine reaches at best in a matrix product: the bare product, which takes its turns among the models.

A configuration's share of that peak says how far it is from what the machine could do. The product is run by
onnxruntime, whose kernels the models run too, with a constant weight as in a model. No BLAS is asked: in numpy's, the
threads are not ours to set, and it has no int8.

The products are ONNX files in `potstill/bench/products`, written by `benchmarks/bench/make_products.py`.
"""

import time
from collections.abc import Callable
from functools import partial
from importlib import resources

import numpy as np

# Rows, columns and inner size of the products: those of a feed-forward layer of BERT-base over 256 and 512 tokens, and
# a square one. Larger ones were not faster on the CPUs tried.
SHAPES = ((256, 3072, 768), (512, 3072, 768), (768, 768, 768))
_BLOCK_S = 0.03


class MatrixProducts:
    """Sessions of all shapes in fp32 and int8, ready to be run."""

    def __init__(self, threads: int) -> None:
        """Make the sessions, with so many threads each."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        draw = np.random.default_rng(0)
        self._calls: list[tuple[str, float, Callable[[], object]]] = []
        for rows, columns, inner in SHAPES:
            inputs = {
                "fp32": draw.normal(size=(rows, inner)).astype(np.float32),
                "int8": draw.integers(0, 256, size=(rows, inner), dtype=np.uint8),
            }
            for kind, values in inputs.items():
                # The files hold no weights: a few nodes make them, which onnxruntime folds into a constant.
                file = resources.files("potstill.bench") / "products" / f"{kind}_{inner}x{columns}.onnx"
                session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
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
    # One reading per call: the end of a call is the beginning of the next.
    begin = before = clock()
    fastest = float("inf")
    while fastest == float("inf") or before - begin < block_s:
        call()
        now = clock()
        fastest, before = min(fastest, now - before), now
    return operations / fastest
