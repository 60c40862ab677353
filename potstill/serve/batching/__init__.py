"""Answer requests of many clients with a few threads: queue, batches, admission, deadlines. No HTTP."""

from potstill.serve.batching.engine import (
    Engine,
    EngineSettings,
    Gauges,
    Observer,
    Outcome,
    Plan,
    Stage,
    nothing,
)
from potstill.serve.batching.queue import Answered, Timings

__all__ = [
    "Answered",
    "Engine",
    "EngineSettings",
    "Gauges",
    "Observer",
    "Outcome",
    "Plan",
    "Stage",
    "Timings",
    "nothing",
]
