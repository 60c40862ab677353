"""Prove that a bundle is served, and a file answered, where only `potstill[serve]` is installed.

python tests/edge_smoke.py BUNDLE [PRECISION]
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

ABSENT = (
    "torch",
    "transformers",
    "onnx",
    "datasets",
    "optimum",
    "accelerate",
    "onnxscript",
    "scipy",
    "matplotlib",
    "pandas",
    "pyarrow",
    "fastapi",
    "ray",
)
SILENT = "ORT_DISABLE_TELEMETRY"
TOLERANCE = 1e-6  # the same file on the same machine; JSON keeps floats exactly
START_SECONDS = 120
TEXTS = ["a good film", "", "it was not very good, and it was much too long for what it had to say", "🙂 שלום"]


def main(bundle: Path, precision: str) -> None:
    present = [name for name in ABSENT if find_spec(name) is not None]
    assert not present, f"{present} can be imported; run this where only potstill[serve] is installed"
    installed = sorted({distribution.name for distribution in distributions()})

    os.environ[SILENT] = "1"
    from potstill.serve import Encoder

    expected = Encoder(bundle, precision=precision).predict(TEXTS)
    port = free_port()
    command = [sys.executable, "-m", "potstill", "serve", str(bundle), "--precision", precision, "--port", str(port)]
    started = time.perf_counter()
    home = Path(tempfile.mkdtemp(prefix="edge-home-"))
    environment = {name: value for name, value in os.environ.items() if name != SILENT} | {"HOME": str(home)}
    process = subprocess.Popen(command, env=environment)
    try:
        wait_until_ready(process, port)
        ready_seconds = time.perf_counter() - started
        status, answers = request(port, "POST", "/predict", {"inputs": TEXTS})
        assert status == 200, answers
        worst = difference(answers, expected)
        assert worst <= TOLERANCE, f"served and own answers differ by {worst}"
        status, content = request(port, "POST", "/predict", {"input": "x"})
        assert (status, content["error_type"]) == (422, "validation"), content
        bulk = difference(predict_lines(bundle, precision), expected)
        assert bulk <= TOLERANCE, f"answers of a file and own answers differ by {bulk}"
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        assert code == 0, f"the server ended with {code}"
        written = [str(path) for path in home.rglob("*") if path.is_file()]
        assert not written, f"the server wrote {written}; onnxruntime does, unless {SILENT} is set before it is loaded"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(home)
    print(
        f"ok: {bundle} {precision} ready in {ready_seconds:.1f} s, answers within {max(worst, bulk):.1e}, "
        f"ended with 0, among {len(installed)} packages"
    )


def predict_lines(bundle: Path, precision: str) -> list[list[dict]]:
    """Answer the texts with `potstill predict`, from its standard input to its standard output."""
    command = [sys.executable, "-m", "potstill", "predict", str(bundle), "-", "--out", "-", "--precision", precision]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    done = subprocess.run(command, input=lines.encode(), stdout=subprocess.PIPE, timeout=START_SECONDS, check=True)
    return [json.loads(line)["answer"] for line in done.stdout.splitlines()]


def difference(answers: list[list[dict]], expected: list[list[dict]]) -> float:
    worst = 0.0
    for got, want in zip(answers, expected, strict=True):
        scores = {score["label"]: score["score"] for score in got}
        assert scores.keys() == {score["label"] for score in want}
        worst = max(worst, *(abs(scores[score["label"]] - score["score"]) for score in want))
    return worst


def wait_until_ready(process: subprocess.Popen, port: int) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, f"the server ended with {process.returncode} before it answered"
        try:
            status, content = request(port, "GET", "/health/ready")
        except ConnectionError:
            status, content = None, None
        if status == 200:
            assert content == {"status": "ok"}, content
            return
        assert status in {None, 503}, (status, content)
        time.sleep(0.02)
    raise AssertionError(f"/health/ready does not say yes within {START_SECONDS} s")


def request(port: int, method: str, path: str, content: object = None) -> tuple[int, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = None if content is None else json.dumps(content)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else "fp32")
