"""Answer requests of many clients with a few threads: queue, batches, admission, deadlines. No HTTP.

`engine` is what a server uses; `queue` orders and batches rows, `workers` has the threads, `cost` predicts what a run
takes, `admission` refuses what would wait too long, and `shadow_compare` runs a second model when there is time.
"""

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
