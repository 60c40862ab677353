"""Stand-ins for worker processes: they answer at once, and do what a test says."""

from dataclasses import dataclass, field
from pathlib import Path

from potstill.bench.config import ResolvedBench
from potstill.bench.measure.run import BenchRun
from potstill.bench.measure.samples import open_samples
from potstill.bench.models import Configuration
from potstill.bench.report_schema import Load
from potstill.config import BenchConfig
from potstill.progress import silent
from potstill.timing.workers import CommandFailed, WorkerDied

MEMORY = {
    "interpreter_rss_bytes": 1,
    "imported_rss_bytes": 2,
    "loaded_rss_bytes": 3,
    "loading_peak_bytes": 4,
    "peak_bytes": 5,
    "after_rss_bytes": 4,
}
SHORT, LONG, TEXTS = Load(num_tokens=16), Load(num_tokens=128), Load(kind="texts")


class FakeConfiguration(Configuration):
    """A configuration whose process is told its key when it loads."""

    def load_command(self, *, seed, spinning=True):
        return {"do": "load", "key": self.key, "threads": self.threads, "seed": seed, "spinning": spinning}


def configuration(key, runner="onnxruntime-cpu", threads=2):
    model, _, row = key.partition("/")
    return FakeConfiguration(
        key=key,
        model=model,
        precision=row.partition("@")[0],
        runner=runner,
        folder=model,
        threads=threads,
        task="text-classification",
        problem_type=None,
        max_length=512,
    )


@dataclass
class World:
    """What all fakes share.

    Attributes:
        latency_ms: key -> milliseconds of a call; others take 1.
        faults: (key, what it is asked, the load's name or None) -> the error it raises, or what it answers instead.
        said: who was asked what, in order: (process, key, command).
        awake: the processes that are not stopped.
        clock: seconds that the turns took.
    """

    latency_ms: dict = field(default_factory=dict)
    faults: dict = field(default_factory=dict)
    said: list = field(default_factory=list)
    processes: list = field(default_factory=list)
    awake: set = field(default_factory=set)
    clock: float = 0.0
    products: int = 0
    interrupt_at: int | None = None

    def launch(self, timeout_s):
        worker = FakeWorker(self, len(self.processes), timeout_s)
        self.processes.append(worker)
        return worker

    def asked(self, do):
        return [(process, key) for process, key, command in self.said if command["do"] == do]


class FakeWorker:
    def __init__(self, world, number, timeout_s):
        self.world, self.number, self.timeout_s = world, number, timeout_s
        self.key, self.closed, self.alive = None, False, True

    def ask(self, command, *, timeout_s=None):
        world = self.world
        assert self.alive, "a dead process was asked"
        assert not self.closed, "a closed process was asked"
        assert world.awake == {self.number}, "somebody else is awake"
        if command["do"] == "load":
            self.key = command["key"]
        world.said.append((self.number, self.key, command))
        if world.interrupt_at is not None and len(world.said) >= world.interrupt_at:
            raise KeyboardInterrupt
        world.clock += command["do"] == "block"
        where = str(Load(**command["load"])) if "load" in command else None
        fault = world.faults.get((self.key, command["do"], where))
        if isinstance(fault, list):
            fault = fault.pop(0) if fault else None
        if isinstance(fault, CommandFailed):
            self.alive = not isinstance(fault, WorkerDied)
            raise fault
        return fault if fault is not None else self.reply(command)

    def reply(self, command):
        latency_ms = self.world.latency_ms.get(self.key, 1.0)
        match command["do"]:
            case "load":
                return {"load_ms": 5.0, "device": "cpu", "sha256": {"model.onnx": self.key}}
            case "warm":
                return {"calls": 3, "stationary": True, "mean_tokens": 16.0, "call_ms": latency_ms}
            case "block":
                calls = max(command["min_calls"], 4)
                return {"latencies_ms": [latency_ms] * calls, "cpu_s": 0.2, "wall_s": 0.1}
            case "concurrent":
                return {"texts": 10, "seconds": 10 * latency_ms / 1e3, "latencies_ms": [latency_ms] * 12}
            case "product":
                self.world.products += 1
                return {"rates": {"fp32": 1e9 * self.world.products, "int8": 2e9}}
            case "memory":
                return dict(MEMORY)
            case "answer":
                Path(command["file"]).write_text(self.key)
                return {"texts": len(command["texts"]), "mean_tokens": 16.0}
        return {}

    def pause(self):
        self.world.awake.discard(self.number)

    def resume(self):
        self.world.awake.add(self.number)

    def close(self):
        self.closed = True
        self.world.awake.discard(self.number)


def make_run(folder, world, *, keys=("t/fp32", "s/fp32"), loads=(SHORT, LONG), head=(), seed=7, **settings):
    """Return a run of fakes; everything but latency is off unless a setting says otherwise."""
    quiet = {
        "throughput_batch_sizes": [],
        "thread_scaling": False,
        "cold_starts": 0,
        "rounds": 5,
        "launches": 4,
        "max_repeats": 0,
        "num_tokens": [16, 128],
        "peak": False,
    }
    texts = settings.pop("texts", ())
    progress = settings.pop("progress", silent)
    configurations = tuple(configuration(key, key.partition("@")[2] or "onnxruntime-cpu") for key in keys)
    bench = ResolvedBench(
        configurations=configurations,
        baseline=configurations[0],
        loads=tuple(loads),
        config=BenchConfig(**(quiet | settings)),
        seed=seed,
        threads=2,
        texts=tuple(texts),
    )
    return BenchRun(
        bench=bench,
        journal=open_samples(folder, head=dict(head)),
        launch=world.launch,
        clock=lambda: world.clock,
        progress=progress,
    )
