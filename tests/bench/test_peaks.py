from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from potstill.bench.engines import peaks
from potstill.onnxwire import FLOAT, UINT8

INT32 = onnx.TensorProto.INT32


def run(model, values):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": values})[0]


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def test_a_written_product_of_floats_is_what_onnx_reads_and_numpy_computes(draw):
    weight, values = draw.normal(size=(300, 5)).astype(np.float32), draw.normal(size=(7, 300)).astype(np.float32)
    written = peaks.product_model("MatMul", FLOAT, weight, FLOAT)
    model = onnx.load_from_string(written)
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), weight)
    assert np.allclose(run(written, values), values @ weight, atol=1e-4)


def test_a_written_product_of_integers_is_exact(draw):
    weight = draw.integers(-64, 64, size=(300, 5)).astype(np.int8)
    values = draw.integers(0, 256, size=(7, 300)).astype(np.uint8)
    written = peaks.product_model("MatMulInteger", UINT8, weight, INT32)
    onnx.checker.check_model(onnx.load_from_string(written), full_check=True)
    assert np.array_equal(run(written, values), values.astype(np.int32) @ weight.astype(np.int32))


def test_the_fastest_call_counts():
    now, taken = [0.0], iter([5.0, 0.02, 0.01, 0.06])

    def call():
        now[0] += next(taken)

    # 1000 operations; the first call of all is not counted, and the block ends once it has lasted long enough.
    assert peaks.rate(call, 1000, block_s=0.05, clock=lambda: now[0]) == pytest.approx(100_000)
    assert list(taken) == []


def test_the_peaks_of_this_machine_are_measured():
    found = peaks.Products(threads=1).rates()
    assert set(found) == {"fp32", "int8"}
    # Any core of the last fifteen years does 1 GFLOP/s, and none 100 TFLOP/s.
    assert all(1e9 < rate < 1e14 for rate in found.values())


def test_threads_are_those_asked_for(monkeypatch):
    made = []
    monkeypatch.setattr(
        onnxruntime, "InferenceSession",
        lambda model, options, **_: made.append(options.intra_op_num_threads) or SimpleNamespace(run=print),
    )  # fmt: skip
    monkeypatch.setattr(peaks, "rate", lambda call, operations: operations)
    found = peaks.Products(threads=3).rates()
    assert set(made) == {3}
    # The best of the shapes: 2 x 512 x 3072 x 768.
    assert found["fp32"] == found["int8"] == 2 * 512 * 3072 * 768
