"""What a stop leaves: Ctrl-C, SIGTERM and a full disk tell what is kept, and the command that goes on.

A long command says with `keeps` how to find out what it has finished; nothing is looked at before it is asked for.
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
"""What typer returns for a KeyboardInterrupt, whichever signal it came from."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Left:
    """What a command that was stopped has left.

    Attributes:
        kept: what is finished and used again, such as "the checkpoint of step 40 in student.training".
        resumes: whether `--resume` goes on with it.
        drops: options that must not be given again.
        done: whether the command had already made everything.
    """

    kept: Sequence[str] = ()
    resumes: bool = True
    drops: Sequence[str] = ()
    done: bool = False


_find: Callable[[], Left] | None = None
_signal_number: int = signal.SIGINT


def install() -> Callable[[], None]:
    """Let Ctrl-C and SIGTERM end a command alike: files are closed, half-made folders vanish, what is kept is told.

    Returns:
        What puts the earlier handlers back.
    """
    global _find, _signal_number
    _find, _signal_number = None, signal.SIGINT
    ours, asked = os.getpid(), False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        global _signal_number
        if os.getpid() != ours or asked:  # a process that this one has forked, or somebody who will not wait
            os._exit(128 + number)
        asked, _signal_number = True, number
        raise KeyboardInterrupt

    # A signal that is ignored, as by nohup, stays ignored.
    before = {number: signal.getsignal(number) for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def keeps(find: Callable[[], Left]) -> None:
    """Say how to find out what the command that runs has finished."""
    global _find
    _find = find


def signal_number() -> int:
    """Return the signal that ended the command."""
    return _signal_number


def after_signal() -> str:
    """Return the line that a stopped command ends with."""
    if _find is None:
        return "stopped; nothing was begun"
    left = _find()
    if left.done:
        return f"stopped, but all was done: {', '.join(left.kept)}"
    if not left.kept:
        return f"stopped; nothing is finished, so nothing is kept: start anew with {_command()}"
    return f"stopped; kept: {', '.join(left.kept)}; go on with: {_command(left)}"


def after_failure(error: PotstillError) -> str:
    """Return what follows an error that is not of the user's making: what is kept, and how to go on."""
    if not isinstance(error, DiskError) or _find is None:
        return ""
    left = _find()
    if left.done:
        return ""
    if not left.kept:
        return f"; nothing is finished, so nothing is kept: start anew with {_command()}"
    return f"; kept: {', '.join(left.kept)}; go on with: {_command(left)}"


def _command(left: Left | None = None) -> str:
    """Return the command as it was typed, with `--resume` where that goes on."""
    words = [word for word in sys.argv[1:] if left is None or word not in left.drops]
    if left is not None and left.resumes and "--resume" not in words:
        words.append("--resume")
    return shlex.join(["potstill", *words])


def left_by_training(out: Path) -> Left:
    """Return what `distill` or `finetune` leaves when it is stopped on the way to `out`."""
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
    """Return what a command leaves whose output appears whole or not at all: nothing."""
    return Left()
