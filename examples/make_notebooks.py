"""Run the scripts of examples/ cell by cell, and write each with its outputs as a notebook.

    python examples/make_notebooks.py [FOLDER]

The scripts are in the percent format (`# %%`), which editors and jupytext read as well. FOLDER is examples/ itself by
default; `make examples` writes elsewhere, to see that all cells still run.
"""

import ast
import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = ("classify.py", "embeddings.py")


def read_cells(script: str) -> list[tuple[str, str]]:
    """Return the kind and the source of each cell of a script in the percent format."""
    cells = []
    for block in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        if "[markdown]" in head:
            cells.append(("markdown", re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)))
        else:
            cells.append(("code", body.strip()))
    return cells


def run_cell(source: str, names: dict[str, Any]) -> str:
    """Run a cell and return what it prints, and the value of its last line if that is an expression."""
    printed, tree = io.StringIO(), ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
    return printed.getvalue() + (f"{value!r}\n" if value is not None else "")


def make_notebook(script: str) -> dict[str, Any]:
    """Run a script's cells and return the notebook (nbformat 4.5)."""
    made, names, count = [], {"__name__": "__main__"}, 0
    for number, (kind, source) in enumerate(read_cells(script)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = source.splitlines(keepends=True)
        if kind == "code":
            count += 1
            output = run_cell(source, names).splitlines(keepends=True)
            cell["execution_count"] = count
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": output}] if output else []
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main(folder: Path) -> None:
    """Write every notebook into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        notebook = make_notebook((HERE / name).read_text(encoding="utf-8"))
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        (folder / name).with_suffix(".ipynb").write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {folder / name}\n".replace(".py", ".ipynb"))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
