"""Who waits for whom: a client with short texts beside clients with long ones, on a server with two runners.

    python -m benchmarks.serve.fairness --bundle BUNDLE --texts FILE.jsonl --result FILE.json

The short client sends "a great movie" every 50 ms, whatever comes back, and its latencies count from the moment at
which a request was due. Beside it, in turn:

    a   requests of 64 texts of 30,000 characters, one after the other
    b   texts of 512 tokens, one request each, one after the other
    c   four clients as in a

A long client that is told to come back later does so. What must hold: nobody gets 429 while a runner is idle; beside a
and b 99 % of the short requests are answered, with a p95 of at most three runs of a long text; beside c 95 % are
answered within a second; and the long clients go on. How many long texts run per second is taken from /metrics, beside
the short client and without it.

A runner is known to be idle if fewer requests are under way than there are runners, a request of many texts being as
many as there are runners. It takes two to three minutes; the exit code is 1 if something is missed.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve.contestants import Contestant, Running
from benchmarks.serve.raw import read_texts
from potstill import machine
from potstill.files import write_text
from tests.faults.rawhttp import message
from tests.faults.served import free_port

SHORT = "a great movie"
EVERY = 0.05
TEXTS, CHARACTERS = 64, 30_000
PATIENCE = 10.0
"""Seconds after which a short request counts as not answered."""
LONG_PATIENCE = 70.0
BROKE = 0


@dataclass(slots=True)
class Asked:
    """What became of one request; seconds from when it was due, and of which run, as the server says."""

    status: int
    seconds: float
    run_seconds: float = 0.0
    tokens: int = 0
    was_idle: bool = False
    """Whether a runner had nothing to do when it was sent."""


@dataclass(slots=True)
class Client:
    """Requests of one kind to one server, and what became of them."""

    port: int
    body: bytes
    weight: int
    """Runners that one of its requests keeps busy."""
    under_way: list[int]
    """Of all clients, by weight; shared."""
    runners: int
    asked: list[Asked] = field(default_factory=list)
    is_ended: bool = False
    _free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def ask(self, *, due: float, patience: float) -> Asked:
        """Send one request on a connection that is free, and keep what became of it."""
        was_idle = sum(self.under_way) < self.runners
        self.under_way.append(self.weight)
        try:
            found = await asyncio.wait_for(self._exchange(due), patience)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            found = Asked(BROKE, time.perf_counter() - due)
        finally:
            self.under_way.remove(self.weight)
        found.was_idle = was_idle
        self.asked.append(found)
        return found

    async def _exchange(self, due: float) -> Asked:
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(message("POST", "/predict", self.body))
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(_header(head, b"content-length")))
        except BaseException:  # cancelled by the one who waited, among others
            writer.close()
            raise
        seconds = time.perf_counter() - due
        self._free.append((reader, writer))
        found = Asked(int(head[9:12]), seconds)
        if found.status == 200:
            found.run_seconds = float(_header(head, b"x-inference-time-ms")) / 1e3
            found.tokens = int(_header(head, b"x-tokens"))
        elif found.status == 429:
            found.run_seconds = float(_header(head, b"retry-after-ms")) / 1e3
        return found

    async def every(self, pause: float, *, seconds: float) -> None:
        """Send a request each `pause` seconds, for some time, and wait for the answers."""
        started, asking = time.perf_counter(), []
        for number in range(int(seconds / pause)):
            due = started + number * pause
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asking.append(asyncio.ensure_future(self.ask(due=due, patience=PATIENCE)))
        await asyncio.gather(*asking)

    async def one_after_the_other(self) -> None:
        """Send a request after the last one's answer, or when the server says, until cancelled."""
        while not self.is_ended:  # a request that ends at the same moment swallows the cancellation
            found = await self.ask(due=time.perf_counter(), patience=LONG_PATIENCE)
            if found.status != 200:
                await asyncio.sleep(found.run_seconds or 1.0)

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._free:
            writer.close()


def _header(head: bytes, name: bytes) -> bytes:
    found = re.search(rb"\r\n" + name + rb": *([^\r]*)", head)
    return found[1] if found else b"0"


@dataclass(slots=True)
class Load:
    """One kind of long work."""

    name: str
    about: str
    clients: int
    texts: list[str]


async def figures(port: int, load: Load, *, seconds: float, runners: int, with_short: bool) -> dict[str, Any]:
    """Return what the long clients of a load got, and the short one beside them."""
    under_way: list[int] = []
    body = json.dumps({"inputs": load.texts if len(load.texts) > 1 else load.texts[0]}).encode()
    weight = min(runners, len(load.texts))
    longs = [Client(port, body, weight, under_way, runners) for _ in range(load.clients)]
    short = Client(port, json.dumps({"inputs": SHORT}).encode(), 1, under_way, runners)
    before, started = await rows_run(port), time.perf_counter()
    asking = [asyncio.ensure_future(one.one_after_the_other()) for one in longs]
    if with_short:
        await short.every(EVERY, seconds=seconds)
    else:
        await asyncio.sleep(seconds)
    took = time.perf_counter() - started
    rows = await rows_run(port) - before - sum(one.status == 200 for one in short.asked)
    # On a slow machine a long request takes longer than that; then it is waited for.
    while with_short and not any(one.asked for one in longs) and time.perf_counter() - started < LONG_PATIENCE:
        await asyncio.sleep(0.1)
    for client, one in zip(longs, asking, strict=True):
        client.is_ended = True
        one.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    for client in (short, *longs):
        client.close()
    await until_idle(port)
    asked = [*short.asked, *(one for client in longs for one in client.asked)]
    answered = np.array([one.seconds for one in short.asked if one.status == 200])
    # What was not answered took as long as its client waited.
    waited = np.array([one.seconds if one.status == 200 else PATIENCE for one in short.asked])
    return {
        "seconds": took,
        "short": {
            "sent": len(short.asked),
            "answered": len(answered),
            "refused": sum(one.status == 429 for one in short.asked),
            "within_a_second": int((answered <= 1.0).sum()),
            "ms": {f"p{q}": float(np.quantile(waited, q / 100)) * 1e3 for q in (50, 95, 99)} if len(waited) else {},
        },
        "long": {
            "texts_per_second": rows / took,
            "answered": [sum(one.status == 200 for one in client.asked) for client in longs],
            "refused": [sum(one.status == 429 for one in client.asked) for client in longs],
            "failed": [sum(one.status not in {200, 429} for one in client.asked) for client in longs],
            "median_seconds": _median([one.seconds for client in longs for one in client.asked if one.status == 200]),
        },
        "refused_while_idle": sum(one.status == 429 and one.was_idle for one in asked),
    }


def _median(seconds: list[float]) -> float | None:
    return float(np.median(seconds)) if seconds else None


async def get(port: int, path: str) -> str:
    """Return the body of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(message("GET", path, headers={"Connection": "close"}))
    answer = (await reader.read()).decode()
    writer.close()
    return answer.partition("\r\n\r\n")[2]


async def rows_run(port: int) -> float:
    """Return how many texts the model has run so far."""
    return sum(map(float, re.findall(r"^potstill_batch_rows_sum{[^}]*} (\S+)$", await get(port, "/metrics"), re.M)))


async def until_idle(port: int) -> None:
    """Wait until nothing runs or waits."""
    while any(
        map(float, re.findall(r"^potstill_(?:running|queue)_rows{[^}]*} (\S+)$", await get(port, "/metrics"), re.M))
    ):
        await asyncio.sleep(0.1)


async def long_run(port: int, text: str, *, times: int = 7) -> tuple[float, int]:
    """Return the median seconds of one run of a long text, nothing else going on, and its tokens."""
    client = Client(port, json.dumps({"inputs": text}).encode(), 1, [], 2)
    found = [await client.ask(due=time.perf_counter(), patience=PATIENCE) for _ in range(times)]
    client.close()
    if any(one.status != 200 for one in found):
        raise SystemExit(f"a long text alone got {[one.status for one in found]}")
    return float(np.median([one.run_seconds for one in found])), found[0].tokens


def judge(found: dict[str, dict[str, Any]], *, run_seconds: float) -> list[dict[str, Any]]:
    """Return what must hold, with what was measured."""
    rows = []

    def must(what: str, value: float, sign: str, bound: float) -> None:
        met = value >= bound if sign == ">=" else value <= bound
        rows.append({"what": what, "value": value, "must": f"{sign} {bound:g}", "met": met})

    for name, one in found.items():
        short, long = one["short"], one["long"]
        must(f"{name}: 429 while a runner is idle", one["refused_while_idle"], "<=", 0)
        if name == "c":
            must(
                f"{name}: short requests answered within a second", short["within_a_second"] / short["sent"], ">=", 0.95
            )
        else:
            must(f"{name}: short requests answered", short["answered"] / short["sent"], ">=", 0.99)
            must(
                f"{name}: p95 of the short ones, in runs of a long text",
                short["ms"]["p95"] / 1e3 / run_seconds,
                "<=",
                3,
            )
        must(f"{name}: long requests answered", sum(long["answered"]), ">=", 1)
    return rows


def table(found: dict[str, dict[str, Any]], alone: dict[str, float]) -> str:
    """Return what each client got."""
    heads = (
        "beside",
        "short sent",
        "answered",
        "429",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "long answered",
        "long 429",
        "long texts/s",
        "alone",
    )
    rows = [heads]
    for name, one in found.items():
        short, long = one["short"], one["long"]
        rows.append(
            (
                name,
                str(short["sent"]),
                f"{short['answered'] / short['sent']:.1%}",
                str(short["refused"]),
                *(f"{short['ms'][q]:.0f}" for q in ("p50", "p95", "p99")),
                "+".join(map(str, long["answered"])),
                str(sum(long["refused"])),
                f"{long['texts_per_second']:.2f}",
                f"{alone[name]:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


async def measure(port: int, text: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return everything of one server."""
    runners = arguments.runners
    run_seconds, tokens = await long_run(port, text)
    print(f"a run of the long text, {tokens} tokens: {run_seconds * 1e3:.0f} ms", flush=True)
    many = Load("a", f"one client, {TEXTS} texts of {CHARACTERS:,} characters", 1, [text] * TEXTS)
    single = Load("b", f"one client, one text of {tokens} tokens", 1, [text[: 12 * tokens]])
    crowd = Load("c", "four clients as in a", 4, [text] * TEXTS)
    alone = {}
    for load in (many, single):
        found = await figures(port, load, seconds=arguments.seconds / 3, runners=runners, with_short=False)
        alone[load.name] = found["long"]["texts_per_second"]
    alone["c"] = alone["a"]  # more clients do not have more runners
    loads = {}
    for load in (many, single, crowd):
        loads[load.name] = await figures(port, load, seconds=arguments.seconds, runners=runners, with_short=True)
        print(f"{load.name}, {load.about}: measured", flush=True)
    return {
        "long_run_seconds": run_seconds,
        "tokens": tokens,
        "alone_texts_per_second": alone,
        "loads": loads,
        "goals": judge(loads, run_seconds=run_seconds),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="jsonl file, of whose texts a long one is made")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--runners", type=int, default=2)
    parser.add_argument("--options", default="", help="more arguments for potstill serve")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load")
    parser.add_argument("--result", type=Path, help="JSON file")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    environment = machine.describe()
    # One byte a character: 64 of them are to stay below the server's two million bytes.
    words = " ".join(read_texts(arguments.texts, arguments.column)).encode("ascii", "ignore").decode()
    words = re.sub(r'["\\\s]+', " ", words)
    text = (words * (1 + CHARACTERS // max(1, len(words))))[:CHARACTERS]
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "potstill",
        "serve",
        str(arguments.bundle),
        "--precision",
        arguments.precision,
        "--port",
        str(port),
        "--threads",
        "1",
        "--runners",
        str(arguments.runners),
    ]
    with Running(Contestant("potstill", command + arguments.options.split()), port=port):
        found = asyncio.run(measure(port, text, arguments))
    print(table(found["loads"], found["alone_texts_per_second"]))
    for row in found["goals"]:
        print(f"{'PASS  ' if row['met'] else 'MISSED'} {row['what']}: {row['value']:.4g}, must be {row['must']}")
    if arguments.result:
        manifest = json.loads((arguments.bundle / "potstill.json").read_text())
        content = {
            "about": "clients and server on the same cores, over loopback",
            "date": datetime.now(UTC).date().isoformat(),
            "environment": environment,
            "bundle": {key: manifest[key] for key in ("parameters", "architecture")},
            "precision": arguments.precision,
            "runners": arguments.runners,
            "seconds": arguments.seconds,
        }
        write_text(arguments.result, json.dumps(content | found, indent=1) + "\n")
    sys.exit(0 if all(row["met"] for row in found["goals"]) else 1)


if __name__ == "__main__":
    main()
