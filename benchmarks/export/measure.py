"""Check that every contestant answers like the checkpoint, then let them race, one architecture after the other."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from contestants import Entry

from potstill.timing import Race, race
from potstill.timing.workers import CommandFailed, Worker

# Also one of the grid's, so that torch compiles nothing that is not raced.
_CHECKED_CELL = {"batch_size": 8, "num_tokens": 128}
# Of the logits' spread. O3's approximated Gelu stays below it by far; other weights differ by more than 1.
_SAME_FUNCTION = 0.1
# Times the reference's time: whoever takes longer is out of the question, and its turns would take an hour. OpenVINO's
# bf16 is such a one on a CPU without that arithmetic, torch's is not: 34 and 3 times torch's fp32 for MiniLM-L6.
_TOO_SLOW = 10
_REFERENCE = "torch-fp32"
_VERSIONS = """
import importlib.metadata as m, json, sys
found = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))
"""
_PEERS = ("optimum", "optimum-onnx", "transformers", "torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy")


def check_answers(entries: Mapping[str, Entry], *, seed: int) -> dict[str, dict[str, Any]]:
    """Ask each contestant alone for the same answer.

    Returns:
        contestant -> `difference`, its largest from torch's fp32 logits as a share of their standard deviation over
        texts, and `peak_rss_bytes`; and if it shall not race, the `reason`.
    """
    checked: dict[str, dict[str, Any]] = {}
    reference: dict[str, Any] | None = None
    for name in sorted(entries, key=lambda name: name != _REFERENCE):
        entry = entries[name]
        if entry.reason is not None:
            checked[name] = {"reason": entry.reason}
            continue
        try:
            with closing(Worker(entry.contestant.command)) as worker:
                worker.ask({"do": "load", "seed": seed} | dict(entry.contestant.load))
                reply = worker.ask({"do": "answer"} | _CHECKED_CELL)
        except CommandFailed as error:
            checked[name] = {"reason": str(error)}
        else:
            reference = reply if name == _REFERENCE else reference
            checked[name] = {"peak_rss_bytes": reply["peak_rss_bytes"]} | _compare(name, reply, reference)
        print(f"  {name}: {json.dumps(checked[name])}", file=sys.stderr, flush=True)
    return {name: checked[name] for name in entries}


def _compare(name: str, reply: Mapping[str, Any], reference: Mapping[str, Any] | None) -> dict[str, Any]:
    if reference is None:
        return {"difference": None}
    logits, expected = np.asarray(reply["logits"]), np.asarray(reference["logits"])
    difference = float(np.abs(logits - expected).max() / expected.std(axis=0).max())
    found: dict[str, Any] = {"difference": float(f"{difference:.3g}")}
    exact = name.split("@")[0].endswith(("fp32", "plain", "o3", "fused"))
    if not np.isfinite(difference) or (exact and difference > _SAME_FUNCTION):
        found["reason"] = f"it differs from torch by {difference:.3g} of the logits' spread: other weights?"
    elif (times := reply["seconds"] / reference["seconds"]) > _TOO_SLOW:
        found["reason"] = f"not raced: one call at 8x128 takes {reply['seconds']:.1f} s, {times:.0f} times torch's"
    return found


def run_race(
    entries: Mapping[str, Entry],
    checked: Mapping[str, Mapping[str, Any]],
    *,
    cells: Sequence[tuple[int, int]],
    rounds: int,
    block_s: float,
    seed: int,
) -> Race:
    """Race all that can; the reasons of the others are among the failures."""
    able = {name: entry.contestant for name, entry in entries.items() if "reason" not in checked[name]}

    def progress(stage: str, done: int, total: int, note: str) -> None:
        print(f"  {stage}: {done} of {total} {note}", file=sys.stderr, flush=True)

    result = race(able, cells, rounds=rounds, block_s=block_s, seed=seed, progress=progress)
    result.failures.update({name: found["reason"] for name, found in checked.items() if "reason" in found})
    return result


def peer_versions(python: Path) -> dict[str, str]:
    """Return the versions of the packages that matter in another environment."""
    command = [str(python), "-c", _VERSIONS, *_PEERS]
    try:
        return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    except (OSError, subprocess.CalledProcessError):
        return {}
