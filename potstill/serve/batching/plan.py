"""What an engine measures and chooses at its start."""

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from potstill.serve.batching.model import Runs
from potstill.serve.batching.settings import EngineSettings
from potstill.serve.batching.warmup import ModelPlan, describe, measure, row_of
from potstill.serve.encoder import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the engine measured and chose at its start."""

    models: dict[str, ModelPlan]
    runners: int
    threads: int
    text_threads: int
    wait_ms: dict[str, float]
    """The predicted wait beyond which a request is refused: in a burst and while a queue stands."""
    memory_bytes: int | None
    """Resident after the largest runs: about what it stays at."""

    def describe(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "runners": self.runners,
            "threads": self.threads,
            "text_threads": self.text_threads,
            "wait_ms": self.wait_ms,
            "memory_bytes": self.memory_bytes,
            "models": {name: describe(plan) for name, plan in self.models.items()},
        }


def measure_models(
    models: Mapping[str, Encoder], runs: Mapping[str, Runs], *, settings: EngineSettings, runners: int
) -> dict[str, ModelPlan]:
    """Measure every model.

    Args:
        models: what is measured.
        runs: what runs rows of each.
        settings: say whether texts may share a run.
        runners: how many runs there may be at a time.

    Raises:
        CheckError: if a model does not run.
    """
    plans: dict[str, ModelPlan] = {}
    for name, model in models.items():
        alone = None
        if not model.record.batch_invariant and not settings.allow_drift:
            alone = "this file's answers depend on their company, so every text runs alone"
        plans[name] = measure(
            runs[name],
            max_length=model.manifest.max_length,
            row=partial(row_of, model.session.inputs, model.manifest.pad_token_id),
            alone=alone,
            runners=runners,
            unpadded=model.record.unpadded,
        )
    return plans


def resident_bytes() -> int | None:
    """Return how much memory this process has; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None
