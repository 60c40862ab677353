"""Handle Ctrl-C, SIGTERM and full disks: say what is kept of the work, and the command that resumes it.

A long command registers with `keeps` a function that finds out what it has finished; it is called only if the command
is stopped.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from potstill.errors import DiskError, PotstillError

INTERRUPTED = 128 + signal.SIGINT
"""The exit code that typer returns for a KeyboardInterrupt, which `install` raises for SIGTERM as well."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Left:
    """What a stopped command has left on disk.

    Attributes:
        kept: descriptions of what is finished and will be reused, such as "the checkpoint of step 40 in
            student.training".
        resumes: whether the command with `--resume` continues from there.
        drops: options of the command that must be left out then, such as `--overwrite`.
        done: whether the command had already finished its output.
    """

    kept: Sequence[str] = ()
    resumes: bool = True
    drops: Sequence[str] = ()
    done: bool = False


# Globals, because a signal handler and the error handler of `main` have no other way to the running command.
_find: Callable[[], Left] | None = None
_signal_number: int = signal.SIGINT


def install() -> Callable[[], None]:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt: `finally` blocks then close files and remove half-made folders.

    Returns:
        A function that restores the earlier handlers.
    """
    global _find, _signal_number
    _find, _signal_number = None, signal.SIGINT
    ours, asked = os.getpid(), False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        global _signal_number
        # A forked child has inherited this handler and must not run its parent's clean-up; and whoever presses Ctrl-C
        # twice will not wait for it.
        if os.getpid() != ours or asked:
            os._exit(128 + number)
        asked, _signal_number = True, number
        raise KeyboardInterrupt

    # A signal that the parent has set to be ignored stays ignored, as SIGINT in a script's background jobs.
    before = {number: signal.getsignal(number) for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def keeps(find: Callable[[], Left]) -> None:
    """Register the function that finds out what the running command has finished."""
    global _find
    _find = find


def signal_number() -> int:
    """Return the signal that ended the command."""
    return _signal_number


def after_signal() -> str:
    """Return the line that a command prints when a signal has stopped it."""
    if _find is None:
        return "stopped; nothing was begun"
    left = _find()
    if left.done:
        return f"stopped, but all was done: {', '.join(left.kept)}"
    if not left.kept:
        return f"stopped; nothing is finished, so nothing is kept: start anew with {_command()}"
    return f"stopped; kept: {', '.join(left.kept)}; go on with: {_command(left)}"


def after_failure(error: PotstillError) -> str:
    """Return the end of the message of a full disk: what is kept and how to resume; empty for any other error."""
    if not isinstance(error, DiskError) or _find is None:
        return ""
    left = _find()
    if left.done:
        return ""
    if not left.kept:
        return f"; nothing is finished, so nothing is kept: start anew with {_command()}"
    return f"; kept: {', '.join(left.kept)}; go on with: {_command(left)}"


def _command(left: Left | None = None) -> str:
    """Return the command as it was typed, with `--resume` added if that continues from what is left."""
    words = [word for word in sys.argv[1:] if left is None or word not in left.drops]
    if left is not None and left.resumes and "--resume" not in words:
        words.append("--resume")
    return shlex.join(["potstill", *words])


def left_by_training(out: Path) -> Left:
    """Return what a stopped `distill` or `finetune` has left in the work folders beside `out`."""
    work = out.with_name(f"{out.name}.training")
    kept = [
        f"the checkpoint of step {max(steps)} in {folder}"
        for folder in (work, work.with_name(f"{work.name}-control"))
        if (steps := [int(path.parent.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*/COMPLETE")])
    ]
    for name, what in (("text", "the tokenised text"), ("vectors", "the teacher's vectors")):
        folder = work.with_name(f"{work.name}-{name}")
        if any(path.is_file() for path in folder.glob("*/*")):
            kept.append(f"{what} in {folder}")
    return Left(kept)


def left_by_nothing() -> Left:
    """Return nothing kept: for commands whose output appears whole or not at all."""
    return Left()
