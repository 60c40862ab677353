"""The content of `GET /info` (all models in short), of `GET /models/NAME` (one in full), and the check of readiness."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic_core import to_jsonable_python
from starlette.requests import Request

import potstill
from potstill import machine
from potstill.serve.encoder import Encoder
from potstill.serve.http_errors import unavailable
from potstill.serve.limits import Limits

if TYPE_CHECKING:
    from potstill.serve.batching import Engine


def describe_server(engine: "Engine", limits: Limits) -> dict[str, object]:
    """Return the content of `GET /info`: models, engine, settings and limits, and the path of each model's evidence."""
    return {
        "models": {
            name: summarise_model(encoder) | {"evidence": f"/models/{name}"} for name, encoder in engine.models.items()
        },
        "default_model": next(iter(engine.models)),
        "engine": None if engine.plan is None else engine.plan.describe(),
        "settings": to_jsonable_python(asdict(engine.settings)),
        "limits": asdict(limits),
        "versions": machine.versions() | {"potstill": potstill.__version__},
    }


def describe_model(encoder: Encoder) -> dict[str, object]:
    """Return the content of `GET /models/NAME`: the summary, and where the model came from and how it was checked.

    It is kilobytes long; most of it is the evidence that `potstill show` prints.
    """
    manifest = encoder.manifest
    return (
        summarise_model(encoder)
        | {"files": {name: found.sha256 for name, found in manifest.files.items()}}
        | encoder.record.model_dump(mode="json", include={"quantisation", "parity", "quality", "invariance"})
        | manifest.model_dump(mode="json", include={"source", "made"})
    )


def summarise_model(encoder: Encoder) -> dict[str, object]:
    """Return what a client needs to know about one model, and the hash that identifies its file."""
    manifest, record = encoder.manifest, encoder.record
    file = encoder.bundle.record_of(encoder.precision)
    return {
        "task": manifest.task,
        "problem_type": manifest.problem_type,
        "labels": manifest.labels,
        "mask_token": mask_token(encoder),
        "precision": encoder.precision,
        "engine": encoder.engine,
        "max_length": manifest.max_length,
        "parameters": manifest.parameters,
        "model_file": record.file,
        "model_sha256": file.sha256,
        "model_size_bytes": file.size_bytes,
        "batch_invariant": encoder.batch_invariant,
        "unpadded": record.unpadded,
        "threads": encoder.session.threads,
    }


def mask_token(encoder: Encoder) -> str | None:
    """Return the writing of the model's mask token, such as "[MASK]"; None where there is none."""
    number = encoder.tokenizer.mask_id
    return None if number is None else encoder.tokenizer.token(number)


def check_ready(engine: "Engine", request: Request) -> None:
    """Refuse a readiness probe unless requests are accepted.

    Raises:
        RequestError: 503.
    """
    # "draining" is set at SIGTERM, while the engine still accepts: load balancers need time to notice.
    if request.scope["state"].get("draining") or not engine.is_alive() or not engine.is_ready():
        raise unavailable("the server is starting or ending, or its engine does not answer")
