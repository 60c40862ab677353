""""""

import os

import pytest

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


@pytest.fixture
def says(tmp_path, monkeypatch):
    """Let nvidia-smi say something."""

    def install(lines, exit_code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat <<END\n{lines}\nEND\nexit {exit_code}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_gpus_are_described_in_bytes_and_megahertz(says, tmp_path):
    says("NVIDIA H200, 143771, 570.86.15, 1980, 1980, 700.00\nTesla T4, 15360, 570.86.15, [N/A], 1590, 70.00")
    first, second = environment.describe_gpus()
    assert first == {
        "name": "NVIDIA H200",
        "memory_bytes": 143771 * 2**20,
        "driver": "570.86.15",
        "clock_mhz": 1980,
        "max_clock_mhz": 1980,
        "power_limit_watts": 700,
    }
    assert (second["name"], second["clock_mhz"]) == ("Tesla T4", None)
    assert "memory.total,driver_version,clocks.sm," in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(("lines", "exit_code"), [("No devices were found", 6), ("", 0)])
def test_a_machine_without_gpus_has_none(says, tmp_path, lines, exit_code):
    says(lines, exit_code)
    assert environment.describe_gpus() == []
    assert not environment.has_gpu(tmp_path / "dev")


def test_without_the_program_there_are_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.describe_gpus() == []
    assert not environment.has_gpu(tmp_path)


@pytest.mark.parametrize("device", ["nvidia0", "dxg"])
def test_a_device_file_is_enough(monkeypatch, tmp_path, device):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / device).touch()
    assert environment.has_gpu(tmp_path)
    (tmp_path / device).unlink()
    (tmp_path / "nvidiactl").touch()
    assert not environment.has_gpu(tmp_path)
