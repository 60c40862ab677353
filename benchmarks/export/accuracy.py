"""What each contestant answers on real texts, beside torch: the other side of its milliseconds."""

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from contestants import Entry

from potstill.timing.workers import CommandFailed, Worker

_REFERENCE = "torch-fp32"
_BATCH_SIZE = 32
# For all texts, however busy the machine is: nothing is timed here.
_LONGEST_S = 3600.0


def measure_accuracy(entries: Mapping[str, Entry], judged: Path, *, seed: int) -> dict[str, Any]:
    """Ask every contestant for every judged text, alone and in batches of 32 in the data's order.

    Returns:
        `texts`, and contestant -> `accuracy`; `changed`, the answers that are not torch's; `error`, the mean absolute
        difference of a logit from torch's; and of batches against alone: `batch_changed` and `batch_drift`, the
        largest difference of a logit. Or its `reason`.
    """
    with np.load(judged) as stored:
        labels = stored["labels"]
    found: dict[str, Any] = {}
    reference = _answers(entries[_REFERENCE], judged, seed=seed)[0]
    for name, entry in entries.items():
        try:
            if entry.reason is not None:
                raise CommandFailed(entry.reason)
            alone, together = _answers(entry, judged, seed=seed)
        except CommandFailed as error:
            found[name] = {"reason": str(error)}
        else:
            best = alone.argmax(-1)
            found[name] = {
                "accuracy": round(float((best == labels).mean()), 4),
                "changed": int((best != reference.argmax(-1)).sum()),
                "error": float(f"{np.abs(alone - reference).mean():.3g}"),
                "batch_changed": int((best != together.argmax(-1)).sum()),
                "batch_drift": float(f"{np.abs(alone - together).max():.3g}"),
            }
        print(f"  {name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    return {"texts": len(labels), "contestants": found}


def _answers(entry: Entry, judged: Path, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of every text, alone and in batches, (texts, labels) each."""
    with closing(Worker(entry.contestant.command)) as worker:
        worker.ask({"do": "load", "seed": seed} | dict(entry.contestant.load))
        asked = {"do": "texts", "file": str(judged.resolve())}
        replies = [worker.ask(asked | {"batch_size": size}, timeout_s=_LONGEST_S) for size in (1, _BATCH_SIZE)]
    alone, together = (np.array(reply["logits"]) for reply in replies)
    return alone, together
