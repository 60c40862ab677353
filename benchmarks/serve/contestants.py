"""The servers that are compared: how each is started and asked, all with the same ONNX file and as many threads."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.rawhttp import Connection, message
from tests.faults.served import START_SECONDS

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server: its command, and how it is asked."""

    name: str
    command: list[str]
    path: str = "/predict"
    ready: str = "/health/ready"
    key: str = "inputs"
    wraps: dict[str, Any] = field(default_factory=dict)
    in_list: bool = False
    has_probes: bool = False
    run_threads: int = 1
    """Threads of one inference: what a lone client waits for."""

    def body(self, text: str) -> str:
        return json.dumps({self.key: [text] if self.in_list else text} | self.wraps)


class Running:
    """A contestant's process, from ready to killed."""

    def __init__(self, contestant: Contestant, *, port: int) -> None:
        self.port = port
        self._process = subprocess.Popen(contestant.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._ready = contestant.ready

    def __enter__(self) -> "Running":
        started = time.monotonic()
        while time.monotonic() - started < 2 * START_SECONDS:
            if self._process.poll() is not None:
                raise RuntimeError(f"it ended with {self._process.returncode}")
            try:
                with Connection(self.port, seconds=5) as connection:
                    if connection.ask(message("GET", self._ready)).status == 200:
                        self.seconds_to_ready = time.monotonic() - started
                        return self
            except Exception:  # nobody listens, or not yet to this
                pass
            time.sleep(0.05)  # in any case: a server that measures itself at its start is to have the cores
        self.__exit__()
        raise RuntimeError("it is not ready")

    def pause(self) -> None:
        """Stop the process and its children, until `resume`: they then take nothing from others."""
        for member in self._family():
            member.suspend()

    def resume(self) -> None:
        """Let them go on."""
        for member in reversed(self._family()):
            member.resume()

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process and its children so far."""
        return sum(sum(member.cpu_times()[:2]) for member in self._family())

    def _family(self) -> list[psutil.Process]:
        # LitServe has children of its own.
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            for member in reversed(self._family()):
                member.kill()
        self._process.wait()


def contestants(arguments: argparse.Namespace, *, port: int) -> list[Contestant]:
    """Return potstill and the rivals that there are environments for."""
    bundle, file = (
        str(arguments.bundle),
        "model.onnx" if arguments.precision == "fp32" else f"model_{arguments.precision}.onnx",
    )
    # As it would choose on that many cores: as many runs at a time, a thread for each.
    own = [
        sys.executable,
        "-m",
        "potstill",
        "serve",
        bundle,
        "--precision",
        arguments.precision,
        "--port",
        str(port),
        "--threads",
        "1",
        "--runners",
        str(arguments.threads),
    ]
    found = [Contestant("potstill", own + arguments.options.split(), has_probes=True)]
    for name, _, options in (each.partition("=") for each in arguments.also):
        found.append(Contestant(f"potstill ({name})", own + options.split(), has_probes=True))
    given = ["--bundle", bundle, "--file", file, "--port", str(port), "--threads", str(arguments.threads)]

    def rival(name: str, python: str, script: str, *more: str, **how: Any) -> None:
        command = [python, str(HERE / "rivals" / script), *given, *more]
        found.append(Contestant(name, command, run_threads=arguments.threads, **how))

    if arguments.rivals_python:
        rival("FastAPI + pipeline", arguments.rivals_python, "fastapi_pipeline.py")
        rival("LitServe", arguments.rivals_python, "litserve_onnx.py")
        rival("LitServe, batches of 8", arguments.rivals_python, "litserve_onnx.py", "--batch", "8")
    if arguments.infinity_python:
        how = {"path": "/classify", "key": "input", "wraps": {"model": "model"}, "in_list": True, "ready": "/health"}
        rival("infinity", arguments.infinity_python, "infinity.py", **how)
    return found
