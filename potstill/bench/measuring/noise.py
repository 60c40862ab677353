"""What the machine did while the rounds ran, and how it is set up.

Everything is read from Linux's /proc and /sys (`man 5 proc`, Documentation/admin-guide/cgroup-v2.rst); what another
system does not tell is None.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from potstill.timing.disturbance import Counters, Shares, read_counters, shares

__all__ = ["Counters", "Shares", "drift_flags", "governor", "read_counters", "shares", "smt", "turbo", "watched"]

# Medians of thirds of 12 rounds that differ by 3 % each are 3 % apart by chance alone.
DRIFT_LIMIT = 0.05

_SYS = Path("/sys")

Made = TypeVar("Made")


def watched(make: Callable[[], Made], *, repeats: int) -> tuple[Made, dict[str, float]]:
    """Make something while the machine is watched; if it was disturbed, make it again up to `repeats` times.

    Returns:
        What was made last, and what the machine did meanwhile as `Counters.since` counts it.
    """
    while True:
        before = read_counters()
        made = make()
        machine = read_counters().since(before)
        if repeats <= 0 or not shares([machine]).over_limit():
            return made, machine
        repeats -= 1


def drift_flags(drifts: Mapping[str, float], *, of: int) -> list[str]:
    """Return a sentence about the cells whose times drifted, if there are any.

    Args:
        drifts: "row at load" -> median of its last third of rounds / of the first, of those that drifted.
        of: how many cells there are.
    """
    if not drifts:
        return []
    worst = max(drifts, key=lambda where: abs(drifts[where] - 1))
    return [
        f"Between the first and the last third of the rounds the times of {len(drifts)} of {of} cells drifted by more "
        f"than chance would have it, most those of {worst}: {drifts[worst] - 1:+.0%}."
    ]


def governor(root: Path = _SYS) -> str | None:
    """Return how the clock speed is governed (`performance`, `powersave`), or None where the system does not tell."""
    found = {_read(file) for file in root.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")} - {""}
    return ", ".join(sorted(found)) or None


def turbo(root: Path = _SYS) -> bool | None:
    """Tell whether cores may run above their base clock."""
    cpu = root / "devices/system/cpu"
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
