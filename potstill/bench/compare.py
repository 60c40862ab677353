"""Compare two reports row by row (`potstill bench --compare`): better, worse, or no difference shown.

Each report has intervals of its own. They are combined as independent measurements, times on the logarithmic scale
(`potstill.bench.statistics`), and widened by the A/A noise floors of both runs. A row is better or worse only if the
resulting interval excludes "the same". All rows are judged together (Bonferroni), so that two reports of the same
models have no changed row in 95 of 100 cases. What was disturbed in either run is not compared.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Literal, TypeAlias

from potstill.bench import report_schema, statistics
from potstill.bench.report.formatting import number, score

_MACHINE = ("cpu", "cores", "cpu_quota", "threads", "spinning", "governor", "turbo", "smt")
_UNKNOWN_IS_FINE = ("governor", "turbo", "smt")


def other_machine(old: report_schema.Report, new: report_schema.Report) -> list[str]:
    """Return what makes times incomparable, each as `threads: 2, now 4`; what a system does not tell is left out."""
    found = []
    for field in _MACHINE:
        before, after = getattr(old.environment, field), getattr(new.environment, field)
        unknown = field in _UNKNOWN_IS_FINE and None in (before, after)
        if before != after and not unknown:
            found.append(f"{field}: {before}, now {after}")
    lost = sorted(set(old.environment.cpu_features) ^ set(new.environment.cpu_features))
    return found + ([f"cpu_features: {', '.join(lost)} on one alone"] if lost else [])


def other_software(old: report_schema.Report, new: report_schema.Report) -> list[str]:
    """Return the packages, the Python and the system that are not the same."""
    before, after = (
        dict(report.environment.packages) | {"Python": report.environment.python, "system": report.environment.os}
        for report in (old, new)
    )
    return [
        f"{name} {before.get(name, 'not installed')}, now {after.get(name, 'not installed')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def other_files(old: report_schema.Report, new: report_schema.Report) -> list[str]:
    """Return the rows that both have, `KEY (FILE, FILE)`, with the files whose SHA-256 is another."""
    found = []
    for row in old.contestants:
        again = new.contestant(row.key)
        files = differing_files(row.sha256, again.sha256) if again is not None else []
        if files:
            found.append(f"{row.key} ({', '.join(files)})")
    return found


def differing_files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the names that have another SHA-256, or are on one side alone."""
    return [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def other_data(old: report_schema.Report, new: report_schema.Report) -> list[str]:
    """Return the names of the data sets that both have and whose examples are not the same."""
    after = {quality.name: quality.data_sha256 for quality in new.quality}
    return [row.name for row in old.quality if after.get(row.name, row.data_sha256) != row.data_sha256]


Outcome = Literal[
    "better",
    "worse",
    "no difference shown",
    "disturbed",
    "not comparable",
    "only in the old report",
    "only in the new report",
]
Table: TypeAlias = tuple[tuple[str, ...], list[list[str]]]
"""Head and rows, the first column being the name."""

# Six loads of one file differed in resident memory by up to 1.1 % (int8) and 0.1 % (fp32); twice that is a difference
# where a report did not look at several processes.
_MEMORY_FLOOR = 0.02
_CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row of both reports."""

    kind: str
    """The title of its table."""
    subject: str
    where: str
    old: float | None
    new: float | None
    change: float | None = None
    """new / old; of scores new - old."""
    interval: report_schema.Interval | None = None
    """Of `change`, with the noise floors of both runs in it; None where nothing was sampled."""
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedVerdict:
    """A claim that was decided otherwise."""

    id: str
    subject: str
    where: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs between two reports."""

    notes: list[str]
    """What to know first: another machine, other software, other files or data."""
    changes: list[Change]
    verdicts: list[ChangedVerdict]

    def tables(self) -> dict[str, Table]:
        """Return what to show, by title; a table without rows is left out."""
        tables: dict[str, Table] = {}
        for group in _GROUPS:
            rows = [_row(group, change) for change in self.changes if change.kind == group.title]
            if rows:
                column = "new - old" if group.title == _SCORE else "new / old"
                tables[group.title] = (("row", "at", "old", "new", column, "95 % interval", ""), rows)
        if self.verdicts:
            head = ("claim", "about", "at", "old", "new")
            tables["Verdicts that changed"] = (
                head,
                [[each.id, each.subject, each.where, each.old, each.new] for each in self.verdicts],
            )
        return tables

    def to_markdown(self) -> str:
        """Write it for a pull request."""
        lines = ["# Compared with an older report", "", *(f"- {note}" for note in self.notes)]
        for title, (head, rows) in self.tables().items():
            lines += ["", f"## {title}", "", _line(head), "|---|" + "---|" * (len(head) - 1), *map(_line, rows)]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Found:
    """What one report says of a row."""

    value: float
    interval: report_schema.Interval | None = None
    low_is_good: bool = True
    disturbed: str | None = None
    once: bool = False
    """Whether it was sampled a single time, so that nobody knows how sure it is."""


_Rows: TypeAlias = Mapping[tuple[str, str], _Found]


@dataclass(frozen=True, slots=True)
class _Group:
    title: str
    floor: Literal["load", "memory", "cold start", "none"]
    """What must be exceeded beyond the intervals: which noise floor of both runs."""
    timed: bool = False
    """Whether it says nothing across machines."""
    can_be_disturbed: bool = True
    """Whether it is a sample of times, which other work on the machine spoils."""


_SCORE = "Score"
_GROUPS = (
    _Group("Latency p50, ms", "load", timed=True),
    _Group("Times as fast as the baseline", "load"),
    _Group("Throughput, texts/s", "load", timed=True),
    _Group("Cold start, ms", "cold start", timed=True),
    _Group("Energy, J/text", "load", timed=True),
    _Group(_SCORE, "none", can_be_disturbed=False),
    _Group("Memory loaded, MB", "memory", can_be_disturbed=False),
    _Group("Memory peak, MB", "memory", can_be_disturbed=False),
    _Group("Memory private, MB", "memory", can_be_disturbed=False),
    _Group("File size, MB", "none", can_be_disturbed=False),
)


def compare(old: report_schema.Report, new: report_schema.Report) -> Comparison:
    """Hold a report against an older one, row by row."""
    machine = other_machine(old, new)
    groups = list(zip(_GROUPS, _tables_of(old), _tables_of(new), strict=True))
    sampled = sum(
        place in after and (row.interval is not None or after[place].interval is not None)
        for group, before, after in groups
        if group.can_be_disturbed
        for place, row in before.items()
    )
    widened = NormalDist().inv_cdf(1 - (1 - _CONFIDENCE) / 2 / max(1, sampled)) / _Z
    changes = []
    for group, before, after in groups:
        for place in dict.fromkeys([*before, *after]):
            comparable = not (group.timed and (machine or _other_gpu(old, new, key=place[0])))
            floors = _floors(group, old, new, where=place[1])
            change = _change(group, place, before.get(place), after.get(place), floors, widened)
            if change.outcome in ("better", "worse", "no difference shown"):
                if not comparable:
                    change = replace(change, outcome="not comparable")
                elif _is_disturbed(group, old, before[place]) or _is_disturbed(group, new, after[place]):
                    change = replace(change, outcome="disturbed")
            changes.append(change)
    return Comparison(notes=list(_notes(old, new)), changes=changes, verdicts=list(_verdicts(old, new)))


def _is_disturbed(group: _Group, report: report_schema.Report, row: _Found) -> bool:
    """Tell whether a row says so, or may be any that its run flags without naming rows."""
    unnamed = bool(report.noise.flags) and not report.names_disturbed_rows
    return group.can_be_disturbed and (bool(row.disturbed) or unnamed)


def _notes(old: report_schema.Report, new: report_schema.Report) -> Iterator[str]:
    machine = other_machine(old, new)
    if machine:
        yield f"Measured on different machines, so times are not comparable: {'; '.join(machine)}."
    software = other_software(old, new)
    if software:
        yield f"Measured with different software: {'; '.join(software)}."
    files = other_files(old, new)
    if files:
        yield f"Other files under the same name: {', '.join(files)}."
    data = other_data(old, new)
    if data:
        yield f"Scored on other examples: {', '.join(data)}; those scores are of two samples."
    if len(data) < len(old.quality):
        yield "Scores on the same examples are compared by each one's own interval; a paired one would be narrower."
    for name, report in (("old", old), ("new", new)):
        if not report.complete:
            yield f"The {name} report is incomplete."
        if report.noise.floor is None:
            yield f"The {name} report has no noise floor; only its intervals keep noise from being called a change."
        yield from (f"The {name} run was disturbed: {flag}" for flag in report.noise.flags)


def _tables_of(report: report_schema.Report) -> tuple[_Rows, ...]:
    """Return the rows of every group, in the order of `_GROUPS`."""
    return (
        {
            (row.key, str(row.load)): _Found(row.p50_ms, row.intervals.get("p50"), disturbed=row.disturbed)
            for row in report.latency
            if row.p50_ms is not None
        },
        {
            (f"{row.candidate} to {row.baseline}", str(row.load)): _Found(
                row.value, row.interval, low_is_good=False, disturbed=row.disturbed
            )
            for row in report.ratios
            if row.comparison != "again"
        },
        {
            (row.key, f"{row.load}, {row.callers} caller{'s' if row.callers > 1 else ''}"): _Found(
                row.texts_per_s, row.interval, low_is_good=False, disturbed=row.disturbed
            )
            for row in report.throughput
        },
        {
            (row.key, ""): _Found(row.total_ms, row.interval, disturbed=row.disturbed, once=row.starts == 1)
            for row in report.cold_start
        },
        {
            (str(row["key"]), str(report_schema.Load.model_validate(row["load"]))): _Found(
                float(row["joules_per_text"]),
                tuple(row["interval"]) if row.get("interval") else None,
                disturbed=row.get("disturbed"),
                once=not row.get("interval"),
            )
            for row in report.energy.rows
        },
        {
            (row.key, f"{quality.name}, {quality.metric}"): _Found(row.value, row.interval, quality.lower_is_better)
            for quality in report.quality
            for row in quality.scores
        },
        _memory(report, "loaded_rss_bytes"),
        _memory(report, "peak_bytes"),
        _memory(report, "after_uss_bytes"),
        {(row.key, ""): _Found(row.file_bytes / 1e6) for row in report.contestants if row.file_bytes is not None},
    )


def _memory(report: report_schema.Report, part: str) -> _Rows:
    """Return one part of every row's memory, in MB, with the span of the processes that were looked at."""
    found = {}
    for row in report.memory:
        size = getattr(row, part)
        if size is not None:
            span = row.intervals.get(part)
            found[row.key, ""] = _Found(size / 1e6, None if span is None else (span[0] / 1e6, span[1] / 1e6))
    return found


def _change(
    group: _Group,
    place: tuple[str, str],
    before: _Found | None,
    after: _Found | None,
    floors: tuple[float | None, ...],
    widened: float,
) -> Change:
    make = partial(Change, kind=group.title, subject=place[0], where=place[1])
    old, new = (None if side is None else side.value for side in (before, after))
    if before is None or after is None:
        return make(old=old, new=new, outcome="only in the new report" if before is None else "only in the old report")
    is_score = group.title == _SCORE
    # A score is exactly the same again on the same machine, and memory's interval is the span of all its processes:
    # what widens the intervals of times would only hide a change.
    widened = widened if group.can_be_disturbed else 1.0
    change, interval = _difference(before, after) if is_score else _ratio(before, after, widened)
    if interval is not None:
        interval = statistics.with_floors(interval, *floors)
    outcome = _outcome(interval, same=0.0 if is_score else 1.0, low_is_good=after.low_is_good)
    if before.once or after.once:
        return make(old=old, new=new, change=change, outcome="no difference shown")
    return make(
        old=old,
        new=new,
        change=change,
        interval=None if before.interval is None and after.interval is None else interval,
        outcome=outcome,
    )


def _difference(before: _Found, after: _Found) -> tuple[float, report_schema.Interval | None]:
    if before.interval is None or after.interval is None:
        return after.value - before.value, None
    return statistics.difference((after.value, after.interval), (before.value, before.interval))


def _ratio(before: _Found, after: _Found, widened: float) -> tuple[float | None, report_schema.Interval | None]:
    """Return new / old; what was counted is its own interval."""
    sides = [(side.value, side.interval or (side.value, side.value)) for side in (after, before)]
    return statistics.ratio(*sides, widened=widened) if statistics.can_be_ratio(*sides) else (None, None)


def _outcome(interval: report_schema.Interval | None, *, same: float, low_is_good: bool) -> Outcome:
    if interval is None:
        return "not comparable"
    low, high = interval
    if low <= same <= high:
        return "no difference shown"
    return "better" if (high < same) == low_is_good else "worse"


def _floors(
    group: _Group, old: report_schema.Report, new: report_schema.Report, *, where: str
) -> tuple[float | None, ...]:
    if group.floor == "load":
        return old.noise.at(where), new.noise.at(where)
    if group.floor == "cold start":
        return old.noise.at("cold start"), new.noise.at("cold start")
    if group.floor == "memory":
        return (max(_MEMORY_FLOOR, *(report.noise.floors.get("memory", 0.0) for report in (old, new))),)
    return ()


def _other_gpu(old: report_schema.Report, new: report_schema.Report, *, key: str) -> bool:
    rows = old.contestant(key), new.contestant(key)
    return (
        any(row is not None and row.device != "cpu" for row in rows) and len({row and row.device for row in rows}) > 1
    )


def _verdicts(old: report_schema.Report, new: report_schema.Report) -> Iterator[ChangedVerdict]:
    before, after = (
        {(row.id, row.subject, row.against or "", row.where or ""): row for row in report.claims}
        for report in (old, new)
    )
    for place in dict.fromkeys([*before, *after]):
        was, now = before.get(place), after.get(place)
        if was and now and was.verdict == now.verdict:
            continue
        yield ChangedVerdict(
            id=place[0],
            subject=place[1],
            where=place[3],
            old=was.verdict if was else "not there",
            new=now.verdict if now else "not there",
        )


def _row(group: _Group, change: Change) -> list[str]:
    write = score if group.title == _SCORE else number
    between = "–"
    if change.interval is not None:
        between = f"{change.interval[0]:.3f} to {change.interval[1]:.3f}"
    by = "–" if change.change is None else f"{change.change:+.4f}" if group.title == _SCORE else f"{change.change:.3f}"
    return [change.subject, change.where or "–", write(change.old), write(change.new), by, between, change.outcome]


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
