"""Requests of many clients through a few threads: queue, batches, admission, deadlines. No HTTP."""

from potstill.serve.engine.engine import Engine, Plan
from potstill.serve.engine.settings import Answered, EngineSettings, Gauges, Observer, Timings, nothing
from potstill.serve.engine.split import split_cores

__all__ = ["Answered", "Engine", "EngineSettings", "Gauges", "Observer", "Plan", "Timings", "nothing", "split_cores"]
