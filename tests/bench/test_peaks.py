import subprocess
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from potstill.bench.engines import peaks
from potstill.errors import CheckError
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


def test_the_best_of_several_blocks_counts():
    now, taken = [0.0], iter([5.0] + [0.02] * 3 + [0.01] * 6 + [0.06])

    def call():
        now[0] += next(taken)

    # 1000 operations: 3 calls in 60 ms, 6 in 60 ms, 1 in 60 ms; the first call of all is not counted.
    rate = peaks.best_rate(call, 1000, block_s=0.0599, blocks=3, clock=lambda: now[0])
    assert rate == pytest.approx(100_000)


def test_the_peaks_of_this_machine_are_measured():
    found = peaks.measure_peaks(1)
    assert found.threads == 1
    # Any core of the last fifteen years does 1 GFLOP/s, and none 100 TFLOP/s.
    assert 1e9 < found.fp32_flops_per_s < 1e14
    assert 1e9 < found.int8_ops_per_s < 1e14
    assert found.fp16_flops_per_s is None


def test_threads_are_those_asked_for(monkeypatch):
    made = []
    monkeypatch.setattr(
        onnxruntime, "InferenceSession",
        lambda model, options, **_: made.append(options.intra_op_num_threads) or SimpleNamespace(run=print),
    )  # fmt: skip
    monkeypatch.setattr(peaks, "best_rate", lambda call, operations: operations)
    found = peaks._measure(3)
    assert set(made) == {3}
    # The best of the shapes: 2 x 512 x 3072 x 768.
    assert found.fp32_flops_per_s == found.int8_ops_per_s == 2 * 512 * 3072 * 768


def test_a_failure_is_told_with_its_last_words(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nRuntimeError: no provider\n")
    monkeypatch.setattr(peaks.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CheckError, match="could not be measured: RuntimeError: no provider"):
        peaks.measure_peaks(1)


def test_a_hang_is_told(monkeypatch):
    def hang(*_, **named):
        raise subprocess.TimeoutExpired("peaks", named["timeout"])

    monkeypatch.setattr(peaks.subprocess, "run", hang)
    with pytest.raises(CheckError, match="not measured within 60 s"):
        peaks.measure_peaks(1)
