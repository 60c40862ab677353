"""Does the exported file answer like the model it came from? Checked through the session that will serve it.

The grid covers what breaks exports: batch and length 1, odd lengths, ragged padding on the right and on the left, and
masks with holes. A mismatch is an error, never a warning.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from potstill.errors import ParityError
from potstill.metrics import agreement
from potstill.serve import OnnxSession

# Largest difference of a logit from torch's. BERT-base showed 7e-7 and a trained MiniLM 2e-6 on this grid; a wrong
# mask or position shows 1e-2 and more.
FP32_TOLERANCE = 1e-4
BATCH_SIZES = (1, 2, 8)
LENGTHS = (1, 2, 7, 33, 128)
_FIRST_ORDINARY_ID = 5

Feeds = dict[str, NDArray[np.int64]]


def check_parity(
    model: PreTrainedModel, session: OnnxSession, *, inputs: Sequence[str], output: str, max_length: int, seed: int = 0
) -> dict[str, Any]:
    """Compare an fp32 session with the torch model over the grid.

    Returns:
        The evidence: cells, largest difference and label agreement.

    Raises:
        ParityError: naming the first cell that differs by more than the tolerance, or names another label.
    """
    cells, worst = 0, 0.0
    for name, feeds in grid(model, inputs=inputs, max_length=max_length, seed=seed):
        expected = _torch_output(model, feeds, output)
        found = session.run(feeds)[output]
        difference = float(np.abs(expected - found).max()) if np.isfinite(found).all() else float("inf")
        # Two logits closer than the tolerance may change places without any fault.
        same = _agree_where_clear(expected, found)
        if found.shape != expected.shape or difference > FP32_TOLERANCE or not same:
            raise ParityError(
                f"the exported model differs from torch by {difference:.2g} at {name}, where {FP32_TOLERANCE:g} is "
                "allowed; nothing was published"
            )
        cells, worst = cells + 1, max(worst, difference)
    return {
        "reference": "torch",
        "cells": cells,
        "max_abs_difference": worst,
        "tolerance": FP32_TOLERANCE,
        "label_agreement": 1.0,
    }


def compare_precisions(
    model: PreTrainedModel,
    session: OnnxSession,
    *,
    inputs: Sequence[str],
    output: str,
    max_length: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how far an int8 session is from torch on the grid; random ids are harder than real texts.

    Raises:
        ParityError: if an answer is not a number.
    """
    expected, found = [], []
    for name, feeds in grid(model, inputs=inputs, max_length=max_length, seed=seed):
        expected.append(_torch_output(model, feeds, output))
        found.append(session.run(feeds)[output])
        if not np.isfinite(found[-1]).all():
            raise ParityError(f"the int8 model answers with no number at {name}; nothing was published")
    reference, answers = np.concatenate(expected), np.concatenate(found)
    return {
        "reference": "torch",
        "cells": len(expected),
        "max_abs_difference": float(np.abs(reference - answers).max()),
        "label_agreement": agreement(reference, answers),
        "inputs": "random token ids",
    }


def grid(model: PreTrainedModel, *, inputs: Sequence[str], max_length: int, seed: int) -> Iterator[tuple[str, Feeds]]:
    """Yield (name, feeds) for every cell: batch size x length x mask, with seeded random token ids."""
    generator = np.random.default_rng(seed)
    lengths = sorted({length for length in (*LENGTHS, max_length) if length <= max_length})
    for batch_size in BATCH_SIZES:
        for length in lengths:
            for mask_name, mask in _masks(batch_size, length, generator):
                ids = generator.integers(_FIRST_ORDINARY_ID, model.config.vocab_size, size=(batch_size, length))
                feeds = {
                    "input_ids": ids,
                    "attention_mask": mask,
                    "token_type_ids": _token_types(model, batch_size, length),
                }
                name = f"batch {batch_size}, length {length}, {mask_name} mask"
                yield name, {key: feeds[key].astype(np.int64) for key in inputs}


def _masks(batch_size: int, length: int, generator: np.random.Generator) -> Iterator[tuple[str, NDArray[np.int64]]]:
    full = np.ones((batch_size, length), dtype=np.int64)
    yield "full", full
    if length < 3:
        return
    kept = generator.integers(1, length + 1, size=batch_size)
    positions = np.arange(length)
    ragged = (positions[None, :] < kept[:, None]).astype(np.int64)
    yield "ragged right", ragged
    yield "ragged left", ragged[:, ::-1].copy()
    hole = full.copy()
    hole[:, length // 2] = 0
    yield "hole", hole


def _token_types(model: PreTrainedModel, batch_size: int, length: int) -> NDArray[np.int64]:
    """Mark the second half as a second text where the model knows two."""
    types = np.zeros((batch_size, length), dtype=np.int64)
    if getattr(model.config, "type_vocab_size", 1) > 1:
        types[:, length // 2 :] = 1
    return types


def _torch_output(model: PreTrainedModel, feeds: Mapping[str, NDArray[np.int64]], output: str) -> NDArray[np.float32]:
    with torch.inference_mode():
        answer = getattr(model(**{name: torch.from_numpy(value) for name, value in feeds.items()}), output)
    result: NDArray[np.float32] = answer.float().numpy()
    return result


def _agree_where_clear(expected: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    top = np.sort(expected, axis=-1)
    clear = top[:, -1] - top[:, -2] > 2 * FP32_TOLERANCE if expected.shape[-1] > 1 else np.zeros(len(expected), bool)
    return bool((expected.argmax(-1) == found.argmax(-1))[clear].all())
