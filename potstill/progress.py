"""Callbacks by which long work tells how far it is, without knowing who listens.

Work calls `progress(stage, done, total, note)`: `stage` names it ("distil the student"), `done` of `total` steps are
finished (`total` 0 is an unknown number), `note` is a short text such as the current loss. The command line draws bars
from these calls; the default everywhere is `silent`.
"""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int, str], None]
"""Called with stage, done, total and note."""
Announce: TypeAlias = Callable[[str, dict[str, object]], None]
"""Called with a headline and figures by name, once for each: what a training will take, and how fast it is."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Ignore progress."""


def keep_quiet(headline: str, figures: dict[str, object]) -> None:
    """Ignore every announcement."""
