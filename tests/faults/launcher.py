"""`potstill serve` with faults that can be switched on while it runs; for tests only.

    POTSTILL_TEST_FAULTS=FOLDER python tests/faults/launcher.py serve BUNDLE ...

A file in FOLDER switches a fault of the model's runs on, and its removal switches it off:

    hang    a run does not end, whatever the server does, until the file is gone
    slow    a run takes as many more seconds as the file says
    raise   a run fails with an exception whose message holds the text of the file
    die     a run raises SystemExit, which ends a thread without a word
    nan     a run answers NaN
    memory  a run fails with MemoryError
    guilty  a run fails if one of its rows is longer than as many tokens as the file says
    clock   the wall clock is off by as many seconds as the file says

FOLDER/runs has one byte for every run that began. POTSTILL_TEST_LIMITS is JSON: values for fields of `Limits`.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ["POTSTILL_TEST_FAULTS"])
_wall, _wall_ns = time.time, time.time_ns


def told(name: str) -> str | None:
    """Return what the file of a fault says; None while it is off."""
    try:
        return (FOLDER / name).read_text()
    except OSError:
        return None


def shift() -> float:
    return float(told("clock") or 0)


def before(feeds: dict) -> None:
    with (FOLDER / "runs").open("ab") as counter:
        counter.write(b".")
    while told("hang") is not None:
        time.sleep(0.01)
    if (seconds := told("slow")) is not None:
        time.sleep(float(seconds))
    if (text := told("raise")) is not None:
        raise RuntimeError(f"the run failed on {text}")
    if told("die") is not None:
        raise SystemExit
    if told("memory") is not None:
        raise MemoryError("bad allocation")
    if (tokens := told("guilty")) is not None and feeds["input_ids"].shape[1] > int(tokens):
        raise RuntimeError("the run failed")


def wrap_session() -> None:
    from potstill.serve.session import OnnxSession

    run = OnnxSession.run

    def faulty(self, feeds, *rest, **more):
        before(feeds)
        outputs = run(self, feeds, *rest, **more)
        if told("nan") is not None:
            return {name: np.full_like(value, np.nan) for name, value in outputs.items()}
        return outputs

    OnnxSession.run = faulty


def change_limits() -> None:
    from potstill.serve.limits import Limits

    changed = json.loads(os.environ.get("POTSTILL_TEST_LIMITS") or "{}")
    make = Limits.__init__

    def changed_init(self, **fields):
        make(self, **(fields | {name: value for name, value in changed.items() if name in Limits.__slots__}))

    Limits.__init__ = changed_init


if __name__ == "__main__":
    time.time = lambda: _wall() + shift()
    time.time_ns = lambda: _wall_ns() + int(shift() * 1e9)
    wrap_session()
    change_limits()
    from potstill.cli import main

    sys.argv[0] = "potstill"
    sys.exit(main())
