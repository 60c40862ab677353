"""`potstill run`: a whole recipe, from teacher to bench report."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from potstill.bundle import RECOMMENDED, read_bundle
from potstill.cli import stopping
from potstill.cli.checks import check_run
from potstill.cli.options import (
    JsonOption,
    LabelColumnOption,
    OverwriteOption,
    ResumeOption,
    SetOption,
    TextColumnOption,
    column_flags,
    output_folder,
    resolve,
)
from potstill.extras import require
from potstill.pipeline import check_out, finished


def run(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `potstill recipes`) or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for everything the run makes.", show_default=False)] = None,
    text_column: TextColumnOption = None,
    label_column: LabelColumnOption = None,
    settings: SetOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Distil a student, export teacher and student, bench both and decide the claims.

    Example: potstill run sst2 --out out/sst2 --set student.layers=3 --set data.name=my-data/
    """
    resolved = resolve(recipe, flags=column_flags(text_column, label_column), settings=settings)
    folder = output_folder(out, resolved)
    check_out(resolved, folder, resume=resume or resolved.resume, overwrite=overwrite)
    check_run(resolved)
    stopping.keeps(lambda: left_by_run(folder))
    for module, extra in (("torch", "distill"), ("onnx", "export"), ("psutil", "bench")):
        require(module, extra=extra)
    if resolved.export.check_engines:
        require("potstill.serve.openvino_session", extra="openvino")
    from potstill.bench.report.tables import no_better
    from potstill.cli.distill import announce
    from potstill.cli.render import out as stdout
    from potstill.cli.render import progress_bars, tell
    from potstill.cli.report import render_report
    from potstill.pipeline import run as run_pipeline

    with progress_bars() as progress:
        report = run_pipeline(
            resolved,
            folder,
            resume=resume or resolved.resume,
            overwrite=overwrite,
            progress=progress,
            announce=announce,
            tell=tell,
        )
    if as_json:
        typer.echo(report.model_dump_json(by_alias=True))
        return
    render_report(report, stdout)
    # Not verified: only the names of the files are needed.
    made = read_bundle(folder / "student", verify=False).manifest.models
    best = next(precision for precision in RECOMMENDED if precision in made)
    lines = [f"\nReport: {folder / 'report' / 'report.html'}"]
    if any(line.startswith("student ") for line in no_better(report)):
        lines.append("The student is not shown to be better than an answer that ignores the text, so do not serve it.")
    else:
        lines.append(f"Serve:  {shlex.join(['potstill', 'serve', str(folder / 'student'), '--precision', best])}")
    stdout.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def left_by_run(out: Path) -> stopping.Left:
    """Return the finished stages of a run, and what is kept of the stage that was stopped."""
    stages = finished(out)
    kept = [f"{what} in {folder}" for what, folder in stages.items()]
    for role in ("teacher", "student"):
        if not (out / "checkpoints" / role).is_dir():
            kept += stopping.left_by_training(out / "checkpoints" / role).kept
    if any((out / ".report.bench").glob("*")):
        kept.append(f"what was measured, for {out / 'report'}")
    # --overwrite again would throw away what is kept.
    return stopping.Left(kept, drops=("--overwrite",), done="the report" in stages)
