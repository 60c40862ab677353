"""The options of `potstill bench`, so that its function is short enough to read."""

from pathlib import Path
from typing import Annotated

import typer

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
