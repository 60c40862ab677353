"""`potstill recipes`: list, print or copy the shipped recipes."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.checks import check_output_file
from potstill.cli.options import JsonOption, OverwriteOption
from potstill.config import load_recipe, recipe_names, recipe_text
from potstill.errors import OutputError
from potstill.files import write_text


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe.", show_default="list all", autocompletion=recipe_names)
    ] = None,
    copy: Annotated[Path | None, typer.Option(help="Write it to this file instead of printing it.")] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the shipped recipes, or print or copy one.

    Example: potstill recipes sst2 --copy my-recipe.yaml
    """
    from potstill.cli.render import print_json

    if name is None:
        # The first line of each recipe is a comment of the form `NAME: what it makes.`
        headlines = [recipe_text(known).splitlines()[0].lstrip("# ") for known in recipe_names()]
        if as_json:
            made = (headline.split(": ", 1) for headline in headlines)
            print_json([{"name": known, "headline": headline} for known, headline in made])
        else:
            typer.echo("\n".join(headlines))
        return
    if as_json and copy is None:
        print_json(load_recipe(name).model_dump(mode="json"))
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
    if as_json:
        print_json({"wrote": str(copy), "run_with": command})
    else:
        typer.echo(f"wrote {copy}; run it with: {command}")
