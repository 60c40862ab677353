"""Choose what a report shows first (the load and the data set that stand for all), and find rows by their key."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from potstill.bench.report_schema import Latency, Load, Quality, Ratio, Report, Retention, Score


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


Row = TypeVar("Row", bound=_Keyed)


def by_key(rows: Iterable[Row]) -> dict[str, Row]:
    """Return rows by the contestant that they are about."""
    return {row.key: row for row in rows}


def loads_of(report: Report) -> list[Load]:
    """Return every load that was measured, grids first, from little to much."""
    found = {str(row.load): row.load for row in report.latency}
    return sorted(found.values(), key=lambda load: (load.kind, load.num_tokens or 0, load.batch_size))


def main_load(report: Report) -> Load | None:
    """Return the load that stands for all: the one that a claim is about, else one text of the longest length."""
    loads = loads_of(report)
    claimed = {claim.where for claim in report.claims if claim.where}
    for load in loads:
        if str(load) in claimed:
            return load
    grid = [load for load in loads if load.kind == "grid"] or loads
    return min(grid, key=lambda load: (load.batch_size, -(load.num_tokens or 0)), default=None)


def main_loads(report: Report) -> list[Load]:
    """Return the main load and, where it was measured, the data's own texts."""
    main = main_load(report)
    own = [load for load in loads_of(report) if load.kind == "texts" and load != main]
    return [main, *own] if main else []


def main_quality(report: Report) -> Quality | None:
    """Return the data set that stands for all: the one that a claim is about, else the first."""
    claimed = {claim.where for claim in report.claims if claim.where}
    named = [quality for quality in report.quality if quality.name in claimed]
    return next(iter(named + report.quality), None)


def latency_at(report: Report, load: Load | None) -> dict[str, Latency]:
    """Return the latencies under one load, by key."""
    return by_key(row for row in report.latency if row.load == load)


def ratio_at(report: Report, key: str, load: Load | None, *, comparison: str = "to_baseline") -> Ratio | None:
    """Return how many times as fast a contestant is under one load, if that was measured."""
    found = [row for row in report.ratios if row.candidate == key and row.load == load]
    return next((row for row in found if row.comparison == comparison), None)


def retention_of(quality: Quality, key: str, *, comparison: str = "to_baseline") -> Retention | None:
    """Return what a contestant keeps of the baseline's score, if that was measured."""
    found = [row for row in quality.retention if row.candidate == key]
    return next((row for row in found if row.comparison == comparison), None)


def in_order(report: Report, rows: Sequence[Row]) -> list[Row]:
    """Return rows in the order of the report's contestants."""
    places = {row.key: place for place, row in enumerate(report.contestants)}
    return sorted(rows, key=lambda row: places.get(row.key, len(places)))


def scores_of(quality: Quality) -> dict[str, Score]:
    """Return a data set's scores, by key."""
    return by_key(quality.scores)
