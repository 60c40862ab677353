"""How fast the server is: against the model alone, against others, and under far more load than it can answer.

    python -m benchmarks.serve.speed --bundle BUNDLE --texts FILE.jsonl --result FILE.json \
        --rivals-python ENVIRONMENT/bin/python [--infinity-python ENVIRONMENT/bin/python]

Client and servers share this machine's cores, and each server has the same threads and the same ONNX file. Loads are
multiples of what the model does in process at best (`raw.py`), so they are at least that multiple of what any server
can. Arrivals are open-loop (`load.py`): a latency counts from the moment a request was due. Goodput is what was
answered with 200 within the deadline of 1 s, per second; what is answered later is of no use to most callers. Its
share of what the model does alone is taken against measurements of the model right before and after each load, because
a shared machine's speed changes within minutes.

It takes about three minutes per server and round.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve.contestants import Contestant, Running, contestants
from benchmarks.serve.figures import (
    DEADLINE,
    MULTIPLES,
    UNLOADED,
    figures,
    judge,
    merge,
    quantiles,
    recovery,
    shown,
    table,
)
from benchmarks.serve.load import measure_cost
from benchmarks.serve.raw import Raw, read_texts
from potstill import machine
from potstill.files import write_text
from tests.faults.rawhttp import Connection, message
from tests.faults.served import free_port, own_many_files

PATIENCE = 5.0
CONNECTIONS = 512
TOLERANCE = 0.02
"""Served against raw probabilities; int8 may depend on its batch. It shows that the same model answers."""


def measure(
    contestant: Contestant,
    running: Running,
    texts: list[str],
    *,
    arguments: argparse.Namespace,
    best: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Return one round's figures of one server."""
    # Not spinning: its threads would take the cores from the server, whose turn comes next.
    raw = Raw(arguments.bundle, precision=arguments.precision, threads=contestant.run_threads, spinning=False)
    difference = check_answers(contestant, running.port, raw, texts)
    capacity = best["texts_per_second"]
    plan = {
        "port": running.port,
        "path": contestant.path,
        "bodies": [contestant.body(text) for text in texts],
        "connections": CONNECTIONS,
        "patience": PATIENCE,
        "probes": ["/health/live", "/health/ready"] if contestant.has_probes else [],
        "probe_seconds": 0.2,
    }
    load(plan | {"phases": [[capacity * 0.5, 2.0]], "seed": seed})
    result: dict[str, Any] = {"seconds_to_ready": running.seconds_to_ready, "difference_from_raw": difference}
    result["one_client"] = added_latency(contestant, running.port, raw, texts)
    result["sweep"] = []
    alone = [raw_rate(arguments, best)]
    for number, multiple in enumerate(MULTIPLES):
        before = running.cpu_seconds()
        # Few come when there is no load: a percentile of them needs more time.
        seconds = arguments.seconds * (4 if multiple == UNLOADED else 1)
        out = load(plan | {"phases": [[capacity * multiple, seconds]], "seed": seed + number})
        used = {"multiple": multiple, "server_cpu_share": (running.cpu_seconds() - before) / seconds}
        time.sleep(0.5)
        alone.append(raw_rate(arguments, best))
        used["raw_per_second"] = sum(alone[-2:]) / 2
        result["sweep"].append(used | figures(out, seconds=seconds))
    flood = [[capacity * 0.3, 4.0], [capacity * 10, arguments.seconds], [capacity * 0.3, 8.0]]
    result["recovery_seconds"] = recovery(load(plan | {"phases": flood, "seed": seed + 90}), flood)
    return result


def check_answers(contestant: Contestant, port: int, raw: Raw, texts: list[str]) -> float:
    """Return how far served probabilities are from the raw ones over 16 texts.

    Raises:
        RuntimeError: if it is too far: then another model, or none, answers.
    """
    worst = 0.0
    for text in texts[:16]:
        expected = raw.ask([text])[0]
        with Connection(port) as connection:
            response = connection.ask(message("POST", contestant.path, contestant.body(text).encode()))
        content = response.json()
        scores = content["data"][0] if contestant.in_list else content
        by_label = {entry["label"]: entry["score"] for entry in scores}
        served = np.array([by_label[label] for label in raw.manifest["labels"]])
        worst = max(worst, float(np.abs(served - expected).max()))
    if worst > TOLERANCE:
        raise RuntimeError(f"{contestant.name} answers {worst:.3f} away from the model")
    return worst


def load(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that a generator in a process of its own reports, as arrays."""
    given = json.dumps(plan).encode()
    done = subprocess.run([sys.executable, "-m", "benchmarks.serve.load"], input=given, capture_output=True, check=True)
    out = json.loads(done.stdout)
    texts = out.pop("retry_after")
    return {name: np.array(value) for name, value in out.items()} | {"retry_after": texts}


def added_latency(contestant: Contestant, port: int, raw: Raw, texts: list[str]) -> dict[str, Any]:
    """Return what one client waits for beyond the call in process: text by text in turn, the order alternating.

    The call has the threads that the server gives to one run. What the client does with an answer once its last byte is
    here is the client's time, and is not counted.
    """
    served, called = [], []
    with Connection(port) as connection:
        for number, text in enumerate(texts[:40] + texts[:400]):
            data = message("POST", contestant.path, contestant.body(text).encode())
            steps = (partial(wait_for, connection.socket, data), partial(call, raw, text))
            seconds = [0.0, 0.0]
            for step in (0, 1) if number % 2 else (1, 0):
                seconds[step] = steps[step]()
            if number >= 40:
                served.append(seconds[0])
                called.append(seconds[1])
    added = (np.array(served) - np.array(called)) * 1e3
    draws = np.random.default_rng(0).choice(added, size=(1000, len(added)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {
        "served_ms": quantiles(np.array(served)),
        "in_process_ms": quantiles(np.array(called)),
        "added_ms": {"median": float(np.median(added)), "interval": [float(low), float(high)]},
    }


def wait_for(client: socket.socket, data: bytes) -> float:
    """Return the seconds from sending a request to the last byte of its answer, which has a Content-Length.

    Raises:
        RuntimeError: if the answer is not one with status 200.
    """
    answer, left = b"", 1
    started = time.perf_counter()
    client.sendall(data)
    while left > 0:
        part = client.recv(65536)
        ended = time.perf_counter()
        answer += part
        head, found, body = answer.partition(b"\r\n\r\n")
        if found:
            left = int(head.lower().partition(b"content-length:")[2].split(b"\r", 1)[0]) - len(body)
        if not part or (found and b" 200 " not in head[:16]):
            raise RuntimeError(f"the server answered {answer[:100]!r}")
    return ended - started


def call(raw: Raw, text: str) -> float:
    """Return the seconds of the same in process."""
    started = time.perf_counter()
    raw.ask([text])
    return time.perf_counter() - started


def raw_rates(arguments: argparse.Namespace, *more: str) -> Any:
    """Return what the model does alone, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.serve.raw",
        "--bundle",
        str(arguments.bundle),
        "--texts",
        str(arguments.texts),
        "--column",
        arguments.column,
        "--precision",
        arguments.precision,
        "--threads",
        str(arguments.threads),
        "--seconds",
        str(arguments.raw_seconds),
        *more,
    ]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def raw_rate(arguments: argparse.Namespace, way: dict[str, Any]) -> float:
    """Return texts per second of one way, now."""
    one = {key: way[key] for key in ("callers", "threads", "batch_size", "spinning")}
    return float(raw_rates(arguments, "--way", json.dumps(one)))


def common_arguments(about: str | None) -> argparse.ArgumentParser:
    """Return what all comparisons of servers are told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="jsonl file; its lengths are those of the load")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2, help="of every server and of the model alone")
    parser.add_argument("--options", default="", help="more arguments for potstill serve")
    parser.add_argument(
        "--also",
        metavar="NAME=OPTIONS",
        action="append",
        default=[],
        help="potstill serve once more, with other arguments, e.g. 'openvino=--engine openvino'; repeatable",
    )
    parser.add_argument("--rivals-python", help="the Python of an environment with requirements-rivals.txt")
    parser.add_argument("--infinity-python", help="the Python of an environment with requirements-infinity.txt")
    parser.add_argument("--only", nargs="+", help="names of servers")
    parser.add_argument("--raw-seconds", type=float, default=2.5)
    parser.add_argument("--result", type=Path, help="JSON file")
    return parser


def parse() -> argparse.Namespace:
    parser = common_arguments(__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--rounds", type=int, default=2, help="each with new processes, the order turned around")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    own_many_files()
    texts = read_texts(arguments.texts, arguments.column)
    environment = machine.describe()  # first: its load average should be near 0
    cost = measure_cost()
    alone = raw_rates(arguments)
    best = max(alone["ways"], key=lambda way: way["texts_per_second"])
    way = f"{best['callers']} callers x {best['threads']} threads, batches of {best['batch_size']}"
    print(f"the model alone: {best['texts_per_second']:.0f} texts/s with {way}", flush=True)
    print(f"the client costs {cost * 1e6:.0f} µs per request", flush=True)
    known = [one.name for one in contestants(arguments, port=0)]
    if unknown := set(arguments.only or ()) - set(known):
        sys.exit(f"--only {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    names = [name for name in known if name in (arguments.only or known)]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    missed: dict[str, str] = {}
    for number in range(arguments.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            port = arguments.port or free_port()
            contestant = next(one for one in contestants(arguments, port=port) if one.name == name)
            try:
                with Running(contestant, port=port) as running:
                    found = measure(contestant, running, texts, arguments=arguments, best=best, seed=1000 * number)
                rounds[name].append(found)
                print(f"round {number + 1} of {arguments.rounds}: {name} is measured", flush=True)
            except (RuntimeError, OSError, KeyError, subprocess.CalledProcessError) as error:
                missed[name] = f"{type(error).__name__}: {error}"
                print(f"{name}: {missed[name]}", file=sys.stderr, flush=True)
    summary = {name: merge(found) for name, found in rounds.items() if found}
    print(table(summary))
    goals = {name: judge(found) for name, found in summary.items() if name.startswith("potstill")}
    for name, rows in goals.items():
        for row in rows:
            print(f"{name}: {'met   ' if row['met'] else 'MISSED'} {row['goal']}: {shown(row['value'], 2)}")
    if arguments.result:
        manifest = json.loads((arguments.bundle / "potstill.json").read_text())
        content = {
            "about": "client and servers on the same cores; open-loop Poisson arrivals over loopback",
            "date": datetime.now(UTC).date().isoformat(),
            "environment": environment,
            "bundle": {key: manifest[key] for key in ("parameters", "architecture")},
            "precision": arguments.precision,
            "threads": arguments.threads,
            "seconds": arguments.seconds,
            "deadline_seconds": DEADLINE,
            "patience_seconds": PATIENCE,
            "connections": CONNECTIONS,
            "client_seconds_per_request": cost,
            "raw": alone,
            "raw_best": best,
            "summary": summary,
            "goals": goals,
            "missed": missed,
            "rounds": rounds,
        }
        write_text(arguments.result, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
