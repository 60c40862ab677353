"""Claims as files hold them, and the command that prints them."""

import pytest
import typer
import yaml
from typer.testing import CliRunner

from potstill.bench.claims.claim_file import load_claims, parse_claims
from potstill.bench.claims.metrics import METRICS
from potstill.cli.claims import claims as command
from potstill.errors import RecipeError


def write(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_users_file_takes_the_place_of_the_packages_claims(tmp_path):
    file = write(
        tmp_path,
        "claims:\n- {id: p95, claim: quick, measure: latency_p95_ms, at_most: 10, where: {load: 1 x 64}}\n"
        "- {id: speed, claim: twice as fast, measure: speed_ratio, at_least: 2}\n",
    )
    found = {row.id: row for row in load_claims(file)}
    assert list(found) == ["p95", "speed"]
    assert (found["speed"].target, found["speed"].where.precision) == (2.0, None)
    assert (found["p95"].direction, found["p95"].target) == ("at_most", 10.0)
    assert [row.id for row in load_claims(None)] == ["size", "file", "speed", "quality"]


def test_a_users_file_keeps_those_of_the_package_that_it_names(tmp_path):
    file = write(tmp_path, "claims: [size, {id: p95, claim: quick, measure: latency_p95_ms, at_most: 10}, quality]")
    found = load_claims(file)
    assert [row.id for row in found] == ["size", "p95", "quality"]
    assert [row for row in found if row.id != "p95"] == [
        row for row in load_claims(None) if row.id in {"size", "quality"}
    ]
    with pytest.raises(RecipeError, match="sped: is none of potstill's own claims; did you mean 'speed'"):
        load_claims(write(tmp_path, "claims: [sped]"))
    with pytest.raises(RecipeError, match="size: id: is there twice"):
        load_claims(write(tmp_path, "claims: [size, {id: size, claim: a, measure: file_mb, at_most: 1}]"))


@pytest.mark.parametrize("text", ["", "# nothing yet", "claims:", "claims: []"])
def test_an_empty_file_decides_nothing_and_is_refused(tmp_path, text):
    with pytest.raises(RecipeError, match="has no list called claims; `potstill claims` prints one"):
        load_claims(write(tmp_path, text))


def test_all_faults_are_told_at_once_with_file_and_id(tmp_path):
    file = write(
        tmp_path,
        "claims:\n"
        "- {id: a, claim: x, measure: latency_p95, at_most: 10, wherre: {}}\n"
        "- {id: b, claim: x, measure: peak_mb, at_most: 1, at_least: 2, where: {loadd: 1x64, data: sst2}}\n"
        "- {id: c, claim: x, measure: score, where: {precision: int4, runner: onnx}}\n"
        "- {id: d, claim: x, measure: latency_p50_ms, at_most: ten, where: {load: big}}\n"
        "- {claim: x, measure: speed_ratio, at_least: 0}\n"
        "- {id: b, claim: x, measure: peak_mb, at_most: .nan}\n"
        "- {id: all, claim: x, measure: file_bytes_share, at_most: 1, where: {precision: fp32, against: fp32}}\n"
        "- 7\n",
    )
    with pytest.raises(RecipeError) as caught:
        load_claims(file)
    first, *faults = str(caught.value).splitlines()
    assert first == f"{file} is not valid:"
    expected = [
        "a: wherre: unknown key; did you mean 'where'?",
        "a: measure: 'latency_p95' is unknown; did you mean 'latency_p95_ms'?",
        "b: where.loadd: unknown key; did you mean 'load'?",
        "b: give either at_least or at_most, in the measure's unit",
        "b: where.data: peak_mb does not depend on it; it takes model, precision, runner",
        "c: where.precision: 'int4' is unknown; did you mean 'int8'?",
        "c: where.runner: 'onnx' is unknown",
        "c: give either at_least or at_most",
        "d: at_most: input should be a valid number (it is 'ten')",
        "d: where.load: 'big' is no load; write 1x64 (batch x tokens), 1xlongest, or own texts",
        "claim 5: id: is missing",
        "claim 5: the target of a ratio must be above 0",
        "b: at_most: input should be a finite number",
        "b: id: is there twice",
        "all: id: 'all' stands for every claim",
        "all: where.against: fp32 against fp32 compares nothing",
        "claim 8: it: input should be",
    ]
    assert len(faults) == len(expected)
    assert [fault for fault, words in zip(faults, expected, strict=True) if not fault.startswith(f"  {words}")] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("claims: [", "is not YAML"),
        ("- {id: a}", "no list called claims"),
        ("claims: []", "no list called claims"),
        ("claims: [{id: a, claim: b, measure: file_mb, at_most: 1}]\nclaim: 1", "claim: unknown key; did you mean"),
    ],
)
def test_a_file_that_is_no_list_of_claims_is_refused(tmp_path, text, words):
    with pytest.raises(RecipeError, match=words):
        load_claims(write(tmp_path, text))


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(RecipeError, match=r"nothing\.yaml cannot be read as claims"):
        load_claims(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("target", [True, "0.4", [1]])
def test_a_target_is_a_number(target):
    facts = {"id": "mine", "claim": "x", "measure": "score", "at_least": target}
    with pytest.raises(RecipeError, match="at_least: input should be a valid number"):
        parse_claims(yaml.safe_dump({"claims": [facts]}), origin="mine.yaml")


# The command.


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.command("claims")(command)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "100"})


def test_the_command_prints_claims_definitions_and_measures_below_100_columns(invoke):
    output = invoke().output
    for words in (
        "size: 40 % smaller (at least 0.4)",
        "speed: 60 % faster (at least 1.6 ×)",
        "quality: 97 % as good",
        "39.4",
        "1.63",
        "96.9%  mean with WNLI",
        "96.2%",
        "95.7%",
        "86.4%",
    ):
        assert words in output
    for name, measure in METRICS.items():
        assert f"  {name}, {measure.unit}:" in output or f"  {name}:" in output
    assert max(map(len, output.splitlines())) < 100


def test_the_example_that_it_prints_is_valid_and_is_checked_when_given_back(invoke, tmp_path):
    output = invoke().output
    start, end = output.index("  claims:"), output.index("What they can measure")
    file = write(tmp_path, "\n".join(line[2:] for line in output[start:end].splitlines()))
    shown = invoke("--claims", file).output
    assert "p95: p95 at most 10 ms (at most 10 ms)" in shown
    assert "measure: points_lost, precision int8, data sst2, against fp32" in shown
    assert isinstance(invoke("--claims", write(tmp_path, "claims: 1")).exception, RecipeError)
