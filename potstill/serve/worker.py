"""One thread that does the work, and a bounded queue in front of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from time import perf_counter
from typing import TypeVar

from potstill.serve.request import RequestError

_T = TypeVar("_T")
_SMOOTHING = 0.2  # weight of the newest run in the running mean of seconds per run
_LONGEST_RETRY_SECONDS = 60


class Worker:
    """Runs one piece of work at a time, off the event loop: on a CPU a second run would only share the cores."""

    def __init__(self, *, waiting: int) -> None:
        self._waiting = waiting
        self._in_flight = 0
        self._mean_seconds = 0.0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="potstill-worker")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return what `work` returns, once those before it are done.

        Raises:
            RequestError: 429 with a Retry-After, if `waiting` requests wait already.
        """
        if self._in_flight > self._waiting:  # one runs, the others wait
            raise self._overloaded()
        self._in_flight += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, work)
        finally:
            self._in_flight -= 1

    def close(self) -> None:
        """Drop what has not started; what runs is finished."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _timed(self, work: Callable[[], _T]) -> _T:
        started = perf_counter()
        try:
            return work()
        finally:
            seconds = perf_counter() - started
            before = self._mean_seconds or seconds
            self._mean_seconds = before + _SMOOTHING * (seconds - before)

    def _overloaded(self) -> RequestError:
        seconds = min(max(1, ceil(self._in_flight * self._mean_seconds)), _LONGEST_RETRY_SECONDS)
        return RequestError(
            f"{self._waiting} requests are waiting already; try again in {seconds} s",
            status=429,
            error_type="overloaded",
            headers={"Retry-After": str(seconds)},
        )
