"""`potstill recipes`: list, print or copy the shipped recipes."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.checks import check_output_file
from potstill.cli.options import OverwriteOption
from potstill.config import recipe_names, recipe_text
from potstill.errors import OutputError
from potstill.files import write_text


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.", show_default="list all")] = None,
    copy: Annotated[Path | None, typer.Option(help="Write it to this file instead of printing it.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """List the shipped recipes, or print or copy one.

    Example: potstill recipes sst2 --copy my-recipe.yaml
    """
    if name is None:
        for known in recipe_names():
            # The first line of each recipe is a comment of the form `NAME: what it makes.`
            headline = recipe_text(known).splitlines()[0].lstrip("# ")
            typer.echo(headline)
        return
    text = recipe_text(name)
    if copy is None:
        typer.echo(text, nl=False)
        return
    if copy.exists() and not overwrite:
        raise OutputError(f"--copy {copy} exists; pass --overwrite to replace it, or name another file")
    check_output_file(copy, option="--copy")
    write_text(copy, text)
    command = shlex.join(["potstill", "run", str(copy), "--out", f"out/{copy.stem}"])
    typer.echo(f"wrote {copy}; run it with: {command}")
