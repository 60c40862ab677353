import sys
from types import SimpleNamespace

import numpy as np
import pytest

from potstill.bench.measure import energy
from potstill.bench.measure.samples import Round
from potstill.bench.report import tables
from potstill.bench.report_schema import Energy, Load
from tests.bench.made import made_report


def zone(root, name, *, label="package-0", microjoules=0, highest=999_999):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "max_energy_range_uj").write_text(f"{highest}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_joules_of_all_packages_are_added_and_parts_of_them_are_not(tmp_path):
    first, second = zone(tmp_path, "intel-rapl:0", microjoules=100), zone(tmp_path, "intel-rapl:1", label="package-1")
    part = zone(tmp_path, "intel-rapl:0:0", label="core")
    psys = zone(tmp_path, "intel-rapl:2", label="psys")
    same = zone(tmp_path, "intel-rapl-mmio:0")
    meter = energy.open_meter(on_gpu=False, powercap=tmp_path)
    assert (meter.source, meter.read()) == ("rapl", 0)
    first.write_text("300100")
    second.write_text("200000")
    part.write_text("900000")
    psys.write_text("900000")
    same.write_text("300000")
    assert meter.read() == pytest.approx(0.5)


def test_a_counter_that_begins_again_at_0_goes_on(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", microjoules=999_000, highest=999_999)
    meter = energy.open_meter(on_gpu=False, powercap=tmp_path)
    counter.write_text("4000")  # 1000 to the end of the range, and 4000
    assert meter.read() == pytest.approx(0.005)
    counter.write_text("5000")
    assert meter.read() == pytest.approx(0.006)
    counter.write_text("0")
    assert meter.read() == pytest.approx(1.001)


def test_without_a_counter_the_reason_is_a_sentence(tmp_path):
    assert "no RAPL package" in energy.open_meter(on_gpu=False, powercap=tmp_path / "nowhere")
    zone(tmp_path, "intel-rapl:0").unlink()
    assert "cannot be read; run as root" in energy.open_meter(on_gpu=False, powercap=tmp_path)


class Driver:
    class NVMLError(Exception):
        pass

    def __init__(self, *, counts=True):
        self.used, self.counts = [1000, 5000], counts

    def nvmlInit(self): ...

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return self.used[handle]


def test_a_gpus_joules_are_those_since_the_meter_was_made(monkeypatch):
    driver = Driver()
    monkeypatch.setitem(sys.modules, "fake_nvml", driver)
    meter = energy.open_meter(on_gpu=True, nvml="fake_nvml")
    assert (meter.source, meter.read()) == ("nvml", 0)
    driver.used[:] = [1500, 7000]
    assert meter.read() == 2.5


def test_a_gpu_that_counts_nothing_or_has_no_module_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "fake_nvml", Driver(counts=False))
    assert "counts no energy here: Not Supported" in energy.open_meter(on_gpu=True, nvml="fake_nvml")
    assert "no_such_nvml is not installed" in energy.open_meter(on_gpu=True, nvml="no_such_nvml")


def test_joules_per_text_count_the_call_that_is_not_timed():
    def made(calls, joules):
        return Round(
            launch=0,
            number=0,
            calls_ms={"a": [1.0] * calls, "b": [1.0]},
            cpu_s={},
            wall_s={"a": 0.5, "b": 1.0},
            joules=joules,
        )

    load, rng = Load(batch_size=8, num_tokens=16), np.random.default_rng(0)
    found = energy.summarise_energy(
        [made(4, {"a": 10.0}), made(9, {"a": 20.0}), made(9, {})], load, texts_per_call=8, rng=rng
    )
    # 5 + 10 calls of 8 texts, 30 J in 1 s.
    (row,) = found
    low, high = row.pop("interval")
    assert row == {"key": "a", "load": load.model_dump(), "joules_per_text": 0.25, "watts": 30.0}
    # Its rounds took 0.25 J a text both: nothing differs.
    assert (low, high) == pytest.approx((0.25, 0.25))


def test_no_wall_clock_no_watts():
    one = SimpleNamespace(joules={"a": 1.0}, calls_ms={"a": [1.0]}, wall_s={"a": 0.0})
    assert (
        energy.summarise_energy([one], Load(num_tokens=1), texts_per_call=1, rng=np.random.default_rng(0))[0]["watts"]
        is None
    )


def test_the_reports_table_names_loads_as_every_other_table():
    load = Load(kind="grid", batch_size=8, num_tokens=128)
    used = [Round(1, n, {"a": [1.0]}, {"a": 0.1}, {"a": 0.1}, joules={"a": 2.0}) for n in range(3)]
    rows = energy.summarise_energy(used, load, texts_per_call=8, rng=np.random.default_rng(0))
    report = made_report().model_copy(update={"energy": Energy(source="rapl", rows=rows)})
    table = tables.energy(report)
    assert str(load) == "8×128" in str(table.groups)
    assert "kind" not in str(table.groups)
