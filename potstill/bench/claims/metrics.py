"""The metrics that a claim can set a limit to: each as data, with the function that reads it out of a report."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, TypeVar

from potstill.bench import report_schema, statistics
from potstill.bench.report.formatting import mb, percent, quantity
from potstill.evaluation.intervals import wilson

_MEGA = 1e6
_SPACE = "\u00a0"  # between a number and its unit


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
    label: str = ""
    """The label, or the type of entity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """A value read from a report, and what must be known of it to decide a claim."""

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


ReadMetric: TypeAlias = Callable[[report_schema.Report, Selection], MetricValue | str]


class Loaded(Protocol):
    """A row of the report that belongs to a load."""

    @property
    def key(self) -> str:
        """Return which contestant it is of."""

    @property
    def load(self) -> report_schema.Load:
        """Return what a call is given."""


_L = TypeVar("_L", bound=Loaded)


def encoder_parameters(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the share of the encoder's parameters that is saved."""
    own, base = report.models[selection.model], report.models[selection.against]
    return _saved(own.encoder_parameters, base.encoder_parameters)


def parameters(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the share of all parameters that is saved."""
    return _saved(report.models[selection.model].parameters, report.models[selection.against].parameters)


def flops(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the share of the floating-point operations per token that is saved, at the length of the load."""
    own, base = (report.models[name].flops_per_token for name in (selection.model, selection.against))
    length = selection.load.partition("×")[2]
    if own is None or base is None:
        return f"the FLOPs of {selection.model if own is None else selection.against}'s architecture are not known"
    if not length or int(length) not in own or int(length) not in base:
        return f"FLOPs are not counted at {selection.load}; counted are lengths of {', '.join(map(str, own))} tokens"
    return _saved(own[int(length)], base[int(length)])


def _saved(own: float, base: float) -> MetricValue:
    value = (base - own) / base  # rounded once: 1 - own / base is rounded twice, and the target is met exactly or not
    return MetricValue(value=value, interval=(value, value), note=f" ({own:,.0f} against {base:,.0f})")


def file_share(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the size of the files as a share of the other's."""
    sizes = {row.key: row.file_bytes for row in report.contestants}
    own, base = sizes.get(selection.key), sizes.get(selection.against)
    if own is None or base is None:
        return why_missing(report, selection.key if own is None else selection.against, "its files' size")
    return MetricValue(value=own / base, interval=(own / base, own / base))


def file_saved(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the share of the other's bytes that is saved, and tell the model's fp32 beside it."""
    sizes = {row.key: row.file_bytes for row in report.contestants}
    own, base = sizes.get(selection.key), sizes.get(selection.against)
    if own is None or base is None:
        return why_missing(report, selection.key if own is None else selection.against, "its files' size")
    value, fp32 = (base - own) / base, re.sub(r"/[^@]+", "/fp32", selection.key)
    note = f" ({mb(own)} against {mb(base)}{_SPACE}MB"
    plain = sizes.get(fp32)
    if plain is not None and fp32 != selection.key:
        saved = (base - plain) / base
        note += f"; in fp32 {mb(plain)}{_SPACE}MB, {percent(abs(saved))} {'fewer' if saved >= 0 else 'more'}"
    return MetricValue(value=value, interval=(value, value), note=f"{note})")


def bytes_of(rows: str, *fields: str) -> ReadMetric:
    """Make a reader of the first of `fields` that a row of the report's list `rows` has, in MB (10^6 bytes).

    A file's size is its own interval; memory has that of the processes that were looked at.
    """

    def read(report: report_schema.Report, selection: Selection) -> MetricValue | str:
        row = next((row for row in getattr(report, rows) if row.key == selection.key), None)
        name = next((field for field in fields if getattr(row, field, None) is not None), None)
        if row is None or name is None:
            return why_missing(report, selection.key, fields[0].removesuffix("_bytes").replace("_", " "))
        found = getattr(row, name)
        # What is counted has no intervals, and memory of a single process has none either.
        low, high = getattr(row, "intervals", {}).get(name, (found, found))
        return MetricValue(value=found / _MEGA, interval=(low / _MEGA, high / _MEGA))

    return read


def speed(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read how many times as fast the row is: from paired rounds, or where those are lacking from each one's p50."""
    wanted = (selection.against, selection.key, selection.load)
    for row in report.ratios:
        if row.comparison != "again" and (row.baseline, row.candidate, str(row.load)) == wanted:
            return MetricValue(
                value=row.value, interval=row.interval, note=_less_time(row.value), disturbed=row.disturbed
            )
    sides, disturbed = [], []
    for key in (selection.key, selection.against):
        side = percentile("p50")(report, Selection(model=selection.model, key=key, load=selection.load))
        if isinstance(side, str) or side.interval is None:
            return side if isinstance(side, str) else f"{key} has no interval at {selection.load}"
        sides.append((side.value, side.interval))
        disturbed += [side.disturbed] if side.disturbed else []
    # Of times: the other's / its own.
    value, interval = statistics.ratio(sides[1], sides[0])
    note = _less_time(value) + "; from each one's own interval, unpaired"
    return MetricValue(value=value, interval=interval, note=note, disturbed="; ".join(disturbed) or None)


def _less_time(ratio: float) -> str:
    saved = 1 - 1 / ratio
    return f", which is {percent(abs(saved), digits=0)} {'less' if saved >= 0 else 'more'} time per text"


def percentile(name: str) -> ReadMetric:
    """Make a reader of a percentile of the latency, such as `p95`."""

    def read(report: report_schema.Report, selection: Selection) -> MetricValue | str:
        row = _loaded(report.latency, selection)
        if row is None:
            return why_missing(
                report,
                selection.key,
                "latency",
                at=selection.load,
                known=[str(each.load) for each in report.latency if each.key == selection.key],
            )
        value: float | None = getattr(row, f"{name}_ms")
        if value is None:
            more = f"{row.missing[name]:,} more" if name in row.missing else "more"
            return f"{name} at {selection.load} needs {more} calls than the {row.samples:,} of {selection.key}"
        return MetricValue(value=value, interval=row.intervals.get(name), disturbed=row.disturbed)

    return read


def texts_per_s(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the texts per second of one caller: batch size / p50."""
    time = percentile("p50")(report, selection)
    row = _loaded(report.latency, selection)
    if isinstance(time, str) or row is None:
        return time
    interval = None
    if time.interval is not None:
        # The ends change places: the longest time is the fewest texts.
        interval = (1e3 * row.load.batch_size / time.interval[1], 1e3 * row.load.batch_size / time.interval[0])
    return MetricValue(value=1e3 * row.load.batch_size / time.value, interval=interval, disturbed=time.disturbed)


def concurrent(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the texts per second of several callers."""
    rows = [row for row in report.throughput if row.callers == selection.callers]
    row = _loaded(rows, selection)
    if row is None:
        known = [f"{each.load} with {each.callers} callers" for each in report.throughput if each.key == selection.key]
        return why_missing(
            report, selection.key, f"throughput with {selection.callers} callers", at=selection.load, known=known
        )
    what = f"{row.callers} callers at once"
    return MetricValue(value=row.texts_per_s, interval=row.interval, what=what, disturbed=row.disturbed)


def cold_start(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the milliseconds from nothing to the first answer."""
    row = next((row for row in report.cold_start if row.key == selection.key), None)
    if row is None:
        return why_missing(report, selection.key, "cold start")
    # One start is no sample, though the report gives its value as both ends.
    return MetricValue(value=row.total_ms, interval=row.interval if row.starts > 1 else None, disturbed=row.disturbed)


def joules(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the joules of one text."""
    if report.energy.source is None:
        return f"energy was not measured: {report.energy.reason or 'no source'}"
    loads = [row["load"] for row in report.energy.rows]
    names = [load if isinstance(load, str) else str(report_schema.Load.model_validate(load)) for load in loads]
    rows = {name: row for name, row in zip(names, report.energy.rows, strict=True) if row["key"] == selection.key}
    row = rows.get(selection.load)
    if row is None:
        return why_missing(report, selection.key, "energy", at=selection.load, known=list(rows))
    found = row.get("interval")
    return MetricValue(
        value=float(row["joules_per_text"]),
        interval=None if found is None else (found[0], found[1]),
        disturbed=row.get("disturbed"),
    )


def why_missing(report: report_schema.Report, key: str, what: str, *, at: str = "", known: Iterable[str] = ()) -> str:
    """Say why a row lacks something: the failure that cost it, or that it was not measured, and what was."""
    # Reversed, so that of several failures at a place the first one is told.
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


def _loaded(rows: Iterable[_L], selection: Selection) -> _L | None:
    return next((row for row in rows if (row.key, str(row.load)) == (selection.key, selection.load)), None)


def score(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the score by the data set's metric."""
    found = _scored(report, selection, selection.key)
    if isinstance(found, str):
        return found
    quality, row = found
    return MetricValue(
        value=row.value, interval=row.interval, worthless=_worthless(quality, row), what=_metric(quality)
    )


def agreement(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the share of decisions that are the baseline's, with Wilson's interval over the examples."""
    found = _scored(report, selection, selection.key)
    if isinstance(found, str):
        return found
    quality, row = found
    if row.agreement is None:
        return f"answers on {quality.name} are amounts, which agree more or less and not yes or no"
    # The count behind the share.
    same = round(row.agreement * quality.num_examples)
    return MetricValue(value=row.agreement, interval=wilson(same, quality.num_examples), what=quality.name)


def calibration(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the expected calibration error."""
    found = _scored(report, selection, selection.key)
    if isinstance(found, str):
        return found
    quality, row = found
    if row.calibration_error is None:
        return f"{selection.key} gives no probabilities on {quality.name}"
    return MetricValue(value=row.calibration_error, interval=row.calibration_interval, what=quality.name)


def worst_label_recall(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the lowest recall of any label, or of any type of entity."""
    found = _scored(report, selection, selection.key)
    if isinstance(found, str):
        return found
    quality, row = found
    if row.worst_label is None:
        return f"answers on {quality.name} have no labels"
    worst = row.worst_label
    what = f"{worst.label} ({worst.support:,} on {quality.name})"
    return MetricValue(value=worst.recall, interval=worst.interval, worthless=_worthless(quality, row), what=what)


def label_recall(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the recall of one label, or of one type of entity."""
    found = _scored(report, selection, selection.key)
    if isinstance(found, str):
        return found
    quality, row = found
    label = next((each for each in row.labels if each.label == selection.label), None)
    if label is None:
        return _no_label(quality, row, selection.label)
    what = f"{label.label} ({label.support:,} on {quality.name})"
    return MetricValue(value=label.recall, interval=label.interval, worthless=_worthless(quality, row), what=what)


def label_points_lost(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read how many points of one label's recall are lost against the other; negative where it gains."""
    found = _two_scores(report, selection)
    if isinstance(found, str):
        return found
    quality, pair, own, _ = found
    label = next((each for each in pair.labels if each.label == selection.label), None) if pair is not None else None
    if label is None:
        return _no_label(quality, own, selection.label)
    low, high = label.interval
    return MetricValue(
        value=0.0 - 100 * label.difference,
        interval=(0.0 - 100 * high, 0.0 - 100 * low),
        worthless=_worthless(quality, own),
        what=f"{label.label} on {quality.name}",
        note=", so it gains" if label.difference > 0 else "",
    )


def _no_label(quality: report_schema.Quality, row: report_schema.Score, label: str) -> str:
    known = ", ".join(each.label for each in row.labels)
    if not known:
        return f"no label of {quality.name} was counted"
    return f"{label!r} is no label that occurs in {quality.name}; there are {known}"


def tokens_ratio(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read how many times as many tokens the same texts are as by the other's tokenizer."""
    found = _two_scores(report, selection)
    if isinstance(found, str):
        return found
    quality, _, own, base = found
    if own.tokens_per_text is None or base.tokens_per_text is None:
        return f"tokens of {quality.name} were not counted; bench again"
    value = own.tokens_per_text / base.tokens_per_text
    note = f" ({own.tokens_per_text:.1f} against {base.tokens_per_text:.1f} per text)"
    return MetricValue(value=value, interval=(value, value), what=quality.name, note=note)


def kept(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read the share of the other's score that is kept: on one data set, or by the mean over GLUE's tasks."""
    return _kept_on(report, selection) if selection.data else _kept_of_glue(report, selection)


def _kept_on(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    found = _two_scores(report, selection)
    if isinstance(found, str):
        return found
    quality, row, own, base = found
    if quality.lower_is_better:
        return f"a low {quality.metric} is good, so no share of it is kept; claim the score itself"
    if row is not None and row.kept is not None and row.kept_interval is not None:
        return MetricValue(
            value=row.kept, interval=row.kept_interval, worthless=_worthless(quality, own), what=_metric(quality)
        )
    sides = (own.value, own.interval), (base.value, base.interval)
    if not statistics.can_be_ratio(*sides):
        scored = f"{selection.against} scores {base.value:.3f} in {_metric(quality)}"
        return f"{scored}: not surely above 0, so no share is kept"
    value, interval = statistics.ratio(*sides)
    return MetricValue(
        value=value,
        interval=interval,
        worthless=_worthless(quality, own),
        what=_metric(quality),
        note=", each score on its own, unpaired",
    )


def _kept_of_glue(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    row = next(
        (row for row in report.glue if (row.candidate, row.baseline) == (selection.key, selection.against)), None
    )
    if row is None or row.macro is None:
        return f"{selection.key} and {selection.against} have no row of several data sets"
    others = {
        "with WNLI": row.macro_with_wnli,
        "without": row.macro,
        "as the mean of the ratios": row.mean_of_ratios,
        f"on the worst task ({row.worst_task_name})": row.worst_task,
    }
    told = ", ".join(f"{percent(share)} {name}" for name, share in others.items() if share is not None)
    # `macro` leaves WNLI out: on its 71 examples the more frequent answer beats real models.
    tasks = [name for name in row.scores if name != "WNLI"]
    what = f"mean score on {', '.join(tasks)}"
    found = [_scored(report, replace(selection, data=task), selection.key) for task in tasks]
    reasons = [None if isinstance(each, str) else _worthless(*each) for each in found]
    return MetricValue(
        value=row.macro,
        interval=row.macro_interval,
        # One task of many may be too small to tell; all of them are not.
        worthless=reasons[0] if reasons and all(reasons) else None,
        what=what,
        note=f". By definition: {told}",
    )


def points_lost(report: report_schema.Report, selection: Selection) -> MetricValue | str:
    """Read how many hundredths of the metric are lost against the other; negative where it gains."""
    found = _two_scores(report, selection)
    if isinstance(found, str):
        return found
    quality, row, own, base = found
    if quality.lower_is_better:
        return f"{quality.metric} is not counted in points; claim the score itself"
    if row is not None:
        gain, (low, high), note = row.difference, row.difference_interval, ""
    else:
        gain, (low, high) = statistics.difference((own.value, own.interval), (base.value, base.interval))
        note = ", each score on its own, unpaired"
    note += ", so it gains" if gain > 0 else ""
    # 0.0 - x, because -0.0 would be written with its sign.
    return MetricValue(
        value=0.0 - 100 * gain,
        interval=(0.0 - 100 * high, 0.0 - 100 * low),
        worthless=_worthless(quality, own),
        what=_metric(quality),
        note=note,
    )


_Scores: TypeAlias = tuple[
    report_schema.Quality, report_schema.Retention | None, report_schema.Score, report_schema.Score
]


def _two_scores(report: report_schema.Report, selection: Selection) -> _Scores | str:
    """Return the scores of the row and of the other, with their paired comparison where the report has it."""
    own, base = _scored(report, selection, selection.key), _scored(report, selection, selection.against)
    if isinstance(own, str) or isinstance(base, str):
        return own if isinstance(own, str) else str(base)
    pair = (selection.against, selection.key)
    row = next((row for row in own[0].retention if (row.baseline, row.candidate) == pair), None)
    return own[0], row, own[1], base[1]


def _scored(
    report: report_schema.Report, selection: Selection, key: str
) -> tuple[report_schema.Quality, report_schema.Score] | str:
    quality = next((row for row in report.quality if row.name == selection.data), None)
    if quality is None:
        return f"no quality on {selection.data or 'any data'}"
    row = next((row for row in quality.scores if row.key == key), None)
    return (quality, row) if row is not None else why_missing(report, key, "score", at=quality.name)


def _worthless(quality: report_schema.Quality, row: report_schema.Score) -> str | None:
    """Return why a score cannot be a PASS; None where it can."""
    # None means that it was not tested, which is no evidence against the row.
    if row.better_than_trivial is not False:
        return None
    return f"{row.key} is not shown to be better on {quality.name} than an answer that ignores the text"


def _metric(quality: report_schema.Quality) -> str:
    return f"{quality.metric.replace('_', ' ')} on {quality.name}"


Form: TypeAlias = Literal["plain", "saved", "times"]
_ROW = frozenset({"precision", "runner"})
_LOADED, _SCORED, _COMPARED = _ROW | {"load"}, _ROW | {"data"}, _ROW | {"against"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Something that a bench measures and a claim can set a limit to."""

    name: str
    unit: str
    """Of its value and of a claim's target: `share` is between 0 and 1, "" the scale of the data set's metric."""
    words: str
    """What it is."""
    sentence: str
    """Tells a value: `{subject}`, `{against}`, `{what}` and `{value}` are filled in."""
    read: ReadMetric
    fields: frozenset[str] = _ROW
    """The fields of a claim's `where` that it depends on, beside `model`."""
    form: Form = "plain"
    floor: Literal["none", "load", "memory"] = "none"
    """Which noise floor a value must be beyond: that of times at its load, as a ratio of times must, or of memory."""
    timed: bool = False
    """Whether whatever else the machine did goes into it."""

    @property
    def of_model(self) -> bool:
        """Return whether it is the same for every row of a model."""
        return "precision" not in self.fields

    def write(self, value: float) -> str:
        """Write a value as a person says it."""
        if self.form == "saved":
            return f"{percent(abs(value))} {'fewer' if value >= 0 else 'more'}"
        return f"{value:.2f}{_SPACE}times" if self.form == "times" else quantity(value, self.unit)

    def write_interval(self, interval: report_schema.Interval) -> str:
        """Write both ends of an interval, and the unit once."""
        low, high = map(self.write, interval)
        return f"{low.partition(_SPACE)[0]} to {high}"


def grid(report: report_schema.Report, metric: Metric) -> list[tuple[int, int]]:
    """Return batch size and tokens of the loads that were to be measured, also if no row got so far."""
    concurrent = "callers" in metric.fields
    rows: Iterable[Loaded] = report.throughput if concurrent else report.latency
    config = report.config
    batches, lengths = config.get("batch_sizes", []), config.get("num_tokens", [])
    if concurrent:
        batches, lengths = config.get("throughput_batch_sizes", []), [config.get("throughput_tokens")]
    asked = [(batch, length) for batch in batches for length in lengths if length is not None]
    # With the loads of the rows, since a report's `config` may be empty.
    return asked + [(row.load.batch_size, row.load.num_tokens) for row in rows if row.load.num_tokens is not None]


def _latency(name: str, share: str) -> Metric:
    return Metric(
        name=f"latency_{name}_ms",
        unit="ms",
        words=f"{name} of the time of one call, one caller",
        sentence=f"{share} of {{subject}}'s answers take at most {{value}}",
        read=percentile(name),
        fields=_LOADED,
        timed=True,
    )


_ALL = (
    Metric(
        name="encoder_parameters_saved",
        unit="share",
        words="1 - parameters of the encoder / the baseline's, task heads left out; counted",
        sentence="The encoder of {subject} has {value} parameters than that of {against}",
        read=encoder_parameters,
        fields=frozenset(),
        form="saved",
    ),
    Metric(
        name="parameters_saved",
        unit="share",
        words="1 - all parameters / the baseline's; counted",
        sentence="In all, {subject} has {value} parameters than {against}",
        read=parameters,
        fields=frozenset(),
        form="saved",
    ),
    Metric(
        name="flops_saved",
        unit="share",
        words="1 - floating-point operations per token / the baseline's, at the length of the load; counted",
        sentence="Per token, {subject} needs {value} operations than {against}",
        read=flops,
        fields=frozenset({"load"}),
        form="saved",
    ),
    Metric(
        name="file_bytes_saved",
        unit="share",
        words="1 - bytes of the files with its weights / the other's; counted",
        sentence="The files of {subject} have {value} bytes than those of {against}",
        read=file_saved,
        fields=_COMPARED,
        form="saved",
    ),
    Metric(
        name="file_bytes_share",
        unit="share",
        words="bytes of the files with its weights / the other's; counted",
        sentence="The files of {subject} have {value} of the size of those of {against}",
        read=file_share,
        fields=_COMPARED,
    ),
    Metric(
        name="file_mb",
        unit="MB",
        words="size of the files with its weights, in 10^6 bytes",
        sentence="The files of {subject} have {value}",
        read=bytes_of("contestants", "file_bytes"),
    ),
    Metric(
        name="compressed_mb",
        unit="MB",
        words="the same through zlib, as a download or a container's layer is",
        sentence="The files of {subject} have {value} compressed",
        read=bytes_of("contestants", "compressed_bytes"),
    ),
    Metric(
        name="speed_ratio",
        unit="×",
        words="how many times as many texts per second as the other: its p50 / this p50, median over paired rounds",
        sentence="The {subject} answers {value} as many texts per second as {against}",
        read=speed,
        fields=_COMPARED | {"load"},
        form="times",
        floor="load",
        timed=True,
    ),
    _latency("p50", "Half"),
    _latency("p90", "90 of 100"),
    _latency("p95", "95 of 100"),
    _latency("p99", "99 of 100"),
    Metric(
        name="texts_per_s",
        unit="texts/s",
        words="texts per second of one caller: batch size / p50",
        sentence="For one caller, {subject} answers {value}",
        read=texts_per_s,
        timed=True,
        fields=_LOADED,
    ),
    Metric(
        name="concurrent_texts_per_s",
        unit="texts/s",
        words="texts per second of one process under several callers at once",
        sentence="With {what}, {subject} answers {value}",
        read=concurrent,
        timed=True,
        fields=_LOADED | {"callers"},
    ),
    Metric(
        name="score",
        unit="",
        words="the data set's metric, on its own scale: accuracy is between 0 and 1",
        sentence="In {what}, {subject} scores {value}",
        read=score,
        fields=_SCORED,
    ),
    Metric(
        name="score_kept",
        unit="share",
        words="score / the other's; of several GLUE tasks the mean without WNLI / the other's, if data names none",
        sentence="The {subject} keeps {value} of {against}'s {what}",
        read=kept,
        fields=_SCORED | {"against"},
    ),
    Metric(
        name="points_lost",
        unit="points",
        words="the other's score - this score, in hundredths of the metric; negative where it gains",
        sentence="The {subject} loses {value} of {against}'s {what}",
        read=points_lost,
        fields=_SCORED | {"against"},
    ),
    Metric(
        name="worst_label_recall",
        unit="share",
        words="lowest recall of any label, or of any type of entity; its interval is that of all labels together",
        sentence="The {subject} finds {value} of its worst label, {what}",
        read=worst_label_recall,
        fields=_SCORED,
    ),
    Metric(
        name="label_recall",
        unit="share",
        words="share of the texts with a label, or of the entities of a type, that is found",
        sentence="The {subject} finds {value} of {what}",
        read=label_recall,
        fields=_SCORED | {"label"},
    ),
    Metric(
        name="label_points_lost",
        unit="points",
        words="the other's recall of a label - this recall, in hundredths; negative where it gains",
        sentence="The {subject} loses {value} of {against}'s recall of {what}",
        read=label_points_lost,
        fields=_SCORED | {"label", "against"},
    ),
    Metric(
        name="tokens_ratio",
        unit="×",
        words="tokens of the data's texts by its own tokenizer / by the other's; counted",
        sentence="The {subject} reads {value} as many tokens of {what} as {against}",
        read=tokens_ratio,
        fields=_SCORED | {"against"},
        form="times",
    ),
    Metric(
        name="agreement",
        unit="share",
        words="share of the decisions that are the baseline's",
        sentence="The {subject} decides {value} of {what} as the baseline does",
        read=agreement,
        fields=_SCORED,
    ),
    Metric(
        name="calibration_error",
        unit="share",
        words="expected calibration error over 15 bins: how far confidence is from the share of right answers",
        sentence="The confidence of {subject} on {what} is off by {value} on average",
        read=calibration,
        fields=_SCORED,
    ),
    Metric(
        name="resident_mb",
        unit="MB",
        words="resident memory of its process after loading, in 10^6 bytes",
        sentence="The process of {subject} takes {value} of memory after loading",
        read=bytes_of("memory", "loaded_rss_bytes"),
        floor="memory",
    ),
    Metric(
        name="peak_mb",
        unit="MB",
        words="highest resident memory of its process while it answers",
        sentence="The process of {subject} takes {value} of memory at its peak",
        read=bytes_of("memory", "peak_bytes"),
        floor="memory",
    ),
    Metric(
        name="private_mb",
        unit="MB",
        words="memory that is its process's alone, after the run (USS)",
        sentence="The process of {subject} has {value} of memory for itself",
        read=bytes_of("memory", "after_uss_bytes"),
        floor="memory",
    ),
    Metric(
        name="gpu_mb",
        unit="MB",
        words="peak of the GPU memory that it reserved, or where that is not told, allocated",
        sentence="The {subject} takes {value} of GPU memory at its peak",
        read=bytes_of("memory", "gpu_peak_reserved_bytes", "gpu_peak_allocated_bytes"),
        floor="memory",
    ),
    Metric(
        name="cold_start_ms",
        unit="ms",
        words="from the start of a process to its first answer, median over the starts",
        sentence="The {subject} takes {value} from the start of its process to its first answer",
        read=cold_start,
        timed=True,
    ),
    Metric(
        name="joules_per_text",
        unit="J",
        words="energy of one text, of the whole processor package or GPU",
        sentence="For one text, {subject} needs {value}",
        read=joules,
        timed=True,
        fields=_LOADED,
    ),
)
METRICS = {metric.name: metric for metric in _ALL}
"""By name, in the order in which `potstill claims` lists them."""
