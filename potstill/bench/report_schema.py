"""The structure of report.json as pydantic models: measuring fills them, the report and the claims read them.

`report.schema.json`, in `potstill.bench.report`, is the same as JSON Schema for readers in other languages.

Times are in milliseconds, sizes in bytes, shares between 0 and 1; the names of the fields say which. An `interval` is
the lower and upper end of a 95 % interval. None means "not measured", and never zero.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from potstill.evaluation.results import (
    Confusion,
    Difference,
    GlueRow,
    Interval,
    LabelDifference,
    LabelRecall,
    Power,
    Quality,
    Retention,
    Score,
    Verdict,
)

__all__ = [
    "SCHEMA",
    "ColdStart",
    "Confusion",
    "Contestant",
    "Decision",
    "Difference",
    "Energy",
    "Environment",
    "Failure",
    "GlueRow",
    "Interval",
    "LabelDifference",
    "LabelRecall",
    "Latency",
    "Load",
    "LoadKind",
    "Memory",
    "Model",
    "Noise",
    "Part",
    "Peaks",
    "Power",
    "Quality",
    "Ratio",
    "Report",
    "Retention",
    "Scaling",
    "Score",
    "Throughput",
    "Verdict",
]

SCHEMA: Literal["potstill-report/2"] = "potstill-report/2"

LoadKind = Literal["grid", "texts", "texts_tokenised"]
"""`grid`: random tokens, every text of one length. `texts`: the data's own texts in their own lengths, tokenised
before. `texts_tokenised`: the same with tokenisation inside the timed region."""


class Part(BaseModel):
    """A part of the report: unknown fields are an error, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Load(Part):
    """What one call is given."""

    kind: LoadKind = "grid"
    batch_size: int = Field(default=1, ge=1)
    num_tokens: int | None = Field(default=None, ge=1)
    """Tokens of every text, special ones included; None for texts of their own lengths."""

    def __str__(self) -> str:
        if self.kind == "grid":
            return f"{self.batch_size}×{self.num_tokens}"
        return "own texts" if self.kind == "texts" else "own texts, tokenised"


class Model(Part):
    """One model, whatever it is run by."""

    bundle: str | None = None
    """Its bundle's folder, or None."""
    checkpoint: str | None = None
    """Its transformers checkpoint, or None."""
    task: str
    problem_type: str | None = None
    labels: list[str] = []
    parameters: int
    encoder_parameters: int
    """Without task heads, as the DistilBERT paper counts."""
    embedding_parameters: int | None = None
    """Word, position and type embeddings; None where the architecture does not tell."""
    architecture: dict[str, Any] = {}
    source: dict[str, Any] = {}
    max_length: int
    flops_per_token: dict[int, float] | None = None
    """Floating-point operations of one token by the text's length in tokens: 2 per weight of every matrix product,
    plus attention, which grows with the length."""


class Contestant(Part):
    """One model in one precision, run by one engine: a row of the report."""

    key: str
    """Unique: `model/precision`, and `@runner` where that is not onnxruntime on the CPU."""
    model: str
    precision: str
    runner: str
    """`onnxruntime-cpu`, `onnxruntime-cuda`, `onnxruntime-tensorrt`, `openvino-cpu`, `torch-cpu`, `torch-cpu-compiled`,
    `torch-cuda`, `torch-cuda-compiled`."""
    device: str = "cpu"
    threads: int
    file_bytes: int | None = None
    """All files that hold its weights."""
    compressed_bytes: int | None = None
    """The same through zlib, as a container's layer or a download is."""
    sha256: dict[str, str] = {}
    """By file name: every file that was loaded."""
    quantisation: dict[str, Any] | None = None
    batch_invariant: bool = True


class ColdStart(Part):
    """From nothing to the first answer, in a fresh process; medians over the starts."""

    key: str
    starts: int
    process_ms: float
    """Until the interpreter runs its first line."""
    import_ms: float
    load_ms: float
    """Hash check, session, tokenizer."""
    first_answer_ms: float
    """The first text, tokenised and answered."""
    total_ms: float
    interval: Interval
    """Of `total_ms`: its smallest and largest where there are too few starts for more."""
    disturbed: str | None = None
    """Why this row must not be believed: what the machine did meanwhile, though it was measured again."""


class Latency(Part):
    """How long one call takes."""

    key: str
    load: Load
    mean_tokens: float
    """Tokens per text."""
    samples: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    missing: dict[str, int] = {}
    """Of each percentile that the samples cannot carry (`p90`): how many samples lack."""
    intervals: dict[str, Interval] = {}
    """Of each percentile that is there, by bootstrap over rounds."""
    quantiles_ms: list[float] = []
    """51 of them, from the smallest sample to the largest in steps of 2 %."""
    throughput_per_s: float | None = None
    """Texts per second of one caller: batch size / p50."""
    drift: float | None = None
    """Median of the last third of rounds / of the first third."""
    stationary: bool = True
    """Whether the warm-up had settled before the first round."""
    cpu_share: float | None = None
    """CPU seconds of the process per second of wall clock, per thread: 1 means that no thread waited."""
    flops_per_s: float | None = None
    peak_share: float | None = None
    """Of the machine's measured peak for the precision; None where either was disturbed, or where it came out above 1,
    so that one of the two is no measure."""
    disturbed: str | None = None
    """Why this row must not be believed: what the machine did meanwhile, though it was measured again."""


class Ratio(Part):
    """How many times as fast one contestant is as another."""

    comparison: Literal["like_for_like", "to_baseline", "to_own_fp32", "again"]
    """`like_for_like`: the baseline model in the same precision and runner. `to_baseline`: the baseline row, whatever
    the precision. `to_own_fp32`: the same model's fp32 in the same runner. `again`: the baseline row against a second
    process of itself, which shows the noise."""
    baseline: str
    candidate: str
    load: Load
    rounds: int
    value: float
    interval: Interval
    finding: Literal["faster", "slower", "no difference shown", "disturbed"]
    """By the interval and the noise floor."""
    disturbed: str | None = None
    """Why this row must not be believed: what the machine did meanwhile, though it was measured again."""


class Throughput(Part):
    """Texts per second under several callers at once, of one process."""

    key: str
    load: Load
    callers: int
    texts_per_s: float
    interval: Interval
    p50_ms: float | None = None
    """Of one call under that load."""
    disturbed: str | None = None
    """Why this row must not be believed: what the machine did meanwhile, though it was measured again."""


class Scaling(Part):
    """How one contestant uses threads."""

    key: str
    load: Load
    threads: int
    p50_ms: float
    interval: Interval
    speedup: float
    """p50 with one thread / this p50."""
    disturbed: str | None = None
    """Why this row must not be believed: what the machine did meanwhile, though it was measured again."""


class Memory(Part):
    """Memory of a process that holds this contestant alone, in bytes, by part."""

    key: str
    interpreter_rss_bytes: int
    imported_rss_bytes: int
    loaded_rss_bytes: int
    loading_peak_bytes: int
    peak_bytes: int
    """The highest resident set of the grid; of loading too where the system cannot restart its count."""
    after_rss_bytes: int
    after_uss_bytes: int | None = None
    """Private: what would be free again if the process ended."""
    after_pss_bytes: int | None = None
    """Shared pages divided by those who share them."""
    limit_bytes: int | None = None
    """What a container allows; None where nothing limits it but the machine."""
    gpu_peak_allocated_bytes: int | None = None
    gpu_peak_reserved_bytes: int | None = None
    launches: int = 1
    """How many processes were looked at; each part is the median over them."""
    intervals: dict[str, Interval] = {}
    """Of each part by its name, from the smallest process to the largest; empty where there was one alone."""


class Energy(Part):
    """Joules, where the machine tells them."""

    source: Literal["rapl", "nvml"] | None
    reason: str | None = None
    """Why there is no source."""
    rows: list[dict[str, Any]] = []
    """`key`, `load`, `joules_per_text`, `interval` (over rounds), `watts`, `disturbed`; of the whole package, whoever
    else used it."""


class Noise(Part):
    """What the machine did meanwhile, and how small a difference it lets one see."""

    floor: float | None
    """How far the end of the interval of the baseline against itself is from 1, on the grid where it is farthest; None
    without the A/A run."""
    floors: dict[str, float] = {}
    """The same by load; and of `memory`, `cold start` and throughput (`1×64, 4 callers`), each against a second process
    of the baseline. A ratio nearer to 1 than this shows nothing."""
    steal_share: float | None = None
    """CPU time that the host gave to other guests."""
    throttled_share: float | None = None
    """Time for which the container's quota held this process back."""
    others_share: float | None = None
    """CPU time of the machine's cores that went to processes which are not the bench's."""
    repeated_rounds: int = 0
    flags: list[str] = []
    """Sentences: what is wrong with this run, if anything."""

    def at(self, load: object) -> float | None:
        """Return the noise floor at a load, else the widest; None where it was not measured."""
        return self.floors.get(str(load), self.floor)


class Peaks(Part):
    """What this machine reaches at best in a bare product that takes its turns among the rows, by the number type."""

    threads: int
    fp32_flops_per_s: float | None = None
    int8_ops_per_s: float | None = None
    fp16_flops_per_s: float | None = None
    bf16_flops_per_s: float | None = None


class Environment(Part):
    """The machine and its software."""

    os: str
    python: str
    cpu: str
    cpu_features: list[str]
    cores: int
    cores_of_host: int | None
    cpu_quota: float | None
    memory_bytes: int | None
    memory_limit_bytes: int | None = None
    """A container's limit, where there is one below the machine's memory."""
    threads: int
    spinning: bool = True
    governor: str | None = None
    turbo: bool | None = None
    smt: bool | None = None
    gpus: list[dict[str, Any]] = []
    """`name`, `memory_bytes`, `driver`, `clock_mhz`."""
    load_before: list[float] | None = None
    load_after: list[float] | None = None
    packages: dict[str, str] = {}
    peaks: Peaks | None = None


class Failure(Part):
    """Something that could not be measured; it cost what it names and nothing else."""

    key: str
    stage: str
    """`load`, `warm-up`, `latency`, `throughput`, `scaling`, `memory`, `quality`, `cold start`."""
    where: str | None = None
    """The load or data set that is lost; None for the contestant as a whole."""
    kind: Literal["crash", "hang", "not finite", "out of memory", "error"]
    reason: str


class Decision(Part):
    """One claim about one candidate, decided."""

    id: str
    claim: str
    """The sentence, such as "40 % smaller"."""
    measure: str
    """A key of `potstill.bench.claims.metrics.METRICS`."""
    subject: str
    """The contestant it is about: a key, or a model's name where precision does not matter."""
    against: str | None = None
    """What it is held against, where the measure compares."""
    where: str | None = None
    """The load or data set."""
    definition: str
    source: str = ""
    direction: Literal["at_least", "at_most"]
    target: float
    unit: str = ""
    value: float | None
    interval: Interval | None
    verdict: Verdict
    summary: str
    """A sentence that a manager understands."""
    reason: str | None = None
    """Why nothing was decided."""


class Report(Part):
    """A whole report."""

    # `schema` is a method of pydantic's BaseModel, so only the alias can have that name.
    schema_: str = Field(default=SCHEMA, alias="schema", pattern=r"^potstill-report/2$")
    created: str
    complete: bool = True
    missing: list[str] = []
    """What an interrupted run had not measured yet."""
    command: str = ""
    seed: int
    config: dict[str, Any] = {}
    baseline: str
    """The key of the row that all are held against."""
    candidates: list[str] = []
    """The names of the other models, in the order given."""
    environment: Environment
    noise: Noise
    models: dict[str, Model]
    contestants: list[Contestant]
    cold_start: list[ColdStart] = []
    latency: list[Latency] = []
    ratios: list[Ratio] = []
    throughput: list[Throughput] = []
    scaling: list[Scaling] = []
    memory: list[Memory] = []
    quality: list[Quality] = []
    glue: list[GlueRow] = []
    energy: Energy = Energy(source=None, reason="not asked for")
    claims: list[Decision] = []
    failures: list[Failure] = []
    notes: list[str] = []
    """What a reader must know to believe the numbers, or not to."""
    left_out: list[str] = []
    """What was not measured because the budget had no time for it."""
    elapsed_s: float | None = None
    """How long the whole bench took until this report was written, in seconds; of all its parts if it was resumed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @property
    def names_disturbed_rows(self) -> bool:
        """Return whether any row says that it was disturbed; older reports have `noise.flags` alone."""
        rows: list[Any] = [*self.latency, *self.ratios, *self.throughput, *self.scaling, *self.cold_start]
        return any(row.disturbed for row in rows)

    @property
    def baseline_model(self) -> str:
        """Return the name of the model that all are held against."""
        row = self.contestant(self.baseline)
        return row.model if row else self.baseline.partition("/")[0]

    def contestant(self, key: str) -> Contestant | None:
        """Return the contestant called `key`, or None."""
        return next((row for row in self.contestants if row.key == key), None)
