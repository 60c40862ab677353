"""Measure energy in joules where the machine counts it: with Intel's and AMD's RAPL, or with Nvidia's NVML."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from potstill.bench.measure.samples import Round
from potstill.bench.report_schema import Load
from potstill.bench.statistics import mean_interval

_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Meter:
    """A counter of joules: `read` returns how many have been used since it was made."""

    source: Literal["rapl", "nvml"]
    read: Callable[[], float]


def open_meter(*, on_gpu: bool, powercap: Path = _POWERCAP, nvml: str = "pynvml") -> Meter | str:
    """Return this machine's energy meter, or the reason why it has none.

    Args:
        on_gpu: whether what is measured runs on a GPU; the processor's joules would say little of it.
        powercap: where Linux shows RAPL (Documentation/power/powercap/powercap.rst).
        nvml: the module that asks the GPU's driver.
    """
    return _open_nvml(nvml) if on_gpu else _open_rapl(powercap)


def summarise_energy(
    found: Sequence[Round], load: Load, *, texts_per_call: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return `key`, `load`, `joules_per_text`, `interval` and `watts` of all whose turns were metered at a load.

    The joules of a turn are those of its calls and of the one before them that is not timed, so that is a text too.
    The interval is a bootstrap over the rounds, drawn by `rng`; one round alone has none.
    """
    made = []
    for key in dict.fromkeys(key for one in found for key in one.joules):
        own = [one for one in found if key in one.joules]
        joules = sum(one.joules[key] for one in own)
        # + 1 for the first call of `run_block`, which is not timed but costs energy all the same.
        texts = sum(len(one.calls_ms[key]) + 1 for one in own) * texts_per_call
        seconds = sum(one.wall_s[key] for one in own)
        per_text = [one.joules[key] / (len(one.calls_ms[key]) + 1) / texts_per_call for one in own]
        interval = None
        if len(own) > 1:
            spread = mean_interval(per_text, rng=rng)
            # The value weighs turns by their texts and the mean does not, so it could fall beside the mean's interval.
            interval = [min(spread.low, joules / texts), max(spread.high, joules / texts)]
        made.append(
            {
                "key": key,
                "load": load.model_dump(),
                "joules_per_text": joules / texts,
                "interval": interval,
                "watts": joules / seconds if seconds else None,
            }
        )
    return made


def _open_rapl(powercap: Path) -> Meter | str:
    # intel-rapl:0 is a whole package, on AMD too. Its parts (intel-rapl:0:1, "core") and what counts the same again
    # (intel-rapl-mmio:0, "psys") must not be added to it.
    zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _is_package(zone)]
    if not zones:
        return f"no counter of the processor's energy: {powercap} has no RAPL package, as in most virtual machines"
    try:
        counters = [_Counter(zone) for zone in zones]
        for counter in counters:
            counter.read()
    except (OSError, ValueError):
        # For root alone since Linux 5.10, because it tells what other processes compute (CVE-2020-8694).
        return f"{zones[0] / 'energy_uj'} cannot be read; run as root, or let your user read it: chmod a+r"
    return Meter("rapl", lambda: sum(counter.read() for counter in counters))


class _Counter:
    """A RAPL zone, whose microjoules begin again at 0 when they reach its range."""

    def __init__(self, zone: Path) -> None:
        self._file, self._range = zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())
        self._last, self._sum = int(self._file.read_text()), 0

    def read(self) -> float:
        """Return the joules since this was made; call it at least once per round of the counter."""
        now = int(self._file.read_text())
        grown = now - self._last
        # The range is the largest value that the counter shows, so it goes round one step after it.
        self._sum += grown if grown >= 0 else grown + self._range + 1
        self._last = now
        return self._sum / 1e6


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _open_nvml(name: str) -> Meter | str:
    try:
        nvml = importlib.import_module(name)
    except ImportError:
        return f"{name} is not installed, which asks Nvidia's driver: pip install nvidia-ml-py"
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        start = _millijoules(nvml, handles)
    except nvml.NVMLError as error:
        return f"Nvidia's driver counts no energy here: {error}"
    return Meter("nvml", lambda: (_millijoules(nvml, handles) - start) / 1e3)


def _millijoules(nvml: Any, handles: Iterable[Any]) -> float:
    """Return what all GPUs used since the driver was loaded (Volta and later)."""
    return float(sum(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles))
