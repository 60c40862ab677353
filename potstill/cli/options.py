"""Options that several commands share, and what is made of them: a recipe, an output folder, a split."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from potstill.bundle import MANIFEST_NAME
from potstill.checkpoint import TRAINING_REPORT
from potstill.cli.checks import check_task
from potstill.config import Recipe, build_recipe, load_recipe, parse_setting, with_splits
from potstill.data import choose_splits
from potstill.data.splits import HELD_OUT, parse_split
from potstill.errors import RecipeError

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any value of the recipe, e.g. distill.epochs=1; repeatable."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of the same settings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
TextColumnOption = Annotated[
    list[str] | None,
    typer.Option(help="The data's column with the text; twice, or a,b, for pairs.", show_default="the usual names"),
]
LabelColumnOption = Annotated[
    str | None,
    typer.Option(help="The data's column with the label; a,b,c if each has its own.", show_default="the usual names"),
]
StudentTaskOption = Annotated[str | None, typer.Option(help="As the hub names it.", show_default="the teacher's")]
LayersOption = Annotated[
    str | None, typer.Option(help="A count (3) or a list (0,2,4) of teacher layers to keep.", show_default="half")
]
FamilyOption = Annotated[str | None, typer.Option(help="same, distilbert or mobilebert.", show_default="same")]
VocabularyOption = Annotated[
    str | None,
    typer.Option(
        help="Trim the vocabulary to the data: task, a size (9000), or min-count=5 for pieces that occur so often.",
        show_default="all of it",
    ),
]
EpochsOption = Annotated[float | None, typer.Option(help="Passes over the data.", show_default="3")]

FLAGS = {
    "teacher": "TEACHER",
    "teacher.model": "TEACHER",
    "teacher.ensemble": "--teacher",
    "teacher.column": "--teacher-column",
    "data": "--data",
    "data.name": "--data",
    "data.problem_type": "--problem-type",
    "data.text_columns": "--text-column",
    "data.label_column": "--label-column",
    "data.unlabelled": "--unlabelled",
    "task": "--task",
    "distill.method": "--method",
    "distill.epochs": "--epochs",
    "student.layers": "--layers",
    "student.family": "--family",
    "student.vocabulary": "--vocabulary",
}
"""The options and arguments that set keys of a recipe, by dotted key; all other keys are set by `--set`."""


def column_flags(text_column: list[str] | None, label_column: str | None) -> dict[str, object]:
    """Return the recipe keys that `--text-column` and `--label-column` set; None means not given."""
    return {"data.text_columns": text_column or None, "data.label_column": label_column}


def scored_split(asked: str | None, data: str, models: Sequence[str | Path]) -> str:
    """Return the split to score on, and say on stderr if it is only a part of the data that was named.

    A file that one of the models was trained on, as its `distill.json` says, and a folder with `train` alone, are
    scored on their held-out part; any other file is scored whole.
    """
    split = asked or "validation"
    _, chosen = choose_splits(data, train="train", evaluation=split)
    if chosen == split or split != "validation":
        return split
    # A file that no model has seen is new to all of them, so every row of it may be scored.
    if Path(data).expanduser().is_file() and not any(_learned_from(model, data) for model in models):
        return split
    typer.echo(
        f"note: the tenth of {data} that is held out is scored (--split held-out); models learn from the rest",
        err=True,
    )
    return chosen


def _learned_from(model: str | Path, data: str) -> bool:
    """Return whether a checkpoint, or the one that a bundle was exported from, was trained on a file of this name.

    Only file names are compared: the report holds the path as it was typed, relative to a folder that may be another
    one by now.
    """
    folder = Path(model).expanduser()
    try:
        if (folder / MANIFEST_NAME).is_file():
            source = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["source"]["name"]
            folder = Path(source).expanduser()
        learned = json.loads((folder / TRAINING_REPORT).read_text(encoding="utf-8"))["data"]
        return Path(learned["name"]).name == Path(data).name and parse_split(learned["split"])[1] == HELD_OUT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def resolve(name: str | None, *, flags: Mapping[str, object], settings: Sequence[str] | None) -> Recipe:
    """Build a recipe: a named one (or none), overridden by the options that were given, then by `--set`.

    Raises:
        RecipeError: with every fault, each under the name by which the user has set it.
    """
    given = [(key, value) for key, value in flags.items() if value is not None]
    by_set = [parse_setting(text) for text in settings or []]
    # In messages a fault in a recipe file is named by its key, and one in an option or --set by what was typed.
    # Without a recipe, a section that is missing is an option that was not given: `teacher` is called TEACHER.
    asked = [key for key, _ in given] if name else [*flags, "teacher", "data"]
    words = {key: FLAGS[key] for key in asked if key in FLAGS} | {key: f"--set {key}" for key, _ in by_set}
    if name:
        return with_splits(load_recipe(name, overrides=[*given, *by_set], flags=words))
    # Before the recipe is built: the check knows what other libraries call a task, such as `ner`.
    task = flags.get("task")
    if task is not None:
        check_task(str(task))
    return with_splits(build_recipe({}, overrides=[*given, *by_set], origin="", flags=words))


def output_folder(out: Path | None, recipe: Recipe) -> Path:
    """Return the folder to write: `--out`, else the recipe's `output_dir`.

    Raises:
        RecipeError: if neither is given.
    """
    if out is not None:
        return out
    if recipe.output_dir is None:
        raise RecipeError("there is no output folder; pass --out FOLDER or set output_dir in the recipe")
    return Path(recipe.output_dir)


def parse_layers(text: str | None) -> int | list[int] | None:
    """Parse `--layers`: `3` is a count and `0,2,4` a list of layers.

    Raises:
        RecipeError: if it is neither.
    """
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--layers {text!r} is neither a count such as 3 nor a list such as 0,2,4") from None
    return numbers if "," in text else numbers[0]
