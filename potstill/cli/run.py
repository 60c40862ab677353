"""`potstill run`: a whole recipe, from teacher to bench report."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.bundle import RECOMMENDED, Manifest, read_bundle
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
from potstill.config import Recipe, recipe_names, with_splits
from potstill.data import load_examples
from potstill.extras import require
from potstill.pipeline import check_out, finished
from potstill.tasks import FEATURE_EXTRACTION, SINGLE_LABEL, TEXT_CLASSIFICATION, get_task

if TYPE_CHECKING:
    from potstill.bench.report_schema import Report

# In characters, of a text that a printed command holds.
_SHORTEST, _LONGEST = 20, 140


def run(
    recipe: Annotated[
        str,
        typer.Argument(help="A shipped recipe (see `potstill recipes`) or a YAML file.", autocompletion=recipe_names),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for everything the run makes.", show_default=False)] = None,
    text_column: TextColumnOption = None,
    label_column: LabelColumnOption = None,
    settings: SetOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take a recipe from the teacher to the report.

    Distils a student, exports teacher and student, benches both and decides the claims.

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
    stdout.print("\n".join(["", *next_steps(report, resolved, folder)]), soft_wrap=True, highlight=False, markup=False)


def next_steps(report: "Report", recipe: Recipe, folder: Path) -> list[str]:
    """Return the lines that say what to do with a finished run: the page to open, a text to ask, how to serve."""
    from potstill.bench.report.tables import no_better

    lines = [f"Report: {folder / 'report' / 'report.html'}"]
    if any(line.startswith("student ") for line in no_better(report)):
        return [
            *lines,
            "The student is not shown to be better than an answer that ignores the text, so do not serve it.",
        ]
    # Not verified: only the manifest is needed.
    manifest = read_bundle(folder / "student", verify=False).manifest
    program, student = typed_program(), str(folder / "student")
    answering = ["--precision", next(precision for precision in RECOMMENDED if precision in manifest.models)]
    serve = f"Serve:  {shlex.join([*program, 'serve', student, *answering])}"
    asked = text_to_ask(recipe, manifest)
    if asked is None:
        return [*lines, serve]
    text, label = asked
    row, body = (shlex.quote(json.dumps({key: text}, ensure_ascii=False)) for key in ("text", "inputs"))
    return [
        *lines,
        f"Ask:    echo {row} | {shlex.join([*program, 'predict', student, '-', '--out', '-', *answering])}",
        *([f"        Its label in the data is {label}."] if label else []),
        serve,
        "Then:   open http://localhost:8000/ or ask from another terminal:",
        f"        curl localhost:8000/predict -H 'Content-Type: application/json' -d {body}",
    ]


def text_to_ask(recipe: Recipe, manifest: Manifest) -> tuple[str, str | None] | None:
    """Return a text of the split that was scored on, and its label if it has one.

    It is the first that is short and has nothing that JSON or a shell writes otherwise, so that the command with it can
    be read. None if there is none, or the task's inputs are not texts alone.
    """
    data, task = with_splits(recipe).data, get_task(recipe.task)
    if task not in (TEXT_CLASSIFICATION, FEATURE_EXTRACTION):
        return None
    examples = load_examples(
        data.name,
        split=data.eval_split,
        task=task,
        text_columns=data.text_columns,
        label_column=data.label_column,
        label_names=manifest.labels or None,
        problem_type=manifest.problem_type,
        limit=data.max_eval_examples,
    )
    for number, text in enumerate(examples.texts):
        if isinstance(text, str) and _SHORTEST <= len(text) <= _LONGEST and not set(text) & set("'\"\\\n\r\t"):
            is_named = task is TEXT_CLASSIFICATION and examples.problem_type == SINGLE_LABEL
            return text, manifest.labels[examples.labels[number]] if is_named else None
    return None


def typed_program() -> list[str]:
    """Return how this program was called, so that a command that is printed runs when it is pasted."""
    program = Path(sys.argv[0])
    if program.parts[-2:] == ("potstill", "__main__.py"):
        return [sys.executable, "-m", "potstill"]
    found = shutil.which("potstill")
    if program.stem != "potstill" or (found is not None and program.exists() and Path(found).samefile(program)):
        return ["potstill"]
    return [sys.argv[0]]


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
