"""Does a text get the same answer alone and among others? Measured, because dynamic int8 does not give it.

Dynamic int8 has one scale for all activations of a batch, so a text's answer depends on its neighbours and on the
padding that they bring (microsoft/onnxruntime#10111).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.errors import CheckError
from potstill.evaluation.predictions import ModelOutputs, collect_outputs
from potstill.serve import BundleTokenizer, OnnxSession
from potstill.serve.tokenizer import Row
from potstill.tasks import FILL_MASK

# The largest drift, as a share of the answers' standard deviation, that sums in another order may bring. A MiniLM on
# SST-2 drifted by 0 in fp32 and in static int8, and by 0.32 to 0.55 in dynamic int8 (onnxruntime 1.31.1).
TOLERANCE = 0.01
BATCH_SIZES = (8, 32)
# A logit per vocabulary entry and token: 32 longer texts would take gigabytes.
_LONGEST_MASKED = 64


def measure_batch_invariance(
    session: OnnxSession,
    tokenizer: BundleTokenizer,
    rows: Sequence[Row],
    *,
    outputs: Sequence[str],
    kind: str,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    limit: int = 1000,
    seed: int = 0,
    mask_id: int | None = None,
) -> dict[str, Any]:
    """Return how far the answers to texts move between alone and in batches of texts of mixed lengths, with padding.

    - `texts`, `rows`: how many texts, and how many answers they have
    - `batches`: by batch size (as text) `max_drift`, `mean_drift` and `flips`
    - `max_drift`, `flips`: the largest of a number, and how many answers changed in any batch; `flips` is None where
      an answer is an amount or a vector
    - `spread`: the standard deviation of the answers, by which a drift is large or small
    - `invariant`: no flips, and no drift above `TOLERANCE` of the spread

    Args:
        session: the file.
        tokenizer: pads.
        rows: of real texts, made by `tokenizer.rows`; the first `limit` are used.
        outputs: as `collect_outputs`.
        kind: as `collect_outputs`.
        batch_sizes: the batches.
        limit: how many texts at most.
        seed: of the order in which texts meet in batches.
        mask_id: as `collect_outputs`.

    Raises:
        CheckError: if an answer is a number alone and none in a batch.
    """
    rows = rows[:limit]
    if kind == FILL_MASK.name:
        rows = [{name: values[:_LONGEST_MASKED] for name, values in row.items()} for row in rows]
    asked: dict[str, Any] = {"kind": kind, "outputs": outputs, "mask_id": mask_id}
    alone = collect_outputs(session, tokenizer, rows, batch_size=1, **asked)
    spread = float(alone.values[np.isfinite(alone.values)].std())
    batches: dict[str, dict[str, Any]] = {}
    changes = []
    for size in batch_sizes:
        together = collect_outputs(
            session, tokenizer, rows, batch_size=size, shuffle=np.random.default_rng(seed), **asked
        )
        batches[str(size)], changed = _compare(alone, together)
        changes.append(changed)
    max_drift = max(batch["max_drift"] for batch in batches.values())
    flips = None if alone.decisions() is None else int(np.logical_or.reduce(changes).sum())
    return {
        "texts": int(alone.texts[-1]) + 1,
        "rows": len(alone.values),
        "batches": batches,
        "flips": flips,
        "max_drift": max_drift,
        "spread": spread,
        "invariant": not flips and max_drift <= TOLERANCE * spread,
    }


def _compare(alone: ModelOutputs, together: ModelOutputs) -> tuple[dict[str, Any], Any]:
    """Return the evidence of one batch size, and which decisions changed; None where answers decide nothing."""
    finite = np.isfinite(alone.values)
    if not np.isfinite(together.values[finite]).all():
        raise CheckError("a text that is answered alone is answered with NaN or infinity in a batch; export it again")
    drift = np.abs(alone.values[finite] - together.values[finite])
    first, second = alone.decisions(), together.decisions()
    changed = None if first is None or second is None else first != second
    flips = None if changed is None else int(changed.sum())
    return {"max_drift": float(drift.max()), "mean_drift": float(drift.mean()), "flips": flips}, changed
