"""The NVIDIA GPUs of this machine, as `nvidia-smi` tells them; nothing here needs CUDA or torch."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

# Field of nvidia-smi -> what the report calls it. `clocks.sm` is the clock now, so ask while the GPU is at work.
_FIELDS = {
    "name": "name",
    "memory.total": "memory_bytes",
    "driver_version": "driver",
    "clocks.sm": "clock_mhz",
    "clocks.max.sm": "max_clock_mhz",
    "power.limit": "power_limit_watts",
}
_MIB = 2**20
# It takes a second where the driver sleeps between uses.
_TIMEOUT_S = 20.0
_DEVICES = Path("/dev")


def describe_gpus() -> list[dict[str, Any]]:
    """Return each GPU's name, memory, driver, clocks and power limit; None for what it does not tell."""
    return [_read_line(line) for line in _ask().splitlines() if line.strip()]


def has_gpu(devices: Path = _DEVICES) -> bool:
    """Tell whether there is an NVIDIA GPU: a device file of its driver (or of WSL's), or one that nvidia-smi lists."""
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists() or bool(describe_gpus())


def _ask() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read_line(line: str) -> dict[str, Any]:
    values = dict(zip(_FIELDS.values(), (part.strip() for part in line.split(",")), strict=False))
    found: dict[str, Any] = {"name": values.get("name"), "driver": values.get("driver")}
    for name in ("memory_bytes", "clock_mhz", "max_clock_mhz", "power_limit_watts"):
        found[name] = _number(values.get(name, ""))
    if found["memory_bytes"] is not None:
        found["memory_bytes"] = int(found["memory_bytes"] * _MIB)
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None
