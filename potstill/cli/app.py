"""The root of the command line: every command is named here, in the order of the work.

A command's module is loaded when the command is asked for: a server need not wait for what recipes are made of.
"""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from potstill import __version__

COMMANDS = (
    "run",
    "distill",
    "finetune",
    "export",
    "bench",
    "serve",
    "predict",
    "evaluate",
    "show",
    "init",
    "recipes",
    "claims",
    "doctor",
)
"""Each is the function of its name in the module of its name."""


def _typer(**more: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **more,
    )


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            # typer looks here for what was meant.
            self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}
            return None
        if cmd_name not in self.commands:
            alone = _typer()
            alone.command(cmd_name)(getattr(import_module(f"potstill.cli.{cmd_name}"), cmd_name))
            self.add_command(get_command(alone), cmd_name)
        return self.commands[cmd_name]


app = _typer(no_args_is_help=True, cls=_Commands)


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
