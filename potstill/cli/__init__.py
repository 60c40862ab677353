"""The command line: thin commands over the rooms. Importing this needs no extra; running it needs `cli`."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the command line, with one line per error and the exit code that belongs to it."""
    from potstill.errors import PotstillError
    from potstill.extras import require

    _warn_in_one_line()
    # Libraries draw bars and print advice of their own; ours is the only voice on this screen.
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        require("typer", extra="cli")
        require("rich", extra="cli")
        from potstill.cli.app import app

        _require_folder()
        app(prog_name="potstill")
    except PotstillError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer has taken Ctrl-C and says nothing
            sys.stderr.write("\nstopped; what was finished is kept\n")
        raise
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _require_folder() -> None:
    from potstill.errors import UsageError

    try:
        Path.cwd()
    except FileNotFoundError as error:  # torch would end the process over it, without a word of use
        raise UsageError("the folder you are in no longer exists; change to another one, as cd ~") from error


def _warn_in_one_line() -> None:
    """Print our own warnings as errors are printed, without the line of code that gave them."""
    from potstill.errors import OtherCpuWarning

    usual = warnings.formatwarning

    def format_warning(message: Any, category: type[Warning], *rest: Any, **more: Any) -> str:
        return f"warning: {message}\n" if category is OtherCpuWarning else usual(message, category, *rest, **more)

    warnings.formatwarning = format_warning


_INTERRUPTED = 128 + 2
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Since 1.29 onnxruntime reports to its maker, and this must be set before it is loaded.
    "ORT_DISABLE_TELEMETRY": "1",
}
