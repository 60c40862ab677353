"""From flags to a recipe: what every command that trains has in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli.checks import check_task
from potstill.errors import RecipeError
from potstill.recipe import Recipe, build_recipe, load_recipe, parse_setting

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any value of the recipe, e.g. distill.epochs=1; repeatable."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of the same settings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


FLAGS = {
    "teacher": "TEACHER",
    "teacher.model": "TEACHER",
    "data": "--data",
    "data.name": "--data",
    "data.problem_type": "--problem-type",
    "data.text_columns": "--text-column",
    "data.label_column": "--label-column",
    "task": "--task",
    "distill.method": "--method",
    "distill.epochs": "--epochs",
    "student.layers": "--layers",
    "student.family": "--family",
}
"""How commands call the keys of a recipe that they have options for."""


def resolve(name: str | None, *, flags: Mapping[str, Any], settings: Sequence[str] | None) -> Recipe:
    """Build the recipe from a recipe's name (or nothing), then the flags that were given, then `--set`.

    Raises:
        RecipeError: with every fault, in the words of the command line.
    """
    given = [(key, value) for key, value in flags.items() if value is not None]
    by_set = [parse_setting(text) for text in settings or []]
    # What comes from a recipe's file is called as it stands there, and what comes from --set as it was set.
    asked = [key for key, _ in given] if name else [*flags, "teacher", "data"]
    words = {key: FLAGS[key] for key in asked if key in FLAGS} | {key: f"--set {key}" for key, _ in by_set}
    if name:
        return load_recipe(name, overrides=[*given, *by_set], flags=words)
    if "task" in dict(given):
        check_task(dict(given)["task"])
    return build_recipe({}, overrides=[*given, *by_set], origin="", flags=words)


def output_folder(out: Path | None, recipe: Recipe) -> Path:
    """Return the folder to write: `--out`, else the recipe's.

    Raises:
        RecipeError: if there is neither.
    """
    if out is not None:
        return out
    if recipe.output_dir is None:
        raise RecipeError("there is no output folder; pass --out FOLDER or set output_dir in the recipe")
    return Path(recipe.output_dir)


def parse_layers(text: str | None) -> int | list[int] | None:
    """Read `3` as a count and `0,2,4` as a list of layers.

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
