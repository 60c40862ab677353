"""Compare speeds fairly: every model in a process of its own, in turns, the others stopped meanwhile.

`race` times ONNX files against each other; `client` and `process` are the two ends of a worker process, `ratio` the
statistics, and `disturbance` tells whether the machine did something else meanwhile. Needs numpy and onnxruntime.
"""

from potstill.timing.disturbance import Watch
from potstill.timing.race import Contestant, Race, race
from potstill.timing.ratio import Estimate, Verdict, ratio_interval, verdict

__all__ = ["Contestant", "Estimate", "Race", "Verdict", "Watch", "race", "ratio_interval", "verdict"]
