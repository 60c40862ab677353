"""A head that comes again: the short way must lead where the long one does."""

import asyncio
import random
import time
from types import SimpleNamespace

import pytest

from potstill.serve.limits import Limits
from potstill.serve.wire import guarded
from potstill.serve.wire.again import known
from potstill.serve.wire.connection import Connection
from potstill.serve.wire.head import Head
from tests.serve.wire.harness import Echo, get, is_closed, post, read_answers, serving

HEADS = [
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n",
    b"POST /e%%20c?q=1 HTTP/1.1\r\nhost:x\r\ncontent-length:%b\r\nX-Two: 1\r\nx-two: 2\r\n\r\n",
    b"PUT /echo HTTP/1.1\r\nContent-Length:   %b\r\nHost: x\r\nConnection: keep-alive\r\n\r\n",
    # Fields that look like the one that counts, with the same digits.
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length-Of: 3\r\nX: Content-Length: 3\r\nContent-Length: %b\r\n\r\n",
    b"\r\nPOST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n",
]


@pytest.fixture(scope="module")
def server():
    with serving(limits=Limits(drain_seconds=0.1, shutdown_seconds=3.0, body_bytes=1_000)) as running:
        yield running


@pytest.fixture
def read_by_parser(monkeypatch):
    """Count how often the parser is asked."""
    found, feed = [], Connection._feed

    def counted(self, data):
        found.append(bytes(data))
        feed(self, data)

    monkeypatch.setattr(Connection, "_feed", counted)
    return found


def one_by_one(server, requests):
    """Return the answers to requests that each wait for the last answer, on one connection."""
    with server.connect() as client:
        answers = []
        for request in requests:
            client.sendall(request)
            answers += read_answers(client, ["POST"])
        return answers


@pytest.mark.parametrize("head", HEADS)
def test_the_same_head_with_another_body_is_the_request_that_a_parser_reads(server, head, read_by_parser):
    bodies = [b"abc", b"", b"0123456789", b"\r\n\r\n", b"x" * 1_000]
    requests = [head % str(len(body)).encode() + body for body in bodies]
    answers = one_by_one(server, requests)
    short = server.app.seen[-len(bodies) :]
    assert [answer.body for answer in answers] == [body or b"nothing" for body in bodies]
    assert len(read_by_parser) == 1, "only the first head was new"
    fresh = [one_by_one(server, [request]) and server.app.seen[-1] for request in requests]
    for one, other in zip(short, fresh, strict=True):
        for scope in (one, other):
            scope.pop("client"), scope["state"].pop("received_at")
        assert one == other


@pytest.mark.parametrize(
    ("second", "status"),
    [
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3,3\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nabc", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1_001, 413),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 400),
    ],
)
def test_what_is_wrong_in_a_first_request_is_wrong_in_a_second(server, second, status):
    good = post(path=b"/echo", body=b"abc")
    assert good.startswith(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: ")
    with server.connect() as client:
        client.sendall(good)
        read_answers(client, ["POST"])
        client.sendall(second)
        assert read_answers(client, ["POST"])[0].status == status
        assert is_closed(client)
    assert one_by_one(server, [second])[0].status == status


def test_a_known_head_in_pieces_and_with_the_next_request_behind_it(server, read_by_parser):
    first, second = post(body=b"one"), post(body=b"three")
    with server.connect() as client:
        client.sendall(first)
        read_answers(client, ["POST"])
        client.sendall(second[:-2])
        client.sendall(second[-2:] + get(b"/plain"))
        assert [answer.body for answer in read_answers(client, ["POST", "GET"])] == [b"three", b"plain"]
        before = len(read_by_parser)
        client.sendall(first)
        assert read_answers(client, ["POST"])[0].body == b"one"
    assert len(read_by_parser) == before + 1, "the head before it was another"


def head_of(data):
    """Return what a parser would have told of these fields."""
    head = Head(Limits())
    line, *fields = data.rstrip(b"\r\n").split(b"\r\n")
    head.add_target(line.split(b" ")[1])
    for field in fields:
        name, _, value = field.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in {b"host", b"content-length", b"transfer-encoding", b"expect"}:
            value = head.rule(name, value)
        head.fields.append((name, value))
    return head, head.finish(b"POST", line[-3:].decode())


@pytest.mark.parametrize(
    "data",
    [
        b"POST /x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        b"POST /x HTTP/1.0\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\t\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length:\t3\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 3_000 + b"\r\nContent-Length: 3\r\n\r\n",
    ],
)
def test_heads_that_are_read_each_time(data):
    assert known(data, *head_of(data), keep_alive=True) is None


def test_a_head_that_came_in_parts_is_not_remembered():
    data = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
    assert known(data, *head_of(data), keep_alive=True) is not None
    assert known(b"", *head_of(data), keep_alive=True) is None


def test_only_a_whole_request_is_taken():
    data = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
    found = known(data, *head_of(data), keep_alive=True)
    assert found.body_of(data + b"abc") == (b"3", b"abc")
    assert found.body_of(data.replace(b": 3", b": 0")) == (b"0", b"")
    for other in (data, data + b"ab", data + b"abcd", data[:-4] + b"abc", b"", data[: data.find(b"3")],
                  data.replace(b": 3", b": 3000000000") + b"abc", data.replace(b"/x", b"/y") + b"abc"):  # fmt: skip
        assert found.body_of(other) is None
    scope = found.scope_of(b"12")
    assert (b"content-length", b"12") in scope["headers"]
    assert (b"content-length", b"3") in found.scope["headers"], "the one that is kept stays as it is"


class Paper:
    """A transport that only keeps what is written."""

    def __init__(self):
        self.written, self.closing = b"", False

    def write(self, data):
        self.written += data

    def write_eof(self):
        self.closing = True

    def get_extra_info(self, name):
        return ("127.0.0.1", 1) if name != "socket" else None

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.closing

    def abort(self):
        self.closing = True

    close = pause_reading = resume_reading = abort


async def say(requests):
    """Return what a connection answers to the last of some requests, what its application saw, and where it stands."""
    app, paper = Echo(), Paper()
    state = SimpleNamespace(connections=set(), default_headers=[], total_requests=0)
    connection = guarded(Limits())(SimpleNamespace(loaded_app=app), state, {}, asyncio.get_running_loop())
    connection.connection_made(paper)
    for request in requests:
        paper.written = b""
        app.seen.clear()
        connection.data_received(request)
        for _ in range(4):
            await asyncio.sleep(0)
    seen = [{name: scope[name] for name in ("method", "raw_path", "headers", "body")} for scope in app.seen]
    stands = (connection.phase, paper.closing)
    connection.connection_lost(None)
    return paper.written, seen, stands


def test_no_byte_is_read_otherwise_than_the_parser_reads_it():
    """2,000 requests that differ a little from the one before them."""
    good, draw, same = post(path=b"/echo", body=b"abc"), random.Random(0), 0

    def changed():
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(data))
            piece = draw.choice(
                [b"", b"\r\n", b" ", b"0", b":", b"Content-Length: 3\r\n", bytes([draw.randrange(256)])]
            )
            data[at : at + draw.randint(0, 1)] = piece
        return bytes(data)

    async def main():
        nonlocal same
        for _ in range(2_000):
            second = changed()
            used, fresh = await say([good, second]), await say([second])
            assert used == fresh, second
            same += b" 200 " in used[0]
        # The answer of the short way is among them.
        assert (await say([good, good]))[:2] == (await say([good]))[:2]

    asyncio.run(main())
    assert 50 < same < 1_950


def test_a_body_that_looks_like_the_request_before_is_a_body(server):
    """Its parts come by themselves, so each could be taken for a whole request."""
    request = HEADS[0] % b"3" + b"abc"
    with server.connect() as client:
        client.sendall(request)
        assert [answer.body for answer in read_answers(client, ["POST"])] == [b"abc"]
        client.sendall(HEADS[0] % str(2 * len(request)).encode())
        for _ in range(2):
            time.sleep(0.1)
            client.sendall(request)
        assert [answer.body for answer in read_answers(client, ["POST"])] == [2 * request]
