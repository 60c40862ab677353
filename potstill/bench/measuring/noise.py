"""What the machine did while the rounds ran, and how it is set up.

Everything is read from Linux's /proc and /sys (`man 5 proc`, Documentation/admin-guide/cgroup-v2.rst); what another
system does not tell is None.
"""

from collections.abc import Mapping
from pathlib import Path

from potstill.timing.disturbance import Counters, Shares, read_counters, shares

__all__ = ["Counters", "Shares", "flags", "governor", "read_counters", "shares", "smt", "turbo"]

# Medians of thirds of 12 rounds that differ by 3 % each are 3 % apart by chance alone.
DRIFT_LIMIT = 0.05

_SYS = Path("/sys")


def flags(found: Shares, drifts: Mapping[str, float], *, floor: float | None) -> list[str]:
    """Return a sentence for everything that makes this run doubtful.

    Args:
        found: over all rounds that count.
        drifts: "row at load" -> median of its last third of rounds / of the first.
        floor: the noise floor.
    """
    sentences = [f"While the rounds ran, {part}." for part in found.over_limit()]
    limit = max(floor or 0.0, DRIFT_LIMIT)
    drifted = {where: value for where, value in drifts.items() if abs(value - 1) > limit}
    if drifted:
        worst = max(drifted, key=lambda where: abs(drifted[where] - 1))
        sentences.append(
            f"Between the first and the last third of the rounds the times drifted by more than {limit:.0%} in "
            f"{len(drifted)} of {len(drifts)} cells, most for {worst}: {drifted[worst] - 1:+.0%}."
        )
    return sentences


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
