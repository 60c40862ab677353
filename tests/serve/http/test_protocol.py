"""One connection at its best: requests in, answers out, in the order of HTTP."""

import logging
import socket
from time import monotonic, sleep

import pytest

from potstill.serve.http.protocol import HttpProtocol
from potstill.serve.limits import Limits
from tests.serve.http.harness import Echo, get, is_closed, post, read_answers, serving


@pytest.fixture(scope="module")
def server():
    with serving(limits=Limits(drain_seconds=0.1, shutdown_seconds=3.0)) as running:
        yield running


def test_a_request_reaches_the_application_whole(server):
    before = monotonic()
    answer = server.ask(
        b"POST /e%20c%C3%A9?q=%41&r HTTP/1.1\r\nHost: x:80\r\nX-Two: 1\r\nx-two:2 \r\nContent-Length: 3\r\n\r\nabc"
    )
    assert (answer.status, answer.body, answer.closes) == (200, b"abc", False)
    scope = server.app.seen[-1]
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("POST", "1.1", "http")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/e cé", b"/e%20c%C3%A9", b"q=%41&r")
    assert (b"x-two", b"1") in scope["headers"]
    assert scope["client"][0] == scope["server"][0] == "127.0.0.1"
    assert scope["server"][1] == server.port
    # uvloop's clock has whole milliseconds, and stands still within a turn of the loop.
    assert before - 0.01 <= scope["state"]["received_at"] <= monotonic()


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 1_999_999, 2_000_000])
def test_bodies_of_all_sizes_come_whole_and_in_one_message(server, size):
    body = bytes(range(256)) * (size // 256) + b"y" * (size % 256)
    assert server.ask(post(body=body)).body == (body or b"nothing")


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_requests_in_pieces_are_the_same_requests(server, step, framing):
    """The cut between two requests falls at every place of the empty line, and the body holds one."""
    one = post(body=b"a\r\n\r\nb")
    if framing == "chunked":
        one = (
            b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\na\r\n\r\n1;x=y\r\n\n\r\n2\r\n\rb\r\n0\r\nX-Trailer: 1\r\n\r\n"
        )
    raw = one * 3
    expected = b"a\r\n\r\nb" if framing == "length" else b"a\r\n\n\rb"
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(raw), step):
            client.sendall(raw[at : at + step])
        answers = read_answers(client, ["POST"] * 3)
    assert [answer.body for answer in answers] == [expected] * 3
    assert all(b"x-trailer" not in dict(scope["headers"]) for scope in server.app.seen[-3:])


def test_pipelined_requests_are_answered_one_after_the_other_in_order(server):
    raw = get(b"/slow") + b"".join(post(body=b"%d" % number) for number in range(400)) + get(b"/leave")
    answers = server.ask(raw, methods=["GET"] * 402, timeout=10)
    assert [answer.body for answer in answers] == [b"slow", *(b"%d" % number for number in range(400)), b"bye"]
    assert [answer.closes for answer in answers] == [False] * 401 + [True]


@pytest.mark.parametrize("field", [b"Connection: close", b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_trailer_must_not_say_how_the_connection_goes_on(server, field):
    """RFC 9110, section 6.5.1: the parser believes such a field, so that what follows would be lost."""
    first = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%b\r\n\r\n" % field
    answer = server.ask(first)
    assert (answer.status, answer.error_type, answer.closes) == (400, "validation", True)


def test_only_one_request_of_a_connection_is_in_the_application(server):
    with server.connect() as client:
        client.sendall(get(b"/slow") * 5)
        sleep(0.1)
        assert server.app.running == 1
        assert [answer.body for answer in read_answers(client, ["GET"] * 5)] == [b"slow"] * 5


@pytest.mark.parametrize(
    ("line", "connection", "closes"),
    [
        (b"HTTP/1.1", b"", None),
        (b"HTTP/1.1", b"Connection: close\r\n", "close"),
        (b"HTTP/1.0", b"", "close"),
        (b"HTTP/1.0", b"Connection: keep-alive\r\n", "close"),
    ],
)
def test_connections_last_as_the_client_says(server, line, connection, closes):
    with server.connect() as client:
        client.sendall(b"GET /echo %b\r\nHost: x\r\n%b\r\n" % (line, connection))
        assert read_answers(client)[0].headers.get("connection") == closes
        if closes == "close":
            assert is_closed(client)
        else:
            client.sendall(get())
            assert read_answers(client)[0].body == b"nothing"


def test_an_application_may_end_the_connection(server):
    with server.connect() as client:
        client.sendall(get(b"/leave"))
        assert read_answers(client)[0].closes
        assert is_closed(client)


def test_answers_are_framed_as_method_version_and_status_ask(server):
    assert server.ask(get(b"/stream")).body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    head, after = server.ask(b"HEAD /big HTTP/1.1\r\nHost: x\r\n\r\n" + get(b"/plain"), methods=["HEAD", "GET"])
    assert (head.headers["content-length"], after.body) == ("20000000", b"5\r\nplain\r\n0\r\n\r\n")
    none, after = server.ask(get(b"/none") + get(b"/plain"), methods=["GET", "GET"])
    assert (none.status, "content-length" in none.headers, b"plain" in after.body) == (204, False, True)


class Writes:
    """A transport that notes what is written to it."""

    def __init__(self, transport, noted):
        self._transport, self._noted = transport, noted

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def write(self, data):
        self._noted.append(bytes(data))
        self._transport.write(data)


def test_head_and_body_leave_together(server, monkeypatch):
    """Each write is a system call that wakes the client."""
    noted, original = [], HttpProtocol.connection_made
    monkeypatch.setattr(
        HttpProtocol, "connection_made", lambda self, transport: original(self, Writes(transport, noted))
    )
    with server.connect() as client:
        for _ in range(3):
            client.sendall(get(b"/health/live"))
            assert read_answers(client)[0].body == b"alive"
    assert [(write[:12], write[-5:]) for write in noted] == [(b"HTTP/1.1 200", b"alive")] * 3


def test_a_head_without_a_body_leaves_at_once(server):
    assert (
        server.ask(b"HEAD /big HTTP/1.1\r\nHost: x\r\n\r\n", methods=["HEAD"]).headers["content-length"] == "20000000"
    )


def test_every_answer_has_a_date(server):
    assert server.ask(get()).headers["date"].endswith(" gmt")
    assert server.ask(b"nonsense\r\n\r\n").headers["date"].endswith(" gmt")


def test_a_failure_on_the_event_loop_is_one_line_without_its_message(server, caplog):
    assert server.ask(get(b"/loop")).status == 200
    assert server.ask(get()).status == 200
    (line,) = caplog.messages
    assert line.startswith("the event loop failed on a connection: ValueError at ")
    assert "private" not in caplog.text


def test_a_failing_application_is_a_500_in_the_one_shape(server, caplog):
    answer = server.ask(get(b"/broken"))
    assert (answer.status, answer.error_type, answer.closes) == (500, "backend", True)
    assert len(caplog.records) == 1
    assert "private" not in caplog.text
    assert "ValueError at" in caplog.text
    assert "harness.py" in caplog.text


def test_half_of_an_answer_ends_its_connection(server):
    with server.connect() as client:
        client.sendall(get(b"/half"))
        data = client.recv(65536)
        assert is_closed(client)
    assert b"content-length: 10" in data
    assert data.endswith(b"12345")


def test_continue_is_sent_when_the_body_is_wanted_and_only_then(server):
    head, body = post(extra=b"Expect: 100-continue\r\n").split(b"hello")[0], b"hello"
    with server.connect() as client:
        client.sendall(head)
        assert read_answers(client)[0].status == 100
        client.sendall(body)
        assert read_answers(client)[0].body == body
        client.sendall(head.replace(b"/echo", b"/unread"))
        answer = read_answers(client)[0]
        # The client may now send its body or not: nobody could tell the body from a request.
        assert (answer.status, answer.closes) == (429, True)
    assert server.ask(head + body).body == body  # nothing to wait for
    assert server.ask(get(extra=b"Expect: a miracle\r\n")).status == 417
    assert server.ask(b"GET /echo HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").body == b"nothing"


def test_an_early_answer_keeps_the_connection_where_the_body_has_an_end(server):
    with server.connect() as client:
        client.sendall(post(b"/unread", b"x" * 50_000)[:1000])
        answer = read_answers(client)[0]
        assert (answer.status, answer.closes) == (429, False)
        client.sendall(post(b"/unread", b"x" * 50_000)[1000:] + post())
        assert read_answers(client)[0].body == b"hello"
        client.sendall(post(b"/unread", b"x" * 2_000_001)[:1000])
        assert read_answers(client)[0].closes
    chunked = server.ask(b"POST /unread HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
    assert (chunked.status, chunked.closes) == (429, False)  # what comes is dropped until its deadline


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0"])
def test_upgrades_are_answered_as_if_not_asked_for(server, upgrade):
    extra = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABk\r\n" % upgrade
    answers = server.ask(post(extra=extra) + post(body=b"next", extra=extra), methods=["POST", "POST"])
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"hello"), (200, b"next")]
    assert b"upgrade" not in dict(server.app.seen[-1]["headers"])
    answer = server.ask(get(extra=b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n"))
    assert answer.closes


def test_whoever_hangs_up_costs_nothing_more(caplog):
    app = Echo()
    with serving(app) as server:
        for ending in ("close", "reset", "half"):
            with server.connect() as client:
                client.sendall(get(b"/held"))
                wait_for(lambda: app.running == 1)
                if ending == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                if ending == "half":  # it cannot be told from a client that closed, and is taken for one
                    client.shutdown(socket.SHUT_WR)
                    assert is_closed(client)
            wait_for(lambda: app.running == 0)
        assert app.cancelled == 3
        with server.connect() as client:  # waiting for its turn
            client.sendall(get(b"/held") * 2)
            wait_for(lambda: app.running == 1)
        wait_for(lambda: app.running == 0)
    assert (app.cancelled, caplog.records) == (4, [])


def test_receive_tells_of_a_client_that_is_gone(server):
    with server.connect() as client:
        client.sendall(get(b"/watch"))
        sleep(0.05)
    # Cancelled before it can hear: the task ends with the client.
    wait_for(lambda: server.app.running == 0)


def test_idle_connections_are_closed_and_busy_ones_are_not():
    with serving() as server, server.connect() as idle, server.connect() as fresh, server.connect() as busy:
        started = monotonic()
        idle.sendall(get())
        assert read_answers(idle)[0].status == 200
        for _ in range(12):
            busy.sendall(get())
            assert read_answers(busy)[0].status == 200
            sleep(0.1)
        assert is_closed(idle)
        assert is_closed(fresh)
        assert monotonic() - started > 0.4
        busy.sendall(get())
        assert read_answers(busy)[0].status == 200


def wait_for(condition, within=3.0):
    end = monotonic() + within
    while not condition():
        assert monotonic() < end
        sleep(0.005)


@pytest.fixture(autouse=True)
def _errors_are_seen(caplog):
    caplog.set_level(logging.WARNING)
