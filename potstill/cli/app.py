"""The root of the command line: every command is registered here, in the order of the work."""

from typing import Annotated

import typer

from potstill import __version__
from potstill.cli import (
    bench,
    claims,
    distill,
    doctor,
    evaluate,
    export,
    finetune,
    init,
    predict,
    recipes,
    run,
    serve,
    show,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("run")(run.run)
app.command("distill")(distill.distill)
app.command("finetune")(finetune.finetune)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("serve")(serve.serve)
app.command("predict")(predict.predict)
app.command("evaluate")(evaluate.evaluate)
app.command("show")(show.show)
app.command("init")(init.init)
app.command("recipes")(recipes.recipes)
app.command("claims")(claims.claims)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"potstill {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distil a BERT-family model, export it to ONNX, prove what was gained and lost, serve it without PyTorch.

    Example: potstill run quickstart --out out/quickstart
    """
