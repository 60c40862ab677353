"""Bad input in the long run: `python -m tests.faults.fuzz` sends 200,000 inputs to a real server and reads what comes.

    python -m tests.faults.fuzz --result FILE.json          all parts
    python -m tests.faults.fuzz --parts grammar --inputs 5000 --seed 7
    python -m tests.faults.fuzz --parts grammar --seed 7 --first 1234 --inputs 1      one input again

Four parts: `grammar` (grammar.py: whatever HTTP can be made to look like, held against the standard by rfc.py), `json`
(inputs.py: bodies as JSON and as bytes, and whole requests, from a seed), `hypothesis` (any bytes and any JSON, with
Hypothesis' own search) and `schemathesis` (against /openapi.json, with all its checks).

What fails a run: a valid request without an answer; an answer that is not HTTP, answers nothing, or is framed wrong; a
connection that does not end; 5xx; errors of another shape; a status that /openapi.json does not document; a server that
does not answer another client meanwhile, works while nobody asks, grows, ends, or does not end when it is told to.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from potstill import machine
from potstill.files import write_text
from tests.faults.bed import Bed, quiet, tiny_bundle, well
from tests.faults.converse import send_grammar, spins, stops
from tests.faults.grammar import Input as Bytes
from tests.faults.inputs import NAMES, Input, Maker
from tests.faults.rawhttp import Connection, Hang, NoAnswer, Response, get, message
from tests.faults.seen import Seen, together
from tests.faults.served import Server

ANY_PATH = {400, 404, 405, 408, 413, 414, 415, 431, 429}
"""What a request may get before it is known which path it is for."""
HANG = 15.0
SCHEMATHESIS = """
[checks]
# 504 is the answer to a deadline that was missed, and schemathesis sends the shortest there are.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
# 413 is the answer to more or longer texts than are allowed, which schemathesis does not expect.
negative_data_rejection.expected-statuses = [
  "400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx",
]
positive_data_acceptance.expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "413", "429", "5xx"]

[[operations]]
# No schema can say that data fits a shape, or which outputs there are to which inputs.
include-path-regex = "/v2/"
checks.positive_data_acceptance.expected-statuses = [
  "2xx", "3xx", "401", "403", "404", "409", "413", "422", "429", "5xx",
]
"""


class Documented:
    """The statuses that /openapi.json gives for each path."""

    def __init__(self, port: int) -> None:
        response = get(port, "/openapi.json")
        if response.status != 200:
            raise RuntimeError(f"/openapi.json answers {response.status}")
        self.document = response.json()
        self._rules: list[tuple[re.Pattern[str], dict[str, set[int]]]] = []
        names = _model_names(port)
        self.paths: dict[str, list[str]] = {}
        for template, operations in self.document["paths"].items():
            pattern = re.compile(
                "".join("[^/]+" if part[:1] == "{" else re.escape(part) for part in re.split(r"(\{[^}]*\})", template))
            )
            found = {
                method: {int(code) for code in operation["responses"] if code.isdecimal()}
                for method, operation in operations.items()
                if isinstance(operation, dict) and "responses" in operation
            }
            self._rules.append((pattern, found))
            filled = re.sub(r"\{[^}]*\}", names[0], template, count=1)
            self.paths[re.sub(r"\{[^}]*\}", "1", filled)] = list(found)

    def allows(self, one: Input, status: int) -> bool:
        if status in ANY_PATH:
            return True
        path = one.path.partition("?")[0].partition("#")[0]
        for pattern, methods in self._rules:
            if pattern.fullmatch(path) and one.method.lower() in methods:
                return status in methods[one.method.lower()]
        return (status in {200, 204} and one.method in {"HEAD", "OPTIONS"}) or _is_decoded(path)


def _is_decoded(path: str) -> bool:
    # A path with percent signs may be one of the document's once it is decoded.
    return "%" in path or "//" in path


def _model_names(port: int) -> list[str]:
    try:
        return [str(entry["id"]) for entry in get(port, "/v1/models").json()["data"]] or ["model"]
    except Exception:
        return ["model"]


class Client:
    """Sends inputs over a connection that is kept as long as the server keeps it."""

    def __init__(self, server: Server, documented: Documented, seen: Seen) -> None:
        self._server, self._documented, self._seen = server, documented, seen
        self._connection: Connection | None = None

    def send(self, one: Input) -> None:
        started = time.monotonic()
        self._seen.inputs[one.kind] += 1
        self._send(one)
        self._seen.slowest_seconds = max(self._seen.slowest_seconds, time.monotonic() - started)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.socket.close()

    def _send(self, one: Input) -> None:
        for attempt in (1, 2):
            fresh = self._connection is None
            if self._connection is None:
                self._connection = Connection(self._server.port, seconds=HANG)
            try:
                response = self._connection.ask(one.data, head=one.method == "HEAD")
            except Hang as error:
                self._end()
                self._fail("hang", one, str(error))
                return
            except NoAnswer as error:
                self._end()
                if not error.partial and not fresh and attempt == 1:
                    continue  # the connection had ended before: it is tried once on a new one
                self._fail("no answer", one, str(error))
                return
            self._check(one, response)
            if response.closes:
                self._end()
            return

    def _fail(self, kind: str, one: Input, detail: str) -> None:
        self._seen.fail(kind, f"{one.kind} {one.method} {one.path}: {detail}; sent {one.data[:400]!r}")

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.socket.close()
            self._connection = None

    def _check(self, one: Input, response: Response) -> None:
        seen, status = self._seen, response.status
        seen.statuses[str(status)] += 1
        # Who gives the server ten milliseconds is told if they were not enough.
        hurried = status == 504 and b"x-request-timeout-ms" in one.data.lower()
        if status >= 500 and not hurried:
            self._fail("5xx", one, f"{status} {response.body[:200]!r}")
        elif not self._documented.allows(one, status):
            self._fail("not documented", one, str(status))
        if status >= 400 and one.method != "HEAD":
            wrong = _wrong_shape(response, one.path)
            if wrong:
                self._fail("shape", one, f"{status} {wrong}")
        if status == 429 and not response.headers.get("retry-after", "").isdecimal():
            self._fail("retry-after", one, str(response.headers))


def _wrong_shape(response: Response, path: str) -> str | None:
    try:
        content = response.json()
    except ValueError:
        return f"not JSON: {response.body[:100]!r}"
    if isinstance(content, dict) and isinstance(content.get("error"), dict) and ("/v1/" in path or "%" in path):
        content = content["error"]  # the shape that OpenAI's clients read
        if sorted(content) != ["code", "message", "param", "type"] or content.pop("param") is not None:
            return f"keys {sorted(content)}"
    elif not isinstance(content, dict) or sorted(content) != ["error", "error_type"]:
        return f"keys {sorted(content) if isinstance(content, dict) else content!r}"
    if not all(isinstance(value, str) and value for value in content.values()):
        return "values that are no texts"
    return None


def send_made(server: Server, documented: Documented, *, count: int, seed_number: int, clients: int = 4) -> Seen:
    """Send `count` made inputs with a few clients side by side."""
    seen = Seen()

    def run(number: int) -> None:
        client = Client(server, documented, seen)
        maker = Maker(seed_number * 1000 + number, documented.paths)
        for one in islice(maker.inputs(), count // clients + (number < count % clients)):
            if server.process.poll() is not None:
                seen.fail("server ended", str(server.process.returncode))
                return
            client.send(one)
        client.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | _TEXT, inner, max_size=5),
    max_leaves=15,
)


def send_hypothesis(server: Server, documented: Documented, *, count: int, seed_number: int) -> Seen:
    """Send any bytes, and any JSON, to every path that takes a body."""
    seen = Seen()
    client = Client(server, documented, seen)
    posts = sorted(path for path, methods in documented.paths.items() if "post" in methods)
    how = settings(
        max_examples=max(count // 2, 10),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=False,
    )

    def one(path: str, body: bytes) -> None:
        client.send(Input("hypothesis", "POST", path, message("POST", path, body)))

    @seed(seed_number)
    @how
    @given(st.sampled_from(posts), st.binary(max_size=300))
    def any_bytes(path: str, body: bytes) -> None:
        one(path, body)

    @seed(seed_number)
    @how
    @given(st.sampled_from(posts), _JSON | st.fixed_dictionaries({"inputs": _JSON}, optional={"parameters": _JSON}))
    def any_json(path: str, content: Any) -> None:
        one(path, json.dumps(content).encode())

    any_bytes()
    any_json()
    client.close()
    return seen


def send_schemathesis(server: Server, *, examples: int, seed_number: int) -> Seen:
    """Run schemathesis with all checks; its failures are ours."""
    seen = Seen()
    with TemporaryDirectory() as folder:
        events = Path(folder) / "events.ndjson"
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"http://127.0.0.1:{server.port}/openapi.json",
            "--checks",
            "all",
            "--max-examples",
            str(examples),
            "--seed",
            str(seed_number),
            "--continue-on-failure",
            "--request-timeout",
            "15",
            "--no-color",
            "--report-ndjson-path",
            str(events),
            "--no-shrink",
        ]
        (Path(folder) / "schemathesis.toml").write_text(SCHEMATHESIS)
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        lines = events.read_text().splitlines() if events.exists() else []
    for line in lines:
        _count_event(json.loads(line), seen)
    if done.returncode != 0:
        seen.failures["schemathesis"] += 1
        seen.examples["schemathesis"] = [done.stdout[-6000:] + done.stderr[-1000:]]
    return seen


def _count_event(event: Any, seen: Seen) -> None:
    """Count the interactions of one of schemathesis' events."""
    finished = event.get("ScenarioFinished") if isinstance(event, dict) else None
    for interaction in ((finished or {}).get("recorder", {}).get("interactions") or {}).values():
        seen.inputs["schemathesis"] += 1
        response = interaction.get("response")
        seen.statuses[str(response["status_code"]) if response else "end"] += 1


PARTS = {"grammar": 1.0, "json": 0.2, "hypothesis": 0.05, "schemathesis": 0.025}
"""The parts, and how many inputs each has for one of the grammar's."""
_GROWTH = 96 << 20
"""Bytes by which the server's memory may grow over all inputs."""
_LIMITS = {"header_seconds": 8.0, "body_seconds": 8.0, "idle_seconds": 10.0}
"""Long enough for clients that a full machine holds up between two pieces of a request."""
_IDLE_SHARE = 0.5
"""The share of a core that a server may take while nobody asks it anything."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--inputs", type=int, default=200_000, help="of the grammar; the other parts have a share of it"
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the grammar's first input")
    parser.add_argument("--bundle", type=Path, help="a tiny classifier is made without it")
    parser.add_argument("--options", default="", help="more arguments for potstill serve")
    parser.add_argument("--result", type=Path, help="JSON file")
    arguments = parser.parse_args()
    made = tiny_bundle() if arguments.bundle is None else nullcontext(arguments.bundle)
    started = time.monotonic()
    with made as bundle, TemporaryDirectory() as scratch:
        bed = Bed(bundle=bundle.resolve(), scratch=Path(scratch))
        seen, guilty = _run_parts(bed, arguments)
        _name_guilty(bed, guilty, arguments.seed)
    return report(seen, arguments=arguments, seconds=time.monotonic() - started)


def _run_parts(bed: Bed, arguments: argparse.Namespace) -> tuple[Seen, list[Bytes]]:
    """Run the parts against one server, and see whether it is well and ends when it is told to."""
    parts: list[Seen] = []
    guilty: list[Bytes] = []
    counts = {name: max(1, round(arguments.inputs * PARTS[name])) for name in arguments.parts}
    with bed.server(*arguments.options.split(), limits=_LIMITS) as (server, _):
        documented = Documented(server.port)
        send_made(server, documented, count=1000, seed_number=0)  # memory that every server comes to need
        before = server.rss()
        for name, count in counts.items():
            began = time.monotonic()
            if name == "grammar":
                seen, guilty = send_grammar(
                    server, sorted(documented.paths), count=count, seed=arguments.seed, first=arguments.first
                )
            elif name == "json":
                seen = send_made(server, documented, count=count, seed_number=arguments.seed)
            elif name == "hypothesis":
                seen = send_hypothesis(server, documented, count=count, seed_number=arguments.seed)
            else:
                # Examples are per operation and phase; the count is what was really sent.
                examples = max(count // max(len(documented.paths), 1), 5)
                seen = send_schemathesis(server, examples=examples, seed_number=arguments.seed)
            sent, seconds = sum(seen.inputs.values()), time.monotonic() - began
            print(f"{name}: {sent} inputs in {seconds:.0f} s, failures: {dict(seen.failures) or 'none'}", flush=True)
            for kind, examples in seen.examples.items():
                print(f"{kind}:\n" + "\n".join(examples[:5]), flush=True)
            parts.append(seen)
            if "hang" in seen.failures or "server ended" in seen.failures:
                break
        total = together(parts)
        for kind, why in _unwell(server, before).items():
            print(f"{kind}: {why}")
            total.fail(kind, why)
    return total, guilty


def _unwell(server: Server, rss_before: int) -> dict[str, str]:
    """Return what is wrong with the server afterwards, by kind; it is ended."""
    wrong: dict[str, str] = {}
    if server.process.poll() is not None:
        return wrong
    if (share := spins(server)) > _IDLE_SHARE:
        wrong["busy while idle"] = f"{share:.0%} of a core while nobody asks"
    try:
        print(well(server, rss_growth=_GROWTH, rss_before=rss_before), f"{(server.rss() - rss_before) >> 20} MiB more")
    except AssertionError as error:
        wrong["not well afterwards"] = str(error)
    try:
        code = server.terminate(seconds=20)
        if code != 0:
            wrong["ended wrongly"] = f"SIGTERM: exit code {code}: {server.stderr[-400:]}"
        quiet(server)
    except subprocess.TimeoutExpired:
        wrong["SIGTERM is not obeyed"] = "20 s after it the server still runs"
    except AssertionError as error:
        wrong["log"] = str(error)
    return wrong


def _name_guilty(bed: Bed, under_way: list[Bytes], seed_number: int) -> None:
    """Say which of the inputs that were under way when the server stood still stops a new one by itself."""
    for one in under_way:
        with bed.server() as (server, _):
            if stops(server, one):
                print(f"input {one.number} of seed {seed_number} alone stops a server: {one.data[:600]!r}", flush=True)


def report(total: Seen, *, arguments: argparse.Namespace, seconds: float) -> int:
    """Print the counts, write them, and return the exit code."""
    count = sum(total.inputs.values())
    print(f"{count} inputs in {seconds:.0f} s ({count / seconds:.0f} per second): {dict(total.inputs)}")
    print("statuses: " + ", ".join(f"{status} {number}" for status, number in sorted(total.statuses.items())))
    print(f"slowest {total.slowest_seconds:.2f} s; failures: {dict(total.failures) or 'none'}")
    if arguments.result:
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "environment": machine.describe(),
            "seed": arguments.seed,
            "seconds": seconds,
            "count": count,
            # Not asdict: it makes a Counter of a Counter's pairs.
            "inputs": dict(total.inputs),
            "statuses": dict(total.statuses),
            "failures": dict(total.failures),
            "examples": total.examples,
            "slowest_seconds": total.slowest_seconds,
        }
        write_text(arguments.result, json.dumps(content, indent=1) + "\n")
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
