"""What is counted, and `GET /metrics`.

What the event loop counts for every request is plain Python: it costs nanoseconds and needs no lock. What the engine's
threads report goes into prometheus_client's own types. No label holds anything of a client's: paths are templates.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from potstill.serve.batching import Outcome, Stage
from potstill.serve.http.context import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = get_args(Stage)
_SECONDS = (
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0,
)  # fmt: skip
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Counts:
    """Requests of one method and path template, by status."""

    __slots__ = ("by_status", "method", "template")

    def __init__(self, method: str, template: str) -> None:
        self.method = method
        self.template = template
        self.by_status: dict[int, int] = {}

    def add(self, status: int) -> None:
        """Count one answer; on the event loop only."""
        self.by_status[status] = self.by_status.get(status, 0) + 1


class Spread:
    """A histogram that one thread fills."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """Return (upper bound, values up to it) for each bound and +Inf, and the sum."""
        so_far, buckets = 0, []
        for bound, found in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            so_far += found
            buckets.append((bound, float(so_far)))
        return buckets, self._total


class Traffic:
    """What the event loop counts."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.seconds = Spread(_SECONDS)
        self._counts: dict[tuple[str, str], Counts] = {}

    def counts(self, method: str, template: str) -> Counts:
        """Return the counter of a method and a template; the same each time."""
        return self._counts.setdefault((method, template), Counts(method, template))

    def families(self) -> Iterable[Metric]:
        """Give what prometheus_client writes."""
        requests = CounterMetricFamily(
            "potstill_requests", "Requests by path and status; 499 are clients that hung up.",
            labels=["method", "path", "code"],
        )  # fmt: skip
        for counts in list(self._counts.values()):
            for status, number in sorted(counts.by_status.items()):
                requests.add_metric([counts.method, counts.template, str(status)], number)
        yield requests
        yield GaugeMetricFamily("potstill_requests_in_flight", "Requests being answered.", value=self.in_flight)
        buckets, total = self.seconds.cumulative()
        yield HistogramMetricFamily(
            "potstill_request_seconds", "From the end of a request's headers to its answer, where the model answered.",
            buckets=buckets, sum_value=total,
        )  # fmt: skip


class Watch:
    """What the engine's threads report: the engine's observer."""

    def __init__(self, registry: CollectorRegistry, models: Iterable[str]) -> None:
        names = list(models)
        rows = Histogram(
            "potstill_batch_rows", "Rows of one run of the model.", ["model"], buckets=_ROWS, registry=registry
        )
        seconds = Histogram(
            "potstill_stage_seconds", "Time by stage of a request.", ["model", "stage"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        run = Histogram("potstill_run_seconds", "One run of the model.", ["model"], buckets=_SECONDS, registry=registry)
        tokens = Counter(
            "potstill_tokens", "Tokens of runs, of texts and of padding.", ["model", "kind"], registry=registry
        )
        shadow = Counter(
            "potstill_shadow_answers", "Answers that the shadow gave too, by whether it agreed.",
            ["model", "shadow", "agreed"], registry=registry,
        )  # fmt: skip
        outcomes = Counter(
            "potstill_outcomes", "How work ended in the engine.", ["model", "outcome"], registry=registry
        )
        # Looking labels up takes longer than counting.
        self._rows = {name: rows.labels(name) for name in names}
        self._run = {name: run.labels(name) for name in names}
        self._stages = {(name, stage): seconds.labels(name, stage) for name in names for stage in STAGES}
        self._real = {name: tokens.labels(name, "text") for name in names}
        self._padding = {name: tokens.labels(name, "padding") for name in names}
        self._shadow = shadow
        self._outcomes = {(name, word): outcomes.labels(name, word) for name in names for word in get_args(Outcome)}

    def batch(self, model: str, *, rows: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Count one run; `padded_tokens` are rows times the longest row, which an unpadded file does not compute."""
        self._rows[model].observe(rows)
        self._run[model].observe(seconds)
        self._real[model].inc(tokens)
        self._padding[model].inc(padded_tokens - tokens)

    def stage(self, model: str, name: Stage, seconds: float) -> None:
        """Count one stage of one request."""
        self._stages[model, name].observe(seconds)

    def outcome(self, model: str, name: Outcome) -> None:
        """Count how a request ended in the engine; `name` is one of the engine's own words."""
        self._outcomes[model, name].inc()

    def shadow(self, model: str, shadow: str, *, agreed: bool) -> None:
        """Count one text that the shadow answered too."""
        self._shadow.labels(model, shadow, str(agreed).lower()).inc()


class Metrics:
    """All of it, in a registry of its own: two applications in one process do not meet."""

    def __init__(self, engine: Engine) -> None:
        self.traffic = Traffic()
        self._registry = CollectorRegistry()
        self.watch = Watch(self._registry, engine.models)
        ProcessCollector(registry=self._registry)
        self._registry.register(_Now(engine, self.traffic))

    def text(self) -> bytes:
        """Return the exposition in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What is read when somebody asks."""

    def __init__(self, engine: Engine, traffic: Traffic) -> None:
        self._engine = engine
        self._traffic = traffic

    def collect(self) -> Iterable[Metric]:
        """Give the families."""
        yield from self._traffic.families()
        gauges = {
            "queued_rows": GaugeMetricFamily("potstill_queue_rows", "Rows that wait for the model.", labels=["model"]),
            "queued_tokens": GaugeMetricFamily("potstill_queue_tokens", "Tokens that wait.", labels=["model"]),
            "running_rows": GaugeMetricFamily("potstill_running_rows", "Rows in the model.", labels=["model"]),
            "wait_s": GaugeMetricFamily(
                "potstill_predicted_wait_seconds", "What a request that comes now would wait.", labels=["model"]
            ),
        }
        for model in self._engine.models:
            stats = self._engine.stats(model)
            for name, family in gauges.items():
                family.add_metric([model], float(getattr(stats, name)))
        yield from gauges.values()
        yield GaugeMetricFamily("potstill_ready", "Whether requests are taken.", value=float(self._engine.is_ready()))
