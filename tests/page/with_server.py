"""Run a command with the addresses of two servers of made models of every task: an open one, and one with a key.

python tests/page/with_server.py COMMAND...        the command gets OPEN-URL LOCKED-URL KEY behind its own arguments
"""

import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
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


@contextmanager
def serving(app):
    """Serve in a thread within a block, which gets the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True  # a loop that still runs when the interpreter ends takes it down with a SIGSEGV
        thread.join()


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def main(command):
    with tempfile.TemporaryDirectory() as folder:
        models = encoders(Path(folder))
        apps = (create_app(FakeEngine(**models)), create_app(FakeEngine(**models), api_keys=[KEY]))
        with serving(apps[0]) as open_url, serving(apps[1]) as locked_url:
            # A minute is usual; a check whose browser has died waits, and spins, for ever.
            return subprocess.run([*command, open_url, locked_url, KEY], timeout=600).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
