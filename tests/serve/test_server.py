"""The real process: its port, its answers, its end."""

import http.client
import inspect
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import pytest

from potstill.bundle import MODEL_FILES
from potstill.cli.serve import serve as command
from potstill.errors import MissingError, UsageError
from potstill.serve.limits import Limits
from potstill.serve.server import bind

# The command alone, with the exit codes of the root application.
PROGRAM = """
import sys, typer
from potstill.cli.serve import serve
from potstill.errors import PotstillError
app = typer.Typer()
app.command()(serve)
try:
    app()
except PotstillError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextmanager
def running(*arguments):
    """Give the process and its port, once it answers."""
    process = start(*arguments, "--port", 0, "--threads", 1)
    try:
        settings = process.stderr.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", settings)[1])
        for _ in range(200):
            try:
                if request(port, "GET", "/health")[0] == 200:
                    break
            except ConnectionError:
                threading.Event().wait(0.05)
        yield process, port, settings
    finally:
        process.kill()
        process.communicate()


def request(port, method, path, content=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = None if content is None else json.dumps(content)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_refuses_and_ends_with_0(bundle_dir, int8_encoder, number):
    with running(bundle_dir, "--precision", "int8") as (process, port, settings):
        assert settings == f"potstill serve: http://127.0.0.1:{port}, int8, 1 threads, texts up to 32 tokens\n"
        assert request(port, "POST", "/predict", {"inputs": "good"}) == (200, int8_encoder.predict(["good"])[0])
        status, content = request(port, "POST", "/predict", {"input": "good"})
        assert (status, content["error_type"]) == (422, "validation")
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")


def test_requests_in_flight_are_answered_before_the_end(bundle_dir):
    with running(bundle_dir) as (process, port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = json.dumps({"inputs": "good"})
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:5].encode())
        assert request(port, "GET", "/health")[0] == 200  # the half request is in the application by now
        process.send_signal(signal.SIGTERM)
        threading.Event().wait(0.3)
        connection.send(body[5:].encode())
        assert connection.getresponse().status == 200
        connection.close()
        process.communicate(timeout=20)
        assert process.returncode == 0


def ended(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=30)
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return process.returncode, err


def test_what_cannot_be_served_ends_with_one_line_and_its_exit_code(own_bundle, tmp_path):
    assert ended(tmp_path / "nowhere", "--port", 0)[0] == 2
    code, line = ended(own_bundle, "--precision", "fp16", "--port", 0)
    assert (code, "it has fp32, int8" in line) == (2, True)
    (own_bundle / MODEL_FILES["fp32"]).write_bytes(b"other bytes")
    code, line = ended(own_bundle, "--port", 0)
    assert (code, "is not the file that was exported" in line) == (1, True)


def test_a_port_in_use_ends_with_3_before_the_model_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = ended(tmp_path / "nowhere", "--port", port)
    assert (code, line) == (
        3,
        f"port {port} of 127.0.0.1 is in use; end the process that has it, or pass another --port\n",
    )


def test_hosts_that_cannot_be_are_refused_by_name():
    with pytest.raises(UsageError, match="'no such host' is not known"):
        bind("no such host", 0)
    with pytest.raises(UsageError, match=r"192\.0\.2\.1 is not an address of this machine"):
        bind("192.0.2.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(MissingError, match="in use"):
        bind("127.0.0.1", other.getsockname()[1])


def test_small_answers_do_not_wait_for_an_acknowledgement(bundle_dir):
    with running(bundle_dir) as (_, port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        seconds = []
        for _ in range(30):
            started = perf_counter()
            connection.request("POST", "/predict", b'{"inputs": "good"}', {"Content-Type": "application/json"})
            connection.getresponse().read()
            seconds.append(perf_counter() - started)
        connection.close()
    # 1.3 ms here, 44 ms where Nagle's algorithm meets a delayed acknowledgement.
    assert median(seconds) < 0.03


def test_the_command_has_the_defaults_of_the_limits():
    parameters = inspect.signature(command).parameters
    names = {
        "max_body_bytes": "body_bytes",
        "max_inputs": "inputs",
        "max_characters_per_token": "characters_per_token",
        "max_waiting": "waiting",
        "shutdown_seconds": "shutdown_seconds",
    }
    assert {name: parameters[name].default for name in names} == {
        name: getattr(Limits(), field) for name, field in names.items()
    }
    assert "Example: potstill serve" in command.__doc__


def test_a_limit_below_1_is_refused():
    with pytest.raises(UsageError, match="the limit inputs is 0; it must be at least 1"):
        Limits(inputs=0)
