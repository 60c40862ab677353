"""Compare two reports row by row (`potstill bench --compare`): better, worse, or no difference shown.

Each report has intervals of its own. They are combined as independent measurements, times on the logarithmic scale
(`potstill.bench.statistics`), and widened by the A/A noise floors of both runs. A row is better or worse only if the
resulting interval excludes "the same". All rows are judged together (Bonferroni), so that two reports of the same
models have no changed row in 95 of 100 cases. What was disturbed in either run is not compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from potstill.bench import report_schema, statistics
from potstill.bench.report.formatting import number, score
from potstill.evaluation.intervals import Z, together

ChangeOutcome = Literal[
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

# Fields of the environment that make times incomparable, and those that a system may not tell.
_MACHINE = ("cpu", "cores", "cpu_quota", "threads", "spinning", "governor", "turbo", "smt")
_UNKNOWN_IS_FINE = ("governor", "turbo", "smt")
# Six loads of one file differed in resident memory by up to 1.1 % (int8) and 0.1 % (fp32); twice that is a difference
# where a report did not look at several processes.
_MEMORY_FLOOR = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row of both reports, and how it changed."""

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
    outcome: ChangeOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedVerdict:
    """A claim whose verdict is another in the new report."""

    id: str
    subject: str
    where: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportComparison:
    """What differs between two reports."""

    notes: list[str]
    """What to know first: another machine, other software, other files or data."""
    changes: list[Change]
    verdicts: list[ChangedVerdict]

    def tables(self) -> dict[str, Table]:
        """Return what to show, by title; a table without rows is left out."""
        tables: dict[str, Table] = {}
        for table in _TABLES:
            is_score = table.title == _SCORE
            write, column = (score, "new - old") if is_score else (number, "new / old")
            rows = []
            for each in self.changes:
                if each.kind == table.title:
                    by = "–" if each.change is None else f"{each.change:+.4f}" if is_score else f"{each.change:.3f}"
                    between = "–" if each.interval is None else f"{each.interval[0]:.3f} to {each.interval[1]:.3f}"
                    old, new = write(each.old), write(each.new)
                    rows.append([each.subject, each.where or "–", old, new, by, between, each.outcome])
            if rows:
                tables[table.title] = (("row", "at", "old", "new", column, "95 % interval", ""), rows)
        if self.verdicts:
            head = ("claim", "about", "at", "old", "new")
            tables["Verdicts that changed"] = (
                head,
                [[each.id, each.subject, each.where, each.old, each.new] for each in self.verdicts],
            )
        return tables

    def to_markdown(self) -> str:
        """Write the comparison as Markdown for a pull request."""
        lines = ["# Compared with an older report", "", *(f"- {note}" for note in self.notes)]
        for title, (head, rows) in self.tables().items():
            lines += ["", f"## {title}", "", _line(head), "|---|" + "---|" * (len(head) - 1), *map(_line, rows)]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a table, as one report has it."""

    value: float
    interval: report_schema.Interval | None = None
    low_is_good: bool = True
    disturbed: str | None = None
    once: bool = False
    """Whether it was sampled a single time, so that its uncertainty is not known."""


_Rows: TypeAlias = Mapping[tuple[str, str], _Row]


@dataclass(frozen=True, slots=True)
class _Table:
    """One kind of row, and the rules by which it is compared."""

    title: str
    floor: Literal["load", "memory", "cold start", "none"]
    """The noise floor, of both runs, that a change must exceed besides the intervals."""
    timed: bool = False
    """Whether its values depend on the machine, so that two machines cannot be compared."""
    can_be_disturbed: bool = True
    """Whether it is a sample of times, which other work on the machine spoils."""


_SCORE = "Score"
_TABLES = (
    _Table("Latency p50, ms", "load", timed=True),
    _Table("Times as fast as the baseline", "load"),
    _Table("Throughput, texts/s", "load", timed=True),
    _Table("Cold start, ms", "cold start", timed=True),
    _Table("Energy, J/text", "load", timed=True),
    _Table(_SCORE, "none", can_be_disturbed=False),
    _Table("Memory loaded, MB", "memory", can_be_disturbed=False),
    _Table("Memory peak, MB", "memory", can_be_disturbed=False),
    _Table("Memory private, MB", "memory", can_be_disturbed=False),
    _Table("File size, MB", "none", can_be_disturbed=False),
)


def compare(old: report_schema.Report, new: report_schema.Report) -> ReportComparison:
    """Compare a report with an older one, row by row."""
    machine = other_machine(old, new)
    old_tables, new_tables = _read_tables(old), _read_tables(new)
    # The rows that were sampled: these are the tests that share the 5 % of false alarms. What was counted is none.
    sampled = sum(
        place in new_tables[table.title] and bool(row.interval or new_tables[table.title][place].interval)
        for table in _TABLES
        for place, row in old_tables[table.title].items()
    )
    # Bonferroni: every interval is stretched by the quantile for so many tests / the usual one.
    widened = together(sampled) / Z
    changes = []
    for table in _TABLES:
        before, after = old_tables[table.title], new_tables[table.title]
        for place in dict.fromkeys([*before, *after]):
            change = _compare_rows(
                table,
                place,
                before.get(place),
                after.get(place),
                floors=_floors(table, old, new, where=place[1]),
                widened=widened,
            )
            if change.outcome in ("better", "worse", "no difference shown"):
                if table.timed and (machine or _other_gpu(old, new, key=place[0])):
                    change = replace(change, outcome="not comparable")
                elif _is_disturbed(table, old, before[place]) or _is_disturbed(table, new, after[place]):
                    change = replace(change, outcome="disturbed")
            changes.append(change)
    return ReportComparison(notes=list(_notes(old, new)), changes=changes, verdicts=list(_changed_verdicts(old, new)))


def _is_disturbed(table: _Table, report: report_schema.Report, row: _Row) -> bool:
    """Tell whether a row is marked as disturbed, or its report has flags but marks no rows."""
    # Reports from before rows were marked have flags alone, which may be about any row.
    unnamed = bool(report.noise.flags) and not report.names_disturbed_rows
    return table.can_be_disturbed and (bool(row.disturbed) or unnamed)


def _floors(table: _Table, old: report_schema.Report, new: report_schema.Report, *, where: str) -> list[float | None]:
    """Return the noise floors of both runs that a change must exceed."""
    if table.floor == "memory":
        return [max(_MEMORY_FLOOR, *(report.noise.floors.get("memory", 0.0) for report in (old, new)))]
    if table.floor == "none":
        return []
    return [report.noise.at(where if table.floor == "load" else "cold start") for report in (old, new)]


def _other_gpu(old: report_schema.Report, new: report_schema.Report, *, key: str) -> bool:
    devices = [row and row.device for row in (old.contestant(key), new.contestant(key))]
    return any(device not in (None, "cpu") for device in devices) and len(set(devices)) > 1


def _compare_rows(
    table: _Table,
    place: tuple[str, str],
    before: _Row | None,
    after: _Row | None,
    *,
    floors: Sequence[float | None],
    widened: float,
) -> Change:
    make = partial(Change, kind=table.title, subject=place[0], where=place[1])
    old, new = (None if row is None else row.value for row in (before, after))
    if before is None or after is None:
        return make(old=old, new=new, outcome="only in the new report" if before is None else "only in the old report")
    is_score = table.title == _SCORE
    change, interval = (_difference if is_score else _ratio)(before, after, widened=widened)
    if interval is not None:
        interval = statistics.with_floors(interval, *floors)
    # One start has no spread to judge a change by.
    if before.once or after.once:
        return make(old=old, new=new, change=change, outcome="no difference shown")
    same = 0.0 if is_score else 1.0
    outcome: ChangeOutcome = "not comparable"
    if interval is not None:
        outcome = "better" if (interval[1] < same) == after.low_is_good else "worse"
        outcome = "no difference shown" if interval[0] <= same <= interval[1] else outcome
    # Of two values without one only the noise floors are left, and they are no interval of the change.
    has_interval = before.interval is not None or after.interval is not None
    return make(old=old, new=new, change=change, interval=interval if has_interval else None, outcome=outcome)


def _difference(before: _Row, after: _Row, *, widened: float) -> tuple[float, report_schema.Interval | None]:
    if before.interval is None or after.interval is None:
        return after.value - before.value, None
    sides = (after.value, after.interval), (before.value, before.interval)
    return statistics.difference(*sides, widened=widened)


def _ratio(before: _Row, after: _Row, *, widened: float) -> tuple[float | None, report_schema.Interval | None]:
    """Return new / old with its interval; a value that was counted is taken as exact."""
    sides = [(row.value, row.interval or (row.value, row.value)) for row in (after, before)]
    if not statistics.can_be_ratio(*sides):
        return None, None
    return statistics.ratio(*sides, widened=widened)


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


def _read_tables(report: report_schema.Report) -> dict[str, _Rows]:
    """Return the rows of every table by its title."""
    rows: tuple[_Rows, ...] = (
        {
            (row.key, str(row.load)): _Row(row.p50_ms, row.intervals.get("p50"), disturbed=row.disturbed)
            for row in report.latency
            if row.p50_ms is not None
        },
        {
            (f"{row.candidate} to {row.baseline}", str(row.load)): _Row(
                row.value, row.interval, low_is_good=False, disturbed=row.disturbed
            )
            for row in report.ratios
            if row.comparison != "again"
        },
        {
            (row.key, f"{row.load}, {row.callers} caller{'s' if row.callers > 1 else ''}"): _Row(
                row.texts_per_s, row.interval, low_is_good=False, disturbed=row.disturbed
            )
            for row in report.throughput
        },
        {
            (row.key, ""): _Row(row.total_ms, row.interval, disturbed=row.disturbed, once=row.starts == 1)
            for row in report.cold_start
        },
        {
            (str(row["key"]), str(report_schema.Load.model_validate(row["load"]))): _Row(
                float(row["joules_per_text"]),
                tuple(row["interval"]) if row.get("interval") else None,
                disturbed=row.get("disturbed"),
                once=not row.get("interval"),
            )
            for row in report.energy.rows
        },
        {
            (row.key, f"{quality.name}, {quality.metric}"): _Row(row.value, row.interval, quality.lower_is_better)
            for quality in report.quality
            for row in quality.scores
        },
        _memory(report, "loaded_rss_bytes"),
        _memory(report, "peak_bytes"),
        _memory(report, "after_uss_bytes"),
        {(row.key, ""): _Row(row.file_bytes / 1e6) for row in report.contestants if row.file_bytes is not None},
    )
    return {table.title: found for table, found in zip(_TABLES, rows, strict=True)}


def _memory(report: report_schema.Report, part: str) -> _Rows:
    """Return one part of every row's memory, in MB, with the span of the processes that were looked at."""
    found = {}
    for row in report.memory:
        size = getattr(row, part)
        if size is not None:
            span = row.intervals.get(part)
            found[row.key, ""] = _Row(size / 1e6, None if span is None else (span[0] / 1e6, span[1] / 1e6))
    return found


def _changed_verdicts(old: report_schema.Report, new: report_schema.Report) -> Iterator[ChangedVerdict]:
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


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# In what two reports differ before anything was measured: machine, software, files, data.


def other_machine(old: report_schema.Report, new: report_schema.Report) -> list[str]:
    """Return what makes times incomparable, each as `threads: 2, now 4`; what a system does not tell is left out."""
    found = []
    for field in _MACHINE:
        before, after = getattr(old.environment, field), getattr(new.environment, field)
        # A virtual machine often hides these, and a hidden value is no other value.
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
    # A data set that only one report has is no change of data.
    return [row.name for row in old.quality if after.get(row.name, row.data_sha256) != row.data_sha256]
