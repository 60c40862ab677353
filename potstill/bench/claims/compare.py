"""Two reports side by side: what got better, what got worse, and what nobody can tell.

Each report has intervals of its own. They are combined as of independent measurements, times on the logarithmic scale
(`potstill.bench.claims.combine`), and for times widened by the noise floors of both runs. Better or worse is said only
where the result leaves out "the same". Every row is judged by itself at 95 %, so among many that did not change a few
may be called changed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from potstill.bench import contract
from potstill.bench.claims import combine
from potstill.bench.claims.differing import other_data, other_files, other_machine, other_software
from potstill.bench.report.wording import number, score

Outcome = Literal[
    "better", "worse", "no difference shown", "not comparable", "only in the old report", "only in the new report"
]
Table: TypeAlias = tuple[tuple[str, ...], list[list[str]]]
"""Head and rows, the first column being the name."""

# Six loads of one file differed in resident memory by up to 1.1 % (int8) and 0.1 % (fp32); twice that is a difference.
_MEMORY_FLOOR = 0.02


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
    interval: contract.Interval | None = None
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
    interval: contract.Interval | None = None
    low_is_good: bool = True


_Rows: TypeAlias = Mapping[tuple[str, str], _Found]


@dataclass(frozen=True, slots=True)
class _Group:
    title: str
    floor: Literal["noise", "memory", "none"]
    """What must be exceeded beyond the intervals."""
    timed: bool = False
    """Whether it says nothing across machines."""


_SCORE = "Score"
_GROUPS = (
    _Group("Latency p50, ms", "noise", timed=True),
    _Group("Times as fast as the baseline", "noise"),
    _Group("Throughput, texts/s", "noise", timed=True),
    _Group("Cold start, ms", "noise", timed=True),
    _Group(_SCORE, "none"),
    _Group("Memory loaded, MB", "memory"),
    _Group("Memory peak, MB", "memory"),
    _Group("File size, MB", "none"),
)


def compare(old: contract.Report, new: contract.Report) -> Comparison:
    """Hold a report against an older one, row by row."""
    machine = other_machine(old, new)
    changes = []
    for group, before, after in zip(_GROUPS, _tables_of(old), _tables_of(new), strict=True):
        for place in dict.fromkeys([*before, *after]):
            comparable = not (group.timed and (machine or _other_gpu(old, new, key=place[0])))
            floors = _floors(group, old, new, where=place[1])
            changes.append(_change(group, place, before.get(place), after.get(place), floors, comparable))
    return Comparison(notes=list(_notes(old, new)), changes=changes, verdicts=list(_verdicts(old, new)))


def _notes(old: contract.Report, new: contract.Report) -> Iterator[str]:
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


def _tables_of(report: contract.Report) -> tuple[_Rows, ...]:
    """Return the rows of every group, in the order of `_GROUPS`."""
    return (
        {
            (row.key, str(row.load)): _Found(row.p50_ms, row.intervals.get("p50"))
            for row in report.latency
            if row.p50_ms is not None
        },
        {
            (f"{row.candidate} to {row.baseline}", str(row.load)): _Found(row.value, row.interval, low_is_good=False)
            for row in report.ratios
            if row.comparison != "again"
        },
        {
            (row.key, f"{row.load}, {row.callers} callers"): _Found(row.texts_per_s, row.interval, low_is_good=False)
            for row in report.throughput
        },
        {(row.key, ""): _Found(row.total_ms, row.interval) for row in report.cold_start},
        {
            (row.key, f"{quality.name}, {quality.metric}"): _Found(row.value, row.interval, quality.lower_is_better)
            for quality in report.quality
            for row in quality.scores
        },
        {(row.key, ""): _Found(row.loaded_rss_bytes / 1e6) for row in report.memory},
        {(row.key, ""): _Found(row.peak_bytes / 1e6) for row in report.memory},
        {(row.key, ""): _Found(row.file_bytes / 1e6) for row in report.contestants if row.file_bytes is not None},
    )


def _change(
    group: _Group,
    place: tuple[str, str],
    before: _Found | None,
    after: _Found | None,
    floors: tuple[float | None, ...],
    comparable: bool,
) -> Change:
    make = partial(Change, kind=group.title, subject=place[0], where=place[1])
    old, new = (None if side is None else side.value for side in (before, after))
    if before is None or after is None:
        return make(old=old, new=new, outcome="only in the new report" if before is None else "only in the old report")
    is_score = group.title == _SCORE
    change, interval = _difference(before, after) if is_score else _ratio(before, after)
    if interval is not None:
        interval = combine.with_floors(interval, *floors)
    outcome = _outcome(interval, same=0.0 if is_score else 1.0, low_is_good=after.low_is_good)
    return make(
        old=old,
        new=new,
        change=change,
        interval=None if before.interval is None and after.interval is None else interval,
        outcome=outcome if comparable else "not comparable",
    )


def _difference(before: _Found, after: _Found) -> tuple[float, contract.Interval | None]:
    if before.interval is None or after.interval is None:
        return after.value - before.value, None
    return combine.difference((after.value, after.interval), (before.value, before.interval))


def _ratio(before: _Found, after: _Found) -> tuple[float | None, contract.Interval | None]:
    """Return new / old; what was counted is its own interval."""
    sides = [(side.value, side.interval or (side.value, side.value)) for side in (after, before)]
    return combine.ratio(*sides) if combine.can_be_ratio(*sides) else (None, None)


def _outcome(interval: contract.Interval | None, *, same: float, low_is_good: bool) -> Outcome:
    if interval is None:
        return "not comparable"
    low, high = interval
    if low <= same <= high:
        return "no difference shown"
    return "better" if (high < same) == low_is_good else "worse"


def _floors(group: _Group, old: contract.Report, new: contract.Report, *, where: str) -> tuple[float | None, ...]:
    if group.floor == "noise":
        return old.noise.at(where), new.noise.at(where)
    return (_MEMORY_FLOOR,) if group.floor == "memory" else ()


def _other_gpu(old: contract.Report, new: contract.Report, *, key: str) -> bool:
    rows = old.contestant(key), new.contestant(key)
    return (
        any(row is not None and row.device != "cpu" for row in rows) and len({row and row.device for row in rows}) > 1
    )


def _verdicts(old: contract.Report, new: contract.Report) -> Iterator[ChangedVerdict]:
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
