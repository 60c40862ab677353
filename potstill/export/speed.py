"""Is int8 faster than fp32 on this machine? Measured in turns, in processes of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.machine import available_cores, cpu_name
from potstill.timing import race
from potstill.timing.race import Cell, session

NOT_MEASURED = "not measured"
# A short and a long text alone: what a small box is asked most.
CELLS: tuple[Cell, ...] = ((1, 16), (1, 128))


def compare_speed(
    files: Mapping[str, tuple[Path, Sequence[str]]],
    *,
    vocab_size: int,
    max_length: int,
    rounds: int,
    cells: Sequence[Cell] = CELLS,
) -> dict[str, Any]:
    """Return how many times as fast as the first file the second one is.

    Args:
        files: name -> ONNX file and the optimisers that its session switches off; fp32 first.
        vocab_size: which ids may be drawn.
        max_length: longer texts are cut to it.
        rounds: turns of each.
        cells: batch size and tokens.

    Returns:
        `verdict` "not measured" and why, by name under `failures`, where a file does not run or the machine was busy
        with other things to the last. Else `cells` with the medians in milliseconds and the ratio with its interval,
        the geometric mean `ratio` with its interval, and `verdict`: "faster" or "slower" where the whole interval says
        so, else "no faster".
    """
    threads = available_cores()
    fitting = sorted({(batch, min(length, max_length)) for batch, length in cells})
    contestants = {
        name: session(file, threads=threads, disabled_optimizers=switched_off, vocab_size=vocab_size)
        for name, (file, switched_off) in files.items()
    }
    result = race(contestants, fitting, rounds=rounds, block_s=0.1)
    baseline, other = files
    if result.failures:
        return {"verdict": NOT_MEASURED, "failures": result.failures}
    disturbed = result.disturbed()
    if disturbed is not None:
        return {"verdict": NOT_MEASURED, "failures": {"the machine": disturbed}}
    overall = result.overall(baseline, other)
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "rounds": rounds,
        "cells": [
            {"batch_size": batch, "num_tokens": length, "ratio": estimate.value, "interval": estimate.interval()}
            | {f"{name}_ms": result.median_ms(name, (batch, length)) for name in files}
            for batch, length in fitting
            for estimate in [result.ratio(baseline, other, (batch, length))]
        ],
        "ratio": overall.value,
        "interval": overall.interval(),
        "verdict": "faster" if overall.low > 1 else "slower" if overall.high < 1 else "no faster",
    }
