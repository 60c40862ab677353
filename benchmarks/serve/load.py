"""An open-loop load generator for one HTTP server on this machine; it runs in a process of its own.

    python -m benchmarks.serve.load < plan.json > outcome.json

Requests are sent at moments that are fixed before the first one, by a Poisson process from a seed, whatever the server
does; a request's latency counts from its moment in that schedule. So a server that stalls is charged for every request
that was due meanwhile (no coordinated omission). Connections are kept; a new one is made when none is idle, up to
`connections`, beyond which requests wait for one, and that wait counts.

The plan: {"port", "path", "bodies": [JSON as text, ...], "phases": [[requests per second, seconds], ...], "seed",
"connections", "patience": seconds after which a client gives up, "probes": paths asked on new connections,
"probe_seconds": how often}. The outcome: one list per column, `kind` -1 for a body, else which probe; `phase`; `due`,
`sent` and `done` in seconds from the start; `status`, 0 for a connection that broke and -1 for one given up;
`retry_after` as sent, "" where there was none; and the generator's own `cpu_seconds`.

One thread, one epoll: 20 to 40 µs per request, which is taken from the server where both share cores. `python -m
benchmarks.serve.load --cost` measures it against a server that does nothing.
"""

import json
import select
import socket
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BROKE, GAVE_UP = 0, -1


@dataclass(slots=True)
class _Link:
    """One connection; `request` is the number of the one it carries, -1 while it is idle."""

    socket: socket.socket
    request: int = -1
    buffer: bytes = b""
    kept: bool = True


@dataclass(slots=True)
class Outcome:
    """What became of every request, by its number in the schedule."""

    kind: list[int]
    phase: list[int]
    due: list[float]
    sent: list[float]
    done: list[float]
    status: list[int]
    retry_after: list[str]
    cpu_seconds: float = 0.0
    made_connections: int = 0


def schedule(phases: list[list[float]], *, seed: int) -> tuple[list[float], list[int]]:
    """Return the moments of all requests in seconds, ascending, and the phase of each."""
    draw, due, phase, start = np.random.default_rng(seed), [], [], 0.0
    for number, (rate, seconds) in enumerate(phases):
        count = int(draw.poisson(rate * seconds))
        # Given their number, the arrivals of a Poisson process are uniform over the phase.
        due += np.sort(start + draw.random(count) * seconds).tolist()
        phase += [number] * count
        start += seconds
    return due, phase


@dataclass(slots=True)
class _Run:
    """The state of one run of a plan."""

    port: int
    connections: int
    patience: float
    payloads: list[bytes]
    """By request: the bytes to send."""
    out: Outcome
    epoll: select.epoll = field(default_factory=select.epoll)
    links: dict[int, _Link] = field(default_factory=dict)
    idle: list[_Link] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    flying: deque[int] = field(default_factory=deque)
    carried: dict[int, _Link] = field(default_factory=dict)
    left: int = 0
    started: float = 0.0

    def begin(self, request: int) -> None:
        """Send a request that is due, or have it wait for a connection."""
        if self.out.kind[request] >= 0:
            link = self._connect(kept=False)
        elif self.idle:
            link = self.idle.pop()
        elif len(self.links) < self.connections:
            link = self._connect(kept=True)
        else:
            self.waiting.append(request)
            return
        self._send(link, request)

    def _connect(self, *, kept: bool) -> _Link:
        client = socket.socket()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(1.0)
        link = _Link(client, kept=kept)
        try:
            client.connect(("127.0.0.1", self.port))
        except OSError:
            return link  # sending will tell
        client.setblocking(False)
        self.links[client.fileno()] = link
        self.epoll.register(client.fileno(), select.EPOLLIN)
        self.out.made_connections += 1
        return link

    def _send(self, link: _Link, request: int) -> None:
        link.request, link.buffer = request, b""
        self.out.sent[request] = time.perf_counter() - self.started
        self.carried[request] = link
        self.flying.append(request)
        data = self.payloads[request]
        try:
            # Requests are smaller than a socket's buffer; what does not fit counts as broken.
            if link.socket.send(data) != len(data):
                self._finish(link, BROKE, keep=False)
        except OSError:
            self._finish(link, BROKE, keep=False)

    def receive(self, number: int) -> None:
        """Take what has come on a connection."""
        link = self.links.get(number)
        if link is None:
            return
        try:
            data = link.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if link.request < 0 or not data:
            self._finish(link, BROKE, keep=False)
            return
        link.buffer = link.buffer + data if link.buffer else data
        end = link.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = link.buffer[:end].lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 : (head.find(b"\r", at) + 1 or end + 1) - 1]) if at >= 0 else 0
        if len(link.buffer) < end + 4 + size:
            return
        status = int(head[9:12])
        at = head.find(b"\r\nretry-after:")
        if at >= 0:
            self.out.retry_after[link.request] = head[at + 14 :].split(b"\r", 1)[0].strip().decode("latin-1")
        self._finish(link, status, keep=link.kept and b"connection: close" not in head)

    def _finish(self, link: _Link, status: int, *, keep: bool) -> None:
        request = link.request
        if request >= 0:
            self.out.status[request] = status
            self.out.done[request] = time.perf_counter() - self.started
            self.carried.pop(request, None)
            self.left -= 1
        link.request = -1
        if not keep:
            if link in self.idle:
                self.idle.remove(link)
            self.links.pop(link.socket.fileno(), None)
            link.socket.close()  # which also takes it out of the epoll
            if self.waiting:
                self._send(self._connect(kept=True), self.waiting.popleft())
        elif self.waiting:
            self._send(link, self.waiting.popleft())
        else:
            self.idle.append(link)

    def give_up(self, now: float) -> None:
        """Close what has waited for longer than a client would."""
        while self.flying:
            request = self.flying[0]
            link = self.carried.get(request)
            if link is not None:
                if now - self.out.due[request] < self.patience:
                    break
                self._finish(link, GAVE_UP, keep=False)
            self.flying.popleft()
        while self.waiting and now - self.out.due[self.waiting[0]] > self.patience:
            request = self.waiting.popleft()
            self.out.status[request], self.out.done[request] = GAVE_UP, now
            self.left -= 1


def run(plan: dict[str, Any]) -> Outcome:
    """Send what the plan says and return what became of it."""
    due, phase = schedule(plan["phases"], seed=plan["seed"])
    bodies = [_post(plan["path"], body.encode()) for body in plan["bodies"]]
    order = np.random.default_rng(plan["seed"] + 1).integers(len(bodies), size=len(due)).tolist()
    rows = [(moment, number, -1, bodies[body]) for moment, number, body in zip(due, phase, order, strict=True)]
    ends = np.cumsum([seconds for _, seconds in plan["phases"]])
    for kind, path in enumerate(plan.get("probes", [])):
        data = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        for moment in np.arange(plan["probe_seconds"] / 2, ends[-1], plan["probe_seconds"]).tolist():
            rows.append((moment, int(np.searchsorted(ends, moment, side="right")), kind, data))
    rows.sort(key=lambda row: row[0])
    size = len(rows)
    out = Outcome(
        kind=[row[2] for row in rows],
        phase=[row[1] for row in rows],
        due=[row[0] for row in rows],
        sent=[0.0] * size,
        done=[0.0] * size,
        status=[BROKE] * size,
        retry_after=[""] * size,
    )
    state = _Run(plan["port"], plan["connections"], plan["patience"], [row[3] for row in rows], out, left=size)
    _drive(state)
    return out


def _drive(state: _Run) -> None:
    due, size, position = state.out.due, len(state.out.due), 0
    cpu, state.started, next_check = time.process_time(), time.perf_counter(), 0.0
    watched = [state.epoll.fileno()]
    while position < size or state.left:
        now = time.perf_counter() - state.started
        while position < size and due[position] <= now:
            state.begin(position)
            position += 1
            now = time.perf_counter() - state.started
        if now > next_check:
            state.give_up(now)
            next_check = now + 0.05
        wait = min(due[position] - now, 0.05) if position < size else 0.05
        # epoll counts in whole milliseconds; select on the epoll itself in microseconds.
        if wait > 0:
            select.select(watched, [], [], wait)
        for number, _ in state.epoll.poll(0, 256):
            state.receive(number)
    state.out.cpu_seconds = time.process_time() - cpu
    for link in state.links.values():
        link.socket.close()
    state.epoll.close()


def _post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def measure_cost(*, rate: float = 5000.0, seconds: float = 3.0) -> float:
    """Return the generator's own CPU time per request in seconds, against a server that answers without thinking.

    The server is a thread of another process, so that its time is not counted.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = context.Process(target=_answer_all, args=(listener,), daemon=True)
    server.start()
    body = json.dumps({"inputs": "a good film " * 9})
    plan = {
        "port": listener.getsockname()[1],
        "path": "/predict",
        "bodies": [body],
        "phases": [[rate, seconds]],
        "seed": 0,
        "connections": 256,
        "patience": 5.0,
    }
    out = run(plan)
    server.kill()
    answered = sum(status == 200 for status in out.status)
    if answered < 0.99 * len(out.status):
        raise RuntimeError(f"only {answered} of {len(out.status)} were answered")
    return out.cpu_seconds / len(out.status)


def _answer_all(listener: socket.socket) -> None:
    body = b'[{"label":"positive","score":0.99},{"label":"negative","score":0.01}]'
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def serve(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while client.recv(65536):
            client.sendall(answer)

    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


if __name__ == "__main__":
    if sys.argv[1:] == ["--cost"]:
        print(f"{measure_cost() * 1e6:.1f} µs of CPU time per request")
    else:
        found = run(json.load(sys.stdin))
        json.dump({name: getattr(found, name) for name in Outcome.__slots__}, sys.stdout)
