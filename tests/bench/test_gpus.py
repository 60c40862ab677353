import os

import pytest

from potstill.bench import environment


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
