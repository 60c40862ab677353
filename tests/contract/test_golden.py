"""What users see, held still: help texts, Python names, the HTTP interface, metrics, a bundle's manifest and a report.

Each is compared with a file in `golden/`. A change on purpose is taken over by

    POTSTILL_UPDATE_GOLDEN=1 python -m pytest tests/contract/test_golden.py

and told in CHANGELOG.md. Numbers that depend on weights or on the machine, hashes, times and versions are masked.
"""

import http.client
import inspect
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from potstill.bench import DataSet, Request, bench
from potstill.bundle import read_bundle
from potstill.cli.app import COMMANDS, app
from potstill.config import BenchConfig

GOLDEN = Path(__file__).parent / "golden"
PACKAGES = ("potstill", "potstill.errors", "potstill.distill", "potstill.export", "potstill.bench", "potstill.serve")
# Fields of a report whose keys are names, or depend on how much was measured.
BY_NAME = {"packages", "floors", "missing", "intervals", "flops_per_token", "sha256", "architecture"}
# Of every endpoint one exchange that goes well, and the usual ways in which one does not.
EXCHANGES = (
    ("POST", "/predict", {"inputs": "we saw the tide"}),
    ("POST", "/predict", {"inputs": ["we saw the tide", "a peak"], "parameters": {"top_k": 1}}),
    ("POST", "/", {"inputs": "we saw the tide"}),
    ("POST", "/tokenize", {"inputs": "we saw the tide"}),
    ("POST", "/models/teacher-onnx/predict", {"inputs": "a peak"}),
    ("POST", "/predict", {"input": "a peak"}),
    ("POST", "/predict", {"inputs": 5}),
    ("POST", "/predict", None),
    ("GET", "/predict", None),
    ("GET", "/nowhere", None),
    ("POST", "/v1/embeddings", {"input": "a peak", "model": "teacher-onnx"}),
    ("GET", "/health", None),
    ("GET", "/health/live", None),
    ("GET", "/health/ready", None),
    ("GET", "/info", None),
    ("GET", "/v1/models", None),
    ("GET", "/v2", None),
    ("GET", "/v2/health/live", None),
    ("GET", "/v2/health/ready", None),
)


def compare(name, found):
    """Hold a text against its golden file, or write that."""
    file = GOLDEN / name
    if os.environ.get("POTSTILL_UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert file.is_file(), f"{file.name} is not there: run with POTSTILL_UPDATE_GOLDEN=1"
    assert found == file.read_text(encoding="utf-8"), f"{name} changed; if on purpose, see the top of this file"


def masked(value):
    """Return JSON with what differs from machine to machine replaced by what it is."""
    if isinstance(value, dict):
        return {key: masked(content) for key, content in value.items()}
    if isinstance(value, list):
        return [masked(content) for content in value]
    if isinstance(value, float):
        return "<number>"
    if isinstance(value, str):
        value = re.sub(r"\b[0-9a-f]{64}\b", "<sha256>", value)
        value = re.sub(r"\b\d+\.\d+\.\d+(\+\w+)?\b", "<version>", value)
        return re.sub(r"\d{4}-\d\d-\d\d(T[\d:.+Z]+)?", "<time>", value)
    return value


def as_text(value):
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def kinds(value):
    """Return the shape of a JSON document: what each field holds, of a list what its first element is."""
    if isinstance(value, dict):
        return {key: kinds(content) for key, content in value.items()}
    if isinstance(value, list):
        return [kinds(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_as_it_was(command):
    result = CliRunner().invoke(app, [*([command] if command else []), "--help"], terminal_width=100)
    assert result.exit_code == 0
    compare(f"help/{command or 'potstill'}.txt", result.stdout)


def test_public_python_names_are_as_they_were():
    lines = []
    for package in PACKAGES:
        module = import_module(package)
        names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        for name in sorted(names):
            found = getattr(module, name)
            if inspect.ismodule(found) or getattr(found, "__module__", package).split(".")[0] != "potstill":
                continue
            lines.append(f"{package}.{name}{signature(found)}")
            if inspect.isclass(found):
                public = [(key, value) for key, value in vars(found).items() if not key.startswith("_")]
                lines += [f"{package}.{name}.{key}{signature(value)}" for key, value in public if callable(value)]
    compare("python.txt", "\n".join(lines) + "\n")


def signature(found):
    if inspect.isclass(found) and issubclass(found, Exception):
        return ""
    try:
        text = str(inspect.signature(found)) if callable(found) else ""
        # Where a type lives is no part of the contract.
        return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", re.sub(r" at 0x[0-9a-f]+", "", text))
    except ValueError:
        return "(...)"


def test_the_manifest_is_as_it_was(tiny_bundle):
    manifest = json.loads((tiny_bundle / "potstill.json").read_text(encoding="utf-8"))
    assert read_bundle(tiny_bundle).manifest.schema_version == manifest["schema_version"]
    compare("manifest.json", as_text(kinds(manifest)))


def test_the_report_is_as_it_was(tiny_bundle, tiny_data, tmp_path):
    config = BenchConfig(
        batch_sizes=[1],
        num_tokens=[8, 16],
        rounds=5,
        launches=2,
        block_s=0.005,
        warm_up_s=0.05,
        resamples=200,
        throughput_batch_sizes=[1],
        throughput_tokens=8,
        callers=[1, 2],
        cold_starts=2,
        realistic_texts=16,
        thread_scaling=False,
        max_repeats=0,
        extra_launches=0,
    )
    models = [("teacher", str(tiny_bundle)), ("student", str(tiny_bundle))]
    request = Request(models=models, data=[DataSet(data=str(tiny_data))])
    bench(request, config=config, out_dir=tmp_path / "report")
    report = json.loads((tmp_path / "report/report.json").read_text(encoding="utf-8"))
    compare("report.txt", "\n".join(sorted(set(paths(report)))) + "\n")


def paths(value, path=""):
    """Yield the path of every field of a report; names that depend on the machine, the models or the data are `*`.

    An interval is a field and not two, because a disturbed machine has none in its place.
    """
    if path in (".energy.rows", ".environment.gpus", ".contestants[].quantisation"):  # by the machine; the manifest's
        yield path
    elif isinstance(value, dict):
        any_name = path.rpartition(".")[2] in BY_NAME or path == ".models"
        for key, content in value.items():
            yield from paths(content, f"{path}.{'*' if any_name else key}")
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for each in value:
            yield from paths(each, f"{path}[]")
    else:
        yield path


@pytest.fixture(scope="module")
def server(tiny_bundle):
    """A port that a real server process listens on."""
    command = [sys.executable, "-m", "potstill", "serve", str(tiny_bundle), "--precision", "fp32", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    port = None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            port = int(found[1])
            break
    assert port, "the server did not say where it listens"
    yield port
    process.terminate()
    assert process.wait(timeout=30) == 0
    process.stderr.close()


def ask(port, method, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply, text


def test_the_http_interface_is_as_it_was(server):
    found = []
    for method, path, body in EXCHANGES:
        reply, text = ask(server, method, path, body)
        answer = json.loads(text) if text and reply.getheader("content-type", "").startswith("application/json") else ""
        # Of the long description of the server only what there is.
        answer = kinds(answer) if path == "/info" else masked(answer)
        kept = {name.lower() for name, _ in reply.getheaders()}
        found.append(
            {
                "request": [method, path, body],
                "status": reply.status,
                "headers": sorted(kept - {"date", "server"}),
                "body": answer,
            }
        )
    compare("http.json", as_text(found))


def test_metric_names_are_as_they_were(server):
    ask(server, *EXCHANGES[0])  # a counter with labels is there once it has counted
    _, text = ask(server, "GET", "/metrics", None)
    types = [line for line in text.splitlines() if line.startswith("# TYPE potstill_")]
    labels = set()
    for name, inside in re.findall(r"^(potstill_\w+)\{(.*)\} ", text, re.MULTILINE):
        labels.add(f"{name}: {' '.join(re.findall('([a-z_]+)=', inside))}")
    compare("metrics.txt", "\n".join([*sorted(types), *sorted(labels)]) + "\n")
