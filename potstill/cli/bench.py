"""`potstill bench`: measure a teacher and a student, and decide the claims."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from potstill.extras import require

if TYPE_CHECKING:
    from rich.console import Console

_VERDICT_STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
_WIDTH = 100


def bench(
    teacher: Annotated[Path, typer.Argument(help="The teacher's bundle.", show_default=False)],
    student: Annotated[Path, typer.Argument(help="The student's bundle.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.md and report.html.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(help="Labelled texts: a hub id or a folder.", show_default="none, quality stays unmeasured"),
    ] = None,
    split: Annotated[str, typer.Option(help="Which split of the data is scored.")] = "validation",
    label_column: Annotated[
        str | None, typer.Option(help="The data's column with the label.", show_default="the usual names")
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="The data's column with the text; twice for pairs.", show_default="found")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8; repeatable.", show_default="all that both bundles have")
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable.", show_default="1 8")] = None,
    num_tokens: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable.", show_default="16 128")] = None,
    rounds: Annotated[int, typer.Option(min=5, help="How often each model takes its turn in each cell.")] = 12,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each model.", show_default="the cores this process may use")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs, the turns and the intervals.")] = 42,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
) -> None:
    """Measure how much smaller, faster and as good a student is, and decide the three claims.

    Example: potstill bench teacher-onnx/ student-onnx/ --data nyu-mll/glue:sst2 --out report/
    """
    for module in ("psutil", "jinja2", "matplotlib", "onnxruntime"):
        require(module, extra="bench")
    from potstill import bench as benching
    from potstill.cli.render import out as stdout
    from potstill.cli.render import progress_bars

    given = {
        "batch_sizes": batch_size, "num_tokens": num_tokens, "precisions": precision, "rounds": rounds,
        "threads": threads,
    }  # fmt: skip
    config = _config({key: value for key, value in given.items() if value})
    examples = _examples(teacher, data=data, split=split, text_columns=text_column, label_column=label_column)
    with progress_bars() as progress:
        report = benching.bench(
            {"teacher": teacher, "student": student},
            examples=examples,
            config=config,
            out_dir=out,
            seed=seed,
            overwrite=overwrite,
            command=shlex.join(["potstill", *sys.argv[1:]]),
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False, allow_nan=False))
    else:
        render_report(report, stdout)
        stdout.print(f"Report: {out / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def render_report(report: Mapping[str, Any], console: "Console") -> None:
    """Draw a report's verdicts and tables on the terminal, at most 100 columns wide."""
    from potstill.bench.report import tables

    width = min(_WIDTH, console.width)
    verdicts = Table.grid(padding=(0, 2, 0, 0))
    for claim in report["claims"]:
        line = Text(f"{claim['claim']}: ", style="bold")
        # rich breaks lines at a no-break space too, so "95 %" would be torn.
        line.append(claim["summary"].replace("\u00a0", ""), style="not bold")
        verdicts.add_row(Text(claim["verdict"], style=_VERDICT_STYLES[claim["verdict"]]), line)
    console.print(verdicts, width=width, highlight=False)
    for title, (head, rows) in tables(report).items():
        if not rows:
            continue
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left", header_style="dim")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print()
        console.print(table, width=width, highlight=False)
    for failure in report["failures"]:
        line = Text("failed: ", style="red").append(f"{failure['model']} ({failure['stage']}): {failure['reason']}")
        console.print(line, width=width)


def _config(values: Mapping[str, Any]) -> Any:
    """Check the flags as the recipe's `bench` section is checked."""
    from pydantic import ValidationError

    from potstill.errors import UsageError
    from potstill.sections import BenchConfig

    try:
        return BenchConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]).replace("precisions", "precision").replace("_", "-")
        raise UsageError(f"--{where}: {first['input']!r} is not valid: {first['msg'].lower()}") from error


def _examples(
    teacher: Path, *, data: str | None, split: str, text_columns: list[str] | None, label_column: str | None
) -> Any:
    """Load the data with the teacher's own label order; None without data."""
    from potstill.bundle import read_bundle
    from potstill.data import load_examples
    from potstill.task import get_task

    if data is None:
        return None
    manifest = read_bundle(teacher, verify=False).manifest
    return load_examples(
        data,
        split=split,
        task=get_task(manifest.task),
        text_columns=text_columns,
        label_column=label_column,
        label_names=manifest.labels,
    )
