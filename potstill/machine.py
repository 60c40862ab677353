"""What this machine offers a process: cores, memory and CPU features, within the limits of its container.

Standard library only, because servers without any extra but `serve` import it.
"""

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from math import ceil
from pathlib import Path
from typing import Any

# The features that decide how fast and how exact int8 and bf16 are, as /proc/cpuinfo names them.
RELEVANT_FEATURES = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16"}
)
_PACKAGES = (
    "potstill",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tokenizers",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "optimum",
    "onnx",
    "onnxscript",
    "starlette",
    "uvicorn",
)


def available_cores() -> int:
    """Return the number of cores this process may use: its CPU affinity, or its container's quota if that is less."""
    # os.cpu_count() ignores taskset and containers: as many threads as the host has cores would fight for a few.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(affinity, ceil(quota))) if quota else affinity


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the container's CPU quota in cores (cgroup v2, then v1), or None where there is none."""
    text = read_or_empty(root / "cpu.max")
    if text:
        limit, _, period = text.partition(" ")
        return None if limit == "max" else int(limit) / int(period or 100_000)  # microseconds; 100 ms by default
    # cgroup v1 writes -1 for no quota.
    limit, period = read_or_empty(root / "cpu/cpu.cfs_quota_us"), read_or_empty(root / "cpu/cpu.cfs_period_us")
    return int(limit) / int(period) if limit and period and int(limit) > 0 else None


def memory_limit_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory this process may use: the container's limit or the machine's, whichever is less."""
    # No limit is "max" in v2, and in v1 a number near 2**63, which the minimum with the machine's memory removes.
    limits = [text for name in ("memory.max", "memory/memory.limit_in_bytes") if (text := read_or_empty(root / name))]
    container = min((int(text) for text in limits if text.isdigit()), default=None)
    found = re.search(r"MemTotal:\s+(\d+) kB", read_or_empty(Path("/proc/meminfo")))
    total = int(found[1]) * 1024 if found else None
    return min((value for value in (container, total) if value), default=None)


@cache
def cpu_features() -> frozenset[str]:
    """Return the features among `RELEVANT_FEATURES` that this CPU has; empty if they cannot be found out."""
    # x86 lists them as "flags", ARM as "Features".
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", read_or_empty(Path("/proc/cpuinfo")), re.MULTILINE)
    flags = found[1].split() if found else _flags_by_library()
    return RELEVANT_FEATURES.intersection(flags)


def cpu_name() -> str:
    """Return the CPU's model name."""
    found = re.search(r"^model name\s*:\s*(.+)$", read_or_empty(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def multiplies_exactly(features: Iterable[str]) -> bool:
    """Return whether a CPU with these features multiplies int8 into int32 without saturation."""
    # Without VNNI, x86 adds pairs of products in 16 bits (vpmaddubsw), which saturate: docs/log.md, "Export".
    return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}.isdisjoint(features)


def has_fast_int8() -> bool:
    """Return whether this CPU multiplies int8 into int32 without saturation (VNNI, AMX, ARM dot product)."""
    return multiplies_exactly(cpu_features())


def has_fast_bf16() -> bool:
    """Return whether this CPU computes in bfloat16; without it bfloat16 is emulated and slower than float32."""
    return bool(cpu_features() & {"avx512_bf16", "amx_bf16", "bf16"})


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that a result depends on, by name."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Return the environment that a result was measured in, as plain JSON values."""
    return {
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cpu_features": sorted(cpu_features()),
        "cores": available_cores(),
        "cores_of_host": os.cpu_count(),
        "cpu_quota": cpu_quota(),
        "memory_bytes": memory_limit_bytes(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "packages": versions(),
    }


def command_line() -> str | None:
    """Return the `potstill` command that this process runs; None in a program that uses potstill as a library."""
    program = Path(sys.argv[0])
    # The console script, or `python -m potstill`.
    if program.stem == "potstill" or program.parts[-2:] == ("potstill", "__main__.py"):
        return shlex.join(["potstill", *sys.argv[1:]])
    return None


def read_or_empty(file: Path) -> str:
    """Return the text of a file without white space around it; "" if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _flags_by_library() -> list[str]:
    """Ask py-cpuinfo, which comes with `bench`, on systems without /proc/cpuinfo."""
    try:
        import cpuinfo
    except ImportError:
        return []
    return list(cpuinfo.get_cpu_info().get("flags", []))
