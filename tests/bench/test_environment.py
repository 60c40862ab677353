from potstill.bench import environment


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_how_the_clock_is_governed(tmp_path):
    cpu = tmp_path / "devices/system/cpu"
    assert (environment.governor(tmp_path), environment.turbo(tmp_path), environment.smt(tmp_path)) == (
        None,
        None,
        None,
    )
    write(cpu / "cpu0/cpufreq/scaling_governor", "powersave\n")
    write(cpu / "cpu1/cpufreq/scaling_governor", "performance\n")
    write(cpu / "cpufreq/boost", "1\n")
    write(cpu / "smt/active", "0\n")
    assert environment.governor(tmp_path) == "performance, powersave"
    assert (environment.turbo(tmp_path), environment.smt(tmp_path)) == (True, False)
    write(cpu / "intel_pstate/no_turbo", "1\n")
    assert environment.turbo(tmp_path) is False
    write(cpu / "intel_pstate/no_turbo", "0\n")
    assert environment.turbo(tmp_path) is True
