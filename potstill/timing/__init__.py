"""Compare speeds fairly: every model in a process of its own, in turns, the others stopped meanwhile.

`workers` starts and asks the processes, of which one runs at a time, and `worker_loop` is the loop inside them; `ratio`
has the statistics of paired rounds, and `disturbance` finds out whether the machine did something else meanwhile.
`race` puts them together for ONNX files; `potstill.bench` does for whole models. Needs numpy and onnxruntime.
"""

from potstill.timing.disturbance import Watch
from potstill.timing.race import Race, RaceEntry, race
from potstill.timing.ratio import Estimate, ratio_interval

__all__ = ["Estimate", "Race", "RaceEntry", "Watch", "race", "ratio_interval"]
