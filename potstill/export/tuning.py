"""Time int8 recipes on this machine (`--tune`), and keep the fastest that passes the gates.

Each candidate differs from the default in one thing. Those that look faster are joined into one more candidate, which
races the default again, so that small gains can add up to one that is significant. Candidates whose whole interval lies
above 1 then go through the same gates as any int8 file, the fastest first, and after them the default.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from potstill.bundle import ModelRecord, Quantization, TunedCandidate, Tuning
from potstill.errors import ParityError
from potstill.export.onnx_files import save_model
from potstill.export.quantize import Int8Recipe, Prepared, quantize
from potstill.machine import available_cores, cpu_name
from potstill.timing import Race, race
from potstill.timing.race import GRID, session

# onnxruntime's SkipLayerNormalization kernel is slower than the Add and LayerNormalization that it replaces: BERT-base
# int8 1x128 took 57 ms with it and 49 ms without, 8x128 419 and 369 ms (onnxruntime 1.31.1, 2 cores, AVX512-VNNI).
DISABLED_OPTIMIZERS = ("SkipLayerNormFusion",)
_DEFAULT = "default"
_BLOCK_S = 0.1  # seconds of a turn
# Candidates that look this many times as fast as the default are joined and race again.
_PROMISING = 1.01


@dataclass(frozen=True, slots=True)
class Candidate:
    """An int8 recipe, and the onnxruntime optimisers that its session switches off."""

    recipe: Int8Recipe
    disabled_optimizers: tuple[str, ...] = DISABLED_OPTIMIZERS


def candidates(plain: Int8Recipe) -> dict[str, Candidate]:
    """Return the default and every variant that differs from it in one thing, by name."""
    changed = {
        "integer attention": Candidate(replace(plain, attention="integer")),
        "tanh gelu": Candidate(replace(plain, gelu="tanh")),
        "per tensor": Candidate(replace(plain, per_channel=False)),
        "fused skip norm": Candidate(plain, ()),
    }
    if plain.smoothing is not None:
        changed["no smoothing"] = Candidate(replace(plain, smoothing=None))
    # A recipe without smoothing may be one without calibration texts, and so without ranges for static scales.
    if plain.smoothing is not None and plain.method == "dynamic":
        changed["static"] = Candidate(replace(plain, method="static"))
    return {_DEFAULT: Candidate(plain)} | changed


def join(chosen: Sequence[Candidate], default: Candidate) -> Candidate:
    """Return the candidate with every change that one of `chosen` makes to `default`."""
    changes: dict[str, Any] = {}
    optimizers = default.disabled_optimizers
    for candidate in chosen:
        for name in ("method", "attention", "gelu", "per_channel", "smoothing"):
            if getattr(candidate.recipe, name) != getattr(default.recipe, name):
                changes[name] = getattr(candidate.recipe, name)
        if candidate.disabled_optimizers != default.disabled_optimizers:
            optimizers = candidate.disabled_optimizers
    return Candidate(replace(default.recipe, **changes), optimizers)


def tune(
    default: Int8Recipe,
    *,
    time: Callable[[Mapping[str, Candidate]], Race],
    make: Callable[[Candidate], ModelRecord],
    say: Callable[[str], None],
) -> ModelRecord:
    """Return the record of the fastest int8 file that passes the gates, with all candidates in its `tuning`.

    Args:
        default: the recipe that the others are compared with.
        time: races candidates, see `race_candidates`.
        make: writes a candidate's file and puts it through the gates, or raises ParityError; the last call made the
            file that is kept.
        say: called with a note before each race.

    Raises:
        ParityError: if no candidate passes, with the reason of each.
    """
    tried = candidates(default)
    say(f"time {len(tried)} recipes")
    first = time(tried)
    results = dict.fromkeys(tried, first)
    faster = [name for name in tried if _ratio(first, name)[0] >= _PROMISING]
    if len(faster) > 1:
        name = " + ".join(faster)
        tried[name] = join([tried[each] for each in faster], tried[_DEFAULT])
        say(f"time {name}")
        results[name] = time({_DEFAULT: tried[_DEFAULT], name: tried[name]})

    def rank(name: str) -> tuple[bool, float]:
        """Sort the default and what is faster beyond doubt first, the fastest in front, then all others."""
        value, low = _ratio(results[name], name)
        return name != _DEFAULT and low <= 1, -value

    # What failed in the race, or was disturbed, is listed in the table but never made.
    order = sorted((name for name in tried if name == _DEFAULT or _is_measured(results[name], name)), key=rank)
    refused: dict[str, str] = {}
    for name in order:
        try:
            record = make(tried[name])
        except ParityError as error:
            refused[name] = str(error).splitlines()[0]
            continue
        listed = [*order, *(other for other in tried if other not in order)]
        table = Tuning(
            cpu=cpu_name(),
            threads=available_cores(),
            kept=name,
            candidates=[_row(each, tried[each], results[each], refused=refused.get(each)) for each in listed],
        )
        disturbed = next((reason for result in results.values() if (reason := result.disturbed()) is not None), None)
        if disturbed is not None:
            table = table.model_copy(update={"disturbed": disturbed})
        return record.model_copy(update={"tuning": table})
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise ParityError(f"no recipe holds: {reasons}; nothing was published")


def race_candidates(
    tried: Mapping[str, Candidate], prepared: Prepared, *, vocab_size: int, max_length: int, rounds: int
) -> Race:
    """Time the candidates over the grid, in turns, each in its own process; texts are cut to `max_length` tokens."""
    with TemporaryDirectory() as folder:
        contestants = {}
        for number, (name, candidate) in enumerate(tried.items()):
            file = Path(folder) / f"{number}.onnx"
            save_model(quantize(prepared, candidate.recipe), file)
            contestants[name] = session(
                file,
                threads=available_cores(),
                disabled_optimizers=candidate.disabled_optimizers,
                vocab_size=vocab_size,
            )
        cells = sorted({(batch, min(length, max_length)) for batch, length in GRID})
        return race(contestants, cells, rounds=rounds, block_s=_BLOCK_S)


def _ratio(result: Race, name: str) -> tuple[float, float]:
    """Return the speed of a candidate relative to the default, and the lower end of its interval; 0 if it failed."""
    if not _is_measured(result, name):
        return (1.0, 1.0) if name == _DEFAULT else (0.0, 0.0)
    estimate = result.overall(_DEFAULT, name)
    return estimate.value, estimate.low


def _is_measured(result: Race, name: str) -> bool:
    """Return whether the candidate and the default ran in every cell, on an undisturbed machine."""
    pair = {name, _DEFAULT}
    return result.disturbed() is None and pair <= result.rounds.keys() and not pair & result.failures.keys()


def _row(name: str, candidate: Candidate, result: Race, *, refused: str | None) -> TunedCandidate:
    estimate = result.overall(_DEFAULT, name) if _is_measured(result, name) else None
    return TunedCandidate(
        name=name,
        recipe=Quantization.model_validate(candidate.recipe.describe()),
        disabled_optimizers=list(candidate.disabled_optimizers),
        ratio=estimate.value if estimate else None,
        interval=(estimate.low, estimate.high) if estimate else None,
        ms={f"{batch}x{length}": result.median_ms(name, (batch, length)) for batch, length in result.cells},
        failed=result.failures.get(name),
        refused=refused,
    )
