"""`potstill predict`: answer a whole file."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from potstill.bundle import MODEL_FILES
from potstill.cli import stopping
from potstill.cli.checks import check_predict
from potstill.cli.options import JsonOption, OverwriteOption
from potstill.cli.serve_options import EngineOption
from potstill.errors import UsageError
from potstill.extras import require


def predict(
    bundle: Annotated[Path, typer.Argument(help="The folder that `potstill export` wrote.", show_default=False)],
    file: Annotated[
        str, typer.Argument(help=".jsonl, .csv, .tsv or .parquet; - is jsonl on standard input.", show_default=False)
    ],
    out: Annotated[str, typer.Option(help=".jsonl, .csv or .parquet; - is jsonl on standard output.")],
    precision: Annotated[
        str | None,
        typer.Option(
            help=f"Which of the bundle's files answers: {', '.join(MODEL_FILES)}.", show_default="fp32, or the only one"
        ),
    ] = None,
    engine: EngineOption = "onnxruntime",
    text_column: Annotated[
        list[str] | None,
        # --column is its older name, from before every command had --text-column.
        typer.Option(
            "--text-column",
            "--column",
            help="The file's column with the text; twice, or a,b, for pairs.",
            show_default="the usual names",
        ),
    ] = None,
    parameters: Annotated[str, typer.Option(help="As in a request, e.g. '{\"top_k\": 1}'.", metavar="JSON")] = "{}",
    answer_column: Annotated[str, typer.Option(help="The column that is added.")] = "answer",
    on_error: Annotated[
        Literal["fail", "skip"], typer.Option(help="At a bad row: stop, or say why in its ANSWER_error.")
    ] = "fail",
    threads: Annotated[
        int | None, typer.Option(help="Texts' groups at once.", min=1, show_default="the cores this process may use")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer every row of a file, whatever its size.

    Rows keep their columns and their order. Killed at any moment, a run goes on with --resume. The output
    appears when it is whole.

    Example: potstill predict student-onnx/ reviews.jsonl --out answers.jsonl --precision int8
    """
    answer_parameters = _parse_parameters(parameters)
    check_predict(bundle, file, out, precision=precision, resume=resume, overwrite=overwrite)
    stopping.keeps(lambda: _find_kept(out))
    for module in ("onnxruntime", "tokenizers"):
        require(module, extra="serve")
    if engine == "openvino":
        require("potstill.serve.openvino_session", extra=engine)
    from potstill.cli.render import progress_bars
    from potstill.machine import available_cores
    from potstill.serve import Encoder
    from potstill.serve.predict_file import PredictSettings, predict_file

    workers = threads or available_cores()
    settings = PredictSettings(
        columns=text_column,
        parameters=answer_parameters,
        answer_column=answer_column,
        on_error=on_error,
        workers=workers,
    )
    # A run per core with one thread each: 1200 texts per second for a MiniLM of 3 layers on two cores; 1000 with both
    # threads in one run (docs/log.md, "Serve").
    encoder = Encoder(bundle, precision=precision, engine=engine, threads=1, spinning=False, runners=workers)
    with progress_bars() as progress:
        report = predict_file(
            encoder, file, out, settings=settings, resume=resume, overwrite=overwrite, progress=progress
        )
    for problem in report.problems:
        typer.echo(f"warning: {problem}", err=True)
    if as_json:
        content = {name: getattr(report, name) for name in ("rows", "failed", "resumed_rows", "seconds")}
        typer.echo(json.dumps({"output": out, **content}), err=out == "-")
        return
    left = f", {report.failed} of them without an answer" if report.failed else ""
    resumed = f", {report.resumed_rows} of them earlier" if report.resumed_rows else ""
    typer.echo(f"{report.rows} rows{left}{resumed}, in {report.seconds:.1f} s: {out}", err=out == "-")


def _find_kept(out: str) -> stopping.Left:
    """Return how many rows a stopped run has answered, by its journal beside `out`."""
    from potstill.serve.predict_file import rows_done

    if out == "-":
        return stopping.Left()
    path = Path(out).expanduser()
    rows = rows_done(path)
    if rows is None:
        return stopping.Left([f"all rows in {out}"], done=True) if path.is_file() else stopping.Left()
    return stopping.Left([f"{rows:,} rows"] if rows else [], drops=("--overwrite",))


def _parse_parameters(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--parameters is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError('--parameters must be a JSON object such as {"top_k": 1}')
    return content
