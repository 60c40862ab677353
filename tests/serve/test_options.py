"""How a server is reached: HTTPS, a Unix socket, below a path of a proxy, from web pages; each on the real process."""

import http.client
import json
import re
import shutil
import socket
import ssl
import stat
import subprocess
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest

from potstill.cli.serve import allowed_hosts
from tests.serve.http.harness import is_closed, serving
from tests.serve.test_server import ended, start

BODY = json.dumps({"inputs": "good"})
JSON = {"Content-Type": "application/json"}
PAGE = "https://app.example"


@contextmanager
def served(*arguments, port=("--port", 0)):
    """Give the address that the server names when it is ready."""
    process = start(*arguments, *port, "--runners", 1)
    try:
        line = process.stderr.readline()
        yield re.match(r"potstill serve: (\S+?),? ", line)[1]
        process.terminate()
        _, err = process.communicate(timeout=10)
        assert (process.returncode, "Traceback" in err) == (0, False)
    finally:
        process.kill()
        process.communicate()


def ask(connection, method="POST", path="/predict", body=BODY, **headers):
    with closing(connection):
        connection.request(method, path, body, JSON | headers if body else headers)
        response = connection.getresponse()
        return SimpleNamespace(status=response.status, headers=response.headers, body=response.read())


def http_to(url):
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout",
            folder / "key.pem",
            "-out",
            folder / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem", folder / "key.pem"


def test_https_answers_with_the_certificate_and_not_in_the_clear(bundle_dir, certificate):
    cert, key = certificate
    with served(bundle_dir, "--tls-cert", cert, "--tls-key", key) as url:
        assert url.startswith("https://127.0.0.1:")
        port = int(url.rpartition(":")[2])
        trusting = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=trusting)
        assert ask(connection).status == 200
        assert ask(connection, body=json.dumps({"inputs": "x" * 1_900_000})).status == 413
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(http.client.HTTPSConnection("localhost", port, timeout=10, context=ssl.create_default_context()))
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(http.client.HTTPConnection("localhost", port, timeout=10))
        with (
            socket.create_connection(("127.0.0.1", port)) as raw,
            trusting.wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"GET / HTTP/9.9\r\n\r\n")
            assert secure.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_a_tls_handshake_has_the_time_of_a_head(certificate):
    with serving(tls=certificate) as server, server.connect() as client:
        client.sendall(b"\x16\x03\x01")  # a hello that begins, and never goes on
        assert is_closed(client)


def test_a_certificate_that_cannot_be_used_ends_the_start(bundle_dir, certificate, tmp_path):
    code, line = ended(bundle_dir, "--port", 0, "--tls-cert", certificate[0])
    assert (code, "--tls-cert and --tls-key go together" in line) == (2, True)
    (tmp_path / "none.pem").write_text("nothing")
    for cert in (tmp_path / "none.pem", tmp_path / "missing.pem"):
        code, line = ended(bundle_dir, "--port", 0, "--tls-cert", cert, "--tls-key", certificate[1])
        assert (code, "--tls-cert and --tls-key cannot be used" in line) == (2, True)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self.path))


def test_a_unix_socket_is_its_owners_and_is_gone_at_the_end(bundle_dir, tmp_path):
    path = tmp_path / "potstill.sock"
    for _ in range(2):  # one that was left behind is replaced
        with served(bundle_dir, "--uds", path, port=()) as url:
            assert url == f"http+unix://{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert ask(UnixConnection(path)).status == 200
            code, line = ended(bundle_dir, "--uds", path)
            assert (code, "a process listens on" in line) == (3, True)
        assert not path.exists()
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(path))
        left.close()
    path.unlink()
    path.write_text("")
    code, line = ended(bundle_dir, "--uds", path)
    assert (code, "is there and is no socket" in line) == (2, True)


def test_a_path_that_a_proxy_strips_is_in_the_document_and_answered_without(bundle_dir):
    with served(bundle_dir, "--root-path", "/bert/v9") as url:
        assert ask(http_to(url)).status == 200
        for path, status in (("/health/ready", 200), ("/docs", 200), ("/nowhere", 404), ("/bert/v9/predict", 404)):
            assert ask(http_to(url), "GET", path, None).status == status
        document = json.loads(ask(http_to(url), "GET", "/openapi.json", None).body)
        assert document["servers"] == [{"url": "/bert/v9"}]
        assert "message" in json.loads(ask(http_to(url), "GET", "/v1/models/none", None).body)["error"]
    for wrong in ("bert", "/bert/", "/a b", "//x"):
        code, line = ended(bundle_dir, "--root-path", wrong)
        assert (code, "expected a path such as /potstill" in line) == (2, True)


def preflight(url, origin):
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    return ask(http_to(url), "OPTIONS", "/predict", None, Origin=origin, **wanted)


def test_web_pages_are_answered_where_their_origin_is_named_and_nowhere_else(bundle_dir):
    with served(bundle_dir, "--cors-origin", PAGE, "--cors-origin", "http://localhost:3000") as url:
        for origin in (PAGE, "http://localhost:3000"):
            allowed = preflight(url, origin)
            assert (allowed.status, allowed.headers["Access-Control-Allow-Origin"]) == (200, origin)
            for body, status in ((BODY, 200), ("{}", 422)):  # errors, too, are for the page to read
                answer = ask(http_to(url), body=body, Origin=origin)
                assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, origin)
            assert "X-Tokens" in answer.headers["Access-Control-Expose-Headers"]
        refused = preflight(url, "https://evil.example")
        assert (refused.status, json.loads(refused.body)["error_type"]) == (400, "validation")
        assert "Access-Control-Allow-Origin" not in refused.headers
        assert "Access-Control-Allow-Origin" not in ask(http_to(url), Origin="https://evil.example").headers
    with served(bundle_dir, "--cors-origin", "*") as url:
        assert ask(http_to(url), Origin="https://any.example").headers["Access-Control-Allow-Origin"] == "*"
    code, line = ended(bundle_dir, "--cors-origin", "app.example")
    assert (code, "expected scheme and host" in line) == (2, True)


def test_without_the_option_no_web_page_may_read_an_answer(bundle_dir):
    with served(bundle_dir) as url:
        assert "Access-Control-Allow-Origin" not in ask(http_to(url), Origin=PAGE).headers
        assert (preflight(url, PAGE).status, "access-control-allow-origin" in preflight(url, PAGE).headers) == (
            204,
            False,
        )


@pytest.mark.parametrize(
    ("given", "host", "is_open", "expected"),
    [
        ((), "127.0.0.1", True, {"localhost", "127.0.0.1", "::1"}),
        ((), "127.0.0.9", True, {"localhost", "127.0.0.1", "::1", "127.0.0.9"}),
        ((), "::1", True, {"localhost", "127.0.0.1", "::1"}),
        ((), "localhost", True, {"localhost", "127.0.0.1", "::1"}),
        ((), "127.0.0.1", False, None),
        ((), "0.0.0.0", True, None),
        (("bert.example",), "0.0.0.0", True, {"bert.example", "0.0.0.0", "localhost", "127.0.0.1", "::1"}),
        (("bert.example",), "127.0.0.1", False, {"bert.example", "localhost", "127.0.0.1", "::1"}),
        (("*", "bert.example"), "127.0.0.1", True, None),
    ],
)
def test_the_names_that_requests_may_ask_for(given, host, is_open, expected):
    assert allowed_hosts(given, host=host, is_open=is_open) == expected
