"""Prove on this machine how much smaller, faster and as good a student is.

`bench` measures a teacher and a student, each model and precision in a process of its own, and writes a report with
three verdicts. Nothing here loads torch; matplotlib and jinja2 are loaded only where a report is drawn.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.bench.assemble import bench
    from potstill.bench.quality import evaluate_bundle
    from potstill.bench.report import read_report

__all__ = ["bench", "evaluate_bundle", "read_report"]

_HOMES = {
    "bench": "potstill.bench.assemble",
    "evaluate_bundle": "potstill.bench.quality",
    "read_report": "potstill.bench.report",
}


def __getattr__(name: str) -> Any:
    """Load a name's module when it is asked for: a worker's memory shall not count what only its parent needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
