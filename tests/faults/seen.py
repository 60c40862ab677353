"""What came back of what was sent."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

EXAMPLES = 30
"""Of each kind of failure, how many are kept."""


@dataclass(slots=True)
class Seen:
    """Counts of what came back, and examples of what must not."""

    inputs: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    slowest_seconds: float = 0.0

    def fail(self, kind: str, detail: str) -> None:
        self.failures[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < EXAMPLES:
            kept.append(detail)

    def add(self, other: "Seen") -> None:
        """Count in what another one has seen."""
        self.inputs += other.inputs
        self.statuses += other.statuses
        self.failures += other.failures
        for kind, examples in other.examples.items():
            self.examples.setdefault(kind, []).extend(examples[:EXAMPLES])
        self.slowest_seconds = max(self.slowest_seconds, other.slowest_seconds)


def together(parts: Iterable[Seen]) -> Seen:
    total = Seen()
    for part in parts:
        total.add(part)
    return total
