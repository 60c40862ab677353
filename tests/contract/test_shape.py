"""The package's shape: every module says what it is for, under a name that says something."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "potstill"


def test_every_module_says_what_it_is_for():
    silent = [file.name for file in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(file.read_text()))]
    assert not silent


def test_no_module_is_called_by_a_word_that_says_nothing():
    assert not {file.stem for file in PACKAGE.rglob("*.py")} & {"utils", "common", "helpers", "manager", "misc"}
