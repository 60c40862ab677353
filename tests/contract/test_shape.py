"""The house's measure: short files, short functions, docstrings where the public looks."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "potstill"
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_files_and_functions_stay_readable():
    too_long = []
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text()
        if text.count("\n") > LONGEST_FILE:
            too_long.append(f"{file.name}: {text.count(chr(10))} lines")
        for node in functions(ast.parse(text)):
            if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                too_long.append(f"{file.name}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not too_long


def test_every_module_says_what_it_is_for():
    silent = [file.name for file in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(file.read_text()))]
    assert not silent


def test_no_module_is_called_by_a_word_that_says_nothing():
    assert not {file.stem for file in PACKAGE.rglob("*.py")} & {"utils", "common", "helpers", "manager", "misc"}
