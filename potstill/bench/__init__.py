"""Prove on this machine how much smaller, faster and as good a student is.

`bench` measures models, each precision and engine in a process of its own, and writes a report with verdicts. Nothing
here loads torch but the processes of its own rows; matplotlib and jinja2 are loaded only where a report is drawn.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.bench.config import DataSet, Request
    from potstill.bench.models import name_models
    from potstill.bench.pipeline import bench, verify_report
    from potstill.bench.report import read_report
    from potstill.evaluation.summary import evaluate_bundle

__all__ = ["DataSet", "Request", "bench", "evaluate_bundle", "name_models", "read_report", "verify_report"]

_HOMES = {
    "DataSet": "potstill.bench.config",
    "Request": "potstill.bench.config",
    "bench": "potstill.bench.pipeline",
    "evaluate_bundle": "potstill.evaluation.summary",
    "name_models": "potstill.bench.models",
    "read_report": "potstill.bench.report",
    "verify_report": "potstill.bench.pipeline",
}


def __getattr__(name: str) -> Any:
    """Load a name's module when it is asked for: a worker's memory shall not count what only its parent needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from potstill.extras import needing

    # A library that is missing is told as the extra to install.
    with needing("bench"):
        return getattr(import_module(_HOMES[name]), name)
