"""How much memory this process holds, in bytes."""

import re
import resource
import sys
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident() -> int:
    """Return the resident set: everything of this process that is in memory, shared libraries too."""
    return int(psutil.Process().memory_info().rss)


def private() -> int | None:
    """Return the unique set: what would be free if this process ended. None where the system does not say."""
    try:
        full = psutil.Process().memory_full_info()
    except (psutil.AccessDenied, NotImplementedError):
        return None
    return int(full.uss) if hasattr(full, "uss") else None


def peak() -> int:
    """Return the highest resident set so far, or since `restart_peak` where that worked."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    # Kept for systems without /proc only: on Linux it starts with what the parent held.
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum if sys.platform == "darwin" else maximum * 1024


def restart_peak() -> bool:
    """Forget the peak so far (Linux, `man 5 proc`: 5 to clear_refs); tell whether the system let us."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
