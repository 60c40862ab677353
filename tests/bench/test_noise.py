from potstill.bench.measuring import noise
from potstill.bench.measuring.noise import Shares


def test_flags_name_the_worst_drift_and_respect_the_floor():
    drifts = {"a at 1×16": 1.04, "b at 1×16": 0.88, "c at 1×16": 1.1}
    calm = Shares(0.0, 0.0, 0.0)
    (flag,) = noise.flags(calm, drifts, floor=0.02)
    assert "more than 5% in 2 of 3 cells, most for b at 1×16: -12%" in flag
    assert noise.flags(calm, drifts, floor=0.13) == []
    assert noise.flags(calm, {}, floor=None) == []
    assert len(noise.flags(Shares(0.5, 0.5, 0.5), drifts, floor=None)) == 4


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_how_the_clock_is_governed(tmp_path):
    cpu = tmp_path / "devices/system/cpu"
    assert (noise.governor(tmp_path), noise.turbo(tmp_path), noise.smt(tmp_path)) == (None, None, None)
    write(cpu / "cpu0/cpufreq/scaling_governor", "powersave\n")
    write(cpu / "cpu1/cpufreq/scaling_governor", "performance\n")
    write(cpu / "cpufreq/boost", "1\n")
    write(cpu / "smt/active", "0\n")
    assert noise.governor(tmp_path) == "performance, powersave"
    assert (noise.turbo(tmp_path), noise.smt(tmp_path)) == (True, False)
    write(cpu / "intel_pstate/no_turbo", "1\n")
    assert noise.turbo(tmp_path) is False
    write(cpu / "intel_pstate/no_turbo", "0\n")
    assert noise.turbo(tmp_path) is True
