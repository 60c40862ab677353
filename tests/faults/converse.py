"""Send the grammar's inputs over connections that are kept, cut and left open, and hold every answer against the RFC.

The clients know nothing of the server but its port. A supervisor asks /health/live on connections of its own all the
while: a server that does not answer it in time has been stopped by one of the inputs that were under way.
"""

import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from tests.faults.grammar import LIVE, Grammar, Input, good_body
from tests.faults.rawhttp import get
from tests.faults.rfc import Answer, Ended, Late, Request, Responses, Wrong, read_requests
from tests.faults.seen import Seen
from tests.faults.served import Server

SILENCE = 10.0
"""A server that is silent for so many seconds, where it must answer, hangs; its own deadlines are shorter."""
_HELD = 100
"""Connections that each client leaves open for the server to end."""
_MOST_LOOSE = 50
_FRESH_SECONDS = 1.0
"""A connection that was not used for so long is not used again: the server may be about to end it."""


class Client:
    """One client: its connection, what it has sent there, and connections that it has left to the server to end.

    Args:
        port: the server's.
        seen: where to count.
        patience: seconds within which the server must have ended a connection on which nothing happens.
    """

    def __init__(self, port: int, seen: Seen, *, patience: float) -> None:
        self._port, self._seen, self._patience = port, seen, patience
        self._socket: socket.socket | None = None
        self._responses: Responses
        self._numbers: list[int] = []
        self._used_at = 0.0
        self._held: deque[tuple[float, socket.socket, Responses, Input]] = deque()
        self.now: Input | None = None
        """What is under way."""

    def send(self, one: Input) -> bool:
        """Send one input and read what must come; return whether the server still answers."""
        self.now = one
        started = time.monotonic()
        self._seen.inputs["grammar"] += 1
        try:
            self._converse(one)
            self._look_after_held()
        except Late as error:
            self._fail("hang", one, str(error))
            return False
        except Wrong as error:
            self._fail("wrong", one, str(error))
        except OSError as error:
            self._fail("refused", one, str(error))
        self._seen.slowest_seconds = max(self._seen.slowest_seconds, time.monotonic() - started)
        self.now = None
        return True

    def finish(self) -> None:
        """Wait for the connections that the server has still to end."""
        self._end()
        while self._held:
            try:
                self._look_after_held(wait=True)
            except Wrong as error:
                self._seen.fail("left open", str(error))

    def _fail(self, kind: str, one: Input, detail: str) -> None:
        before = f" after {self._numbers[-6:-1]}" if len(self._numbers) > 1 else ""
        how = f", cut at {list(one.cuts)}" if one.cuts else ""
        self._seen.fail(kind, f"input {one.number}{before}{how}: {detail}; sent {one.data[:600]!r}")
        self._end()

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._numbers = None, []

    def _open(self) -> socket.socket:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=SILENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._responses = Responses(self._socket, seconds=SILENCE)
        self._numbers = []
        return self._socket

    def _ready(self, one: Input) -> socket.socket:
        since, self._used_at = self._used_at, time.monotonic()
        if self._socket is None or one.fresh or self._used_at - since > _FRESH_SECONDS:
            self._end()
            return self._open()
        try:
            self._responses.nothing_more()
        except Ended:  # it has been idle for too long
            self._end()
            return self._open()
        return self._socket

    def _converse(self, one: Input) -> None:
        connection = self._ready(one)
        self._numbers.append(one.number)
        at = 0
        for end in (*one.cuts, len(one.data)):
            try:
                connection.settimeout(SILENCE)
                connection.sendall(one.data[at:end])
            except (BrokenPipeError, ConnectionResetError):
                break  # answered and ended already, which the responses will tell
            if one.cuts and one.number % 4 == 0:
                time.sleep(0.001)  # so that they come in one by one
            at = end
        read = read_requests(one.data)
        for request in read.requests:
            answer = self._answer(request)
            if answer.closes:
                self._responses.end()
                self._end()
                return
        if one.patient:
            self._held.append((time.monotonic(), connection, self._responses, one))
            self._socket = None
        elif read.rest == "something":
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            self._read_rest(one)
            self._end()

    def _answer(self, request: Request) -> Answer:
        try:
            answer = self._responses.next(request)
        except Ended as ended:
            raise Wrong(f"no answer to {request.method.decode()} {request.target[:40]!r}: {ended.by}") from None
        self._seen.statuses[str(answer.status)] += 1
        wanted = _wanted(request)
        if wanted and answer.status not in wanted:
            raise Wrong(f"{answer.status} instead of {wanted}: {answer.body[:120]!r}")
        return answer

    def _read_rest(self, one: Input) -> None:
        """Read to the end what the server says to bytes of which it is open whether they are requests."""
        if b"HEAD" in one.data.upper():
            self._count(*self._responses.whatever())
            return
        for _ in range(_MOST_LOOSE):
            try:
                self._count(self._responses.next(None).status)
            except Ended:
                self._seen.statuses["end"] += 1
                return
        raise Wrong(f"over {_MOST_LOOSE} responses")

    def _count(self, *statuses: int) -> None:
        for status in statuses:
            self._seen.statuses[str(status)] += 1
            if status >= 500 and status not in {501, 505}:
                raise Wrong(str(status))

    def _look_after_held(self, *, wait: bool = False) -> None:
        """See whether the server has ended the connections that were left open for it."""
        while self._held and (wait or len(self._held) > _HELD or time.monotonic() - self._held[0][0] > self._patience):
            since, connection, responses, one = self._held.popleft()
            with connection:
                if wait:
                    time.sleep(max(0.0, since + self._patience - time.monotonic()))
                responses.seconds = max(0.2, since + self._patience - time.monotonic())
                try:
                    responses.whatever()
                except Late:
                    raise Late(
                        f"left open after input {one.number} for {self._patience:g} s: {one.data[:600]!r}"
                    ) from None


def _wanted(request: Request) -> tuple[int, ...]:
    """Return what alone may answer a request, where that is certain."""
    if request.target == b"/predict" and request.method == b"POST" and good_body(request.body):
        plain = {b"host", b"content-type", b"content-length", b"transfer-encoding", b"connection"}
        if set(request.fields) <= plain and request.fields.get(b"content-type") == b"application/json":
            return (200, 429) if request.is_for_this_machine else (400,)
    return ()


class Supervisor:
    """Asks all the while whether the server lives, on connections of its own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.stop = threading.Event()
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.stop.wait(0.5):
            try:
                status = get(self._server.port, LIVE, seconds=SILENCE).status
            except Exception as error:
                status = f"{type(error).__name__}: {error}"
            if status != 200:
                self.failure = f"{LIVE} answered {status}"
                self.stop.set()


def send_grammar(
    server: Server, paths: list[str], *, count: int, seed: int, first: int = 0, clients: int = 4, patience: float = 20.0
) -> tuple[Seen, list[Input]]:
    """Send `count` inputs of a seed with a few clients side by side, until the server stands still.

    Returns:
        what was seen, and the inputs that were under way when it stood still.
    """
    parts = [Seen() for _ in range(clients)]
    talking = [Client(server.port, seen, patience=patience) for seen in parts]
    numbers = itertools.count(first)
    supervisor = Supervisor(server)
    guilty: list[Input] = []

    def run(client: Client) -> None:
        grammar = Grammar(seed, paths)
        while not supervisor.stop.is_set() and (number := next(numbers)) < first + count:
            if not client.send(grammar.input(number)):
                supervisor.stop.set()
        if client.now is not None:
            guilty.append(client.now)
        if not supervisor.stop.is_set():
            client.finish()

    _side_by_side([lambda client=client: run(client) for client in talking])
    supervisor.end()
    seen = parts[0]
    for part in parts[1:]:
        seen.add(part)
    if supervisor.failure is not None and server.process.poll() is None:
        seen.fail("hang", supervisor.failure)
    if server.process.poll() is not None:
        seen.fail("server ended", str(server.process.returncode))
    return seen, guilty


def _side_by_side(runs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stops(server: Server, one: Input, *, seconds: float = 3.0) -> bool:
    """Tell whether one input alone stops a server, so that nobody else is answered."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(one.data)
        time.sleep(0.1)
        try:
            return get(server.port, LIVE, seconds=seconds).status != 200
        except Exception:
            return True


def spins(server: Server, *, seconds: float = 1.0) -> float:
    """Return which share of a core the server takes while nobody asks it anything."""
    before = server.cpu_seconds()
    time.sleep(seconds)
    return (server.cpu_seconds() - before) / seconds
