"""Compare an exported file with its source: parity, batch invariance, and the speed of int8 against fp32.

Parity is checked through the session that will serve the file, over a grid of what breaks exports: batch and length 1,
odd lengths, the longest text, ragged padding on the right and on the left, masks with holes. Batch invariance is
measured on real texts. Dynamic int8 is not invariant: one scale holds for all activations of a batch, so a text's
answer depends on its neighbours and on the padding that they bring (microsoft/onnxruntime#10111).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from potstill.bundle import BatchDrift, BatchInvariance, Parity, ParityCell, Speed, SpeedCell
from potstill.errors import CheckError, ParityError
from potstill.evaluation.predictions import ModelOutputs, collect_outputs
from potstill.export.onnx_files import Feeds
from potstill.export.source import Reference, Source
from potstill.machine import available_cores, cpu_name
from potstill.serve import BundleTokenizer, Row
from potstill.serve.session import Session
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK
from potstill.timing import race
from potstill.timing.race import Cell, session

# Largest difference of a logit from torch's, or of larger numbers as a share of their root mean square: MobileBERT's
# hidden states reach hundreds. BERT-base showed 7e-7 and a trained MiniLM 2e-6 on this grid; a wrong mask or position
# shows 1e-2 and more.
FP32_TOLERANCE = 1e-4
GRID_BATCH_SIZES = (1, 2, 8)
GRID_LENGTHS = (1, 2, 33, 128)
# Smaller ids are special tokens in most vocabularies, such as RoBERTa's <pad> = 1.
_FIRST_ORDINARY_ID = 5
# A batch of 8 repeats 4 different texts, which halves the reference's time.
_DIFFERENT_TEXTS = 4
# Most float32 values of an output, 512 MiB: fill-mask has one per token and vocabulary entry.
_MOST_NUMBERS = 2**27
# Two-dimensional outputs with a value per token; all other two-dimensional ones are per text.
_OF_TOKENS = ("start_logits", "end_logits")

# The largest drift, as a share of the answers' standard deviation, that is put down to the order of float sums. On
# SST-2 a MiniLM drifted by 0 in fp32 and static int8, and by 0.32 to 0.55 in dynamic int8 (onnxruntime 1.31.1).
DRIFT_TOLERANCE = 0.01
INVARIANCE_BATCH_SIZES = (8, 32)
# Tokens of a fill-mask text, for the same reason: 32 longer ones would have gigabytes of logits.
_LONGEST_MASKED = 64

# (batch, tokens): a short and a long text alone, the usual requests of a small server.
SPEED_CELLS: tuple[Cell, ...] = ((1, 16), (1, 128))

# Most bytes of one layer's attention scores, 4 GiB; a run needs up to four times that. Scores grow with the square of
# the length: ModernBERT's 8,192 positions with 12 heads are 3.2 GB for one text, and 25.8 GB for a batch of 8.
MOST_SCORE_BYTES = 2**32


@dataclass(frozen=True, slots=True)
class GridRow:
    """Up to four texts of one length and kind of mask, with the reference's outputs."""

    length: int
    mask: str
    feeds: Feeds
    expected: Mapping[str, NDArray[np.float32]]


def check_parity(
    source: Source,
    session: Session,
    *,
    rows: Iterable[GridRow] | None = None,
    against: str | None = None,
    seed: int = 0,
) -> Parity:
    """Compare an fp32 session with its source over the grid.

    Args:
        source: the torch model or ONNX file that the session's file was made from.
        session: the exported file.
        rows: the source's outputs from `keep_rows`; None runs the source now.
        against: where the outputs in `rows` are from, if not from the source.
        seed: of the random token ids.

    Raises:
        ParityError: naming the first cell that differs by more than the tolerance or has another clear label.
    """
    reference = against or ("torch" if source.onnx_source is None else "the file it was made from")
    if rows is None:
        rows = make_rows(source, source.reference(), seed=seed)
    cells = []
    for cell in _compare_over_grid(source, rows, session):
        allowed = FP32_TOLERANCE * max(1.0, cell.root_mean_square)
        # "not <=" also catches NaN.
        if not cell.max_abs_difference <= allowed or cell.label_agreement < 1:
            raise ParityError(
                f"the exported model differs from {reference} by {cell.max_abs_difference:.2g} at {_name(cell)}, where "
                f"{allowed:.2g} is allowed, and {cell.label_agreement:.1%} of its clear labels agree; nothing "
                "was published"
            )
        cells.append(cell)
    return _summarize(source, cells, reference=reference).model_copy(update={"tolerance": FP32_TOLERANCE})


def measure_difference(
    source: Source, session: Session, reference: Reference, *, against: str = "fp32", seed: int = 0
) -> Parity:
    """Measure how far a file of lower precision is from fp32 on the grid; random ids are harder than real texts.

    Raises:
        ParityError: if an output is NaN or infinite.
    """
    cells = list(_compare_over_grid(source, make_rows(source, reference, seed=seed), session))
    broken = next((cell for cell in cells if not math.isfinite(cell.max_abs_difference)), None)
    if broken is not None:
        raise ParityError(f"{session.model_file.name} answers with no number at {_name(broken)}; nothing was published")
    return _summarize(source, cells, reference=against).model_copy(update={"inputs": "random token ids"})


def keep_rows(source: Source, folder: Path, *, seed: int = 0) -> list[GridRow]:
    """Run the source over the grid and keep its outputs as memory-mapped files in `folder`.

    So the source can be freed before the exported file is loaded, and a masked language model's gigabytes of logits
    stay on disk.
    """
    kept = []
    for number, row in enumerate(make_rows(source, source.reference(), seed=seed)):
        expected = {}
        for name, values in row.expected.items():
            np.save(folder / f"{number}-{name}.npy", values)
            expected[name] = np.load(folder / f"{number}-{name}.npy", mmap_mode="r")
        kept.append(replace(row, expected=expected))
    return kept


def make_rows(source: Source, reference: Reference, *, seed: int) -> Iterator[GridRow]:
    """Yield the texts of the grid, of random ids, with the reference's outputs."""
    generator = np.random.default_rng(seed)
    for length, _ in plan_grid(source):
        texts = most_texts(_DIFFERENT_TEXTS, heads=source.config.num_attention_heads, length=length)
        for mask_name, mask in masks(texts, length, generator):
            types = np.zeros((texts, length), dtype=np.int64)
            if getattr(source.config, "type_vocab_size", 1) > 1:
                types[:, length // 2 :] = 1
            known = {
                "input_ids": generator.integers(_FIRST_ORDINARY_ID, source.config.vocab_size, size=(texts, length)),
                "attention_mask": mask,
                "token_type_ids": types,
            }
            feeds = {name: known[name].astype(np.int64) for name in source.inputs}
            yield GridRow(length, mask_name, feeds, reference(feeds))


def masks(texts: int, length: int, generator: np.random.Generator) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield each kind of attention mask, (texts, length), with its name; texts of 1 or 2 tokens have one kind only."""
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


def plan_grid(source: Source) -> list[tuple[int, tuple[int, ...]]]:
    """Return each length of the grid, in tokens, with the batch sizes whose attention scores fit into memory.

    Includes the model's longest text, or if its scores do not fit, the longest length that does.
    """
    heads = source.config.num_attention_heads
    longest = min(source.max_length, longest_that_fits(1, heads=heads))
    return [
        (length, tuple(size for size in GRID_BATCH_SIZES if size <= most_texts(size, heads=heads, length=length)))
        for length in sorted({length for length in (*GRID_LENGTHS, longest) if length <= longest})
    ]


def left_out(source: Source) -> str | None:
    """Describe the cells that the grid leaves out for lack of memory; None if there are none."""
    planned = plan_grid(source)
    parts = [
        f"batch {' and '.join(map(str, missing))} of {length} tokens"
        for length, sizes in planned
        if (missing := [size for size in GRID_BATCH_SIZES if size not in sizes])
    ]
    longest = planned[-1][0]
    if longest < source.max_length:
        parts.append(f"texts of more than {longest} tokens")
    limit = f"a layer's attention scores would take more than {MOST_SCORE_BYTES / 1e9:.1f} GB"
    return f"{', '.join(parts)}: {limit}" if parts else None


def _summarize(source: Source, cells: list[ParityCell], *, reference: str) -> Parity:
    missing = left_out(source)
    return Parity(
        reference=reference,
        cells=len(cells),
        max_abs_difference=max(cell.max_abs_difference for cell in cells),
        label_agreement=float(np.mean([cell.label_agreement for cell in cells])),
        grid=cells,
    ).model_copy(update={} if missing is None else {"left_out": missing})


def _compare_over_grid(source: Source, rows: Iterable[GridRow], session: Session) -> Iterator[ParityCell]:
    """Yield each cell of batch size x length x mask with its largest difference and label agreement.

    Outputs per token are compared only where the mask is 1; at padding they are undefined.
    """
    has_labels = source.task is not FEATURE_EXTRACTION
    fitting = dict(plan_grid(source))
    for row in rows:
        texts = len(row.feeds["input_ids"])
        width = max(values.size for values in row.expected.values()) // texts
        for batch_size in fitting[row.length]:
            if batch_size > 1 and batch_size * width > _MOST_NUMBERS:
                continue  # the same length stands in the grid with fewer texts
            picked = np.arange(batch_size) % texts
            feeds = {name: values[picked] for name, values in row.feeds.items()}
            found = session.run(feeds)
            mask, outputs, squares = feeds.get("attention_mask"), [], []
            for name, values in row.expected.items():
                # `...` compares everything: outputs per text, and models without a mask.
                of_tokens = values.ndim == 3 or name in _OF_TOKENS
                seen = mask.astype(bool) if mask is not None and of_tokens and values.shape[1] == mask.shape[1] else ...
                outputs.append(_compare(values[picked], found[name], seen=seen, has_labels=has_labels))
                # Of what is compared: at padding MobileBERT's hidden states are larger than at tokens.
                squares.append(np.square(values[picked][seen], dtype=np.float64).mean())
            yield ParityCell(
                batch_size=batch_size,
                length=row.length,
                mask=row.mask,
                max_abs_difference=max(difference for difference, _ in outputs),
                root_mean_square=float(np.sqrt(max(squares))),
                label_agreement=min(agreement for _, agreement in outputs),
            )


def _compare(
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    *,
    seen: NDArray[np.bool_] | EllipsisType,
    has_labels: bool,
) -> tuple[float, float]:
    """Return the largest absolute difference, and the share of rows whose clear label agrees."""
    if found.shape != expected.shape or not np.isfinite(found[seen]).all():
        return float("inf"), 0.0
    expected, found = expected[seen], found[seen]
    difference = float(np.abs(expected - found).max())
    if not has_labels or expected.shape[-1] < 2:
        return difference, 1.0
    top = np.partition(expected, -2, axis=-1)[..., -2:]
    # Two logits closer than what both may differ by can swap without a fault.
    clear = top[..., 1] - top[..., 0] > 2 * FP32_TOLERANCE
    same = expected.argmax(-1) == found.argmax(-1)
    return difference, float(same[clear].mean()) if clear.any() else 1.0


def _name(cell: ParityCell) -> str:
    return f"batch {cell.batch_size}, length {cell.length}, {cell.mask} mask"


def most_texts(wanted: int, *, heads: int, length: int) -> int:
    """Return how many of `wanted` texts of `length` tokens may run at once by `MOST_SCORE_BYTES`; at least 1."""
    return max(1, min(wanted, MOST_SCORE_BYTES // (4 * heads * max(1, length) ** 2)))


def longest_that_fits(texts: int, *, heads: int) -> int:
    """Return the longest length, in tokens, at which `texts` of them may run at once by `MOST_SCORE_BYTES`."""
    return math.isqrt(MOST_SCORE_BYTES // (4 * texts * heads))


def measure_batch_invariance(
    session: Session,
    tokenizer: BundleTokenizer,
    rows: Sequence[Row],
    *,
    outputs: Sequence[str],
    kind: str,
    batch_sizes: Sequence[int] = INVARIANCE_BATCH_SIZES,
    limit: int = 1000,
    seed: int = 0,
    mask_id: int | None = None,
) -> BatchInvariance:
    """Measure how far a text's outputs move between running alone and in padded batches of mixed lengths.

    A file is invariant if no decision changes and no drift exceeds `DRIFT_TOLERANCE` times the outputs' spread.

    Args:
        session: the file.
        tokenizer: pads the batches.
        rows: real texts from `tokenizer.rows`; the first `limit` are used.
        outputs: as in `collect_outputs`.
        kind: as in `collect_outputs`.
        batch_sizes: the batch sizes to compare with 1.
        limit: the most texts to use.
        seed: of the shuffle that composes the batches.
        mask_id: as in `collect_outputs`.

    Raises:
        CheckError: if an output is finite alone and NaN or infinite in a batch.
    """
    rows = rows[:limit]
    if kind == FILL_MASK.name:
        rows = [{name: values[:_LONGEST_MASKED] for name, values in row.items()} for row in rows]

    def outputs_of(batch_size: int, shuffle: np.random.Generator | None = None) -> ModelOutputs:
        return collect_outputs(
            session,
            tokenizer,
            rows,
            kind=kind,
            outputs=outputs,
            batch_size=batch_size,
            shuffle=shuffle,
            mask_id=mask_id,
        )

    alone = outputs_of(1)
    decided, finite = alone.decisions(), np.isfinite(alone.values)
    spread = float(alone.values[finite].std())
    batches: dict[str, BatchDrift] = {}
    any_changed: NDArray[np.bool_] | None = None
    for size in batch_sizes:
        together = outputs_of(size, np.random.default_rng(seed))
        if not np.isfinite(together.values[finite]).all():
            raise CheckError(
                "a text that is answered alone is answered with NaN or infinity in a batch; export it again"
            )
        drift = np.abs(alone.values[finite] - together.values[finite])
        others = together.decisions()
        changed = None if decided is None or others is None else decided != others
        batches[str(size)] = BatchDrift(
            max_drift=float(drift.max()),
            mean_drift=float(drift.mean()),
            flips=None if changed is None else int(changed.sum()),
        )
        if changed is not None:
            any_changed = changed if any_changed is None else any_changed | changed
    flips = None if any_changed is None else int(any_changed.sum())
    max_drift = max(batch.max_drift for batch in batches.values())
    return BatchInvariance(
        texts=int(alone.texts[-1]) + 1,
        rows=len(alone.values),
        batches=batches,
        flips=flips,
        max_drift=max_drift,
        spread=spread,
        invariant=not flips and max_drift <= DRIFT_TOLERANCE * spread,
    )


def compare_speed(
    fp32: Path,
    int8: Path,
    *,
    fp32_disabled: Sequence[str],
    int8_disabled: Sequence[str],
    vocab_size: int,
    max_length: int,
    rounds: int,
    cells: Sequence[Cell] = SPEED_CELLS,
) -> Speed:
    """Measure how many times as fast as fp32 int8 is on this machine; both run in turns, each in its own process.

    Args:
        fp32: the fp32 ONNX file.
        int8: the int8 ONNX file.
        fp32_disabled: onnxruntime optimisers to switch off for fp32.
        int8_disabled: onnxruntime optimisers to switch off for int8.
        vocab_size: token ids are drawn below this.
        max_length: cells with longer texts are cut to this many tokens.
        rounds: turns of each file per cell.
        cells: pairs of batch size and tokens.

    Returns:
        Its verdict is "faster" or "slower" if the whole interval of the geometric mean lies on that side of 1, else
        "no faster"; or "not measured" with the reason in `failures`, if a file failed or the machine was too busy.
    """
    threads = available_cores()
    fitting = sorted({(batch, min(length, max_length)) for batch, length in cells})
    contestants = {
        "fp32": session(fp32, threads=threads, disabled_optimizers=fp32_disabled, vocab_size=vocab_size),
        "int8": session(int8, threads=threads, disabled_optimizers=int8_disabled, vocab_size=vocab_size),
    }
    result = race(contestants, fitting, rounds=rounds, block_s=0.1)
    disturbed = result.disturbed()
    failures = result.failures or ({} if disturbed is None else {"the machine": disturbed})
    if failures:
        return Speed(verdict="not measured", failures=failures)
    overall = result.overall("fp32", "int8")
    measured = []
    for cell in fitting:
        estimate = result.ratio("fp32", "int8", cell)
        fp32_ms, int8_ms = result.median_ms("fp32", cell), result.median_ms("int8", cell)
        assert fp32_ms is not None
        assert int8_ms is not None
        measured.append(
            SpeedCell(
                batch_size=cell[0],
                num_tokens=cell[1],
                ratio=estimate.value,
                interval=(estimate.low, estimate.high),
                fp32_ms=fp32_ms,
                int8_ms=int8_ms,
            )
        )
    return Speed(
        cpu=cpu_name(),
        threads=threads,
        rounds=rounds,
        cells=measured,
        ratio=overall.value,
        interval=(overall.low, overall.high),
        verdict="faster" if overall.low > 1 else "slower" if overall.high < 1 else "no faster",
    )
