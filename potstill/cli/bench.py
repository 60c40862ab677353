"""The options of `potstill bench`, so that its function is short enough to read."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli import stopping
from potstill.cli.checks import check_bench
from potstill.cli.options import JsonOption, LabelColumnOption, OverwriteOption, TextColumnOption, scored_split
from potstill.errors import CheckError, UsageError
from potstill.extras import require

if TYPE_CHECKING:
    from potstill.bench.report_schema import Report
    from potstill.config import BenchConfig


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
BatchSizeOption = Annotated[list[int] | None, typer.Option(min=1, help="Repeatable.", show_default="1 8")]
NumTokensOption = Annotated[list[int] | None, typer.Option(min=1, help="Repeatable.", show_default="16 128")]
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
SeedOption = Annotated[int, typer.Option(min=0, help="Of the inputs, the turns and the intervals.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with a bench that was cut off.")]


# DOC: `potstill bench`: measure models side by side, and decide the claims.

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


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
    seed: SeedOption = 42,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how much smaller, faster and as good models are, and decide the claims.

    The first model is the baseline: the teacher.

    Example: potstill bench teacher-onnx/ student-onnx/ --data nyu-mll/glue:sst2 --out report/
    """
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    if "verify" not in given:
        _check(given)
    for module in ("psutil", "jinja2", "matplotlib", "scipy", "onnxruntime"):
        require(module, extra="bench")
    if "verify" in given:
        _verify(given)
    else:
        _measure(given)


def _check(given: Mapping[str, Any]) -> None:
    """Refuse what needs no library to be refused."""
    if not given.get("models") or "out" not in given:
        raise UsageError("name the models and a folder: potstill bench teacher-onnx/ student-onnx/ --out report/")
    _config(given)
    check_bench(given)


def _measure(given: Mapping[str, Any]) -> None:
    from potstill import bench as benching
    from potstill.bench.claims import check_required, load_claims
    from potstill.cli.render import progress_bars, tell

    config, request = _config(given), _request(given)
    stopping.keeps(lambda: _left(given["out"]))
    check_required(load_claims(request.claims), given.get("required", ()))
    older = benching.read_report(given["compare"]) if "compare" in given else None
    with progress_bars() as progress:
        report = benching.bench(
            request,
            config=config,
            out_dir=given["out"],
            seed=given["seed"],
            resume="resume" in given,
            overwrite="overwrite" in given,
            command=shlex.join(["potstill", *sys.argv[1:]]),
            tell=tell,
            progress=progress,
        )
    _show(report, given["out"], as_json="as_json" in given)
    if older is not None:
        _compare(older, report, as_json="as_json" in given)
    _require(report, given.get("required"))


def _left(out: Path) -> stopping.Left:
    """Return what an interrupted bench has measured."""
    work = out.resolve().with_name(f".{out.resolve().name}.bench")
    if not work.is_dir():
        return (
            stopping.Left(["the report in " + str(out)], done=True)
            if (out / "report.json").is_file()
            else stopping.Left()
        )
    report = f", and a report of it in {out}" if (out / "report.json").is_file() else ""
    return stopping.Left([f"what was measured so far{report}"])


def _request(given: Mapping[str, Any]) -> Any:
    from potstill.bench import DataSet, Request, name_models

    reading: dict[str, Any] = {name: given.get(name) for name in ("label_column", "limit")}
    models = name_models(given["models"])
    places = [place for _, place in models]
    return Request(
        models=models,
        baseline=given.get("baseline"),
        data=[
            DataSet(
                data=name,
                split=scored_split(given.get("split"), name, places),
                text_columns=given.get("text_column"),
                **reading,
            )
            for name in given.get("data", ())
        ],
        suite=given.get("suite"),
        claims=given.get("claims"),
    )


def _show(report: "Report", out: Path, *, as_json: bool) -> None:
    from potstill.cli.render import out as stdout
    from potstill.cli.report import render_report

    if as_json:
        typer.echo(report.model_dump_json(by_alias=True))
        return
    render_report(report, stdout)
    stdout.print(f"Report: {out / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def _compare(older: "Report", report: "Report", *, as_json: bool) -> None:
    """Tell what changed; beside a JSON document on stderr, so that stdout stays one."""
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


def _require(report: "Report", required: Sequence[str] | None) -> None:
    """Raise `CheckError` where a claim that must pass does not: the gate of somebody's CI."""
    if not required:
        return
    from potstill.bench.claims import require as unmet

    failed = unmet(report.claims, required)
    if failed:
        told = "; ".join(
            f"{row.id} ({row.subject}) is {row.verdict}" + (f": {row.reason}" if row.reason else "") for row in failed
        )
        raise CheckError(f"--require {' '.join(required)}: {told}")


def _verify(given: Mapping[str, Any]) -> None:
    for name in ("models", "out", "data", "suite", "claims", "compare", "required", "resume", "overwrite"):
        if given.get(name):
            raise UsageError(
                f"--verify reads everything from the report; leave {name.replace('required', 'require')} out"
            )
    from potstill import bench as benching
    from potstill.cli.render import print_table, progress_bars, tell

    with progress_bars() as progress:
        findings = benching.verify_report(given["verify"], seed=given["seed"], tell=tell, progress=progress)
    if "as_json" in given:
        typer.echo(json.dumps([vars(finding) for finding in findings], ensure_ascii=False))
    else:
        rows = [[row.what, row.old, row.new, row.outcome] for row in findings]
        print_table(f"{given['verify']}, measured again", ("cell", "then", "now", ""), rows)
        for note in dict.fromkeys(row.note for row in findings if row.outcome == "not compared"):
            tell(f"not compared: {note}")
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


def _config(given: Mapping[str, Any]) -> "BenchConfig":
    """Check the flags as the recipe's `bench` section is checked."""
    from potstill.config import BenchConfig, parse_section, parse_setting

    values = _LESS if "quick" in given else {}
    values = values | {field: given[flag] for field, flag in _FIELDS.items() if given.get(flag)}
    budget_s = _seconds(given.get("budget"))
    values = values | ({} if budget_s is None else {"budget_s": budget_s})
    settings = dict(map(parse_setting, given.get("settings", ())))
    flags = {f"bench.{field}": f"--set {field}" for field in settings}
    flags |= {f"bench.{field}": f"--{flag.replace('_', '-')}" for field, flag in _FIELDS.items()}
    return parse_section(BenchConfig, values | settings, flags=flags)


_FIELDS = {
    "batch_sizes": "batch_size", "num_tokens": "num_tokens", "precisions": "precision", "runners": "runner",
    "rounds": "rounds", "threads": "threads",
}  # fmt: skip
_LESS: dict[str, Any] = {
    "cold_starts": 0, "throughput_batch_sizes": [], "thread_scaling": False, "compressed": False
}  # fmt: skip
