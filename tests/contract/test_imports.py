"""Who loads what: the serving box stays light, and the command line starts without the heavy rooms."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "onnx", "datasets", "optimum", "accelerate", "onnxscript", "matplotlib", "scipy"}
SERVER = {"starlette", "uvicorn"}
RUNTIME = {"onnxruntime", "tokenizers"}
SCREEN = {"rich", "typer"}


def loaded_by(code):
    """Return the top-level modules that are loaded after running `code` in a fresh process."""
    ask = "import json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    script = f"import sys\n{code}\n{ask}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import potstill", HEAVY | SERVER | RUNTIME | SCREEN | {"numpy", "pydantic", "yaml"}),
        ("import potstill.config, potstill.bundle, potstill.data", HEAVY | SERVER | RUNTIME | SCREEN),
        ("import potstill.serve", HEAVY | SERVER | SCREEN),
        ("import potstill.serve.http, potstill.serve.server", HEAVY | SCREEN),
        ("import potstill.bench", HEAVY | SERVER | SCREEN),
        ("import potstill.timing", HEAVY | SERVER | RUNTIME | SCREEN),
        ("import potstill.bench.worker", HEAVY | SERVER | SCREEN),
        ("import potstill.cli.app", HEAVY | SERVER | RUNTIME | {"pydantic"}),
        (
            "from typer.testing import CliRunner; from potstill.cli.app import app; "
            'assert CliRunner().invoke(app, ["serve", "--help"]).exit_code == 0',
            HEAVY | SERVER | RUNTIME | {"yaml"},
        ),
    ],
)
def test_loading(code, forbidden):
    assert not loaded_by(code) & forbidden


def test_importing_prints_nothing_and_starts_no_thread():
    code = (
        "import threading, potstill.serve, potstill.bench, potstill.cli.app; "
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert (result.stdout, result.stderr) == ("", "")
