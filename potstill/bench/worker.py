"""The worker process for one model in one precision on one engine: `python -m potstill.bench.worker [STARTED]`.

It reads commands from stdin and answers on stdout, one JSON object per line; a LOAD is `report_schema.Load`:

    {"do": "load", "runner", "folder", "precision", "threads", "seed", "spinning", "task", "problem_type", "max_length"}
                                                 -> process_ms, import_ms, load_ms, device, sha256
    {"do": "texts", "texts": [TEXT, ...]}        -> mean_tokens
    {"do": "warm", "load": LOAD, "max_s": 3.0}   -> calls, stationary, mean_tokens, call_ms
    {"do": "block", "load": LOAD, "seconds": 0.25, "min_calls": 6}    -> latencies_ms, cpu_s, wall_s
    {"do": "concurrent", "load": LOAD, "callers": 4, "seconds": 0.5}  -> texts, seconds, latencies_ms
    {"do": "first", "text": TEXT}                -> first_answer_ms
    {"do": "answer", "texts": [TEXT, ...], "kind": KIND, "file": FILE}  -> texts, mean_tokens; answers in FILE, .npz
    {"do": "memory"}                             -> the fields of `report_schema.Memory`, without key and limit
    {"do": "products", "threads": 2}             (in the place of a load: bare matrix products)
    {"do": "product"}                            -> rates: number type -> operations per second
    {"do": "restart_peak"}                       -> restarted
    {"do": "stop"}

STARTED is the asking process's `time.monotonic()` when it started this one, so that `process_ms` is exact; without it
the system's own note is taken, which counts in hundredths of a second.
"""

import os
import sys
import time
from pathlib import Path

from potstill.bench.measure.memory import MemoryGrowth, end_first, resident


def main() -> None:
    """Note time and memory of the bare interpreter, then import the rest and answer commands."""
    process_ms = milliseconds_since_start(sys.argv[1:])
    growth = MemoryGrowth(interpreter_rss_bytes=resident())
    # When a model takes all memory, the kernel shall end this process and not the bench.
    end_first()
    started = time.perf_counter()
    from potstill.bench.worker_commands import WorkerCommands
    from potstill.timing.worker_loop import answer_commands

    import_ms = (time.perf_counter() - started) * 1e3
    answer_commands(WorkerCommands(growth, process_ms=process_ms, import_ms=import_ms).answer)


def milliseconds_since_start(arguments: list[str]) -> float:
    """Return the milliseconds since this process was started, by STARTED if given, else by the system."""
    if arguments:
        return (time.monotonic() - float(arguments[0])) * 1e3
    try:
        # Field 22 of /proc/PID/stat, counted behind the name, which may hold spaces (man 5 proc).
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        import psutil

        return (time.time() - psutil.Process().create_time()) * 1e3
    # Ticks since the machine was booted, counted through suspension as CLOCK_BOOTTIME is.
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s) * 1e3


if __name__ == "__main__":
    main()
