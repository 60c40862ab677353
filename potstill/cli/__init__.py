"""The command line. Importing this needs no extra; running it needs `cli`.

Each command is a module of its name: options, checks, one call into a package, and what is printed. Beside them:

    app        the root, which loads a command's module when it is asked for
    options    options that several commands have
    checks     what is refused before torch is loaded
    render     tables, JSON and progress on the terminal
    report     a bench report on the terminal
    stopping   what Ctrl-C, SIGTERM and a full disk leave, and how to go on
    glue       `evaluate --glue`
"""

import os
import sys
import warnings
from pathlib import Path

__all__ = ["in_one_line", "main"]

# Libraries draw bars and print advice of their own; ours is the only voice on this screen.
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


def main() -> None:
    """Run the command line, with one line per error and the exit code that belongs to it."""
    from potstill.cli import stopping
    from potstill.errors import PotstillError
    from potstill.extras import require
    from potstill.files import machine_failure

    _warn_in_one_line()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    restore = stopping.install()
    try:
        require("typer", extra="cli")
        require("rich", extra="cli")
        from potstill.cli.app import run_app

        _require_folder()
        code = run_app()
    except KeyboardInterrupt:
        code = stopping.INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        known = error if isinstance(error, PotstillError) else machine_failure(error)
        if known is None:  # a bug: the traceback is what helps
            raise
        sys.stderr.write(f"error: {in_one_line(str(known))}{stopping.after_failure(known)}\n")
        code = known.exit_code
    finally:
        restore()
    if code == stopping.INTERRUPTED:
        if sys.stderr.isatty():  # behind the ^C
            sys.stderr.write("\n")
        sys.stderr.write(f"{stopping.after_signal()}\n")
        code = 128 + stopping.signal_number()
    sys.exit(code)


def in_one_line(message: str) -> str:
    """Return a message of several lines, a headline and its faults, as one."""
    first, *rest = [" ".join(line.split()) for line in message.splitlines() if line.strip()] or [""]
    return f"{first} {'; '.join(rest)}" if first.endswith(":") else "; ".join([first, *rest])


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

    def format_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return (
            f"warning: {message}\n" if category is OtherCpuWarning else usual(message, category, filename, lineno, line)
        )

    warnings.formatwarning = format_warning
