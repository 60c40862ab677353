"""The commands that a worker process answers; `potstill.bench.worker` lists them with their replies."""

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from potstill.bench.measure.memory import MemoryGrowth, OutOfMemory, ran_out, restart_peak
from potstill.bench.report_schema import Load
from potstill.bench.runners import LoadCommand, Runner, find_opener
from potstill.bench.workload import Call, Workload, make_workload
from potstill.errors import UsageError
from potstill.serve import Text
from potstill.serve.tasks.text_classification import scoring_function
from potstill.tasks import PROBLEM_TYPES, TOKEN_CLASSIFICATION
from potstill.timing.worker_loop import Command, Message, run_block

if TYPE_CHECKING:
    from potstill.bench.peak import MatrixProducts

# Two windows of calls in a row whose medians are as near as this are one speed; it is what rounds differ by as well.
_STEADY = 0.05
# A window: the scheduler's turns and the clocks' changes are shorter.
_WINDOW_S = 0.05
_LEAST_CALLS = 3
# Rows that a GPU answers at once when quality is scored.
_GPU_BATCH = 32


class NotFinite(Exception):
    """The model answers NaN or infinity."""


class WorkerCommands:
    """The state of a worker (the loaded model, the texts that it was sent) and its commands."""

    def __init__(self, growth: MemoryGrowth, *, process_ms: float, import_ms: float) -> None:
        """Take the memory and the milliseconds that the process has used so far."""
        self._growth, self._process_ms, self._import_ms = growth, process_ms, import_ms
        self._runner: Runner | None = None
        self._products: MatrixProducts | None = None
        self._texts: list[Text] = []
        self._seed, self._task = 0, ""
        self._folder = Path()
        self._ready: tuple[Load, Workload] | None = None
        self._position: dict[Load, int] = {}

    def answer(self, command: Command) -> Message:
        """Carry out one command and return its reply.

        Raises:
            OutOfMemory: whatever an engine calls it.
        """
        commands: dict[str, Callable[[Command], Message]] = {
            "load": self._load,
            "texts": self._take_texts,
            "warm": self._warm,
            "block": self._block,
            "concurrent": self._concurrent,
            "first": self._first,
            "answer": self._answer,
            "memory": self._memory,
            "products": self._load_products,
            "product": self._run_products,
            "restart_peak": lambda _: {"restarted": restart_peak()},
        }
        if command["do"] not in commands:
            raise UsageError(f"unknown command {command['do']!r}; a worker knows {', '.join(commands)}")
        try:
            return commands[command["do"]](command)
        except Exception as error:
            if ran_out(error):
                raise OutOfMemory(f"out of memory: {type(error).__name__}: {error}") from error
            raise

    @property
    def _model(self) -> Runner:
        if self._runner is None:
            raise UsageError("nothing is loaded; send a load command first")
        return self._runner

    def _load(self, command: Command) -> Message:
        started = time.perf_counter()
        opener = find_opener(command["runner"])
        imported = time.perf_counter()
        self._growth.imported()
        self._runner, self._ready = opener(cast("LoadCommand", command)), None
        self._seed, self._task, self._folder = command["seed"], command["task"], Path(command["folder"])
        loaded = time.perf_counter()
        self._growth.loaded()
        return {
            "process_ms": self._process_ms,
            "import_ms": self._import_ms + (imported - started) * 1e3,
            "load_ms": (loaded - imported) * 1e3,
            "device": self._runner.device,
            "sha256": dict(self._runner.files),
        }

    def _take_texts(self, command: Command) -> Message:
        self._texts, self._ready = [_text(text, self._task) for text in command["texts"]], None
        return {"mean_tokens": float(self._model.tokenizer.lengths(self._texts).mean())}

    def _warm(self, command: Command) -> Message:
        work = self._work(Load.model_validate(command["load"]))
        # Before the clock runs: looking for NaN in timed calls would lengthen them.
        for feeds in work.samples:
            _check_finite(self._model.run(feeds))
        return {"mean_tokens": work.mean_tokens} | warm_up(work.warm, max_s=command["max_s"])

    def _block(self, command: Command) -> Message:
        load = Load.model_validate(command["load"])
        work, position = self._work(load), self._position.get(load, 0)
        call = work.go_round(position)
        # process_time counts all threads of the process, those of the engine too.
        wall, cpu = time.perf_counter(), time.process_time()
        latencies_ms = run_block(call, seconds=command["seconds"], min_calls=command["min_calls"])
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
        # + 1 for the first call of `run_block`, which is not timed but takes a text.
        self._position[load] = (position + len(latencies_ms) + 1) % len(work.calls)
        return {"latencies_ms": latencies_ms, "cpu_s": cpu_s, "wall_s": wall_s}

    def _concurrent(self, command: Command) -> Message:
        load, callers = Load.model_validate(command["load"]), command["callers"]
        # Each caller prepares its own calls: a GPU's inputs and outputs are bound to one at a time.
        works = [make_workload(load, self._model, texts=self._texts, seed=self._seed) for _ in range(callers)]
        # Callers start at different texts, so that they do not all run the same one at once.
        calls = [work.go_round(number * len(work.calls) // callers) for number, work in enumerate(works)]
        per_caller, seconds = call_together(calls, seconds=command["seconds"])
        latencies_ms = [latency for caller in per_caller for latency in caller]
        return {"texts": len(latencies_ms) * load.batch_size, "seconds": seconds, "latencies_ms": latencies_ms}

    def _first(self, command: Command) -> Message:
        model, text, started = self._model, _text(command["text"], self._task), time.perf_counter()
        model.run(model.tokenizer.encode([text]))
        return {"first_answer_ms": (time.perf_counter() - started) * 1e3}

    def _answer(self, command: Command) -> Message:
        # Imported here: nothing that a model needs to be served, so no part of its memory.
        from potstill.evaluation.predictions import predict

        model, texts, kind = self._model, command["texts"], command["kind"]
        file = self._folder / "config.json"
        config = file.read_bytes() if file.is_file() else None
        function = scoring_function(kind, config) if kind in PROBLEM_TYPES else None
        answers = predict(
            model,
            model.tokenizer,
            texts,
            kind=kind,
            outputs=model.outputs,
            function=function,
            pooling=model.pooling,
            # On a CPU one by one, as a request that is alone is answered; a GPU would stand idle for most of it.
            batch_size=_GPU_BATCH if model.device != "cpu" and model.batch_invariant else 1,
        )
        with Path(command["file"]).open("wb") as stream:  # a name without .npz would get it
            np.savez(stream, allow_pickle=False, **answers)
        tokens = model.tokenizer.lengths([_text(text, self._task) for text in texts])
        return {"texts": len(texts), "mean_tokens": float(tokens.mean())}

    def _load_products(self, command: Command) -> Message:
        from potstill.bench.peak import MatrixProducts  # no part of a row's memory

        self._products = MatrixProducts(command["threads"])
        return {}

    def _run_products(self, _: Command) -> Message:
        if self._products is None:
            raise UsageError("there are no products yet; send a products command first")
        return {"rates": self._products.rates()}

    def _memory(self, _: Command) -> Message:
        on_gpu = self._runner.gpu_memory() if self._runner else {}
        return {"gpu_peak_allocated_bytes": None, "gpu_peak_reserved_bytes": None} | self._growth.now() | on_gpu

    def _work(self, load: Load) -> Workload:
        """Return a load's prepared calls; only the last load's are kept, since calls on a GPU hold their outputs."""
        if self._ready is None or self._ready[0] != load:
            # Freed before the next is made, so that the outputs of two loads are never held together.
            self._ready = None
            self._ready = load, make_workload(load, self._model, texts=self._texts, seed=self._seed)
        return self._ready[1]


def warm_up(calls: Sequence[Call], *, max_s: float, clock: Callable[[], float] = time.perf_counter) -> Message:
    """Run `calls` in turn until their speed is steady, or for `max_s` seconds after the first.

    The speed is steady when two windows in a row have medians within 5 %. The first call is in none of them: engines
    allocate there, or compile.
    """
    calls[0]()
    begin = clock()
    done, before, median_s = 1, 0.0, 0.0
    while True:
        window = _window(calls, end=begin + max_s, clock=clock)
        done, before, median_s = done + len(window), median_s, statistics.median(window)
        steady = before > 0 and len(window) >= len(calls) and abs(median_s / before - 1) <= _STEADY
        if done >= _LEAST_CALLS and (steady or clock() - begin >= max_s):
            return {"calls": done, "stationary": steady, "call_ms": median_s * 1e3}


def _window(calls: Sequence[Call], *, end: float, clock: Callable[[], float]) -> list[float]:
    """Return the seconds of each call of whole turns, but of none that would begin after `end`."""
    taken, start = list[float](), clock()
    while True:
        for call in calls:
            begin = clock()
            if taken and begin >= end:
                return taken
            call()
            taken.append(clock() - begin)
        if clock() - start >= _WINDOW_S:
            return taken


def call_together(
    calls: Sequence[Call], *, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[list[float]], float]:
    """Make each of `calls` again and again in a thread of its own, all at once.

    A caller counts the calls that it began within `seconds`, and goes on uncounted until all have counted theirs, so
    that each was counted beside all others. Each caller's speed is its calls by its own time.

    Returns:
        Each caller's latencies in milliseconds, and the seconds in which all callers together make so many calls.
    """
    found: list[tuple[list[float], float]] = []
    errors: list[BaseException] = []
    left, lock, line = len(calls), threading.Lock(), threading.Barrier(len(calls))

    def go(call: Call) -> None:
        nonlocal left
        try:
            call()
            # After a first call of each, which may allocate.
            line.wait()
            found.append(_count(call, seconds=seconds, clock=clock))
            with lock:
                left -= 1
            # Read without the lock: at worst one call too many is made.
            while left and not errors:
                call()
        except BaseException as error:  # told by the thread that asked
            errors.append(error)
            # Wakes the callers that wait for this one.
            line.abort()

    threads = [threading.Thread(target=go, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        # A broken barrier says only that another caller failed.
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    total = sum(len(latencies_ms) for latencies_ms, _ in found)
    return [latencies_ms for latencies_ms, _ in found], total / sum(len(made) / took for made, took in found)


def _count(call: Call, *, seconds: float, clock: Callable[[], float]) -> tuple[list[float], float]:
    """Return the milliseconds of each call that began within `seconds`, and the seconds of all of them."""
    latencies_ms, begin = list[float](), clock()
    before = begin
    while before - begin < seconds or not latencies_ms:
        call()
        now = clock()
        latencies_ms.append((now - before) * 1e3)
        before = now
    return latencies_ms, before - begin


def _check_finite(outputs: Mapping[str, NDArray[Any]]) -> None:
    for name, values in outputs.items():
        share = float(np.mean(~np.isfinite(values)))
        if share > 0:
            raise NotFinite(f"{share:.2%} of the numbers in {name} are NaN or infinite; take another precision")


def _text(text: Any, task: str) -> Text:
    """Return a text as it was before JSON: a list is a pair, or the words of a text whose words are labelled."""
    if isinstance(text, str):
        return text
    return " ".join(text) if task == TOKEN_CLASSIFICATION.name else (text[0], text[1])
