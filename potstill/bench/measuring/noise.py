"""What the machine did while the rounds ran, and how it is set up.

Everything is read from Linux's /proc and /sys (`man 5 proc`, Documentation/admin-guide/cgroup-v2.rst); what another
system does not tell is None.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# Shares of the cores' time from which on a group of rounds is measured anew. They are about the 1 to 3 % that the
# interval of a ratio has: less than this can't move it by its own width, and an idle machine stays below.
STEAL_LIMIT = 0.02
THROTTLED_LIMIT = 0.02
OTHERS_LIMIT = 0.05
# Medians of thirds of 12 rounds that differ by 3 % each are 3 % apart by chance alone.
DRIFT_LIMIT = 0.05

_PROC, _SYS = Path("/proc"), Path("/sys")


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts since the system began, of the cores that this process may use, in seconds.

    Attributes:
        total: of all those cores together, idle or not.
        busy: that they worked, for whomever.
        stolen: that the host gave to other guests.
        own: that this process and all below it worked, on whatever core.
        throttled: for which the container's quota held its processes back.
        wall: of the clock.
    """

    total: float
    busy: float
    stolen: float
    own: float
    throttled: float
    wall: float

    def since(self, earlier: "Counters") -> dict[str, float]:
        """Return how much each grew."""
        return {name: getattr(self, name) - getattr(earlier, name) for name in Counters.__slots__}


@dataclass(frozen=True, slots=True)
class Shares:
    """What went wrong, as shares; None where the system does not tell."""

    steal: float | None
    throttled: float | None
    others: float | None

    def over_limit(self) -> list[str]:
        """Return what is over its limit, as parts of a sentence."""
        limits = (
            (self.steal, STEAL_LIMIT, "the host gave {:.0%} of the time of the cores to other guests"),
            (self.throttled, THROTTLED_LIMIT, "the container's CPU quota held the models back for {:.0%} of the time"),
            (self.others, OTHERS_LIMIT, "other processes took {:.0%} of the time of the cores"),
        )
        return [text.format(share) for share, limit, text in limits if share is not None and share > limit]


def read_counters(*, proc: Path = _PROC, cgroup: Path = _SYS / "fs/cgroup") -> Counters:
    """Read all counters now; those that the system lacks are 0 for ever."""
    per_second = os.sysconf("SC_CLK_TCK")
    total, busy, stolen = (count / per_second for count in _cores(proc))
    return Counters(total, busy, stolen, _own_seconds(), _throttled_seconds(cgroup), time.monotonic())


def shares(machine: Iterable[Mapping[str, float]]) -> Shares:
    """Return the shares over some rounds, each as `Counters.since` counts it."""
    rounds = list(machine)
    total, wall = (sum(found.get(name, 0.0) for found in rounds) for name in ("total", "wall"))
    if total <= 0 or wall <= 0:
        return Shares(None, None, None)
    stolen, busy, own = (sum(found[name] for found in rounds) for name in ("stolen", "busy", "own"))
    # The kernel adds up the cores' times, so with several cores this can be more than all of it.
    throttled = sum(found["throttled"] for found in rounds) / wall
    return Shares(stolen / total, min(1.0, throttled), max(0.0, (busy - own) / total))


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


def _cores(proc: Path) -> tuple[int, int, int]:
    """Return the total, busy and stolen ticks of the cores that this process may use."""
    mine = _affinity()
    total = busy = stolen = 0
    for core, line in re.findall(r"^cpu(\d+) (.+)$", _read(proc / "stat"), re.MULTILINE):
        if mine is not None and int(core) not in mine:
            continue
        # user, nice, system, idle, iowait, irq, softirq, steal; guest times are in user and nice already.
        ticks = [int(field) for field in line.split()[:8]]
        total += sum(ticks)
        stolen += ticks[7]
        busy += sum(ticks) - ticks[3] - ticks[4] - ticks[7]
    return total, busy, stolen


def _affinity() -> Sequence[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _own_seconds() -> float:
    """Return the CPU seconds of this process and all below it; of those that ended too, once they were waited for."""
    seconds = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            seconds += sum(child.cpu_times()[:4])
        except psutil.Error:  # it has just ended
            continue
    return seconds


def _throttled_seconds(root: Path) -> float:
    """Return for how long the quota of this container, in cgroup v2 or v1, has held it back."""
    found = re.search(r"^throttled_usec (\d+)$", _read(root / "cpu.stat"), re.MULTILINE)
    if found:
        return int(found[1]) / 1e6
    found = re.search(r"^throttled_time (\d+)$", _read(root / "cpu/cpu.stat"), re.MULTILINE)
    return int(found[1]) / 1e9 if found else 0.0


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
