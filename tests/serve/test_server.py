"""The real process: its port, its answers, its signals, its end."""

import inspect
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from statistics import median
from time import monotonic, perf_counter, sleep

import pytest

from potstill.bundle import MODEL_FILES
from potstill.cli.serve import read_keys, read_specs
from potstill.cli.serve import serve as command
from potstill.errors import CheckError, MissingError, UsageError
from potstill.serve.limits import Limits
from potstill.serve.server import Server, bind
from tests.serve.http.harness import Echo, Running, get, is_closed, post, probing, read_answers, serving

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

# The process around the harness's application: no model, so that a run takes no time.
BARE = """
import sys
from potstill.serve.limits import Limits
from potstill.serve.server import bind, serve
from tests.serve.http.harness import Echo, NoEngine
listener = bind("127.0.0.1", 0)
address = f"http://127.0.0.1:{listener.getsockname()[1]}"
limits = Limits(drain_seconds=float(sys.argv[1]), shutdown_seconds=3)
serve(
    listener, lambda: (NoEngine(), Echo()), limits=limits,
    on_ready=lambda: print(address, file=sys.stderr, flush=True),
)
"""


def start(*arguments, program=PROGRAM, **options):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


class Process(Running):
    """A server in a process of its own."""

    def __init__(self, process):
        self.process = process
        self.settings = process.stderr.readline()
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.settings)[1])

    def ends(self, number=signal.SIGTERM, within=10):
        """Send a signal and return exit code, stdout and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=within)
        return self.process.returncode, out, err


@contextmanager
def running(*arguments, program=PROGRAM, **options):
    """Give the process once it answers."""
    more = ("--port", 0, "--runners", 1) if program is PROGRAM else ()
    process = start(*arguments, *more, program=program, **options)
    try:
        server = Process(process)
        assert server.ask(get(b"/health/ready")).status == 200
        yield server
    finally:
        process.kill()
        process.communicate()


def predict(text):
    return post(b"/predict", json.dumps({"inputs": text}).encode(), b"Content-Type: application/json\r\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_refuses_and_ends_with_0(bundle_dir, int8_encoder, number):
    with running(f"tiny={bundle_dir}@int8", "--drain-seconds", "0.2") as server:
        assert server.settings == f"potstill serve: http://127.0.0.1:{server.port}, tiny int8, no API key\n"
        answer = server.ask(predict("good"))
        expected = int8_encoder.predict(["good"])[0]
        assert answer.status == 200
        assert [row["label"] for row in json.loads(answer.body)] == [row["label"] for row in expected]
        answer = server.ask(post(b"/predict", b'{"input": "good"}', b"Content-Type: application/json\r\n"))
        assert (answer.status, answer.error_type) == (422, "validation")
        plan = server.process.stderr.readline(), server.process.stderr.readline()
        assert plan[0].startswith("plan: runs at a time 1, threads of each 1, 429 beyond ")
        assert plan[1].startswith("plan: tiny: this file's answers depend on the batch")
        assert server.ends(number) == (0, "", "")


def test_keys_are_asked_for_when_there_are_some(bundle_dir, tmp_path):
    (tmp_path / "keys").write_text("first-secret\n\nsecond-secret\n")
    with running(bundle_dir, "--api-key-file", tmp_path / "keys") as server:
        assert ", 2 API keys" in server.settings
        assert server.ask(predict("good")).status == 401
        with_key = predict("good").replace(
            b"Host: localhost", b"Host: localhost\r\nAuthorization: Bearer second-secret"
        )
        assert server.ask(with_key).status == 200


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


def test_everybody_in_line_is_answered_at_the_end():
    with serving() as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(200)]
        for client in clients:
            client.sendall(post())
        server.stop()
        assert [read_answers(client)[0].body for client in clients] == [b"hello"] * 200
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_small_answers_do_not_wait_for_an_acknowledgement(bundle_dir):
    with running(bundle_dir) as server, server.connect() as client:
        seconds = []
        for _ in range(30):
            started = perf_counter()
            client.sendall(predict("good"))
            read_answers(client)
            seconds.append(perf_counter() - started)
    # 1.3 ms here, 44 ms where Nagle's algorithm meets a delayed acknowledgement.
    assert median(seconds) < 0.03


# ---------------------------------------------------------------------- states


def test_while_models_load_the_port_is_open_alive_and_not_ready():
    go, app = threading.Event(), Echo()

    def load():
        go.wait(5)
        return server.engine, app

    with serving(load=load) as server:
        assert server.ask(get(b"/health/live")).body == b'{"status":"ok"}'
        for raw in (get(b"/health/ready"), post(b"/predict")):
            answer = server.ask(raw)
            assert (answer.status, answer.error_type, answer.headers["retry-after"]) == (503, "unavailable", "1")
        go.set()
        assert server.ready.wait(5)
        assert server.ask(post()).body == b"hello"
        assert server.engine.started
    assert server.engine.closed


def test_a_load_that_fails_ends_the_server_with_its_error():
    def load():
        raise CheckError("the model does not answer")

    server = Running.__new__(Running)
    failures = []
    with bind("127.0.0.1", 0) as listener:

        def run():
            try:
                Server(listener, load).run_to_the_end()
            except CheckError as error:
                failures.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(5)
    assert failures == ["the model does not answer"]
    del server


def test_a_draining_server_answers_says_no_to_ready_and_ends_connections():
    limits = Limits(drain_seconds=0.6, shutdown_seconds=3)
    with serving(limits=limits) as server, server.connect() as kept, server.connect() as idle, server.connect() as half:
        for client in (kept, idle):
            client.sendall(get())
            assert not read_answers(client)[0].closes
        half.sendall(post()[:-2])
        server.server.stop(drain_seconds=0.6)
        answer = server.ask(get(b"/health/ready"))
        assert (answer.status, answer.error_type, answer.closes) == (503, "unavailable", True)
        assert server.ask(get(b"/health/live")).status == 200
        kept.sendall(post())
        answer = read_answers(kept)[0]
        assert (answer.body, answer.closes) == (b"hello", True)
        answers = server.ask(post() * 3, methods=["POST"] * 3)
        assert [(answer.body, answer.closes) for answer in answers] == [(b"hello", False)] * 2 + [(b"hello", True)]
        sleep(0.8)
        assert server.thread.is_alive()  # for half of a request is there
        assert is_closed(idle)
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        half.sendall(b"lo")
        assert read_answers(half)[0].body == b"hello"
        server.thread.join(4)
        assert not server.thread.is_alive()


def test_whoever_is_not_answered_in_time_is_told_so():
    limits = Limits(drain_seconds=0.1, shutdown_seconds=0.3)
    with serving(limits=limits) as server, server.connect() as held, server.connect() as half:
        held.sendall(get(b"/held"))
        half.sendall(post()[:-2])
        sleep(0.1)
        started = monotonic()
        server.stop()
        assert monotonic() - started < 2
        for client in (held, half):
            answer = read_answers(client)[0]
            assert (answer.status, answer.error_type, answer.closes) == (503, "unavailable", True)


def test_a_second_signal_ends_at_once():
    with running(5.0, program=BARE) as server, server.connect() as client:
        client.sendall(get(b"/held"))
        server.process.send_signal(signal.SIGTERM)
        sleep(0.3)
        assert server.ask(get(b"/health/ready")).status == 503
        assert server.ends(within=1)[0] == -signal.SIGTERM


def test_few_file_descriptors_are_a_lower_cap_and_not_an_error():
    few = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n" + BARE
    with running(0.1, program=few) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(400)]
        sleep(1)
        assert [answer.status for answer in read_answers(clients[0])] in ([503], [])
        with probing(server):
            sleep(0.2)
        assert server.ask(post()).body == b"hello"
        assert server.ends() == (0, "", "")


# ---------------------------------------------------------------------- a signal in a flood


class Flood:
    """Clients that ask without a pause, as real ones do: a refused connection is tried again, a closed one replaced.

    A request counts as lost if its answer is cut off, or if its connection is reset or closed after it was sent on a
    new connection ("fresh"), or although no answer had said that the connection ends. What a client sends into the
    closing of a connection that was idle has reached nobody: HTTP lets it be sent again (RFC 9112, section 9.3.1).
    """

    def __init__(self, port, *, keep_alive):
        self.port, self.keep_alive = port, keep_alive
        self.answered, self.refused, self.lost = 0, 0, []
        self.gone = threading.Event()
        self.threads = [threading.Thread(target=self.run) for _ in range(6)]
        for thread in self.threads:
            thread.start()

    def run(self):
        client = None
        while not self.gone.is_set():
            fresh = client is None
            try:
                client = client or socket.create_connection(("127.0.0.1", self.port), timeout=3)
            except OSError:
                self.refused += 1
                self.gone.wait(0.01)
                continue
            try:
                client.sendall(post(extra=b"" if self.keep_alive else b"Connection: close\r\n"))
                answers = read_answers(client)
            except OSError as error:
                answers = [] if fresh else None
                del error
            if answers:
                self.answered += answers[0].body == b"hello"
            elif fresh:
                self.lost.append("fresh")
            elif answers is not None:
                self.lost.append("kept")
            if not answers or answers[0].closes:
                client.close()
                client = None
        if client is not None:
            client.close()

    def end(self):
        self.gone.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize(("number", "drain"), [(signal.SIGTERM, 0.2), (signal.SIGINT, 0.2), (signal.SIGTERM, 0)])
def test_a_signal_in_a_flood_loses_no_request_that_was_read(keep_alive, number, drain):
    with running(drain, program=BARE) as server:
        flood = Flood(server.port, keep_alive=keep_alive)
        sleep(0.3)
        started = monotonic()
        assert server.ends(number) == (0, "", "")
        assert monotonic() - started < 3.5
        flood.end()
    assert flood.answered > 20
    assert flood.refused > 0
    # A connection that the kernel makes in the microseconds before the port is closed was never accepted.
    assert flood.lost.count("fresh") <= 2
    assert set(flood.lost) <= {"fresh"}


# ---------------------------------------------------------------------- the command


def test_the_command_has_the_defaults_of_the_limits():
    parameters = inspect.signature(command).parameters
    names = {
        "max_body_bytes": "body_bytes",
        "max_inputs": "inputs",
        "max_characters_per_token": "characters_per_token",
        "max_connections": "connections",
        "max_wait_ms": "wait_ms",
        "request_seconds": "request_seconds",
        "drain_seconds": "drain_seconds",
        "shutdown_seconds": "shutdown_seconds",
    }
    assert {name: parameters[name].default for name in names} == {
        name: getattr(Limits(), field) for name, field in names.items()
    }
    assert "Example: potstill serve" in command.__doc__


def test_models_are_named_by_folder_or_by_hand(tmp_path):
    given = [f"{tmp_path}/a", "b=x/y=z@int8", "c=./d@e@fp16", "h@int8-static"]
    specs = read_specs(given, precision="fp32")
    assert [(spec.name, str(spec.folder), spec.precision) for spec in specs] == [
        ("a", f"{tmp_path}/a", "fp32"),
        ("b", "x/y=z", "int8"),
        ("c", "d@e", "fp16"),
        ("h", "h", "int8-static"),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b/a"], "two models are named a"),
        (["a b"], "'a b' cannot be a model's name in a URL; name it as in 'student=a b'"),
        (["g=x@y/f@bf16"], "g=x@y/f@bf16 asks for the precision 'bf16'; there are fp32, fp16, int8"),
        ([""], "a bundle's folder is empty"),
    ],
)
def test_names_that_cannot_be_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        read_specs(given, precision="fp32")


def test_keys_come_from_a_file_and_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text(" one-key-1 \n\ntwo-key-2\n")
    assert read_keys(file, "three-key, one-key-1,") == ["three-key", "one-key-1", "two-key-2"]
    assert read_keys(None, "") == []
    file.write_text("good-key-1\nshort\n")
    with pytest.raises(UsageError, match="API key 2 of 2 cannot be used") as error:
        read_keys(file, "")
    assert "short" not in str(error.value)
    file.write_text("\n")
    with pytest.raises(UsageError, match="has no key"):
        read_keys(file, "")
    for none in (",", " "):
        with pytest.raises(UsageError, match="POTSTILL_API_KEYS has no key"):
            read_keys(None, none)
    with pytest.raises(UsageError, match="cannot be read: FileNotFoundError"):
        read_keys(tmp_path / "nowhere", "")


def test_a_shadow_must_be_another_model(bundle_dir):
    code, line = ended(bundle_dir, "--shadow", "other", "--port", 0)
    assert (code, "it must name a second model, of none" in line) == (2, True)


def test_a_limit_of_0_is_refused():
    with pytest.raises(UsageError, match="the limit inputs is 0; it must be above 0"):
        Limits(inputs=0)
