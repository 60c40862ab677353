import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from potstill.cli.bench import bench
from potstill.cli.claims import claims
from potstill.errors import UsageError

QUICK = ["--batch-size", "1", "--num-tokens", "8", "--rounds", "5", "--threads", "1", "--precision", "fp32"]


@contextmanager
def silent_bars():
    yield lambda stage, done, total, note: None


@pytest.fixture
def invoke(monkeypatch):
    """Run the two commands as a root application would; the bars have their own tests."""
    render = SimpleNamespace(progress_bars=silent_bars, out=Console(width=100), err=Console(stderr=True))
    monkeypatch.setitem(sys.modules, "potstill.cli.render", render)
    app = typer.Typer()
    app.command("bench")(bench)
    app.command("claims")(claims)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "100"})


def write_data(folder, count=30):
    folder.mkdir()
    rows = [{"text": f"word{n} word{n + 1}", "label": "good" if n % 2 else "bad"} for n in range(count)]
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_bench_prints_one_json_document_with_quality_from_a_data_folder(invoke, teacher_dir, student_dir, tmp_path):
    data = write_data(tmp_path / "data")
    found = invoke("bench", teacher_dir, student_dir, "--data", data, "--out", tmp_path / "out", "--json", *QUICK)
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert report["quality"]["num_examples"] == 30
    assert report["config"]["rounds"] == 5
    assert report["command"].startswith("potstill")
    assert {(row["precision"], row["batch_size"], row["num_tokens"]) for row in report["latency"]} == {("fp32", 1, 8)}


def test_bench_needs_a_place_for_its_report(invoke, teacher_dir, student_dir):
    found = invoke("bench", teacher_dir, student_dir)
    assert found.exit_code == 2
    assert "--out" in found.output


def test_a_precision_that_does_not_exist_is_one_clear_error(invoke, teacher_dir, student_dir, tmp_path):
    found = invoke("bench", teacher_dir, student_dir, "--out", tmp_path / "out", "--precision", "int4")
    assert isinstance(found.exception, UsageError)
    assert "--precision: 'int4' is not valid" in str(found.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["bench", "claims"])
def test_help_shows_an_example(invoke, command):
    found = invoke(command, "--help")
    assert found.exit_code == 0
    assert f"Example: potstill {command}" in found.output


def test_claims_prints_every_definition_and_the_papers_own_retention(invoke):
    output = invoke("claims").output
    for word in ("size: 40 % smaller", "speed: 60 % faster", "quality: 97 % as good", "96.9%", "96.2%", "95.7%"):
        assert word in output
