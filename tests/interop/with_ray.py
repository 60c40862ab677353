"""Hold Ray Serve against the plain server: the same statuses and the same JSON, and what Ray costs.

python tests/interop/with_ray.py BUNDLE   (where potstill[ray] is installed)
"""

import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

TEXTS = ["a good film", "", "it was not very good, and it was much too long for what it had to say", "🙂 שלום"]
TOLERANCE = 1e-6  # other batch mates
ROUNDS = 100
SEEN = "x-tokens"
REQUESTS = [
    ("GET", "/health/live", None),
    ("GET", "/health/ready", None),
    ("POST", "/predict", {"inputs": TEXTS}),
    ("POST", "/predict", {"inputs": TEXTS[0]}),
    ("POST", "/predict", {"inputs": TEXTS[0], "parameters": {"top_k": 1}}),
    ("POST", "/predict", {"input": "x"}),
    ("POST", "/predict", {"inputs": ["x"] * 65}),
    ("POST", "/tokenize", {"inputs": TEXTS}),
    ("GET", "/predict", None),
    ("GET", "/nothing", None),
    ("GET", "/v1/models", None),
    ("GET", "/openapi.json", None),
]


def ask(port: int, method: str, path: str, content: object) -> tuple[int, dict[str, str], object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        return on(connection, method, path, content)
    finally:
        connection.close()


def on(connection, method, path, content):
    body = None if content is None else json.dumps(content)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    names = [name.lower() for name, _ in response.getheaders()]
    assert len(set(names)) == len(names), f"a header comes twice: {names}"
    headers = dict(zip(names, (value for _, value in response.getheaders()), strict=True))
    return response.status, headers, json.loads(response.read())


def same(got: object, want: object) -> bool:
    if isinstance(want, float):
        return abs(got - want) <= TOLERANCE
    if isinstance(want, list):
        return len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[name], want[name]) for name in want)
    return got == want


def median_ms(port: int) -> float:
    connection, taken = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        on(connection, "POST", "/predict", {"inputs": TEXTS[0]})
        taken.append((time.perf_counter() - started) * 1e3)
    connection.close()
    return statistics.median(taken)


def plain_server(bundle: Path) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "potstill", "serve", str(bundle), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            return process, int(found[1])
    raise AssertionError(f"the plain server ended: {''.join(said)}")


def main(bundle: Path) -> None:
    # Ray would tell its makers about this run.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    from potstill.serve.ray import Arguments, app

    process, plain = plain_server(bundle)
    try:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        with_port = plain_port_but_free()
        serve.start(http_options={"host": "127.0.0.1", "port": with_port})
        serve.run(app(Arguments(bundle=bundle)), route_prefix="/")
        for method, path, content in REQUESTS:
            status, headers, want = ask(plain, method, path, content)
            got_status, got_headers, got = ask(with_port, method, path, content)
            assert got_status == status, (method, path, got_status, status, got)
            assert same(got, want), (method, path, got, want)
            assert got_headers.get("content-type") == headers.get("content-type"), (method, path)
            assert (SEEN in got_headers) == (SEEN in headers), (method, path)
        medians = {"plain": median_ms(plain), "ray": median_ms(with_port)}
    finally:
        process.terminate()
        code = process.wait(60)
        serve.shutdown()
        ray.shutdown()
    assert code == 0, f"the plain server ended with {code}"
    shown = ", ".join(f"{name} {value:.2f} ms" for name, value in medians.items())
    print(f"ok: ray {ray.__version__} answers {len(REQUESTS)} requests as the plain server does; one client: {shown}")


def plain_port_but_free() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
