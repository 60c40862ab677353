"""`potstill bench`: measure models side by side, and decide the claims.

With `--verify`, cells of an earlier report are measured again; `--require` makes the exit code a gate for CI.
"""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli import stopping
from potstill.cli.checks import check_bench
from potstill.cli.options import JsonOption, LabelColumnOption, OverwriteOption, TextColumnOption, scored_split
from potstill.config import DEFAULT_SEED, BenchConfig, parse_section, parse_setting
from potstill.errors import CheckError, UsageError
from potstill.extras import require

if TYPE_CHECKING:
    from potstill.bench.report_schema import Report


ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Bundles and checkpoints, each [NAME=]PLACE; a name may have one of both.", show_default=False),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for report.json, report.md, report.html.", show_default=False)
]
BaselineOption = Annotated[str | None, typer.Option(help="The model all are held against.", show_default="the first")]
DataOption = Annotated[
    list[str] | None,
    typer.Option(help="Labelled texts: a hub id or folder; repeatable.", show_default="none, no quality"),
]
SplitOption = Annotated[str, typer.Option(help="Which split of the data is scored.")]
LimitOption = Annotated[int | None, typer.Option(min=11, help="Score only the first so many examples.")]
SuiteOption = Annotated[
    Path | None, typer.Option(help="YAML: for each task of a table (GLUE) its models and data.", show_default=False)
]
PrecisionOption = Annotated[
    list[str] | None, typer.Option(help="fp32, int8, int8-static, fp16, bf16; repeatable.", show_default="all")
]
RunnerOption = Annotated[
    list[str] | None,
    typer.Option(help="onnxruntime-cpu, torch-cuda, ...; repeatable.", show_default="onnxruntime-cpu; torch-cpu"),
]
BatchSizeOption = Annotated[
    list[int] | None, typer.Option(min=1, help="Texts in a batch; repeatable.", show_default="1 8")
]
NumTokensOption = Annotated[
    list[int] | None, typer.Option(min=1, help="Tokens of a text; repeatable.", show_default="16 128")
]
RoundsOption = Annotated[
    int | None, typer.Option(min=5, help="How often each model takes its turn.", show_default="12")
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Time for the whole bench, such as 2m: what does not fit is left out, and said.", show_default=False
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of each model.", show_default="the cores this process may use")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Latency and quality alone: no cold starts, throughput, scaling.")
]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. cold_starts=10.")
]
ClaimsOption = Annotated[
    Path | None,
    typer.Option(
        help="YAML with your own claims, in the place of potstill's; see `potstill claims`.", show_default=False
    ),
]
RequiredOption = Annotated[
    list[str] | None,
    typer.Option("--require", help="Exit 1 unless this claim passes; `all`: every one.", show_default=False),
]
CompareOption = Annotated[
    Path | None, typer.Option(help="An older report: tell what got better or worse.", show_default=False)
]
VerifyOption = Annotated[
    Path | None, typer.Option(help="Measure a sample of a report's cells again; stands alone.", show_default=False)
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the inputs, the turns and the intervals.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with a bench that was cut off.")]


def bench(
    models: ModelsArgument = None,
    out: OutOption = None,
    baseline: BaselineOption = None,
    data: DataOption = None,
    split: SplitOption = "validation",
    label_column: LabelColumnOption = None,
    text_column: TextColumnOption = None,
    limit: LimitOption = None,
    suite: SuiteOption = None,
    precision: PrecisionOption = None,
    runner: RunnerOption = None,
    batch_size: BatchSizeOption = None,
    num_tokens: NumTokensOption = None,
    rounds: RoundsOption = None,
    budget: BudgetOption = None,
    threads: ThreadsOption = None,
    quick: QuickOption = False,
    settings: SettingsOption = None,
    claims: ClaimsOption = None,
    required: RequiredOption = None,
    compare: CompareOption = None,
    verify: VerifyOption = None,
    seed: SeedOption = DEFAULT_SEED,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what was gained and lost, and decide the claims.

    Says how much smaller, faster and as good the models are. The first model is the baseline: the teacher.

    Example: potstill bench teacher-onnx/ student-onnx/ --data nyu-mll/glue:sst2 --out report/
    """
    if verify is not None:
        beside: dict[str, object] = {
            "models": models,
            "out": out,
            "data": data,
            "suite": suite,
            "claims": claims,
            "compare": compare,
        }
        beside |= {"require": required, "resume": resume, "overwrite": overwrite}
        for name, value in beside.items():
            if value:
                raise UsageError(f"--verify reads everything from the report; leave {name} out")
        _require_libraries()
        _verify(verify, seed=seed, as_json=as_json)
        return
    if not models or out is None:
        raise UsageError("name the models and a folder: potstill bench teacher-onnx/ student-onnx/ --out report/")
    flags: dict[str, object] = {
        "batch_sizes": batch_size,
        "num_tokens": num_tokens,
        "precisions": precision,
        "runners": runner,
    }
    flags |= {"rounds": rounds, "threads": threads}
    config = _parse_config(flags, quick=quick, budget=budget, settings=settings or ())
    check_bench(
        models,
        out,
        baseline=baseline,
        data=data or (),
        split=split,
        precisions=precision or (),
        claims=claims,
        required=required or (),
        resume=resume,
        overwrite=overwrite,
    )
    _require_libraries()
    from potstill import bench as benching
    from potstill.cli.render import progress_bars, tell

    named = benching.name_models(models)
    places = [place for _, place in named]
    request = benching.Request(
        models=named,
        baseline=baseline,
        data=[
            benching.DataSet(
                data=name,
                split=scored_split(split, name, places),
                text_columns=text_column,
                label_column=label_column,
                limit=limit,
            )
            for name in data or ()
        ],
        suite=suite,
        claims=claims,
    )
    stopping.keeps(lambda: _left(out))
    # Read before the bench: a file that is no report is found now, and --compare may name the report to be replaced.
    older = benching.read_report(compare) if compare is not None else None
    with progress_bars() as progress:
        report = benching.bench(
            request,
            config=config,
            out_dir=out,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            command=shlex.join(["potstill", *sys.argv[1:]]),
            tell=tell,
            progress=progress,
        )
    _show(report, out, as_json=as_json)
    if older is not None:
        _compare(older, report, as_json=as_json)
    if required:
        _require_claims(report, required)


def _require_libraries() -> None:
    """Raise before anything is measured if a library of the extra `bench` is missing; reports are drawn last."""
    for module in ("psutil", "jinja2", "matplotlib", "scipy", "onnxruntime"):
        require(module, extra="bench")


def _left(out: Path) -> stopping.Left:
    """Return what an interrupted bench has left; its samples are in the work folder `.NAME.bench` beside `out`."""
    work = out.resolve().with_name(f".{out.resolve().name}.bench")
    # The work folder is removed when the report is whole.
    if not work.is_dir():
        return (
            stopping.Left(["the report in " + str(out)], done=True)
            if (out / "report.json").is_file()
            else stopping.Left()
        )
    report = f", and a report of it in {out}" if (out / "report.json").is_file() else ""
    return stopping.Left([f"what was measured so far{report}"])


def _show(report: "Report", out: Path, *, as_json: bool) -> None:
    """Print a report and the path of its page, or the report as JSON."""
    from potstill.cli.render import out as stdout
    from potstill.cli.report import render_report

    if as_json:
        typer.echo(report.model_dump_json(by_alias=True))
        return
    render_report(report, stdout)
    stdout.print(f"Report: {out / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def _compare(older: "Report", report: "Report", *, as_json: bool) -> None:
    """Print what changed since an older report; with `--json` on stderr, so that stdout stays one JSON document."""
    from potstill.bench.compare import compare
    from potstill.cli.render import err, print_table

    comparison = compare(older, report)
    if as_json:
        err.print(comparison.to_markdown(), highlight=False, markup=False, soft_wrap=True)
        return
    for note in comparison.notes:
        err.print(note, highlight=False, markup=False)
    for title, (head, rows) in comparison.tables().items():
        print_table(f"\n{title}", head, rows)


def _require_claims(report: "Report", required: Sequence[str]) -> None:
    """Raise `CheckError` (exit code 1) if a claim that is required does not pass."""
    from potstill.bench.claims import require as unmet

    failed = unmet(report.claims, required)
    if failed:
        told = "; ".join(
            f"{row.id} ({row.subject}) is {row.verdict}" + (f": {row.reason}" if row.reason else "") for row in failed
        )
        raise CheckError(f"--require {' '.join(required)}: {told}")


def _verify(file: Path, *, seed: int, as_json: bool) -> None:
    """Measure a sample of a report's cells again and print both times; raise `CheckError` if one does not hold."""
    from potstill import bench as benching
    from potstill.cli.render import print_table, progress_bars, tell

    with progress_bars() as progress:
        findings = benching.verify_report(file, seed=seed, tell=tell, progress=progress)
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], ensure_ascii=False))
    else:
        rows = [[row.what, row.old, row.new, row.outcome] for row in findings]
        print_table(f"{file}, measured again", ("cell", "then", "now", ""), rows)
        # Many cells share a reason, such as another machine: print each once.
        for note in dict.fromkeys(row.note for row in findings if row.outcome == "not compared"):
            tell(f"not compared: {note}")
    broken = [row.what for row in findings if not row.holds]
    if broken:
        raise CheckError(f"{len(broken)} of {len(findings)} cells do not hold: {', '.join(broken)}")


_FLAGS = {
    "batch_sizes": "--batch-size",
    "num_tokens": "--num-tokens",
    "precisions": "--precision",
    "runners": "--runner",
    "rounds": "--rounds",
    "threads": "--threads",
}
"""The options that set fields of `BenchConfig`; the other fields are given by `--set`."""
_QUICK = {"cold_starts": 0, "throughput_batch_sizes": [], "thread_scaling": False, "compressed": False}
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def _parse_config(
    flags: Mapping[str, object], *, quick: bool, budget: str | None, settings: Sequence[str]
) -> BenchConfig:
    """Return the validated settings of the options that were given and of `--set`, which wins."""
    # Options that were left out are empty or None and take the defaults of `BenchConfig`.
    values = (_QUICK if quick else {}) | {field: value for field, value in flags.items() if value}
    if budget is not None:
        values["budget_s"] = parse_seconds(budget)
    changes = dict(map(parse_setting, settings))
    names = {f"bench.{field}": f"--set {field}" for field in changes}
    names |= {f"bench.{field}": flag for field, flag in _FLAGS.items()}
    return parse_section(BenchConfig, values | changes, flags=names)


def parse_seconds(text: str) -> float:
    """Parse a time such as `90`, `90s`, `2m` or `1.5h` into seconds.

    Raises:
        UsageError: if it is not of this form, or zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or float(found[1]) == 0:
        raise UsageError(f"--budget {text!r} is no time; write 90s, 2m or 1h")
    return float(found[1]) * _UNITS[found[2]]
