import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from potstill.bench import peak, report_builder
from potstill.bench.measure.results import summarise_measurements
from potstill.bench.measure.stages import measure
from potstill.bench.report_schema import Latency, Load, Peaks
from potstill.timing import disturbance
from tests.bench.fake_worker import LONG, SHORT, World, configuration, make_run

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = Path(peak.__file__).parent / "products"


def test_the_products_in_the_package_are_those_that_the_script_makes(tmp_path):
    subprocess.run([sys.executable, "benchmarks/bench/make_products.py", str(tmp_path)], check=True, cwd=ROOT)
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert made == {file.name: file.read_bytes() for file in PRODUCTS.glob("*.onnx")}
    assert set(made) == {
        f"{kind}_{inner}x{columns}.onnx" for _, columns, inner in peak.SHAPES for kind in ("fp32", "int8")
    }


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_a_product_multiplies_by_a_weight_that_is_a_constant_once_it_is_loaded(tmp_path, kind):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(PRODUCTS / f"{kind}_768x768.onnx", options)
    optimised = onnx.load(options.optimized_model_filepath)
    assert [node.op_type for node in optimised.graph.node] == [{"fp32": "MatMul", "int8": "MatMulInteger"}[kind]]
    weight = onnx.numpy_helper.to_array(optimised.graph.initializer[0])
    assert weight.shape == (768, 768)
    rows = np.random.default_rng(0).integers(0, 256, size=(7, 768))
    if kind == "fp32":
        values = rows.astype(np.float32) / 256
        assert np.allclose(session.run(None, {"x": values})[0], values @ weight, atol=1e-3)
        assert weight.std() == pytest.approx(0.5**0.5, rel=0.01)
    else:
        assert (weight.min(), weight.max()) == (-64, 63)
        (found,) = session.run(None, {"x": rows.astype(np.uint8)})
        assert np.array_equal(found, rows @ weight.astype(np.int32))


def test_the_fastest_call_counts():
    now, taken = [0.0], iter([5.0, 0.02, 0.01, 0.06])

    def call():
        now[0] += next(taken)

    # 1000 operations; the first call of all is not counted, and the block ends once it has lasted long enough.
    assert peak.rate(call, 1000, block_s=0.05, clock=lambda: now[0]) == pytest.approx(100_000)
    assert list(taken) == []


def test_the_peaks_of_this_machine_are_measured():
    found = peak.MatrixProducts(threads=1).rates()
    assert set(found) == {"fp32", "int8"}
    # Any core of the last fifteen years does 1 GFLOP/s, and none 100 TFLOP/s.
    assert all(1e9 < rate < 1e14 for rate in found.values())


def test_threads_are_those_asked_for(monkeypatch):
    made = []
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, **_: made.append(options.intra_op_num_threads) or SimpleNamespace(run=print),
    )
    monkeypatch.setattr(peak, "rate", lambda call, operations: operations)
    found = peak.MatrixProducts(threads=3).rates()
    assert set(made) == {3}
    # The best of the shapes: 2 x 512 x 3072 x 768.
    assert found["fp32"] == found["int8"] == 2 * 512 * 3072 * 768


def share(p50_ms, *, peak=1e12, disturbed=None, runner="onnxruntime-cpu"):
    """Return the share of the peak of a row with 10 GFLOP a call."""
    model = SimpleNamespace(flops_per_token=lambda configuration, num_tokens: 1e6 * num_tokens)
    bench = SimpleNamespace(
        configurations=[configuration("t/fp32", runner=runner)],
        models={"t": model},
    )
    row = Latency(
        key="t/fp32", load=Load(num_tokens=100), mean_tokens=100, samples=20, p50_ms=p50_ms, disturbed=disturbed
    )
    found = report_builder.add_flops(bench, row, Peaks(threads=2, fp32_flops_per_s=peak))
    assert found.flops_per_s == pytest.approx(1e10 / (p50_ms / 1e3))
    return found.peak_share


def test_a_share_of_the_peak_is_never_above_1():
    assert share(20.0) == pytest.approx(0.5)
    assert share(10.0) == pytest.approx(1.0)
    # 2.86 times what the bare product reached: one of the two is no measure.
    assert share(3.5) is None


@pytest.mark.parametrize(
    ("runner", "found"), [("torch-cpu-compiled", 0.5), ("openvino-cpu", 0.5), ("torch-cuda", None)]
)
def test_only_what_runs_on_the_processor_has_a_share_of_its_peak(runner, found):
    assert share(20.0, runner=runner) == found


def test_a_disturbed_row_has_no_share_of_the_peak():
    assert share(20.0, disturbed="other processes took 81%") is None


def test_the_bare_product_takes_its_turns_among_the_rows_in_every_launch(tmp_path, monkeypatch):
    calm = disturbance.Counters(total=0, busy=0, stolen=0, own=0, throttled=0, wall=0)
    monkeypatch.setattr(disturbance, "read_counters", lambda: calm)
    world = World()
    run = make_run(tmp_path, world, loads=[SHORT, LONG], rounds=8, launches=4, extra_launches=0, peak=True)
    measure(run, answers=tmp_path / "answers")
    assert len(world.asked("product")) == 2 * 4  # a turn at each load in each of four launches
    turns = [(number, command["do"]) for number, _, command in world.said if command["do"] in ("block", "product")]
    order = "".join("p" if do == "product" else "b" for _, do in turns)
    assert len(order) == 2 * 8 * 3 + 2 * 4
    assert "bpb" in order  # among them, and not before or after all of them
    found = summarise_measurements(run.bench, run.journal)
    assert found.peaks == {"fp32": 8e9, "int8": 2e9}
    assert found.failures == []
    assert "#product" not in {row.key for row in found.memory}
