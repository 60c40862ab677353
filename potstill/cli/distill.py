"""`potstill distill`: make a student from a teacher."""

from pathlib import Path
from typing import Annotated

import typer

from potstill.cli import stopping
from potstill.cli.checks import check_training
from potstill.cli.settings import (
    FLAGS,
    JsonOption,
    LabelColumnOption,
    OverwriteOption,
    ResumeOption,
    SetOption,
    TextColumnOption,
    column_flags,
    output_folder,
    parse_layers,
    resolve,
)
from potstill.config import METHODS, Recipe
from potstill.data.splits import HELD_OUT, REST, parse_split
from potstill.extras import require


def distill(
    teacher: Annotated[str | None, typer.Argument(help="Hub id or checkpoint folder.", show_default=False)] = None,
    data: Annotated[
        str | None, typer.Option(help="Hub id (nyu-mll/glue:sst2), folder of train/validation files, or a file.")
    ] = None,
    text_column: TextColumnOption = None,
    label_column: LabelColumnOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the student's checkpoint.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="As the hub names it.", show_default="the teacher's")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="task, distilbert, minilmv2, tinybert, mobilebert or embedding.", show_default="task"),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="A count (3) or a list (0,2,4) of teacher layers to keep.", show_default="half")
    ] = None,
    family: Annotated[str | None, typer.Option(help="same, distilbert or mobilebert.", show_default="same")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.", show_default="3")] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also train the same student without its teacher, and compare.")
    ] = False,
    recipe: Annotated[str | None, typer.Option(help="Start from a recipe; flags and --set win over it.")] = None,
    settings: SetOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a small student of a teacher: from labelled texts, running text, or sentence embeddings.

    Example: potstill distill textattack/bert-base-uncased-SST-2 --data nyu-mll/glue:sst2 --layers 6 --out student/
    """
    flags = {
        "teacher.model": teacher,
        "data.name": data,
        **column_flags(text_column, label_column),
        "task": task,
        "distill.method": method,
        "student.layers": parse_layers(layers),
        "student.family": family,
        "distill.epochs": epochs,
        "distill.controls": controls or None,
    }
    resolved = resolve(recipe, flags=flags, settings=settings)
    folder = output_folder(out, resolved)
    check_training(resolved, folder, overwrite=overwrite, flags=FLAGS, teaches=True)
    stopping.keeps(lambda: stopping.left_by_training(folder))
    require("torch", extra="distill")
    from potstill.cli.render import print_json, progress_bars
    from potstill.cli.training import announce, print_student
    from potstill.distill import distill as distill_student

    with progress_bars() as progress:
        report = distill_student(
            resolved,
            folder,
            resume=resume or resolved.resume,
            overwrite=overwrite,
            progress=progress,
            announce=announce,
        )
    if as_json:
        print_json(report)
    else:
        print_student(folder, report, data=data_options(resolved))


def data_options(recipe: Recipe) -> list[str]:
    """Return the options with which an export fits and judges int8 on the data that the student learned from."""
    data = recipe.data
    if recipe.task not in METHODS["task"].tasks:
        return []  # running text has no labels to judge on
    words = ["--data", data.name]
    if data.train_split != "train" and parse_split(data.train_split) != ("train", REST):
        words += ["--split", data.train_split]
    if data.eval_split != "validation" and parse_split(data.eval_split) != ("train", HELD_OUT):
        words += ["--judged-split", data.eval_split]
    for column in data.text_columns or ():
        words += ["--text-column", column]
    return words + (["--label-column", data.label_column] if data.label_column else [])
