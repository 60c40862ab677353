"""Whether a report still holds: a sample of its cells, measured again, against what it says.

Checked are the SHA-256 of every file and data set, the p50 and the ratios of the sampled rows and loads, and their
scores. Memory is not: its peak depends on which loads were run.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from potstill.bench import report_schema, statistics
from potstill.bench.compare import differing_files, other_machine, other_software
from potstill.bench.report.formatting import bounds, ms, score
from potstill.errors import UsageError
from potstill.evaluation.intervals import Z, together

# These answer to the last bit again (onnxruntime 1.31, fp32 and int8, one and two threads, each in a new process); the
# others may choose kernels by timing them.
_EXACT_RUNNERS = ("onnxruntime-cpu", "torch-cpu", "openvino-cpu")
_EXACT = 1e-9
# The loss that an export allows int8 for (`export.max_loss`): CPUs without VNNI saturate, and round otherwise.
_REDUCED = 0.01
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

FindingOutcome = Literal["holds", "DOES NOT HOLD", "not compared"]


@dataclass(frozen=True, slots=True)
class ReportCell:
    """One thing that was measured: a row at a load, or on a data set."""

    kind: Literal["latency", "quality"]
    key: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What to measure again; every row at every load, and on every data set."""

    keys: tuple[str, ...]
    """The baseline's row first; with each sampled row also the one it is held against."""
    loads: tuple[report_schema.Load, ...]
    data: tuple[str, ...]
    """Names of data sets."""
    places: tuple[tuple[str, str], ...]
    """Pairs of a model's name and its bundle, checkpoint folder or hub id, as the report names them."""


@dataclass(frozen=True)
class Finding:
    """Whether one thing is as the report says; `vars` makes JSON of it."""

    what: str
    old: str
    new: str
    holds: bool
    outcome: FindingOutcome
    note: str = ""
    """By what it was judged, or why not."""


_Side: TypeAlias = tuple[float, report_schema.Interval]


def sample_cells(report: report_schema.Report, rng: np.random.Generator, count: int) -> list[ReportCell]:
    """Draw `count` cells of a report without repeats, at least one of each kind that it has if there is room.

    Raises:
        UsageError: if `count` is below 1, or the report has no cell.
    """
    if count < 1:
        raise UsageError(f"{count} cells cannot be verified; take at least 1")
    kinds = [
        [ReportCell("latency", row.key, str(row.load)) for row in report.latency if row.p50_ms is not None],
        [ReportCell("quality", row.key, each.name) for each in report.quality for row in each.scores],
    ]
    # Each kind on its own, so that the sample has a latency and a score where the report has both.
    shuffled = [[cells[at] for at in rng.permutation(len(cells))] for cells in kinds if cells]
    if not shuffled:
        raise UsageError("the report has neither a latency nor a score, so there is nothing to verify")
    first = [cells[0] for cells in shuffled]
    rest = [cell for cells in shuffled for cell in cells[1:]]
    return [*first, *(rest[at] for at in rng.permutation(len(rest)))][:count]


def draw_sample(report: report_schema.Report, rng: np.random.Generator, count: int) -> Sample:
    """Draw cells, and return what must be measured for them.

    Raises:
        UsageError: if a model's folder is not where the report says, or there is nothing to verify.
    """
    cells = sample_cells(report, rng, count)
    drawn = {cell.key for cell in cells}
    needed = drawn | {report.baseline}
    for row in report.ratios:
        if row.comparison == "like_for_like" and row.candidate in drawn:
            needed.add(row.baseline)
    ordered = [row.key for row in report.contestants if row.key in needed]
    # False sorts first: the baseline leads, the others keep their order.
    keys = sorted(ordered, key=lambda key: key != report.baseline)
    wanted = {kind: {cell.where for cell in cells if cell.kind == kind} for kind in ("latency", "quality")}
    loads = {str(row.load): row.load for row in report.latency if str(row.load) in wanted["latency"]}
    return Sample(
        keys=tuple(keys),
        loads=tuple(loads.values()),
        data=tuple(each.name for each in report.quality if each.name in wanted["quality"]),
        places=tuple(_places(report, keys)),
    )


def check(report: report_schema.Report, fresh: report_schema.Report, *, sample: Sample | None = None) -> list[Finding]:
    """Compare a report with a fresh measurement of some of its cells.

    Files and data come first: where one is another, what was measured with it is not compared. A p50 holds if the
    ratio of both leaves 1 in its interval (95 % for all cells together, after Bonferroni) widened by both noise
    floors; a ratio if the two intervals, each widened by its floor, overlap; a score if it is exactly the same. On
    another machine p50 is not compared; there, and with other software, a score has the tolerance that its finding
    names.

    Args:
        report: what is to be verified.
        fresh: the new measurement.
        sample: what was to be measured, so that what is missing is reported; None takes what `fresh` has.
    """
    changed = list(_changed_inputs(report, fresh))
    broken = {name for name, _ in changed}
    sample = sample or Sample(
        keys=tuple(row.key for row in fresh.contestants),
        loads=tuple({str(row.load): row.load for row in fresh.latency}.values()),
        data=tuple(each.name for each in fresh.quality),
        places=(),
    )
    keys = [key for key in sample.keys if key not in broken]
    loads = [str(load) for load in sample.loads]
    data = [name for name in sample.data if name not in broken]
    return [
        *(finding for _, finding in changed),
        *_times(report, fresh, keys=keys, loads=loads),
        *_ratios(report, fresh, keys=keys, loads=loads),
        *_scores(report, fresh, keys=keys, data=data),
    ]


def _places(report: report_schema.Report, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    seen = set()
    for key in keys:
        row = report.contestant(key)
        assert row is not None
        model = report.models[row.model]
        place = model.checkpoint if row.runner.startswith("torch") else model.bundle
        if place is None or not (Path(place).is_dir() or (place == model.checkpoint and _HUB_ID.fullmatch(place))):
            raise UsageError(
                f"{key} was measured from {place}, which is not here; verify where the models are, or bench anew"
            )
        if (row.model, place) not in seen:
            seen.add((row.model, place))
            yield row.model, place


def _changed_inputs(report: report_schema.Report, fresh: report_schema.Report) -> Iterator[tuple[str, Finding]]:
    """Yield the rows with other files than before, and the data sets with other examples."""
    for row in fresh.contestants:
        old_row = report.contestant(row.key)
        before = old_row.sha256 if old_row is not None else row.sha256
        for name in differing_files(before, row.sha256):
            old, new = (side.get(name, "not there")[:12] for side in (before, row.sha256))
            yield row.key, _finding(f"{row.key}: {name}", old, new, holds=False, note="SHA-256")
    old_hashes = {each.name: each.data_sha256 for each in report.quality}
    for each in fresh.quality:
        old = old_hashes.get(each.name, each.data_sha256)
        if old != each.data_sha256:
            what, new = f"{each.name}: {each.data}", each.data_sha256[:12]
            yield each.name, _finding(what, old[:12], new, holds=False, note="SHA-256")


def _times(
    report: report_schema.Report, fresh: report_schema.Report, *, keys: Sequence[str], loads: Sequence[str]
) -> Iterator[Finding]:
    before, after = (
        {(row.key, str(row.load)): side for row in each.latency if (side := _side(row)) is not None}
        for each in (report, fresh)
    )
    places = [place for place in before if place[0] in keys and place[1] in loads]
    machine, software = other_machine(report, fresh), other_software(report, fresh)
    # Bonferroni over the cells, as in `compare`.
    widened = together(len(places)) / Z
    for key, load in places:
        what, was, now = f"{key} p50 at {load}", before[key, load], after.get((key, load))
        if now is None:
            yield _lacking(fresh, what, key=key, where=load, old=f"{ms(was[0])} ms")
            continue
        told = f"{ms(was[0])} ms", f"{ms(now[0])} ms"
        if machine:
            yield Finding(what, *told, True, "not compared", f"another machine: {'; '.join(machine)}")
            continue
        disturbed = _disturbance(*((each, _find(each.latency, key=key, load=load)) for each in (report, fresh)))
        if disturbed:
            yield Finding(what, *told, True, "not compared", disturbed)
            continue
        _, interval = statistics.ratio(now, was, widened=widened)
        low, high = statistics.with_floors(interval, report.noise.at(load), fresh.noise.at(load))
        note = f"new / old is between {low:.2f} and {high:.2f}" + (f"; {'; '.join(software)}" if software else "")
        yield _finding(what, *told, holds=low <= 1 <= high, note=note)


def _disturbance(*sides: tuple[report_schema.Report, report_schema.Latency | report_schema.Ratio | None]) -> str | None:
    """Return what disturbed a row in either report; a flag that names no row is about any."""
    for (report, row), when in zip(sides, ("then", "now"), strict=True):
        unnamed = report.noise.flags[:1] if report.noise.flags and not report.names_disturbed_rows else []
        reasons = [row.disturbed] if row is not None and row.disturbed else unnamed
        if reasons:
            return f"the machine was disturbed {when}: {reasons[0]}"
    return None


def _find(rows: Sequence[report_schema.Latency], *, key: str, load: str) -> report_schema.Latency | None:
    return next((row for row in rows if (row.key, str(row.load)) == (key, load)), None)


def _side(row: report_schema.Latency) -> _Side | None:
    """Return p50 with its interval, or with itself as both ends where it has none."""
    return None if row.p50_ms is None else (row.p50_ms, row.intervals.get("p50", (row.p50_ms, row.p50_ms)))


def _ratios(
    report: report_schema.Report, fresh: report_schema.Report, *, keys: Sequence[str], loads: Sequence[str]
) -> Iterator[Finding]:
    # A pair that is two comparisons at once has a row for each, with the same figures.
    before, after = (
        {(row.baseline, row.candidate, str(row.load)): row for row in side.ratios} for side in (report, fresh)
    )
    for place, row in before.items():
        known = row.comparison != "again" and {row.baseline, row.candidate} <= set(keys) and str(row.load) in loads
        if not known:
            continue
        what = f"{row.candidate} times as fast as {row.baseline} at {row.load}"
        again = after.get(place)
        old = f"{row.value:.2f} ({bounds(row.interval)})"
        if again is None:
            yield _lacking(fresh, what, key=row.candidate, where=str(row.load), old=old)
            continue
        (low, high), (new_low, new_high) = (
            statistics.with_floors(each.interval, side.noise.at(row.load))
            for each, side in ((row, report), (again, fresh))
        )
        holds = low <= new_high and new_low <= high
        disturbed = _disturbance((report, row), (fresh, again))
        if disturbed:
            now = f"{again.value:.2f} ({bounds(again.interval)})"
            yield Finding(what, old, now, True, "not compared", disturbed)
            continue
        new = f"{again.value:.2f} ({bounds(again.interval)})"
        yield _finding(what, old, new, holds=holds, note="intervals, each widened by its noise floor, overlap or not")


def _scores(
    report: report_schema.Report, fresh: report_schema.Report, *, keys: Sequence[str], data: Sequence[str]
) -> Iterator[Finding]:
    after = {(each.name, row.key): row for each in fresh.quality for row in each.scores}
    moved = bool(other_machine(report, fresh) or other_software(report, fresh))
    for each in report.quality:
        for row in each.scores:
            if row.key not in keys or each.name not in data:
                continue
            what, again = f"{row.key} {each.metric.replace('_', ' ')} on {each.name}", after.get((each.name, row.key))
            if again is None:
                yield _lacking(fresh, what, key=row.key, where=each.name, old=score(row.value))
                continue
            tolerance, note = _tolerance(report, row, each, moved=moved)
            holds = abs(again.value - row.value) <= tolerance
            yield _finding(what, score(row.value), score(again.value), holds=holds, note=note)


def _tolerance(
    report: report_schema.Report, row: report_schema.Score, quality: report_schema.Quality, *, moved: bool
) -> tuple[float, str]:
    """Return by how much a score may differ, and why."""
    entry = report.contestant(row.key)
    if entry is None:
        return inf, "its row is gone"
    if not moved and entry.runner in _EXACT_RUNNERS:
        return _EXACT, "the same files on the same data must score the same"
    # The least by which an accuracy can change.
    one = 1 / quality.num_examples
    if entry.precision == "fp32":
        return one, f"one of {quality.num_examples} examples may be decided otherwise by another order of sums"
    return max(one, _REDUCED * abs(row.value)), f"{entry.precision} may differ by 1\u00a0% between CPUs and engines"


def _lacking(fresh: report_schema.Report, what: str, *, key: str, where: str, old: str) -> Finding:
    # Reversed, so that of several failures at a place the first one is told.
    failures = {row.where: row for row in reversed(fresh.failures) if row.key == key}
    failure = failures.get(where) or failures.get(None)
    return _finding(what, old, "–", holds=False, note=failure.reason if failure else "it was not measured again")


def _finding(what: str, old: str, new: str, *, holds: bool, note: str) -> Finding:
    return Finding(what, old, new, holds, "holds" if holds else "DOES NOT HOLD", note)
