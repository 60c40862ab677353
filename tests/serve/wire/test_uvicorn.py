"""What we need of uvicorn and httptools, and nothing else: these fail when it changes."""

import asyncio
import inspect
import threading

import httptools
import pytest
import uvicorn
from uvicorn.server import ServerState

from potstill.serve.limits import Limits
from potstill.serve.wire import Connection, guarded
from tests.serve.wire.harness import Echo, Running, get


def test_uvicorn_makes_protocols_as_it_did():
    """`Server.startup` calls the class with these names, and nothing else."""
    source = inspect.getsource(uvicorn.Server.startup)
    for argument in ("config=config", "server_state=self.server_state", "app_state=self.lifespan.state", "_loop=_loop"):
        assert argument in source
    own = inspect.signature(Connection.__init__).parameters
    assert list(own)[1:] == ["config", "server_state", "app_state", "_loop"]


def test_the_state_that_is_shared_has_what_is_read():
    state = ServerState()
    assert (state.connections, state.default_headers, state.total_requests) == (set(), [], 0)
    config = uvicorn.Config(Echo(), http=guarded(Limits()), lifespan="off", log_config=None)
    config.load()
    assert isinstance(config.loaded_app, uvicorn.middleware.proxy_headers.ProxyHeadersMiddleware)


def test_the_server_has_the_parts_that_are_overridden():
    assert list(inspect.signature(uvicorn.Server.startup).parameters) == ["self", "sockets"]
    assert list(inspect.signature(uvicorn.Server.shutdown).parameters) == ["self", "sockets"]
    assert list(inspect.signature(uvicorn.Server.handle_exit).parameters) == ["self", "sig", "frame"]
    # Signals that uvicorn has noted are raised again at the end; our handler notes none.
    assert "reversed(self._captured_signals)" in inspect.getsource(uvicorn.Server.capture_signals)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_protocol_works_in_a_plain_uvicorn(loop):
    """uvicorn opens the port, makes the connections, and asks them to end."""
    app = Echo()
    config = uvicorn.Config(
        app, http=guarded(Limits()), port=0, loop=loop, lifespan="off", log_config=None, proxy_headers=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
    client = Running.__new__(Running)
    client.port = server.servers[0].sockets[0].getsockname()[1]
    with client.connect() as idle:
        idle.sendall(get())
        answer = client.ask(get())
        assert (answer.status, answer.headers["server"], "date" in answer.headers) == (200, "uvicorn", True)
        server.should_exit = True
        thread.join(5)
        assert not thread.is_alive()
    assert server.server_state.total_requests == 2


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


def test_a_protocol_can_be_made_without_a_running_server():
    async def make():
        config = uvicorn.Config(Echo(), lifespan="off", log_config=None)
        config.load()
        return guarded(Limits())(config, ServerState(), {}, asyncio.get_running_loop())

    assert asyncio.run(make()).hub.connections == set()
