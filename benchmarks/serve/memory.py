"""Does the server's memory stay where it is? 200,000 requests of random shapes, the resident set after every thousand.

    python -m benchmarks.serve.memory --bundle BUNDLE --result FILE.json

Shapes are random: 1 to 64 texts, from one word to beyond the model's longest, small ones far more often, now and then a
refused one. "After warm-up" is when the server says that it is ready. The slope is
fitted to the second half of the samples (Theil and Sen's median of slopes), its interval by a bootstrap over blocks of
ten samples, because neighbours are alike.
"""

import argparse
import json
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from potstill import machine
from potstill.files import write_text
from tests.faults.rawhttp import Connection, NoAnswer, message
from tests.faults.served import Server

WORDS = ("a", "the", "film", "was", "good", "bad", "very", "not", "warm", "and", "it", "is", "long", "never", "dull")
MOST_TEXTS = 64
MOST_GROWTH = 1.5
BLOCK = 10
DRAWS = 500


def request(draw: np.random.Generator, *, max_length: int) -> bytes:
    """Return one request of a random shape."""
    if draw.random() < 0.02:
        return message("POST", "/predict", b'{"inputs": [1, 2' if draw.random() < 0.5 else b'{"inputs": 1}')
    # Words in all: mostly as few as people send, one request in a hundred up to the most there can be.
    most = draw.choice([128, 1024, MOST_TEXTS * max_length], p=[0.9, 0.09, 0.01])
    words = int(np.exp(draw.uniform(0, np.log(most))))
    count = int(np.exp(draw.uniform(0, np.log(min(MOST_TEXTS, words) + 0.99))))
    lengths = 1 + draw.multinomial(words - count, draw.dirichlet(np.ones(count)))
    texts = [" ".join(draw.choice(WORDS, size=length)) for length in lengths]
    return message("POST", "/predict", json.dumps({"inputs": texts[0] if count == 1 else texts}).encode())


def client(server: Server, *, seed: int, count: int, max_length: int, statuses: Counter[str]) -> None:
    """Send `count` requests one after the other; those refused for load are sent again."""
    draw = np.random.default_rng(seed)
    # Drawing costs more than sending: a few hundred are drawn, and taken in random order.
    pool = [request(draw, max_length=max_length) for _ in range(min(count, 400))]
    connection: Connection | None = None
    for number in range(count):
        if number % len(pool) == len(pool) - 1:
            pool[draw.integers(len(pool))] = request(draw, max_length=max_length)
        data = pool[draw.integers(len(pool))]
        while True:
            try:
                connection = connection or Connection(server.port, seconds=60)
                response = connection.ask(data)
            except (OSError, NoAnswer) as error:
                statuses[type(error).__name__] += 1
                connection = None
                break
            statuses[str(response.status)] += 1
            if response.closes:
                connection.socket.close()
                connection = None
            if response.status != 429:
                break
            time.sleep(0.05)


def slope(samples: np.ndarray, requests: np.ndarray) -> dict[str, float | list[float]]:
    """Return bytes per 1000 requests over the second half of the samples, with a 95 % interval."""
    half = len(samples) // 2
    y, x = samples[half:].astype(float), requests[half:] / 1e3

    def fit(index: np.ndarray) -> float:
        first, second = np.triu_indices(len(index), 1)
        dx = x[index][second] - x[index][first]
        return float(np.median(((y[index][second] - y[index][first])[dx != 0]) / dx[dx != 0]))

    draw = np.random.default_rng(0)
    blocks = [np.arange(at, min(at + BLOCK, len(y))) for at in range(0, len(y), BLOCK)]
    fits = []
    for _ in range(DRAWS):
        chosen = np.sort(np.concatenate([blocks[number] for number in draw.integers(len(blocks), size=len(blocks))]))
        if len(np.unique(chosen)) > 2:
            fits.append(fit(chosen))
    low, high = np.quantile(fits, [0.025, 0.975]) if fits else (np.nan, np.nan)
    return {"value": fit(np.arange(len(y))), "interval": [float(low), float(high)]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--options", default="", help="more arguments for potstill serve")
    parser.add_argument("--result", type=Path, help="JSON file")
    arguments = parser.parse_args()
    manifest = json.loads((arguments.bundle / "potstill.json").read_text())
    found = measure(arguments, max_length=manifest["max_length"])
    growth, bad = report(found)
    if arguments.result:
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "environment": machine.describe(),
            "precision": arguments.precision,
            "threads": arguments.threads,
            "architecture": manifest["architecture"],
            "max_length": manifest["max_length"],
            "growth": growth,
        } | found
        write_text(arguments.result, json.dumps(content, indent=1) + "\n")
    return 0 if growth <= MOST_GROWTH and not bad else 1


def measure(arguments: argparse.Namespace, *, max_length: int) -> dict[str, Any]:
    """Send the requests, and return what came back and how the resident set went meanwhile."""
    statuses: list[Counter[str]] = [Counter() for _ in range(arguments.clients)]
    options = ["--precision", arguments.precision, "--threads", str(arguments.threads), *arguments.options.split()]
    started = time.monotonic()
    with Server([arguments.bundle], options=options) as server:
        warm, said = server.rss(), server.stderr
        threads = [
            threading.Thread(
                target=client,
                args=(server,),
                kwargs={
                    "seed": arguments.seed * 100 + number,
                    "count": arguments.requests // arguments.clients,
                    "max_length": max_length,
                    "statuses": statuses[number],
                },
            )
            for number in range(arguments.clients)
        ]
        for thread in threads:
            thread.start()
        sizes, counts, step = [], [], max(arguments.requests // 200, 1)
        while any(thread.is_alive() for thread in threads):
            done = sum(map(Counter.total, statuses))
            if done >= len(sizes) * step:
                sizes.append(server.rss())
                counts.append(done)
            time.sleep(0.02)
        after = server.rss()
    total = sum(statuses, Counter[str]())
    return {
        "seconds": time.monotonic() - started,
        "statuses": dict(total),
        "warm_bytes": warm,
        "end_bytes": after,
        "peak_bytes": max([*sizes, after]),
        "slope_bytes_per_1000_requests": slope(np.array([*sizes, after]), np.array([*counts, total.total()])),
        "samples": {"requests": counts, "bytes": sizes},
        "said_at_start": [line.split("http://")[0] if "http://" in line else line for line in said.splitlines()],
    }


def report(found: dict[str, Any]) -> tuple[float, set[str]]:
    """Print what was found; return the growth, and the statuses that nobody expected."""
    mib, statuses, growth = 2.0**20, found["statuses"], found["end_bytes"] / found["warm_bytes"]
    print(f"{sum(statuses.values())} requests in {found['seconds']:.0f} s: {statuses}")
    print(
        f"resident after warm-up {found['warm_bytes'] / mib:.1f} MiB, at the end {found['end_bytes'] / mib:.1f} "
        f"({growth:.3f} times), most {found['peak_bytes'] / mib:.1f}"
    )
    trend = found["slope_bytes_per_1000_requests"]
    low, high = (value / 1024 for value in trend["interval"])
    print(
        f"slope of the second half {trend['value'] / 1024:.2f} KiB per 1000 requests, "
        f"95 % interval {low:.2f} to {high:.2f}"
    )
    bad = {status for status in statuses if status not in {"200", "400", "413", "422", "429"}}
    if bad:
        print(f"unexpected: {sorted(bad)}", file=sys.stderr)
    return growth, bad


if __name__ == "__main__":
    sys.exit(main())
