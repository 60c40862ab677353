"""What an export costs: its seconds and its memory, for the bundles that the grid then races.

    BUNDLES/NAME             every precision, judged on 200 of the texts that ship with Python, or on the task's
    BUNDLES/NAME-4bit-table  int8 with a table of words in 4 bits
    BUNDLES/NAME-tuned       the same int8 with --tune
    BUNDLES/NAME-fp32        fp32 and its validation alone

Beside each of them stands FOLDER.cost.json. Memory is that of the command and all processes it starts, resident sets
added up every 50 ms; pages that they share count in each.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from prepare import TRAINED

from potstill.files import write_text

_INT8 = ("--judged-texts", "200", "--precision", "fp32", "--precision", "int8")
VARIANTS: dict[str, Sequence[str]] = {
    "-fp32": ("--precision", "fp32"),
    "": (*_INT8, "--precision", "int8-static"),
    "-4bit-table": (*_INT8, "--embedding-bits", "4"),
    "-tuned": (*_INT8, "--tune"),
}
_EVERY_S = 0.05


def export_bundles(
    work: Path, bundles: Path, names: Sequence[str], *, data: str | None, without: Callable[[str], bool]
) -> None:
    """Export what is not there yet, and write down what each export cost; `data` is what `TRAINED` is judged on."""
    bundles.mkdir(parents=True, exist_ok=True)
    for name in names:
        for suffix, options in VARIANTS.items():
            folder = bundles / f"{name}{suffix}"
            if folder.is_dir() or without(folder.name):
                continue
            potstill, places = Path(sys.executable).with_name("potstill"), [str(work / name / "checkpoint"), "--out"]
            judged = ["--data", data] if name == TRAINED and data is not None else []
            cost = measure_cost([str(potstill), "export", *places, str(folder), *options, *judged])
            shown = {"command": f"potstill export CHECKPOINT --out BUNDLE {' '.join(options)}"}
            write_text(cost_file(folder), json.dumps(shown | cost, indent=1) + "\n")
            print(f"{folder}: {json.dumps(cost)}", file=sys.stderr, flush=True)


def cost_file(folder: Path) -> Path:
    """Return the file that tells what a bundle's export cost."""
    return folder.with_name(f"{folder.name}.cost.json")


def read_costs(bundles: Path, architectures: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the costs that are known, by the bundle's name."""
    files = {f"{name}{suffix}": cost_file(bundles / f"{name}{suffix}") for name in architectures for suffix in VARIANTS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def measure_cost(command: Sequence[str]) -> dict[str, Any]:
    """Run a command to its end; return its exit code, last words, seconds and peak memory."""
    start, peak, usage = time.perf_counter(), 0, None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while usage is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(_EVERY_S)
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                usage, process.returncode = used, os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        errors.seek(0)
        words = errors.read().strip().splitlines()
    cost = {
        "exit_code": process.returncode,
        "seconds": round(seconds, 2),
        # ru_maxrss is exact, but only of the largest single process; in KiB on Linux.
        "peak_rss_bytes": max(peak, usage.ru_maxrss * 1024),
    }
    return cost | ({"error": words[-1] if words else ""} if process.returncode else {})


def _resident(pid: int) -> int:
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss
    return total
