"""The line in front of the door: who stands there when the server ends, and when file descriptors run out."""

import asyncio
import resource
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

import pytest

from potstill.errors import MissingError, UsageError
from potstill.serve.limits import Limits
from potstill.serve.wire.listening import Acceptor, _refuse_handshakes, bind, listen
from tests.serve.wire.harness import Echo, get, post, probing, read_answers, serving


def test_hosts_that_cannot_be_are_refused_by_name():
    with pytest.raises(UsageError, match="'no such host' is not known"):
        bind("no such host", 0)
    with pytest.raises(UsageError, match=r"192\.0\.2\.1 is not an address of this machine"):
        bind("192.0.2.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(MissingError, match="in use"):
        bind("127.0.0.1", other.getsockname()[1])


def test_a_port_taken_after_it_was_bound_is_said_so():
    with bind("127.0.0.1", 0) as one:
        address = one.getsockname()
        with socket.socket() as two:
            two.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            two.bind(address)
            two.listen()
            with pytest.raises(MissingError, match=f"port {address[1]} of 127.0.0.1 is in use"):
                listen(one)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the filter is Linux's")
def test_the_filter_lets_nobody_in_any_more_and_loses_nobody_who_is():
    with bind("127.0.0.1", 0) as listener, ExitStack() as stack:
        listen(listener)
        before = stack.enter_context(socket.create_connection(listener.getsockname()))
        before.sendall(b"first")
        assert _refuse_handshakes(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.2)
        before.sendall(b" second")
        accepted, _ = listener.accept()
        stack.enter_context(accepted)
        assert accepted.recv(100) == b"first second"
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_all_who_stand_in_line_are_let_in_before_the_door_closes():
    """The loop sleeps while 300 connect and send; nobody of them was accepted when the end begins."""
    heard = []

    class Ear(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            heard.append(data)
            self.transport.close()

    async def end(listener, stack):
        acceptor = Acceptor(listener, Ear, make_place=lambda: None)
        for number in range(300):
            stack.enter_context(socket.create_connection(listener.getsockname())).sendall(b"%d" % number)
        await acceptor.close()
        await asyncio.sleep(0.2)

    with bind("127.0.0.1", 0) as listener, ExitStack() as stack:
        listen(listener)
        asyncio.run(end(listener, stack))
    assert sorted(map(int, heard)) == list(range(300))


def test_everybody_in_line_is_answered_at_the_end():
    app = Echo()
    with serving(app) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(200)]
        for client in clients:
            client.sendall(post())
        server.stop()
        assert [read_answers(client)[0].body for client in clients] == [b"hello"] * 200
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_running_out_of_file_descriptors_keeps_open_connections_and_heals(caplog):
    limits = Limits(header_seconds=0.5, drain_seconds=0.1, shutdown_seconds=3)
    with serving(limits=limits) as server, ExitStack() as stack, server.connect() as good:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        waiting = [socket.socket() for _ in range(30)]
        for client in waiting:
            stack.enter_context(client)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 4, hard))
            good.sendall(get(b"/slow"))  # it works, so it is let be
            sleep(0.05)
            for client in waiting:
                client.connect(("127.0.0.1", server.port))
            sleep(0.2)
            for client in waiting[-5:]:
                client.sendall(get())
            assert read_answers(good)[0].body == b"slow"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        started = monotonic()
        assert server.ask(get()).status == 200
        assert monotonic() - started < 2
        with probing(server):
            sleep(0.1)
        for client in waiting[:3]:  # each was told to go, or cut off to make place
            assert [answer.status for answer in read_answers(client)] in ([503], [])
    assert len([record for record in caplog.records if "no more connections" in record.message]) == 1
    assert len(caplog.records) == 1
