"""Requests of many clients through a few threads: queue, batches, admission, deadlines. No HTTP."""

from potstill.serve.batching.engine import Engine
from potstill.serve.batching.plan import Plan
from potstill.serve.batching.settings import Answered, EngineSettings, Gauges, Observer, Timings, nothing

__all__ = ["Answered", "Engine", "EngineSettings", "Gauges", "Observer", "Plan", "Timings", "nothing"]
