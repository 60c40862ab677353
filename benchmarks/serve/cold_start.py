"""How long `potstill serve` takes from its start to its first yes from /health/ready.

python benchmarks/serve/cold_start.py BUNDLE [--precision int8] [--starts 5] [--python PYTHON] [--most 2.0]

Prints each start, the median, the processor time in it (which other work on the machine does not lengthen), and of one
more start the modules that cost most. The files are in the page cache: the first start on a machine also pays for
reading them. Ends with 1 if the median is over --most.
"""

import argparse
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

LOOK_SECONDS = 0.002
GIVE_UP_SECONDS = 120


def main() -> None:
    given = arguments()
    command = [given.python, "-m", "potstill", "serve", str(given.bundle), "--precision", given.precision]
    starts = [ready_seconds(command) for _ in range(given.starts)]
    median = statistics.median(wall for wall, _ in starts)
    cpu = statistics.median(cpu for _, cpu in starts)
    print(f"{given.bundle} {given.precision}: ready in {', '.join(f'{wall:.2f}' for wall, _ in starts)} s")
    print(f"median {median:.2f} s, slowest {max(starts)[0]:.2f} s; processor time {cpu:.2f} s")
    show_imports([given.python, "-X", "importtime", *command[1:]], given.modules)
    if median > given.most:
        sys.exit(f"that is over {given.most:g} s")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="of the environment to measure")
    parser.add_argument("--most", type=float, default=2.0, help="seconds that the median may take")
    parser.add_argument("--modules", type=int, default=12, help="how many of the slowest modules to name")
    return parser.parse_args()


def ready_seconds(command: list[str], stderr: int | None = subprocess.DEVNULL) -> tuple[float, float]:
    """Start, wait for 200 from /health/ready, end; return the seconds from start to 200, and those of processors."""
    port = free_port()
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--port", str(port), "--drain-seconds", "0"], stderr=stderr)
    try:
        while not is_ready(port):
            assert process.poll() is None, f"the server ended with {process.returncode}"
            assert time.perf_counter() - started < GIVE_UP_SECONDS, "the server is never ready"
            time.sleep(LOOK_SECONDS)
        return time.perf_counter() - started, cpu_seconds(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def cpu_seconds(pid: int) -> float:
    """Return what all threads of a process have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_ready(port: int) -> bool:
    # A client library would take its share of the cores while the server starts.
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def show_imports(command: list[str], most: int) -> None:
    file = Path(f".imports-{time.time_ns()}")
    try:
        with file.open("wb") as stream:
            ready_seconds(command, stderr=stream.fileno())
        text = file.read_text()
    finally:
        file.unlink(missing_ok=True)
    lines = [
        (int(own), int(whole), name) for own, whole, name in re.findall(r"(\d+) \|\s+(\d+) \|\s+(\S+)$", text, re.M)
    ]
    print(f"imports: {sum(own for own, _, _ in lines) / 1e3:.0f} ms of {len(lines)} modules; with what they load:")
    for _, whole, name in sorted(lines, key=lambda line: -line[1])[:most]:
        print(f"  {whole / 1e3:6.0f} ms  {name}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()
