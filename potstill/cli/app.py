"""The root of the command line, with the list of commands in the order in which they are used.

A command's module is imported when the command is called: the modules of all others would add 0.07 to 0.15 s to the
start of `serve` (docs/log.md, "Serve").
"""

import inspect
from importlib import import_module
from typing import Annotated, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from potstill import __version__
from potstill.errors import PotstillError, UsageError

COMMANDS = (
    "run",
    "distill",
    "finetune",
    "trim",
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
"""Each is a function of this name in the module `potstill.cli.NAME`."""

# Placeholders of options and arguments in --help, by parameter name; an option's own `metavar` wins. Without these,
# typer prints Python's types, such as <list[str]>.
METAVARS = {
    "answer_column": "COLUMN",
    "api_key_file": "FILE",
    "attention": "KIND",
    "baseline": "NAME",
    "batch_size": "N",
    "budget": "TIME",
    "bundle": "BUNDLE",
    "bundles": "BUNDLE",
    "checkpoint": "CHECKPOINT",
    "claims": "FILE.yaml",
    "compare": "REPORT",
    "confusion": "FILE.png",
    "copy": "FILE.yaml",
    "data": "DATA",
    "drain_seconds": "SECONDS",
    "embedding_bits": "8|4",
    "epochs": "N",
    "family": "FAMILY",
    "file": "FILE",
    "folder": "FOLDER",
    "host": "ADDRESS",
    "judged_split": "SPLIT",
    "label_column": "COLUMN",
    "layers": "N|N,N,...",
    "learning_rates": "RATE,RATE,...",
    "max_body_bytes": "BYTES",
    "max_label_loss": "SHARE",
    "max_loss": "SHARE",
    "max_wait_ms": "MS",
    "method": "METHOD",
    "metric": "METRIC",
    "model": "MODEL",
    "models": "MODEL",
    "more_teachers": "MODEL",
    "name": "NAME",
    "num_tokens": "N",
    "on_error": "fail|skip",
    "other_data": "DATA",
    "out": "FOLDER",
    "parameters": "JSON",
    "pooling": "POOLING",
    "port": "PORT",
    "precision": "PRECISION",
    "predictions": "FILE.jsonl",
    "problem_type": "TYPE",
    "recipe": "RECIPE",
    "reference": "FILE.json",
    "request_seconds": "SECONDS",
    "required": "CLAIM",
    "runner": "RUNNER",
    "settings": "KEY=VALUE",
    "shadow": "NAME",
    "shutdown_seconds": "SECONDS",
    "split": "SPLIT",
    "student": "MODEL",
    "suite": "FILE.yaml",
    "task": "TASK",
    "tasks": "TASK,TASK,...",
    "teacher": "TEACHER",
    "teacher_column": "COLUMN",
    "text_column": "COLUMN",
    "tokenizer": "TOKENIZER",
    "unlabelled": "DATA",
    "verify": "REPORT",
    "vocabulary": "task|N|min-count=N",
}
# By (command, parameter), where a name means something else in one command.
_OWN_METAVARS = {
    ("evaluate", "epochs"): "N,N,...",
    ("evaluate", "teacher"): "MODEL",
    ("predict", "out"): "FILE",
}


class _Commands(TyperGroup):
    """A group whose commands are imported from their modules when they are called."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> TyperCommand | None:  # type: ignore[override]
        if cmd_name not in COMMANDS:
            # typer suggests the nearest of `self.commands`, so for a misspelt name all must be loaded.
            self.commands = {name: _load(name) for name in COMMANDS}
            return None
        if cmd_name not in self.commands:
            self.add_command(_load(cmd_name), cmd_name)
        return cast(TyperCommand, self.commands[cmd_name])


def _load(name: str) -> TyperCommand:
    """Import a command and set its summary and its options' placeholders for --help."""
    function = getattr(import_module(f"potstill.cli.{name}"), name)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_HELP_OPTIONS)
    # typer cuts a summary that it takes from the docstring off after 45 characters; one that is given is wrapped.
    alone.command(name, short_help=(inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " "))(function)
    command = cast(TyperCommand, get_command(alone))
    for parameter in cast("list[TyperOption | TyperArgument]", command.params):
        # A flag takes no value, so it has no placeholder.
        if parameter.metavar is None and not getattr(parameter, "is_flag", False):
            is_number = parameter.type_descriptor.annotation in {int, float}
            usual = METAVARS.get(str(parameter.name)) or ("N" if is_number else "VALUE")
            parameter.metavar = _OWN_METAVARS.get((name, str(parameter.name)), usual)
        if isinstance(parameter, TyperArgument):
            # typer would print an argument's metavar twice, as its name and as its type.
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
    return command


_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=_HELP_OPTIONS,
)


def run_app() -> int:
    """Run the command in `sys.argv` and return its exit code.

    Raises:
        UsageError: if there is no such command or option, or a value is not valid.
        PotstillError: whatever the command raises.
    """
    try:
        # Not standalone: typer would print errors in its own form and exit by itself.
        return get_command(app).main(prog_name="potstill", standalone_mode=False) or 0
    except typer.Abort as error:
        raise PotstillError("stopped: standard input has ended before there was an answer") from error
    except typer.TyperException as error:
        # By name: typer (0.29) has the class in a private module.
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
            return error.exit_code
        raise UsageError(_usage(error)) from error


def _usage(error: typer.TyperException) -> str:
    """Return typer's message in potstill's form: what is wrong, the nearest known names, and the --help to read."""
    message = str(error.format_message()).strip().removesuffix(".")
    message = message.replace(": Value error, ", ": ").replace(": Input should", ": it should")
    possible = getattr(error, "possibilities", None)
    if possible:
        message = f"{error.message.strip()}; did you mean {' or '.join(sorted(possible))}?"
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "potstill"
    return f"{message[:1].lower()}{message[1:]}{'' if message.endswith('?') else ';'} see `{path} --help`"


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
