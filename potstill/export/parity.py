"""Does the exported file answer like the model it came from? Checked through the session that will serve it.

The grid covers what breaks exports: batch and length 1, odd lengths, the longest text, ragged padding on the right and
on the left, and masks with holes. A mismatch is an error, never a warning.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.errors import ParityError
from potstill.export.attention_memory import MOST_BYTES, longest_that_fits, most_texts
from potstill.export.source import Feeds, Reference, Source
from potstill.serve import OnnxSession
from potstill.tasks import FEATURE_EXTRACTION

# Largest difference of a logit from torch's, or of larger numbers as a share of their root mean square: MobileBERT's
# hidden states reach hundreds. BERT-base showed 7e-7 and a trained MiniLM 2e-6 on this grid; a wrong mask or position
# shows 1e-2 and more.
FP32_TOLERANCE = 1e-4
BATCH_SIZES = (1, 2, 8)
LENGTHS = (1, 2, 33, 128)
_FIRST_ORDINARY_ID = 5
# So many different texts stand in a batch of 8, which saves half of the reference's time.
_DIFFERENT_TEXTS = 4
# A logit per vocabulary entry and token: a batch of 8 long texts would take gigabytes.
_MOST_NUMBERS = 2**27
# Outputs with a number for each token; other outputs of two dimensions are of texts.
_OF_TOKENS = ("start_logits", "end_logits")

Answer = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Row:
    """Up to four texts of one length under one kind of mask, with the reference's answers."""

    length: int
    mask: str
    feeds: Feeds
    expected: Answer


def check_parity(
    source: Source, session: OnnxSession, *, rows: Iterable[Row] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Compare an fp32 session with what it was made from, over the grid.

    Args:
        source: what the session was made from.
        session: the file.
        rows: what the source answers, of `keep_rows`; None asks it now.
        seed: of the ids.

    Returns:
        The evidence: every cell, the largest difference and the label agreement.

    Raises:
        ParityError: naming the first cell that differs by more than the tolerance, or names another label.
    """
    what = "torch" if source.existing is None else "the file it was made from"
    cells = []
    if rows is None:
        rows = make_rows(source, source.reference(), seed=seed)
    for cell in compare_over_grid(source, rows, session):
        allowed = FP32_TOLERANCE * max(1.0, cell["root_mean_square"])
        if not cell["max_abs_difference"] <= allowed or cell["label_agreement"] < 1:
            raise ParityError(
                f"the exported model differs from {what} by {cell['max_abs_difference']:.2g} at {_name(cell)}, where "
                f"{allowed:.2g} is allowed, and {cell['label_agreement']:.1%} of its clear labels agree; nothing "
                "was published"
            )
        cells.append(cell)
    return summary(cells, reference=what) | {"tolerance": FP32_TOLERANCE} | left_out(source)


def measure_difference(
    source: Source, session: OnnxSession, reference: Reference, *, against: str = "fp32", seed: int = 0
) -> dict[str, Any]:
    """Measure how far a file of lower precision is from fp32 on the grid; random ids are harder than real texts.

    Raises:
        ParityError: if an answer is not a number.
    """
    cells = list(compare_over_grid(source, make_rows(source, reference, seed=seed), session))
    broken = next((cell for cell in cells if not np.isfinite(cell["max_abs_difference"])), None)
    if broken is not None:
        raise ParityError(f"{session.model_file.name} answers with no number at {_name(broken)}; nothing was published")
    return summary(cells, reference=against) | {"inputs": "random token ids"} | left_out(source)


def summary(cells: list[dict[str, Any]], *, reference: str) -> dict[str, Any]:
    """Return what the manifest keeps of a grid."""
    return {
        "reference": reference,
        "cells": len(cells),
        "max_abs_difference": max(cell["max_abs_difference"] for cell in cells),
        "label_agreement": float(np.mean([cell["label_agreement"] for cell in cells])),
        "grid": cells,
    }


def plan(source: Source) -> list[tuple[int, tuple[int, ...]]]:
    """Return each length of the grid in tokens with the batch sizes whose attention scores fit into memory.

    The longest text that a model reads is among the lengths, or the longest of which one fits.
    """
    heads = source.config.num_attention_heads
    longest = min(source.max_length, longest_that_fits(1, heads=heads))
    return [
        (length, tuple(size for size in BATCH_SIZES if size <= most_texts(size, heads=heads, length=length)))
        for length in sorted({length for length in (*LENGTHS, longest) if length <= longest})
    ]


def left_out(source: Source) -> dict[str, Any]:
    """Return in words what the grid leaves out, as `left_out`; nothing where it is whole."""
    planned = plan(source)
    parts = [
        f"batch {' and '.join(map(str, missing))} of {length} tokens"
        for length, sizes in planned
        if (missing := [size for size in BATCH_SIZES if size not in sizes])
    ]
    longest = planned[-1][0]
    if longest < source.max_length:
        parts.append(f"texts of more than {longest} tokens")
    if not parts:
        return {}
    return {
        "left_out": f"{', '.join(parts)}: a layer's attention scores would take more than {MOST_BYTES / 1e9:.1f} GB"
    }


def keep_rows(source: Source, folder: Path, *, seed: int = 0) -> list[Row]:
    """Return what a source answers over the grid, kept in a folder: the numbers of a language model are gigabytes.

    The source need not be in memory beside the file that is compared with it.
    """
    kept = []
    for number, row in enumerate(make_rows(source, source.reference(), seed=seed)):
        expected = {}
        for name, values in row.expected.items():
            np.save(folder / f"{number}-{name}.npy", values)
            expected[name] = np.load(folder / f"{number}-{name}.npy", mmap_mode="r")
        kept.append(replace(row, expected=expected))
    return kept


def compare_over_grid(source: Source, rows: Iterable[Row], session: OnnxSession) -> Iterator[dict[str, Any]]:
    """Yield each cell of batch size x length x mask with its largest difference and label agreement.

    Differences count where the mask lets a token be seen; what stands at padding is nobody's answer.
    """
    has_labels = source.task is not FEATURE_EXTRACTION
    fitting = dict(plan(source))
    for row in rows:
        texts = len(row.feeds["input_ids"])
        width = max(values.size for values in row.expected.values()) // texts
        for batch_size in fitting[row.length]:
            if batch_size > 1 and batch_size * width > _MOST_NUMBERS:
                continue  # the same length stands in the grid with fewer texts
            picked = np.arange(batch_size) % texts
            feeds = {name: values[picked] for name, values in row.feeds.items()}
            found = session.run(feeds)
            outputs = [
                _compare(values[picked], found[name], seen=_seen(feeds, name, values), has_labels=has_labels)
                for name, values in row.expected.items()
            ]
            yield {
                "batch_size": batch_size, "length": row.length, "mask": row.mask,
                "max_abs_difference": max(difference for difference, _ in outputs),
                "root_mean_square": max(_root_mean_square(values) for values in row.expected.values()),
                "label_agreement": min(agreement for _, agreement in outputs),
            }  # fmt: skip


def masks(texts: int, length: int, generator: np.random.Generator) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield each kind of attention mask by name, of shape (texts, length); short texts have the full one only."""
    full = np.ones((texts, length), dtype=np.int64)
    yield "full", full
    if length < 3:
        return
    kept = generator.integers(1, length + 1, size=texts)
    ragged = (np.arange(length)[None, :] < kept[:, None]).astype(np.int64)
    yield "ragged right", ragged
    yield "ragged left", ragged[:, ::-1].copy()
    hole = full.copy()
    hole[:, length // 2] = 0
    yield "hole", hole


def make_rows(source: Source, reference: Reference, *, seed: int) -> Iterator[Row]:
    """Yield the texts of the grid, random ids, with the reference's answers."""
    generator = np.random.default_rng(seed)
    for length, _ in plan(source):
        texts = most_texts(_DIFFERENT_TEXTS, heads=source.config.num_attention_heads, length=length)
        for mask_name, mask in masks(texts, length, generator):
            shape = (texts, length)
            known = {
                "input_ids": generator.integers(_FIRST_ORDINARY_ID, source.config.vocab_size, size=shape),
                "attention_mask": mask,
                "token_type_ids": _token_types(source, shape),
            }
            feeds = {name: known[name].astype(np.int64) for name in source.inputs}
            yield Row(length, mask_name, feeds, reference(feeds))


def _token_types(source: Source, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Mark the second half as a second text where the model knows two."""
    types = np.zeros(shape, dtype=np.int64)
    if getattr(source.config, "type_vocab_size", 1) > 1:
        types[:, shape[1] // 2 :] = 1
    return types


def _seen(feeds: Feeds, name: str, expected: NDArray[np.float32]) -> Any:
    """Return which entries of an output are answers: those of seen tokens where each has its own, else all."""
    mask = feeds.get("attention_mask")
    per_token = mask is not None and (expected.ndim == 3 or name in _OF_TOKENS) and expected.shape[1] == mask.shape[1]
    return mask.astype(bool) if mask is not None and per_token else slice(None)


def _compare(
    expected: NDArray[np.float32], found: NDArray[np.float32], *, seen: Any, has_labels: bool
) -> tuple[float, float]:
    """Return the largest difference, and the share of rows with a clear label that name it too."""
    if found.shape != expected.shape or not np.isfinite(found[seen]).all():
        return float("inf"), 0.0
    expected, found = expected[seen], found[seen]
    difference = float(np.abs(expected - found).max())
    if not has_labels or expected.shape[-1] < 2:
        return difference, 1.0
    top = np.partition(expected, -2, axis=-1)[..., -2:]
    # Two logits closer than the tolerance may change places without any fault.
    clear = top[..., 1] - top[..., 0] > 2 * FP32_TOLERANCE
    same = expected.argmax(-1) == found.argmax(-1)
    return difference, float(same[clear].mean()) if clear.any() else 1.0


def _root_mean_square(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def _name(cell: Mapping[str, Any]) -> str:
    return f"batch {cell['batch_size']}, length {cell['length']}, {cell['mask']} mask"
