"""The machine and its software, as a report describes them: CPU settings, GPUs, memory limit, packages.

Everything is read from Linux's /proc and /sys (`man 5 proc`, Documentation/admin-guide/cgroup-v2.rst) and from
`nvidia-smi`; what a system does not tell is None. Nothing here needs CUDA or torch.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from potstill import machine
from potstill.bench.measure.memory import container_limit
from potstill.bench.report_schema import Environment

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
_DEVICES, _SYS = Path("/dev"), Path("/sys")


def describe(*, threads: int, load_before: list[float] | None = None) -> Environment:
    """Return the environment now; `load_before` is the load average of when the bench began."""
    found = machine.describe()
    now = found.pop("load_average")
    return Environment(
        **found,
        memory_limit_bytes=container_limit(),
        threads=threads,
        governor=governor(),
        turbo=turbo(),
        smt=smt(),
        gpus=describe_gpus(),
        load_before=load_before or now,
        load_after=now,
    )


def identity(found: Environment) -> dict[str, object]:
    """Return what must be the same for an interrupted bench to go on: the machine and the engines."""
    machine_id = Path("/etc/machine-id")  # tells two machines of one kind apart
    # Not every package: an update of matplotlib must not end a bench that was interrupted.
    engines = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tokenizers")
    return {
        "cpu": found.cpu,
        "cores": found.cores,
        "threads": found.threads,
        "packages": {name: version for name, version in found.packages.items() if name in engines},
        "machine": machine_id.read_text(encoding="utf-8").strip() if machine_id.is_file() else "",
    }


def describe_gpus() -> list[dict[str, Any]]:
    """Return each GPU's name, memory, driver, clocks and power limit; None for what nvidia-smi does not tell."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    gpus = []
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        if not line.strip():
            continue
        # Columns come in the order of the query, without names (noheader).
        values = dict(zip(_FIELDS.values(), (part.strip() for part in line.split(",")), strict=False))
        found: dict[str, Any] = {"name": values.get("name"), "driver": values.get("driver")}
        for name in ("memory_bytes", "clock_mhz", "max_clock_mhz", "power_limit_watts"):
            try:
                found[name] = float(values.get(name, ""))
            except ValueError:  # "[N/A]"
                found[name] = None
        if found["memory_bytes"] is not None:
            found["memory_bytes"] = int(found["memory_bytes"] * _MIB)
        gpus.append(found)
    return gpus


def has_gpu(devices: Path = _DEVICES) -> bool:
    """Tell whether there is an NVIDIA GPU: a device file of its driver (or of WSL's), or one that nvidia-smi lists."""
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists() or bool(describe_gpus())


def governor(root: Path = _SYS) -> str | None:
    """Return how the clock speed is governed (`performance`, `powersave`), or None where the system does not tell."""
    found = {_read(file) for file in root.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")} - {""}
    return ", ".join(sorted(found)) or None


def turbo(root: Path = _SYS) -> bool | None:
    """Tell whether cores may run above their base clock."""
    cpu = root / "devices/system/cpu"
    # intel_pstate has a switch of its own, whose 1 means off; cpufreq's 1 means on.
    disabled = _read(cpu / "intel_pstate/no_turbo")
    if disabled:
        return disabled == "0"
    boost = _read(cpu / "cpufreq/boost")
    return boost == "1" if boost else None


def smt(root: Path = _SYS) -> bool | None:
    """Tell whether two threads share a core."""
    active = _read(root / "devices/system/cpu/smt/active")
    return active == "1" if active else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
