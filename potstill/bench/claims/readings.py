"""Sizes, times and memory as claims read them out of a report: a value with its interval, or why there is none."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from potstill.bench import report_schema
from potstill.bench.claims import combine
from potstill.bench.report.formatting import percent

_MEGA = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of a report's rows are read; "" where the measure does not depend on it."""

    model: str
    key: str = ""
    """The row; "" for what only depends on the model."""
    against: str = ""
    """The row, or the model, that it is held against."""
    load: str = ""
    """As `report_schema.Load` writes itself."""
    callers: int = 0
    data: str = ""
    """The data set's name; "" with a measure of quality means the mean over GLUE's tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A measured value."""

    value: float
    interval: report_schema.Interval | None
    """None where none was measured, so that nothing can be decided; of what is counted it is the value itself."""
    worthless: str | None = None
    """Why it can be no PASS, however good it looks: the row is no better than an answer that ignores the text."""
    note: str = ""
    """What to know beside it: the end of a sentence."""
    what: str = ""
    """What was scored: `accuracy on SST-2`."""
    disturbed: str | None = None
    """Why nothing can be decided by it: what the machine did while it was measured."""


Answer: TypeAlias = Reading | str
"""A str says why there is no value."""
Read: TypeAlias = Callable[[report_schema.Report, Selection], Answer]


class Loaded(Protocol):
    """A row of the report that belongs to a load."""

    @property
    def key(self) -> str:
        """Return which contestant it is of."""

    @property
    def load(self) -> report_schema.Load:
        """Return what a call is given."""


_L = TypeVar("_L", bound=Loaded)


def baseline_model(report: report_schema.Report) -> str:
    """Return the name of the baseline's model, also where its row could not be measured."""
    row = report.contestant(report.baseline)
    return row.model if row is not None else report.baseline.rpartition("/")[0]


def encoder_parameters(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the share of the encoder's parameters that is saved."""
    own, base = report.models[pick.model], report.models[pick.against]
    return _saved(own.encoder_parameters, base.encoder_parameters)


def parameters(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the share of all parameters that is saved."""
    return _saved(report.models[pick.model].parameters, report.models[pick.against].parameters)


def flops(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the share of the floating-point operations per token that is saved, at the length of the load."""
    own, base = (report.models[name].flops_per_token for name in (pick.model, pick.against))
    length = pick.load.partition("×")[2]
    if own is None or base is None:
        return f"the FLOPs of {pick.model if own is None else pick.against}'s architecture are not known"
    if not length or int(length) not in own or int(length) not in base:
        return f"FLOPs are not counted at {pick.load}; counted are lengths of {', '.join(map(str, own))} tokens"
    return _saved(own[int(length)], base[int(length)])


def _saved(own: float, base: float) -> Reading:
    value = (base - own) / base  # rounded once: 1 - own / base is rounded twice, and the target is met exactly or not
    return Reading(value=value, interval=(value, value), note=f" ({own:,.0f} against {base:,.0f})")


def file_share(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the size of the files as a share of the other's."""
    own, base = _file(report, pick.key), _file(report, pick.against)
    if own is None or base is None:
        return lost(report, pick.key if own is None else pick.against, "its files' size")
    return Reading(value=own / base, interval=(own / base, own / base))


def _file(report: report_schema.Report, key: str) -> int | None:
    row = report.contestant(key)
    return row.file_bytes if row is not None else None


def bytes_of(rows: str, *fields: str) -> Read:
    """Return what reads the first of `fields` that is there, in MB of 10^6, from a list of the report.

    A file's size is its own interval; memory has that of the processes that were looked at.
    """

    def read(report: report_schema.Report, pick: Selection) -> Answer:
        row = next((row for row in getattr(report, rows) if row.key == pick.key), None)
        name = next((field for field in fields if getattr(row, field, None) is not None), None)
        if row is None or name is None:
            return lost(report, pick.key, fields[0].removesuffix("_bytes").replace("_", " "))
        found = getattr(row, name)
        low, high = getattr(row, "intervals", {}).get(name, (found, found))
        return Reading(value=found / _MEGA, interval=(low / _MEGA, high / _MEGA))

    return read


def speed(report: report_schema.Report, pick: Selection) -> Answer:
    """Read how many times as fast the row is: from paired rounds, or where those are lacking from each one's p50."""
    wanted = (pick.against, pick.key, pick.load)
    for row in report.ratios:
        if row.comparison != "again" and (row.baseline, row.candidate, str(row.load)) == wanted:
            return Reading(value=row.value, interval=row.interval, note=_less_time(row.value), disturbed=row.disturbed)
    sides, disturbed = [], []
    for key in (pick.key, pick.against):
        side = percentile("p50")(report, Selection(model=pick.model, key=key, load=pick.load))
        if isinstance(side, str) or side.interval is None:
            return side if isinstance(side, str) else f"{key} has no interval at {pick.load}"
        sides.append((side.value, side.interval))
        disturbed += [side.disturbed] if side.disturbed else []
    value, interval = combine.ratio(sides[1], sides[0])
    note = _less_time(value) + "; from each one's own interval, unpaired"
    return Reading(value=value, interval=interval, note=note, disturbed="; ".join(disturbed) or None)


def _less_time(ratio: float) -> str:
    saved = 1 - 1 / ratio
    return f", which is {percent(abs(saved), digits=0)} {'less' if saved >= 0 else 'more'} time per text"


def percentile(name: str) -> Read:
    """Return what reads a percentile of the latency, such as `p95`."""

    def read(report: report_schema.Report, pick: Selection) -> Answer:
        row = _loaded(report.latency, pick)
        if row is None:
            return lost(report, pick.key, "latency", at=pick.load, known=_loads_of(report.latency, pick.key))
        value: float | None = getattr(row, f"{name}_ms")
        if value is None:
            more = f"{row.missing[name]:,} more" if name in row.missing else "more"
            return f"{name} at {pick.load} needs {more} calls than the {row.samples:,} of {pick.key}"
        return Reading(value=value, interval=row.intervals.get(name), disturbed=row.disturbed)

    return read


def texts_per_s(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the texts per second of one caller: batch size / p50."""
    time = percentile("p50")(report, pick)
    row = _loaded(report.latency, pick)
    if isinstance(time, str) or row is None:
        return time
    interval = None
    if time.interval is not None:
        interval = (1e3 * row.load.batch_size / time.interval[1], 1e3 * row.load.batch_size / time.interval[0])
    return Reading(value=1e3 * row.load.batch_size / time.value, interval=interval, disturbed=time.disturbed)


def concurrent(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the texts per second of several callers."""
    rows = [row for row in report.throughput if row.callers == pick.callers]
    row = _loaded(rows, pick)
    if row is None:
        known = [f"{each.load} with {each.callers} callers" for each in report.throughput if each.key == pick.key]
        return lost(report, pick.key, f"throughput with {pick.callers} callers", at=pick.load, known=known)
    what = f"{row.callers} callers at once"
    return Reading(value=row.texts_per_s, interval=row.interval, what=what, disturbed=row.disturbed)


def cold_start(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the milliseconds from nothing to the first answer."""
    row = next((row for row in report.cold_start if row.key == pick.key), None)
    if row is None:
        return lost(report, pick.key, "cold start")
    return Reading(value=row.total_ms, interval=row.interval if row.starts > 1 else None, disturbed=row.disturbed)


def joules(report: report_schema.Report, pick: Selection) -> Answer:
    """Read the joules of one text."""
    if report.energy.source is None:
        return f"energy was not measured: {report.energy.reason or 'no source'}"
    rows = {_load_name(row["load"]): row for row in report.energy.rows if row["key"] == pick.key}
    row = rows.get(pick.load)
    if row is None:
        return lost(report, pick.key, "energy", at=pick.load, known=list(rows))
    found = row.get("interval")
    return Reading(
        value=float(row["joules_per_text"]),
        interval=None if found is None else (found[0], found[1]),
        disturbed=row.get("disturbed"),
    )


def _load_name(load: object) -> str:
    return load if isinstance(load, str) else str(report_schema.Load.model_validate(load))


def lost(report: report_schema.Report, key: str, what: str, *, at: str = "", known: Iterable[str] = ()) -> str:
    """Say why a row lacks something: the failure that cost it, or that it was not measured, and what was."""
    failures = {row.where: row for row in reversed(report.failures) if row.key == key}
    failure = failures.get(at or None) or failures.get(None)
    if failure is not None:
        return f"{key} failed ({failure.stage}): {failure.reason}"
    where = f" at {at}" if at else ""
    measured = f"; measured are {', '.join(known)}" if known else ""
    cut = "; the bench was interrupted" if not report.complete else ""
    if report.left_out:
        cut += "; the budget had no time for everything"
    return f"{what} of {key}{where} was not measured{measured}{cut}"


def _loads_of(rows: Iterable[Loaded], key: str) -> list[str]:
    return [str(row.load) for row in rows if row.key == key]


def _loaded(rows: Iterable[_L], pick: Selection) -> _L | None:
    return next((row for row in rows if (row.key, str(row.load)) == (pick.key, pick.load)), None)
