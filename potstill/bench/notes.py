"""What a reader must know to believe the numbers, or not to."""

from collections.abc import Sequence

from potstill import machine
from potstill.bench.report_schema import Contestant, Environment, Model
from potstill.bench.subjects import Entry

# More waiting tasks than this, per core, and somebody else was at work.
_BUSY = 0.5


def list_notes(
    found: Environment, *, entries: Sequence[Entry], models: dict[str, Model], rows: Sequence[Contestant], trials: int
) -> list[str]:
    """Return sentences about how it was measured and what stood in the way."""
    notes = [
        "Each row ran in a process of its own; all took turns, in random order, in every round, and whoever waited for "
        "its turn was stopped by the system, so that nobody's idle threads took a core from another.",
        "A call on the grid is random ordinary tokens, without padding or tokenisation; one on own texts is one text "
        "of the data in its own length. Texts per second of one caller are batch size / p50.",
    ]
    load, cores = found.load_before, found.cores
    if load and load[0] > _BUSY * cores:
        notes.append(f"The machine was busy before the bench began: load {load[0]:.1f} on {cores} cores.")
    if found.threads > cores:
        notes.append(f"{found.threads} threads share {cores} cores; every time is longer than it need be.")
    if any(row.quantisation for row in rows) and not machine.has_fast_int8():
        notes.append("This CPU has no VNNI, AMX or dot product: int8 gains little here and can lose exactness.")
    if not trials:
        notes.append("Quality was not measured: no data was given.")
    elif any(not row.batch_invariant for row in rows):
        notes.append("Dynamic int8 was scored one text at a time, because its answers depend on batch mates.")
    random = [name for name, model in models.items() if "random" in str(model.source.get("weights", ""))]
    if random:
        notes.append(f"The weights of {', '.join(random)} are random: size and speed do not depend on them.")
    if any("cuda" in entry.runner or "tensorrt" in entry.runner for entry in entries):
        notes.append("On a GPU a call ends when the device has finished; inputs and outputs stay on it.")
    return notes
