"""What we need of uvicorn and httptools, and nothing else: these fail when it changes."""

import inspect

import httptools
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from potstill.serve.http.protocol import HttpProtocol


def test_what_is_overridden_is_there():
    own = {name for name in vars(HttpProtocol) if not name.startswith("__")}
    assert own & set(vars(HttpToolsProtocol)) == {
        "connection_made",
        "connection_lost",
        "eof_received",
        "pause_writing",
        "resume_writing",
        "shutdown",
        "data_received",
        "on_message_begin",
        "on_url",
        "on_header",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "_start_asgi_task",
        "on_response_complete",
    }
    assert list(inspect.signature(HttpToolsProtocol.__init__).parameters)[1:] == [
        "config",
        "server_state",
        "app_state",
        "_loop",
    ]
    assert list(inspect.signature(HttpToolsProtocol._start_asgi_task).parameters) == ["self", "cycle", "app"]


def test_a_cycle_has_what_is_read_and_set():
    source = inspect.getsource(RequestResponseCycle)
    for name in ("keep_alive", "waiting_for_100_continue", "response_started", "response_complete", "disconnected"):
        assert f"self.{name} = " in source


def test_the_server_has_the_parts_that_are_overridden():
    assert list(inspect.signature(uvicorn.Server.startup).parameters) == ["self", "sockets"]
    assert list(inspect.signature(uvicorn.Server.shutdown).parameters) == ["self", "sockets"]
    assert list(inspect.signature(uvicorn.Server.handle_exit).parameters) == ["self", "sig", "frame"]
    # Signals that uvicorn has noted are raised again at the end; our handler notes none.
    assert "reversed(self._captured_signals)" in inspect.getsource(uvicorn.Server.capture_signals)


def test_the_parser_stops_at_an_upgrade_behind_the_head():
    """The head is read again without the upgrade, so the place where the parser stops must be its end."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as stop:
        httptools.HttpRequestParser(object()).feed_data(head)
    assert stop.value.args == (len(head),)


def test_the_parser_keeps_what_a_callback_raised():
    class Refuses:
        def on_header(self, name, value):
            raise ValueError("mine")

    with pytest.raises(httptools.HttpParserError) as error:
        httptools.HttpRequestParser(Refuses()).feed_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert isinstance(error.value.__context__, ValueError)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 1\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 1",
        b"Content-Length: 1\r\nContent-Length: 1",
        b"Content-Length: 18446744073709551616",
        b"Content-Length: 1_0",
        b"A : b",
        b"A: b\n",
    ],
)
def test_the_parser_is_strict_where_we_leave_it_to_it(head):
    with pytest.raises(httptools.HttpParserError):
        httptools.HttpRequestParser(object()).feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % head)
