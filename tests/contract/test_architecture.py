"""ARCHITECTURE.md names files that exist, names that are defined in them, and flows of the length that it shows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGE = ROOT / "potstill"
# What an engineer can hold in mind on the way; a flow that grows beyond it wants a simpler way, not a higher number.
LONGEST = {
    "A text over HTTP to its answer": 15,
    "A checkpoint to its bundle": 16,
    "A training batch": 7,
    "A measured call to its verdict": 10,
}


def flow(title: str) -> list[str]:
    text = re.search(rf"\*\*{title}(.*?)\n\n", PAGE, re.DOTALL)
    assert text, title
    return re.findall(r"`((?:\w+/)*\w+\.py)`", text[1])


def test_every_file_and_folder_it_names_exists():
    named = set(re.findall(r"`((?:[\w.]+/)*[\w]+\.(?:py|md|toml)|(?:\w+/)+)`", PAGE))
    assert len(named) > 40
    missing = {
        name
        for name in named
        if not (ROOT / name).exists()
        and not (PACKAGE / name).exists()
        and not (PACKAGE / "serve" / "tasks" / name).exists()
    }
    assert not missing


def test_every_answer_is_a_name_defined_in_the_file_it_names():
    answers = re.findall(r"`(potstill/[\w/]+\.py)`: `(\w+)`", PAGE)
    assert len(answers) >= 10
    for file, name in answers:
        assert re.search(rf"^(?:def|class) {name}\b|^{name}\b.*=", (ROOT / file).read_text(), re.MULTILINE), (
            file,
            name,
        )


@pytest.mark.parametrize(("title", "most"), LONGEST.items())
def test_the_flows_are_short(title, most):
    files = flow(title)
    assert 5 <= len(set(files)) <= most


def test_the_picture_is_that_of_the_import_contracts():
    layers = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert layers
    drawn = re.search(r"```\n(cli/.*?)```", PAGE, re.DOTALL)
    assert drawn
    for name in re.findall(r"potstill\.(\w+)", layers[1]):
        assert re.search(rf"\b{name}(?:/|\.py)", drawn[1]), name
