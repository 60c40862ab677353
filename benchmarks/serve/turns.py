"""How long answers take under light loads, of all servers in turns.

    python -m benchmarks.serve.turns --bundle BUNDLE --texts FILE.jsonl --result FILE.json \
        --rivals-python ENVIRONMENT/bin/python [--infinity-python ENVIRONMENT/bin/python]

A shared machine's speed changes by a fifth within minutes, which is more than good servers differ by when there is
little to do. So all servers are started, each is stopped (SIGSTOP) while it is not its turn, and in each turn every one
gets the same texts at the same moments; who is first changes from turn to turn. Loads are one client that asks without
a pause, and open-loop arrivals (`load.py`) at shares of what the model does in process. A request that is not answered
counts with the seconds after which its client gave up.

Two figures compare 99th percentiles: that of all requests, which one bad second of the machine decides for whoever had
it, and the median over turns of the ratio within a turn, which it does not. Intervals are of a bootstrap over turns.

It takes about 20 seconds per server and turn.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.serve.contestants import Contestant, Running, contestants
from benchmarks.serve.figures import quantiles, shown
from benchmarks.serve.load import measure_cost
from benchmarks.serve.raw import Raw, read_texts
from benchmarks.serve.speed import CONNECTIONS, PATIENCE, check_answers, common_arguments, load, raw_rates, wait_for
from potstill import machine
from potstill.files import write_text
from tests.faults.rawhttp import Connection, message
from tests.faults.served import free_port

ONE_CLIENT = "one client"
SHARES = (0.1, 0.5)
WARM_SECONDS = 1.0
_DRAWS = 2000


def one_client(contestant: Contestant, running: Running, texts: list[str]) -> np.ndarray:
    """Return the seconds of each text, asked one after the other."""
    with Connection(running.port) as connection:
        asked = [message("POST", contestant.path, contestant.body(text).encode()) for text in texts]
        return np.array([wait_for(connection.socket, data) for data in asked])


def at_rate(
    contestant: Contestant, running: Running, texts: list[str], *, rate: float, requests: int, seed: int
) -> np.ndarray:
    """Return the seconds of each request of an open-loop load."""
    out = load(
        {
            "port": running.port,
            "path": contestant.path,
            "bodies": [contestant.body(text) for text in texts],
            "connections": CONNECTIONS,
            "patience": PATIENCE,
            "probes": [],
            "probe_seconds": 1.0,
            "seed": seed,
            "phases": [[rate, WARM_SECONDS], [rate, requests / rate]],
        }
    )
    seconds = np.where(out["status"] == 200, out["done"] - out["due"], PATIENCE)
    return np.asarray(seconds[out["phase"] == 1])


def measure(
    contestant: Contestant, running: Running, texts: list[str], *, capacity: float, turn: int, requests: int
) -> dict[str, np.ndarray]:
    """Return the seconds of one server's requests in one turn, by load."""
    place = turn * requests
    mine = [texts[(place + number) % len(texts)] for number in range(requests)]
    loads: dict[str, Callable[[], np.ndarray]] = {ONE_CLIENT: lambda: one_client(contestant, running, mine)}
    for share in SHARES:
        loads[f"{share} of capacity"] = lambda share=share: at_rate(
            contestant, running, texts, rate=capacity * share, requests=requests, seed=turn
        )
    one_client(contestant, running, texts[:20])  # it has been asleep
    return {what: run() for what, run in loads.items()}


def compare(mine: list[np.ndarray], other: list[np.ndarray]) -> dict[str, Any]:
    """Return the 99th percentile as a share of another server's, of all requests and within a turn."""
    within = np.array([ratio_of_p99(*pair) for pair in zip(mine, other, strict=True)])
    figures: dict[str, Callable[[np.ndarray], float]] = {
        "of_all": lambda turns: ratio_of_p99(*(np.concatenate([it[turn] for turn in turns]) for it in (mine, other))),
        "within_turns": lambda turns: float(np.median(within[turns])),
    }
    draw = np.random.default_rng(0)
    drawn = draw.integers(len(mine), size=(_DRAWS, len(mine)))
    return {
        name: {
            "ratio": figure(np.arange(len(mine))),
            "interval": np.quantile([figure(turns) for turns in drawn], [0.025, 0.975]).tolist(),
        }
        for name, figure in figures.items()
    }


def ratio_of_p99(first: np.ndarray, second: np.ndarray) -> float:
    """Return the ratio of two 99th percentiles."""
    return float(np.quantile(first, 0.99) / np.quantile(second, 0.99))


def summary(turns: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Return the percentiles of each server under one load, and of ours as shares of the rivals'."""
    found = {}
    for name, mine in turns.items():
        rivals = [rival for rival in turns if not rival.startswith("potstill")] if name.startswith("potstill") else []
        found[name] = quantiles(np.concatenate(mine)) | {
            "requests": sum(map(len, mine)),
            "unanswered": int(sum((seconds >= PATIENCE).sum() for seconds in mine)),
            "p99_of": {rival: compare(mine, turns[rival]) for rival in rivals},
        }
    return found


def main() -> None:
    arguments = parse()
    texts = read_texts(arguments.texts, arguments.column)
    environment = machine.describe()
    cost = measure_cost()
    capacity = max(way["texts_per_second"] for way in raw_rates(arguments)["ways"])
    wanted = [one.name for one in contestants(arguments, port=0) if one.name in (arguments.only or [one.name])]
    seconds: dict[str, dict[str, list[np.ndarray]]] = {}
    with ExitStack() as stack:
        servers = []
        for name in wanted:
            port = free_port()
            contestant = next(one for one in contestants(arguments, port=port) if one.name == name)
            running = stack.enter_context(Running(contestant, port=port))
            raw = Raw(arguments.bundle, precision=arguments.precision, threads=1, spinning=False)
            check_answers(contestant, port, raw, texts)
            running.pause()
            servers.append((contestant, running))
        for turn in range(arguments.turns):
            first = turn % len(servers)
            for contestant, running in servers[first:] + servers[:first]:
                running.resume()
                found = measure(contestant, running, texts, capacity=capacity, turn=turn, requests=arguments.requests)
                running.pause()
                for what, values in found.items():
                    seconds.setdefault(what, {}).setdefault(contestant.name, []).append(values)
            print(f"turn {turn + 1} of {arguments.turns}", flush=True)
    result = {what: summary(found) for what, found in seconds.items()}
    show(result)
    if arguments.result:
        content = {
            "about": "all servers in turns, the others stopped; client and servers on the same cores",
            "date": datetime.now(UTC).date().isoformat(),
            "environment": environment,
            "precision": arguments.precision,
            "threads": arguments.threads,
            "turns": arguments.turns,
            "texts_per_second_of_the_model": capacity,
            "client_seconds_per_request": cost,
            "loads": result,
        }
        write_text(arguments.result, json.dumps(content, indent=1) + "\n")


def show(result: dict[str, Any]) -> None:
    """Print the percentiles, and how ours relate to the best of the rivals."""
    for what, servers in result.items():
        print(f"{what}: p50 and p99 in ms")
        for name, found in servers.items():
            print(f"  {name:<24} {shown(found['p50'], 1):>7} {shown(found['p99'], 1):>7}")
        for name, found in servers.items():
            if found["p99_of"]:
                for figure in ("of_all", "within_turns"):
                    rival, ratio = max(found["p99_of"].items(), key=lambda pair: pair[1][figure]["ratio"])
                    (low, high), share = ratio[figure]["interval"], ratio[figure]["ratio"]
                    print(
                        f"  {name}, {figure}: p99 is {share:.2f} [{low:.2f}, {high:.2f}] of the best rival's, {rival}"
                    )


def parse() -> argparse.Namespace:
    parser = common_arguments(__doc__)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--requests", type=int, default=100, help="of each load in each turn")
    return parser.parse_args()


if __name__ == "__main__":
    main()
