"""The child side of a worker process: commands from stdin, answers on stdout, one JSON object per line.

An answer is {"ok": true, ...} or {"ok": false, "error": ...}; after an error the process goes on. It ends when stdin
does or at {"do": "stop"}, in the middle of a call too, so a parent that was killed leaves nothing behind.
"""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO, TypeAlias

Command: TypeAlias = Mapping[str, Any]
"""What a worker is asked: `do` names it, the rest are its arguments; plain JSON."""
Message: TypeAlias = dict[str, Any]
"""What a worker answers; plain JSON."""


def answer_commands(answer: Callable[[Command], Message]) -> None:
    """Answer commands with `answer` until stdin ends or one says stop."""
    replies, commands = _keep_stdout(), _commands()
    while True:
        command = commands.get()
        if command.get("do") == "stop":
            # Not sys.exit: at shutdown the interpreter aborts if a daemon thread holds the lock of stdin's buffer.
            os._exit(0)
        try:
            reply: Message = {"ok": True, **answer(command)}
        except Exception as error:  # whatever a model does is reported, and the next command has its chance
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def run_block(
    call: Callable[[], object],
    *,
    seconds: float,
    min_calls: int,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[float]:
    """Call until `seconds` have passed and `min_calls` are done; return each call's latency in milliseconds.

    A first call is not timed: it finds the caches full of a neighbour's weights, and its own threads asleep.
    """
    call()
    latencies_ms: list[float] = []
    end = clock_ns() + round(seconds * 1e9)
    while True:
        # Both readings and the loop add 0.06 microseconds to a call (docs/log.md).
        start = clock_ns()
        call()
        now = clock_ns()
        latencies_ms.append((now - start) / 1e6)
        if now >= end and len(latencies_ms) >= min_calls:
            return latencies_ms


def _keep_stdout() -> TextIO:
    """Keep stdout for answers alone: whatever else prints, in Python or below it, goes to stderr."""
    # By descriptors, because native libraries write past sys.stdout. The duplicate is not inherited (PEP 446), so a
    # process that the model starts cannot hold the pipe open.
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return kept


def _commands() -> "queue.SimpleQueue[Message]":
    """Return the queue that a thread fills from stdin; the thread ends the process when stdin ends."""
    waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            waiting.put(json.loads(line))
        os._exit(0)

    # A thread of its own reads, so that the end of stdin is seen in the middle of a call too.
    threading.Thread(target=read, daemon=True).start()
    return waiting
