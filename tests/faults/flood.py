"""A flood while the server ends: every request that it took must be answered."""

import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.bed import PREDICTED
from tests.faults.rawhttp import Connection, Hang, NoAnswer
from tests.faults.served import Server


@dataclass(slots=True)
class Flood:
    """What clients saw that asked as fast as they could until they found nobody.

    A request is lost if its connection was made and its bytes were sent, and no whole response came. Two kinds are
    told apart. `lost` broke after a part of the response, or waited without end. `not_taken` are requests without a
    byte of response: on a connection that the server closed as idle at the same moment, or on a new one that the
    kernel had made and the server had not accepted when it closed its port. HTTP/1.1 tells the client to repeat those
    (RFC 9112, 9.3.1); a server that says `Connection: close`, and lets in whoever stands in line, makes them rare.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    not_taken: int = 0
    not_connected: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())


def run_client(server: Server, flood: Flood, *, reuse: bool, data: bytes = PREDICTED) -> None:
    """Ask until the server takes no connection any more; `reuse` keeps connections."""
    connection, used, statuses = None, 0, Counter[int]()
    while not flood.stop.is_set():
        if connection is None:
            try:
                connection, used = Connection(server.port, seconds=25), 0
            except OSError:
                flood.not_connected += 1
                break
        try:
            response = connection.ask(data)
        except NoAnswer as error:
            with flood.lock:
                if not error.partial and not isinstance(error, Hang):
                    flood.not_taken += 1
                else:
                    flood.lost.append(f"{error}, request {used + 1} of its connection")
            connection.socket.close()
            connection = None
            continue
        statuses[response.status] += 1
        used += 1
        if response.closes or not reuse:
            connection.socket.close()
            connection = None
    if connection is not None:
        connection.socket.close()
    with flood.lock:
        flood.statuses.update(statuses)


def flooded(server: Server, flood: Flood, *, clients: int = 12) -> list[threading.Thread]:
    """Start the clients, half of which make a connection for every request; they end by themselves."""
    threads = [
        threading.Thread(target=run_client, args=(server, flood), kwargs={"reuse": number % 2 == 0}, daemon=True)
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread], flood: Flood, *, seconds: float = 40) -> None:
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.1))
    if any(thread.is_alive() for thread in threads):
        flood.lost.append("a client still waits")
        flood.stop.set()


def established(port: int) -> int:
    """Return how many connections the kernel has to a port, by any process."""
    wanted = f":{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(wanted) and line.split()[3] == "01" for line in lines)


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True
