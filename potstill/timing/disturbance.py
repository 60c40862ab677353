"""What the machine did while something was timed: whether other processes, the host or a quota took its cores.

    with Watch() as watch:
        ...  # time something, in this process or its children
    watch.reasons()  # empty, or why the times must not be believed

Everything is read from Linux's /proc and /sys (`man 5 proc`, Documentation/admin-guide/cgroup-v2.rst); what another
system does not tell is None, and gives no reasons.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

# Shares of the cores' time from which on a measurement is disturbed. They are about the 1 to 3 % that the interval of
# a ratio has: less than this can't move it by its own width, and an idle machine stays below.
STEAL_LIMIT = 0.02
THROTTLED_LIMIT = 0.02
OTHERS_LIMIT = 0.05
# The kernel counts in ticks of 10 ms: in less time than this one tick of a daemon would pass for a disturbance.
LEAST_SECONDS = 0.5

Made = TypeVar("Made")

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts since the system began, of the cores that this process may use, in seconds.

    Attributes:
        total: time of all those cores together, idle or not.
        busy: time in which they ran any process.
        stolen: time that the hypervisor gave to other guests (steal).
        own: CPU time of this process and its descendants, on whatever core.
        throttled: time for which the cgroup's CPU quota held its processes back.
        wall: monotonic clock.
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
    """Disturbances as shares of the cores' time (`throttled`: of wall-clock time); None where the system is silent."""

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


class Watch:
    """Count what the machine does within a `with` block."""

    def __init__(self) -> None:
        self.counted: dict[str, float] = {}
        """What `Counters.since` counted, once the block has ended."""

    def __enter__(self) -> Self:
        self._before = read_counters()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.counted = read_counters().since(self._before)

    def reasons(self) -> list[str]:
        """Return what disturbed the block, as parts of a sentence."""
        return shares([self.counted]).over_limit()


def watched(make: Callable[[], Made], *, repeats: int) -> tuple[Made, dict[str, float]]:
    """Call `make` while the machine is watched; if it was disturbed, call it again up to `repeats` times.

    Returns:
        The last result, disturbed or not, and what the machine did meanwhile as `Counters.since` counts it.
    """
    while True:
        with Watch() as watch:
            made = make()
        if repeats <= 0 or not watch.reasons():
            return made, watch.counted
        repeats -= 1


def read_counters(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> Counters:
    """Read all counters now; one that the system does not have stays 0."""
    per_second = os.sysconf("SC_CLK_TCK")
    total, busy, stolen = (count / per_second for count in _cores(proc))
    own = _own_ticks(proc) / per_second
    return Counters(total, busy, stolen, own, _throttled_seconds(cgroup), time.monotonic())


def shares(counted: Iterable[Mapping[str, float]]) -> Shares:
    """Return the shares over some stretches of time, each as `Counters.since` counts it.

    They are None where the system counts nothing, and where the stretches together are too short to tell.
    """
    stretches = list(counted)
    total, wall = (sum(found.get(name, 0.0) for found in stretches) for name in ("total", "wall"))
    # Time of all cores together: two of them reach the limit in half of it by the clock.
    if total < LEAST_SECONDS or wall <= 0:
        return Shares(None, None, None)
    stolen, busy, own = (sum(found[name] for found in stretches) for name in ("stolen", "busy", "own"))
    # The kernel adds up the cores' times, so with several cores this can be more than all of it.
    throttled = sum(found["throttled"] for found in stretches) / wall
    # `own` holds work on cores outside the affinity mask too, so it can be more than `busy`.
    return Shares(stolen / total, min(1.0, throttled), max(0.0, (busy - own) / total))


def _cores(proc: Path) -> tuple[int, int, int]:
    """Return the total, busy and stolen ticks of the cores that this process may use."""
    # /proc/stat lists every core of the host, also in a container, and most of them may not be ours.
    mine = _affinity()
    total = busy = stolen = 0
    for core, line in re.findall(r"^cpu(\d+) (.+)$", _read(proc / "stat"), re.MULTILINE):
        if mine is not None and int(core) not in mine:
            continue
        # user, nice, system, idle, iowait, irq, softirq, steal; guest times are in user and nice already.
        ticks = [int(field) for field in line.split()[:8]]
        total += sum(ticks)
        stolen += ticks[7]
        # iowait is idle time during which a disk is waited for; steal has its own share.
        busy += sum(ticks) - ticks[3] - ticks[4] - ticks[7]
    return total, busy, stolen


def _affinity() -> Sequence[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _own_ticks(proc: Path) -> int:
    """Return the CPU ticks of this process and all below it; of those that ended too, once they were waited for."""
    used: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for folder in proc.glob("[0-9]*"):
        # Split behind the name, which may hold spaces and brackets. Of `man 5 proc` these are field 4, the parent, and
        # 14 to 17: utime and stime of the process, then of the children that it waited for.
        fields = _read(folder / "stat").rpartition(")")[2].split()
        # The file of a process that has just ended reads as empty.
        if len(fields) > 14:
            pid = int(folder.name)
            used[pid] = sum(map(int, fields[11:15]))
            children.setdefault(int(fields[1]), []).append(pid)
    ticks, left = 0, [os.getpid()]
    while left:
        pid = left.pop()
        ticks += used.get(pid, 0)
        left += children.get(pid, ())
    return ticks


def _throttled_seconds(root: Path) -> float:
    """Return for how long the quota of this container, in cgroup v2 or v1, has held it back."""
    # cgroup v2 counts microseconds here; v1 has nanoseconds in the folder of its cpu controller.
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
