"""Callbacks by which long work reports its progress.

Work calls `progress(stage, done, total, note)`: `stage` is its name ("distil the student"), `done` of `total` steps are
finished (`total` 0: an unknown number), `note` is a short text such as the current loss. The command line draws bars
from these calls; the default of every function is `silent`.
"""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int, str], None]
"""Called with stage, done, total and note."""
Announce: TypeAlias = Callable[[str, dict[str, object]], None]
"""Called with a headline (`head`, `vocabulary`, `plan` or `pace`) and figures by name: what a training will take."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Report no progress."""


def keep_quiet(headline: str, figures: dict[str, object]) -> None:
    """Announce nothing."""
