"""How much memory this process holds, in bytes, and how much its container allows.

Little is imported here, because what a bare interpreter holds is measured with it. The counts are the kernel's own:
`man 5 proc`.
"""

import os
import re
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.machine import memory_limit_bytes

_PROCESS = Path("/proc/self")
_CGROUP = Path("/sys/fs/cgroup")
# What engines say when an allocation fails: Python, C++, onnxruntime, torch on the CPU and on CUDA.
_NO_MEMORY = re.compile(
    r"out of memory|bad[_ ]alloc|can't allocate memory|cannot allocate memory|unable to allocate|"
    r"failed to allocate memory|ALLOC_FAILED",
    re.IGNORECASE,
)


class OutOfMemory(Exception):
    """An allocation failed; the process lives on."""


@dataclass(slots=True)
class MemoryGrowth:
    """What a process held at each step of its life so far; the fields are those of `report_schema.Memory`."""

    interpreter_rss_bytes: int
    imported_rss_bytes: int = 0
    loaded_rss_bytes: int = 0
    loading_peak_bytes: int = 0

    def imported(self) -> None:
        """Note what the process holds once its libraries are imported."""
        self.imported_rss_bytes = resident()

    def loaded(self) -> None:
        """Note what the process holds with the model, and its peak while loading; then start a new peak."""
        self.loaded_rss_bytes, self.loading_peak_bytes = resident(), peak()
        # A loading peak is up to 3 times the file (docs/log.md), and would hide that of the runs.
        restart_peak()

    def now(self) -> dict[str, Any]:
        """Return the steps, the peak since loading, and what the process holds now."""
        peak_bytes, after = peak(), resident()
        unique, proportional = shares()
        return asdict(self) | {
            "peak_bytes": peak_bytes,
            "after_rss_bytes": after,
            "after_uss_bytes": unique,
            "after_pss_bytes": proportional,
        }


def resident() -> int:
    """Return the resident set: everything of this process that is in memory, shared libraries too."""
    fields = _read("statm").split()
    if fields:
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(_psutil_process().memory_info().rss)


def shares() -> tuple[int | None, int | None]:
    """Return the unique and the proportional set, or None for what the system does not tell.

    Unique is what would be free if this process ended; proportional divides shared pages by the number of processes
    that share them.
    """
    # The kernel's own sum over smaps, since Linux 4.14.
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", _read("smaps_rollup"), re.M)}
    if sizes:
        return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Pss"]
    import psutil

    try:
        full = _psutil_process().memory_full_info()
    except (psutil.AccessDenied, NotImplementedError):
        return None, None
    return getattr(full, "uss", None), getattr(full, "pss", None)


def peak() -> int:
    """Return the highest resident set so far, or since `restart_peak` where that worked."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", _read("status"), re.M)
    if found:
        return int(found[1]) * 1024
    # Kept for systems without /proc only: on Linux it starts with what the parent held.
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux and the BSDs KiB.
    return maximum if sys.platform == "darwin" else maximum * 1024


def restart_peak() -> bool:
    """Forget the peak so far (Linux, `man 5 proc`: 5 to clear_refs); tell whether the system let us."""
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def container_limit(root: Path = _CGROUP) -> int | None:
    """Return what a container allows its processes together; None where nothing limits them but the machine."""
    limit = memory_limit_bytes(root)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Without a limit `memory_limit_bytes` is the machine's own size.
    return limit if limit is not None and limit < total else None


def end_first() -> bool:
    """Ask the system to end this process before any other when memory runs out; tell whether it agreed."""
    try:
        # 1000 is the highest, and raising the value needs no privilege.
        (_PROCESS / "oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        return False
    return True


def ran_out(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it came from, says that there is no memory left."""
    while error is not None:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False


def _read(name: str) -> str:
    try:
        return (_PROCESS / name).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _psutil_process() -> Any:
    import psutil

    return psutil.Process()
