"""How the rooms tell what they are doing, without knowing who listens.

A room calls `progress(stage, done, total, note)`: `stage` names the work ("distil the student"), `done` of `total`
steps are finished (`total` 0 means that nobody knows), `note` is a short text such as the current loss. The
command line draws bars from these calls; everybody else passes `silent`.
"""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int, str], None]


Announce: TypeAlias = Callable[[str, dict[str, object]], None]
"""Called with a headline and figures by name, once for each: what a training will take, and how fast it is."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Listen to nothing."""


def keep_quiet(headline: str, figures: dict[str, object]) -> None:
    """Ignore every announcement."""
