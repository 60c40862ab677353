"""Run a command with the addresses of two servers of made models of every task: an open one, and one with a key.

python tests/page/with_server.py COMMAND...        the command gets OPEN-URL LOCKED-URL KEY behind its own arguments
"""

import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import uvicorn

from potstill.serve import Encoder
from potstill.serve.http import create_app
from tests.serve import conftest as made
from tests.serve.http.fake import FakeEngine

KEY = "a key for the page"
TASKS = ("ner", "qa", "mask", "vector", "multi")


def encoders(folder):
    """Return a model of each task, by name."""
    count = iter(range(100))
    factory = SimpleNamespace(mktemp=lambda name: _made(folder / f"{name}-{next(count)}"))
    make = made.task_bundle.__wrapped__(factory)
    folders = {"classes": made.bundle_dir.__wrapped__(factory)} | {name: make(name) for name in TASKS}
    return {name: Encoder(found, threads=1) for name, found in folders.items()}


def start(app):
    """Serve in a thread; return the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/"


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def main(command):
    with tempfile.TemporaryDirectory() as folder:
        models = encoders(Path(folder))
        locked = create_app(FakeEngine(**models), api_keys=[KEY])
        return subprocess.run([*command, start(create_app(FakeEngine(**models))), start(locked), KEY]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
