"""Every named fault, and the run over them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.faults import ends, engines, files, framing, network, resources
from tests.faults.bed import Bed, Fault

FAULTS: tuple[Fault, ...] = (
    *ends.FAULTS,
    *network.FAULTS,
    *framing.FAULTS,
    *files.FAULTS,
    *engines.FAULTS,
    *resources.FAULTS,
)


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one fault."""

    name: str
    expect: str
    survived: bool
    seen: str
    seconds: float


def try_fault(fault: Fault, bed: Bed) -> Tried:
    started = time.monotonic()
    try:
        seen, survived = fault.do(bed), True
    except Exception as error:
        seen, survived = f"{type(error).__name__}: {error}", False
    return Tried(fault.name, fault.expect, survived, seen, round(time.monotonic() - started, 2))


def try_all(faults: Sequence[Fault], bed: Bed) -> Iterator[Tried]:
    """Give each fault's outcome as soon as it is known."""
    try:
        for fault in faults:
            yield try_fault(fault, bed)
    finally:
        bed.close()
