"""What every command says of itself, and what shells complete."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from typer import Context
from typer.core import TyperArgument
from typer.main import get_command
from typer.testing import CliRunner

from potstill.cli.app import COMMANDS, app
from potstill.config import recipe_names

# What a placeholder may be: words, several of one with dots, words to be typed as they stand, a number for one of them.
PLACEHOLDER = re.compile(r"([A-Z]+(\.[a-z]+)?(,[A-Z]+,\.\.\.)?|KEY=VALUE|[a-z0-9|]+(\|[A-Za-z=-]+)*)(\|N,N,\.\.\.)?")


def loaded():
    """Return the commands by name, each with the context that it is called in."""
    group = get_command(app)
    root = Context(group, info_name="potstill")
    commands = {name: group.get_command(root, name) for name in COMMANDS}
    return {name: (command, Context(command, info_name=name, parent=root)) for name, command in commands.items()}


def test_every_command_has_a_summary_that_fits_on_its_line(potstill):
    listed = potstill("--help")[1].split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)  # none is broken over two lines
    summaries = [line.split(maxsplit=1)[1] for line in listed]
    assert max(map(len, summaries)) < 60
    assert all(re.fullmatch(r"[A-Z].*\.", summary) for summary in summaries)


def test_every_command_has_an_example_that_it_would_take():
    for name, (command, context) in loaded().items():
        shown = " ".join(CliRunner().invoke(app, [name, "--help"], terminal_width=100).stdout.split())
        assert f"Example: potstill {name}" in shown
        _, _, example = command.help.partition("Example: ")
        words = shlex.split(example.splitlines()[0])
        assert words[:2] == ["potstill", name]
        # Raises for an option that there is not, a value of the wrong kind, and an argument too many or too few.
        command.parse_args(Context(command, info_name=name, parent=context.parent), words[2:])


def test_every_option_says_what_goes_in_and_what_it_does():
    for name, (command, context) in loaded().items():
        for parameter in command.params:
            about = f"{name} {parameter.name}"
            assert re.fullmatch(r"[\S].*[.!:]", " ".join(parameter.help.split())), about
            if not getattr(parameter, "is_flag", False):
                assert PLACEHOLDER.fullmatch(parameter.metavar), f"{about}: {parameter.metavar}"
                assert parameter.metavar not in {"VALUE", "TEXT", "INTEGER", "FLOAT"}, about
            if isinstance(parameter, TyperArgument):
                assert parameter.metavar in command.get_usage(context), about


def test_whatever_prints_a_result_prints_it_as_json():
    options = {name: {parameter.name for parameter in command.params} for name, (command, _) in loaded().items()}
    assert {name for name, names in options.items() if "as_json" not in names} == {"serve"}  # it prints no result


@pytest.fixture(scope="module")
def complete():
    """Give a function that asks the program, as a shell does, for what can stand at the end of a line."""

    def ask(line):
        words = line.split(" ")
        asked = {"_POTSTILL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        command = [sys.executable, "-m", "potstill"]
        found = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=True)
        return found.stdout.split()

    return ask


def test_a_shell_completes_commands_options_and_recipes(complete):
    assert complete("potstill e") == ["export", "evaluate"]
    assert complete("potstill run qu") == ["quickstart"]
    assert complete("potstill serve --max-w") == ["--max-wait-ms"]


def test_recipes_to_copy_are_completed(complete):
    assert complete("potstill recipes ") == recipe_names()
