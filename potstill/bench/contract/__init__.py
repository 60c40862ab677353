"""What report.json holds, as data: everything that measures fills these, everything that draws or decides reads them.

`report.schema.json`, in `potstill.bench.report`, is the same as JSON Schema for readers in other languages.

Times are in milliseconds, sizes in bytes, shares between 0 and 1; the names of the fields say which. An `interval` is
the lower and upper end of a 95 % interval. None means "not measured", and never zero.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from potstill.bench.contract.base import Interval, Load, LoadKind, Part, Verdict
from potstill.bench.contract.judged import Confusion, Decision, Difference, GlueRow, Power, Quality, Retention, Score
from potstill.bench.contract.measured import (
    ColdStart,
    Contestant,
    Energy,
    Environment,
    Failure,
    Latency,
    Memory,
    Model,
    Noise,
    Peaks,
    Ratio,
    Scaling,
    Throughput,
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


class Report(Part):
    """A whole report."""

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
