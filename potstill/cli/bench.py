"""`potstill bench`: measure models side by side, and decide the claims."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.settings import JsonOption, OverwriteOption
from potstill.errors import CheckError, UsageError
from potstill.extras import require

if TYPE_CHECKING:
    from potstill.bench.contract import Report

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Bundles and checkpoints, each [NAME=]PLACE; a name may have one of both.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, report.md, report.html.", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The model all are held against.", show_default="the first")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Labelled texts: a hub id or folder; repeatable.", show_default="none, no quality"),
    ] = None,
    split: Annotated[str, typer.Option(help="Which split of the data is scored.")] = "validation",
    label_column: Annotated[
        str | None, typer.Option(help="The data's column with the label.", show_default="the usual names")
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="The data's column with the text; twice for pairs.", show_default="found")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=11, help="Score only the first so many examples.")] = None,
    suite: Annotated[
        Path | None, typer.Option(help="YAML: for each task of a table (GLUE) its models and data.", show_default=False)
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="fp32, int8, int8-static, fp16, bf16; repeatable.", show_default="all"),
    ] = None,
    runner: Annotated[
        list[str] | None,
        typer.Option(help="onnxruntime-cpu, torch-cuda, ...; repeatable.", show_default="onnxruntime-cpu; torch-cpu"),
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable.", show_default="1 8")] = None,
    num_tokens: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable.", show_default="16 128")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=5, help="How often each model takes its turn.", show_default="12")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for all turns, such as 2m, spent where intervals are wide.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each model.", show_default="the cores this process may use")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Latency and quality alone: no cold starts, throughput, scaling.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. cold_starts=10.")
    ] = None,
    claims: Annotated[
        Path | None, typer.Option(help="YAML with claims of your own, see `potstill claims`.", show_default=False)
    ] = None,
    required: Annotated[
        list[str] | None,
        typer.Option("--require", help="Exit 1 unless this claim passes; `all` for every one.", show_default=False),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="An older report: tell what got better or worse.", show_default=False)
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(help="Measure a sample of a report's cells again; stands alone.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs, the turns and the intervals.")] = 42,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a bench that was cut off.")] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how much smaller, faster and as good models are, and decide the claims.

    The first model is the baseline: the teacher.

    Example: potstill bench teacher-onnx/ student-onnx/ --data nyu-mll/glue:sst2 --out report/
    """
    for module in ("psutil", "jinja2", "matplotlib", "scipy", "onnxruntime"):
        require(module, extra="bench")
    if verify is not None:
        _verify(verify, seed=seed, as_json=as_json)
        return
    if not models or out is None:
        raise UsageError("name the models and a folder: potstill bench teacher-onnx/ student-onnx/ --out report/")
    from potstill import bench as benching

    given = {
        "batch_sizes": batch_size, "num_tokens": num_tokens, "precisions": precision, "runners": runner,
        "rounds": rounds, "threads": threads, "budget_s": _seconds(budget),
    }  # fmt: skip
    config = _config({key: value for key, value in given.items() if value}, settings=settings or [], quick=quick)
    reading: dict[str, Any] = {
        "split": split,
        "label_column": label_column,
        "text_columns": text_column,
        "limit": limit,
    }
    older = benching.read_report(compare) if compare is not None else None
    from potstill.cli.render import progress_bars

    with progress_bars() as progress:
        report = benching.bench(
            benching.Request(
                models=benching.name_models(models),
                baseline=baseline,
                data=[benching.DataSet(data=name, **reading) for name in data or []],
                suite=suite,
                claims=claims,
            ),
            config=config,
            out_dir=out,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            command=shlex.join(["potstill", *sys.argv[1:]]),
            tell=_tell,
            progress=progress,
        )
    _show(report, out, as_json=as_json)
    if older is not None:
        _compare(older, report)
    _require(report, required)


def _tell(sentence: str) -> None:
    """Say on stderr what must be known before the waiting begins."""
    from potstill.cli.render import err

    err.print(sentence, highlight=False, markup=False)


def _show(report: "Report", out: Path, *, as_json: bool) -> None:
    from potstill.cli.render import out as stdout
    from potstill.cli.report import render_report

    if as_json:
        typer.echo(report.model_dump_json(by_alias=True))
        return
    render_report(report, stdout)
    stdout.print(f"Report: {out / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def _compare(older: "Report", report: "Report") -> None:
    from potstill.bench.compare import compare
    from potstill.cli.render import err, print_table

    comparison = compare(older, report)
    for note in comparison.notes:
        err.print(note, highlight=False, markup=False)
    for title, (head, rows) in comparison.tables().items():
        print_table(f"\n{title}", head, rows)


def _require(report: "Report", required: Sequence[str] | None) -> None:
    """Raise `CheckError` where a claim that must pass does not: the gate of somebody's CI."""
    if not required:
        return
    from potstill.bench.claims import require as unmet

    failed = unmet(report.claims, "all" if "all" in required else required)
    if failed:
        told = "; ".join(f"{row.id} ({row.subject}) is {row.verdict}" for row in failed)
        raise CheckError(f"--require {' '.join(required)}: {told}")


def _verify(place: Path, *, seed: int, as_json: bool) -> None:
    from potstill import bench as benching
    from potstill.cli.render import print_table, progress_bars

    with progress_bars() as progress:
        findings = benching.verify_report(place, seed=seed, tell=_tell, progress=progress)
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], ensure_ascii=False))
    else:
        rows = [[row.what, row.old, row.new, row.outcome] for row in findings]
        print_table(f"{place}, measured again", ("cell", "then", "now", ""), rows)
    broken = [row.what for row in findings if not row.holds]
    if broken:
        raise CheckError(f"{len(broken)} of {len(findings)} cells do not hold: {', '.join(broken)}")


def _seconds(text: str | None) -> float | None:
    """Read `90`, `90s`, `2m` or `1.5h` as seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or float(found[1]) == 0:
        raise UsageError(f"--budget {text!r} is no time; write 90s, 2m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def _config(values: Mapping[str, Any], *, settings: Sequence[str], quick: bool) -> Any:
    """Check the flags as the recipe's `bench` section is checked."""
    from pydantic import ValidationError

    from potstill.recipe import parse_setting
    from potstill.sections import BenchConfig

    extras = {"cold_starts": 0, "throughput_batch_sizes": [], "thread_scaling": False, "compressed": False}
    less: dict[str, Any] = extras if quick else {}
    try:
        return BenchConfig.model_validate(less | dict(values) | dict(map(parse_setting, settings)))
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "--set"
        what = f"{first['input']!r} is not valid: {first['msg'].lower()}"
        if first["type"] == "extra_forbidden":
            what = f"is no setting of the bench; there are {', '.join(BenchConfig.model_fields)}"
        raise UsageError(f"{_FLAGS.get(where, '--set ' + where)}: {what}") from error


_FLAGS = {
    "precisions": "--precision", "runners": "--runner", "batch_sizes": "--batch-size", "num_tokens": "--num-tokens",
    "rounds": "--rounds", "threads": "--threads", "budget_s": "--budget",
}  # fmt: skip
