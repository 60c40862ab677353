"""The Prometheus metrics of `GET /metrics`. No label holds text of a client: paths are the routes' templates."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from potstill.serve.batching import Outcome, Stage

if TYPE_CHECKING:
    from potstill.serve.batching import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Buckets of factor 2, from a small student's stage to beyond any run: quantiles are then known to a factor of 2.
_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4, 8, 16, 32)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics(Collector):
    """All metrics of one application, in a registry of its own: the global one refuses the same names twice."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "potstill_requests",
            "Requests by path and status; 499 are clients that hung up.",
            ["method", "path", "code"],
            registry=registry,
        )
        self.in_flight = Gauge("potstill_requests_in_flight", "Requests being answered.", registry=registry)
        self.seconds = Histogram(
            "potstill_request_seconds",
            "From the end of a request's headers to its answer, where the model answered.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.engine_observer = EngineMetrics(registry, engine.models)
        ProcessCollector(registry=registry)
        registry.register(self)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges that are read from the engine at each scrape."""
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
        about = GaugeMetricFamily(
            "potstill_model_info",
            "Precision and engine of each model; always 1.",
            labels=["model", "precision", "engine"],
        )
        for model, encoder in self._engine.models.items():
            about.add_metric([model, encoder.precision, encoder.engine], 1.0)
        yield about
        yield GaugeMetricFamily("potstill_ready", "Whether requests are taken.", value=float(self._engine.is_ready()))


class EngineMetrics:
    """The metrics of runs and stages: an `Observer` of the engine."""

    def __init__(self, registry: CollectorRegistry, models: Iterable[str]) -> None:
        names = list(models)
        rows = Histogram(
            "potstill_batch_rows", "Rows of one run of the model.", ["model"], buckets=_ROWS, registry=registry
        )
        seconds = Histogram(
            "potstill_stage_seconds",
            "Time by stage of a request.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        run = Histogram("potstill_run_seconds", "One run of the model.", ["model"], buckets=_SECONDS, registry=registry)
        tokens = Counter(
            "potstill_tokens", "Tokens of runs, of texts and of padding.", ["model", "kind"], registry=registry
        )
        self._shadow = Counter(
            "potstill_shadow_answers",
            "Answers that the shadow gave too, by whether it agreed.",
            ["model", "shadow", "agreed"],
            registry=registry,
        )
        outcomes = Counter(
            "potstill_outcomes", "How work ended in the engine.", ["model", "outcome"], registry=registry
        )
        # `labels()` takes longer than counting, so its results are kept.
        self._rows = {name: rows.labels(name) for name in names}
        self._run = {name: run.labels(name) for name in names}
        self._stages = {(name, stage): seconds.labels(name, stage) for name in names for stage in get_args(Stage)}
        self._real = {name: tokens.labels(name, "text") for name in names}
        self._padding = {name: tokens.labels(name, "padding") for name in names}
        self._outcomes = {(name, word): outcomes.labels(name, word) for name in names for word in get_args(Outcome)}

    def batch(self, model: str, *, rows: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Count one run; `padded_tokens` is rows times the longest row, even for files that do not compute padding."""
        self._rows[model].observe(rows)
        self._run[model].observe(seconds)
        self._real[model].inc(tokens)
        self._padding[model].inc(padded_tokens - tokens)

    def stage(self, model: str, name: Stage, seconds: float) -> None:
        """Record the seconds of one stage of one request."""
        self._stages[model, name].observe(seconds)

    def outcome(self, model: str, name: Outcome) -> None:
        """Count how a request ended in the engine."""
        self._outcomes[model, name].inc()

    def shadow(self, model: str, shadow: str, *, agreed: bool) -> None:
        """Count one input that the shadow answered too."""
        self._shadow.labels(model, shadow, str(agreed).lower()).inc()
