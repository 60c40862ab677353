"""The server as a process: started, asked until it is ready, watched, ended."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tests.faults.rawhttp import Response, ask, get, predict_message

LAUNCHER = Path(__file__).with_name("launcher.py")
START_SECONDS = 60.0


class Ended(Exception):
    """The process ended before it was ready; the message is what it wrote to stderr."""

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"ended with {code}: {stderr[-600:]}")
        self.code, self.stderr = code, stderr


class Server:
    """One `potstill serve`, on a port of its own, with its stderr kept.

    Args:
        bundles: what the command takes: folders, or name=folder.
        options: further arguments of the command.
        faults: a folder in which a file NAME switches the fault NAME on; None starts the command without launcher.
        environment: variables beside this process's own.
        limits: fields of `Limits` for which the command has no option; needs the launcher, so `faults`.
        prepare: runs in the child before the command, for its resource limits.
        stderr: a file descriptor instead of the pipe that is read; the port must then be in `options`.
    """

    def __init__(
        self,
        bundles: Sequence[str | Path],
        *,
        options: Sequence[str] = (),
        faults: Path | None = None,
        environment: Mapping[str, str] | None = None,
        limits: str = "",
        prepare: Callable[[], None] | None = None,
        stderr: int | None = None,
        cwd: Path | None = None,
    ) -> None:
        program = ["-m", "potstill"] if faults is None else [str(LAUNCHER)]
        given = list(options)
        port = [] if "--port" in given else ["--port", "0"]
        self.command = [sys.executable, "-P", *program, "serve", *map(str, bundles), *given, *port]
        variables = dict(os.environ) | {"PYTHONFAULTHANDLER": "1"} | dict(environment or {})
        # Neither the current folder nor the launcher's own decides which potstill is served.
        here = str(Path(__file__).parents[2])
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), here]))
        if faults is not None:
            variables |= {"POTSTILL_TEST_FAULTS": str(faults), "POTSTILL_TEST_LIMITS": limits}
        self.started_at = time.monotonic()
        self._lines: list[str] = []
        self._piped = stderr is None
        self.process = subprocess.Popen(
            self.command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if stderr is None else stderr,
            env=variables,
            preexec_fn=prepare,
            cwd=cwd,
        )
        self.port = int(given[given.index("--port") + 1]) if "--port" in given else 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        if self._piped:
            self._reader.start()

    def __enter__(self) -> "Server":
        try:
            self.wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def stderr(self) -> str:
        return "".join(self._lines)

    def wait_until_ready(self, *, seconds: float = START_SECONDS) -> float:
        """Return after how many seconds /health/ready said 200.

        Raises:
            Ended: if the process ended instead.
        """
        deadline = self.started_at + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self._finish()
                raise Ended(self.process.returncode, self.stderr)
            if self.port == 0 and (found := re.search(r"http://127\.0\.0\.1:(\d+)", self.stderr)):
                self.port = int(found[1])
            if self.port and self.is_ready():
                return time.monotonic() - self.started_at
            time.sleep(0.01)
        raise TimeoutError(f"not ready within {seconds} s: {self.stderr[-600:]}")

    def is_ready(self) -> bool:
        return self._says_yes("/health/ready")

    def is_alive(self) -> bool:
        return self._says_yes("/health/live")

    def _says_yes(self, path: str) -> bool:
        try:
            return get(self.port, path, seconds=5).status == 200
        except Exception:
            return False

    def predict(self, text: object = "a good film", **more: object) -> Response:
        return ask(self.port, predict_message(text, **more))

    def rss(self) -> int:
        """Return the resident set in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def open_files(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, *, seconds: float) -> int:
        """Return the exit code.

        Raises:
            subprocess.TimeoutExpired: if it does not end.
        """
        code = self.process.wait(seconds)
        self._finish()
        return code

    def terminate(self, *, seconds: float = 40) -> int:
        self.signal(signal.SIGTERM)
        return self.wait(seconds=seconds)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._finish()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line.decode("utf-8", "replace"))

    def _finish(self) -> None:
        if self._piped:
            self._reader.join(5)
            assert self.process.stderr is not None
            self.process.stderr.close()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def limit_files(count: int) -> Callable[[], None]:
    """Return what allows a child only `count` file descriptors."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def own_many_files() -> None:
    """Allow this process as many file descriptors as it may have: attacks need thousands of connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
