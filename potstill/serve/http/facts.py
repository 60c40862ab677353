"""What is served and how it was checked: plain JSON values, short for everybody and whole for one model."""

from dataclasses import asdict, is_dataclass
from typing import Any

import potstill
from potstill import machine
from potstill.serve.encoder import Encoder
from potstill.serve.http.context import Context


def describe_server(context: Context) -> dict[str, Any]:
    """Return what `GET /info` says: all that a client needs, and where the evidence of each model is."""
    plan = context.engine.plan
    return {
        "models": {
            name: summarise_model(encoder) | {"evidence": f"/models/{name}"} for name, encoder in context.models.items()
        },
        "default_model": next(iter(context.models)),
        "engine": None if plan is None else plan.describe(),
        "settings": plain(context.engine.settings),
        "limits": plain(context.limits),
        "versions": machine.versions() | {"potstill": potstill.__version__},
    }


def describe_model(encoder: Encoder) -> dict[str, Any]:
    """Return all that is known of one model: also where it came from, and how it was checked.

    It is kilobytes long, most of it evidence that `potstill show` prints.
    """
    manifest = encoder.manifest
    return (
        summarise_model(encoder)
        | {"files": {name: found.sha256 for name, found in manifest.files.items()}}
        | encoder.record.model_dump(mode="json", include={"quantisation", "parity", "quality", "invariance"})
        | manifest.model_dump(mode="json", include={"source", "made"})
    )


def summarise_model(encoder: Encoder) -> dict[str, Any]:
    """Return what a client needs to know of one model, and what identifies it."""
    manifest, record = encoder.manifest, encoder.record
    file = encoder.bundle.record_of(encoder.precision)
    return {
        "task": manifest.task,
        "problem_type": manifest.problem_type,
        "labels": manifest.labels,
        "mask_token": mask_token(encoder),
        "precision": encoder.precision,
        "max_length": manifest.max_length,
        "parameters": manifest.parameters,
        "model_file": record.file,
        "model_sha256": file.sha256,
        "model_size_bytes": file.size_bytes,
        "batch_invariant": record.batch_invariant,
        "unpadded": record.unpadded,
        "threads": encoder.session.threads,
    }


def mask_token(encoder: Encoder) -> str | None:
    """Return how the model's mask is written; None where there is none."""
    number = encoder.tokenizer.mask_id
    return None if number is None else encoder.tokenizer.token(number)


def plain(value: Any) -> Any:
    """Return dataclasses as objects, and everything else as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
