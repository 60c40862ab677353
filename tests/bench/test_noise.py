from potstill.bench.measuring import noise


def test_the_flag_of_drifts_names_the_worst():
    (flag,) = noise.drift_flags({"a at 1×16": 1.07, "b at 1×16": 0.88}, of=3)
    assert "the times of 2 of 3 cells drifted" in flag
    assert "most those of b at 1×16: -12%" in flag
    assert noise.drift_flags({}, of=3) == []


def test_what_was_disturbed_is_made_again_so_often_as_is_allowed(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(
        noise,
        "read_counters",
        lambda: noise.Counters(total=(tick := next(ticks)), busy=tick, stolen=0, own=0, throttled=0, wall=tick),
    )
    made = iter("abc")
    found, machine = noise.watched(lambda: next(made), repeats=2)
    assert found == "c"
    assert noise.shares([machine]).others == 1
    calm = noise.Counters(total=0, busy=0, stolen=0, own=0, throttled=0, wall=0)
    monkeypatch.setattr(noise, "read_counters", lambda: calm)
    assert noise.watched(lambda: "first", repeats=2)[0] == "first"


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
