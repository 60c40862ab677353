"""What a claim can be about: every measure as data, each with the function that reads it out of a report."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from potstill.bench import report_schema
from potstill.bench.claims import quality_readings, readings
from potstill.bench.claims.readings import Loaded, Read
from potstill.bench.report.formatting import percent, quantity

Form: TypeAlias = Literal["plain", "saved", "times"]
_SPACE = "\u00a0"  # between a number and its unit
_ROW = frozenset({"precision", "runner"})
_LOADED, _SCORED, _COMPARED = _ROW | {"load"}, _ROW | {"data"}, _ROW | {"against"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Something that a bench measures and a claim can set a limit to."""

    name: str
    unit: str
    """Of its value and of a claim's target: `share` is between 0 and 1, "" the scale of the data set's metric."""
    words: str
    """What it is."""
    sentence: str
    """Tells a value: `{subject}`, `{against}`, `{what}` and `{value}` are filled in."""
    read: Read
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


def grid(report: report_schema.Report, measure: Measure) -> list[tuple[int, int]]:
    """Return batch size and tokens of the loads that were to be measured, also if no row got so far."""
    concurrent = "callers" in measure.fields
    rows: Iterable[Loaded] = report.throughput if concurrent else report.latency
    config = report.config
    batches, lengths = config.get("batch_sizes", []), config.get("num_tokens", [])
    if concurrent:
        batches, lengths = config.get("throughput_batch_sizes", []), [config.get("throughput_tokens")]
    asked = [(batch, length) for batch in batches for length in lengths if length is not None]
    return asked + [(row.load.batch_size, row.load.num_tokens) for row in rows if row.load.num_tokens is not None]


def _latency(name: str, share: str) -> Measure:
    return Measure(
        name=f"latency_{name}_ms",
        unit="ms",
        words=f"{name} of the time of one call, one caller",
        sentence=f"{share} of {{subject}}'s answers take at most {{value}}",
        read=readings.percentile(name),
        fields=_LOADED,
        timed=True,
    )


_ALL = (
    Measure(
        name="encoder_parameters_saved",
        unit="share",
        words="1 - parameters of the encoder / the baseline's, task heads left out; counted",
        sentence="{subject}'s encoder has {value} parameters than {against}'s",
        read=readings.encoder_parameters,
        fields=frozenset(),
        form="saved",
    ),
    Measure(
        name="parameters_saved",
        unit="share",
        words="1 - all parameters / the baseline's; counted",
        sentence="{subject} has {value} parameters than {against}",
        read=readings.parameters,
        fields=frozenset(),
        form="saved",
    ),
    Measure(
        name="flops_saved",
        unit="share",
        words="1 - floating-point operations per token / the baseline's, at the length of the load; counted",
        sentence="{subject} needs {value} operations per token than {against}",
        read=readings.flops,
        fields=frozenset({"load"}),
        form="saved",
    ),
    Measure(
        name="file_bytes_share",
        unit="share",
        words="bytes of the files with its weights / the other's; counted",
        sentence="{subject}'s files have {value} of the size of {against}'s",
        read=readings.file_share,
        fields=_COMPARED,
    ),
    Measure(
        name="file_mb",
        unit="MB",
        words="size of the files with its weights, in 10^6 bytes",
        sentence="{subject}'s files have {value}",
        read=readings.bytes_of("contestants", "file_bytes"),
    ),
    Measure(
        name="compressed_mb",
        unit="MB",
        words="the same through zlib, as a download or a container's layer is",
        sentence="{subject}'s files have {value} compressed",
        read=readings.bytes_of("contestants", "compressed_bytes"),
    ),
    Measure(
        name="speed_ratio",
        unit="×",
        words="how many times as many texts per second as the other: its p50 / this p50, median over paired rounds",
        sentence="{subject} answers {value} as many texts per second as {against}",
        read=readings.speed,
        fields=_COMPARED | {"load"},
        form="times",
        floor="load",
        timed=True,
    ),
    _latency("p50", "Half"),
    _latency("p90", "90 of 100"),
    _latency("p95", "95 of 100"),
    _latency("p99", "99 of 100"),
    Measure(
        name="texts_per_s",
        unit="texts/s",
        words="texts per second of one caller: batch size / p50",
        sentence="{subject} answers {value} for one caller",
        read=readings.texts_per_s,
        timed=True,
        fields=_LOADED,
    ),
    Measure(
        name="concurrent_texts_per_s",
        unit="texts/s",
        words="texts per second of one process under several callers at once",
        sentence="{subject} answers {value} with {what}",
        read=readings.concurrent,
        timed=True,
        fields=_LOADED | {"callers"},
    ),
    Measure(
        name="score",
        unit="",
        words="the data set's metric, on its own scale: accuracy is between 0 and 1",
        sentence="{subject} scores {value} in {what}",
        read=quality_readings.score,
        fields=_SCORED,
    ),
    Measure(
        name="score_kept",
        unit="share",
        words="score / the other's; of several GLUE tasks the mean without WNLI / the other's, if data names none",
        sentence="{subject} keeps {value} of {against}'s {what}",
        read=quality_readings.kept,
        fields=_SCORED | {"against"},
    ),
    Measure(
        name="points_lost",
        unit="points",
        words="the other's score - this score, in hundredths of the metric; negative where it gains",
        sentence="{subject} loses {value} of {against}'s {what}",
        read=quality_readings.points_lost,
        fields=_SCORED | {"against"},
    ),
    Measure(
        name="agreement",
        unit="share",
        words="share of the decisions that are the baseline's",
        sentence="{subject} decides {value} of {what} as the baseline does",
        read=quality_readings.agreement,
        fields=_SCORED,
    ),
    Measure(
        name="calibration_error",
        unit="share",
        words="expected calibration error over 15 bins: how far confidence is from the share of right answers",
        sentence="{subject}'s confidence on {what} is off by {value} on average",
        read=quality_readings.calibration,
        fields=_SCORED,
    ),
    Measure(
        name="resident_mb",
        unit="MB",
        words="resident memory of its process after loading, in 10^6 bytes",
        sentence="{subject}'s process takes {value} of memory after loading",
        read=readings.bytes_of("memory", "loaded_rss_bytes"),
        floor="memory",
    ),
    Measure(
        name="peak_mb",
        unit="MB",
        words="highest resident memory of its process while it answers",
        sentence="{subject}'s process takes {value} of memory at its peak",
        read=readings.bytes_of("memory", "peak_bytes"),
        floor="memory",
    ),
    Measure(
        name="private_mb",
        unit="MB",
        words="memory that is its process's alone, after the run (USS)",
        sentence="{subject}'s process has {value} of memory for itself",
        read=readings.bytes_of("memory", "after_uss_bytes"),
        floor="memory",
    ),
    Measure(
        name="gpu_mb",
        unit="MB",
        words="peak of the GPU memory that it reserved, or where that is not told, allocated",
        sentence="{subject} takes {value} of GPU memory at its peak",
        read=readings.bytes_of("memory", "gpu_peak_reserved_bytes", "gpu_peak_allocated_bytes"),
        floor="memory",
    ),
    Measure(
        name="cold_start_ms",
        unit="ms",
        words="from the start of a process to its first answer, median over the starts",
        sentence="{subject} gives its first answer {value} after its process was started",
        read=readings.cold_start,
        timed=True,
    ),
    Measure(
        name="joules_per_text",
        unit="J",
        words="energy of one text, of the whole processor package or GPU",
        sentence="{subject} needs {value} per text",
        read=readings.joules,
        timed=True,
        fields=_LOADED,
    ),
)
MEASURES = {measure.name: measure for measure in _ALL}
"""By name, in the order in which `potstill claims` lists them."""
