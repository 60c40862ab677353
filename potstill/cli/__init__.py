"""The command line. Importing this package needs no extra; running it needs `cli`.

Each command is a module of its name: its options, its checks, one call into another package, and the printing. Beside
them:

    app        the root command, which imports a command's module when that command is called
    options    options that several commands have, and the recipe that they make
    checks     checks that run before torch is imported
    render     tables, JSON and progress on the terminal
    report     a bench report on the terminal
    stopping   signals and full disks: what is kept, and the command that resumes
    glue       `evaluate --glue`

Heavy imports stand inside the commands' functions, behind the checks: a wrong option costs a second, not the import of
torch.
"""

import os
import sys
import warnings
from pathlib import Path

__all__ = ["in_one_line", "main"]

# Libraries draw progress bars and print advice of their own between our lines. setdefault below: a user may want them.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    # Otherwise tokenizers warns at every fork after it was used with threads.
    "TOKENIZERS_PARALLELISM": "false",
    # onnxruntime reports usage to its maker since 1.29, on Linux too, unless this is set before it is loaded.
    "ORT_DISABLE_TELEMETRY": "1",
}


def main() -> None:
    """Run the command line; an error is printed as one line and ends the process with the error's exit code."""
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
        # Without this the interpreter flushes stdout at exit, and prints a traceback over the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        known = error if isinstance(error, PotstillError) else machine_failure(error)
        if known is None:  # a bug in potstill: the traceback is needed
            raise
        sys.stderr.write(f"error: {in_one_line(str(known))}{stopping.after_failure(known)}\n")
        code = known.exit_code
    finally:
        restore()
    if code == stopping.INTERRUPTED:
        if sys.stderr.isatty():  # behind the ^C
            sys.stderr.write("\n")
        sys.stderr.write(f"{stopping.after_signal()}\n")
        # As a shell counts a process that a signal ended: 130 for SIGINT, 143 for SIGTERM.
        code = 128 + stopping.signal_number()
    sys.exit(code)


def in_one_line(message: str) -> str:
    """Join the lines of a message, such as a headline and its faults, into one."""
    first, *rest = [" ".join(line.split()) for line in message.splitlines() if line.strip()] or [""]
    return f"{first} {'; '.join(rest)}" if first.endswith(":") else "; ".join([first, *rest])


def _require_folder() -> None:
    """Raise if the current folder has been removed."""
    from potstill.errors import UsageError

    try:
        Path.cwd()
    except FileNotFoundError as error:  # importing torch would end the process with a message that does not help
        raise UsageError("the folder you are in no longer exists; change to another one, as cd ~") from error


def _warn_in_one_line() -> None:
    """Print potstill's own warnings as one line, without the file and line of code that raised them."""
    from potstill.errors import OtherCpuWarning

    usual = warnings.formatwarning

    def format_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return (
            f"warning: {message}\n" if category is OtherCpuWarning else usual(message, category, filename, lineno, line)
        )

    warnings.formatwarning = format_warning
