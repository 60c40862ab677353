"""`potstill serve`: answer over HTTP from one bundle or several."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from potstill.bundle import MODEL_FILES
from potstill.cli import serve_options as options
from potstill.errors import BundleError, UsageError
from potstill.extras import require
from potstill.hub import similar

if TYPE_CHECKING:
    from potstill.serve.batching import Engine, EngineSettings, Plan

_SPEC = re.compile(
    rf"(?:(?P<name>[A-Za-z0-9._-]+)=)?(?P<path>.+?)(?:@(?P<precision>{'|'.join(MODEL_FILES)}))?", re.DOTALL
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-~]{8,512}")


@dataclass(frozen=True, slots=True)
class Spec:
    """One model to serve."""

    name: str
    folder: Path
    precision: str | None
    """None is fp32, or the only one there is."""


def serve(
    bundles: options.BundlesArgument,
    precision: options.PrecisionOption = None,
    host: options.HostOption = "127.0.0.1",
    port: options.PortOption = 8000,
    shadow: options.ShadowOption = None,
    threads: options.ThreadsOption = 1,
    runners: options.RunnersOption = None,
    allow_drift: options.AllowDriftOption = False,
    api_key_file: options.ApiKeyFileOption = None,
    max_body_bytes: options.MaxBodyBytesOption = 2_000_000,
    max_inputs: options.MaxInputsOption = 64,
    max_characters_per_token: options.MaxCharactersPerTokenOption = 250,
    max_connections: options.MaxConnectionsOption = 2_048,
    max_wait_ms: options.MaxWaitMsOption = None,
    request_seconds: options.RequestSecondsOption = 60.0,
    drain_seconds: options.DrainSecondsOption = 2.0,
    shutdown_seconds: options.ShutdownSecondsOption = 20.0,
) -> None:
    """Answer over HTTP from a bundle, without PyTorch: POST /predict, GET /docs and more.

    Example: potstill serve student-onnx/ --precision int8 --port 8000

    Two models: potstill serve student=student-onnx/@int8 teacher=teacher-onnx/ --shadow teacher
    """
    specs = read_specs(bundles, precision=precision)
    keys = read_keys(api_key_file, os.environ.get("POTSTILL_API_KEYS", ""))
    pair = None if shadow is None else _shadow_pair(specs, shadow)
    for spec in specs:
        _check_folder(spec)
    for module in ("onnxruntime", "tokenizers", "uvicorn", "httptools", "prometheus_client"):
        require(module, extra="serve")
    from potstill.serve import server as serving
    from potstill.serve.batching import Engine, EngineSettings
    from potstill.serve.http import create_app
    from potstill.serve.limits import Limits

    limits = Limits(
        body_bytes=max_body_bytes, inputs=max_inputs, characters_per_token=max_characters_per_token,
        connections=max_connections, wait_ms=max_wait_ms, request_seconds=request_seconds,
        drain_seconds=drain_seconds, shutdown_seconds=shutdown_seconds,
    )  # fmt: skip
    settings = EngineSettings(
        threads=threads,
        runners=runners,
        allow_drift=allow_drift,
        limits=limits,
        shadow=pair,
    )
    loaded: list[Engine] = []

    def load() -> serving.Loaded:
        loaded.append(_load(specs, settings))
        return loaded[0], create_app(loaded[0], limits=limits, api_keys=keys)

    with serving.bind(host, port) as listener:
        address = listener.getsockname()
        serving.serve(listener, load, limits=limits, on_ready=partial(_announce, loaded, address, len(keys)))


def _load(specs: Sequence[Spec], settings: "EngineSettings") -> "Engine":
    from potstill.serve import Encoder
    from potstill.serve.batching import Engine

    models = {
        spec.name: Encoder(
            spec.folder,
            precision=spec.precision,
            threads=settings.threads,
            spinning=False,
        )
        for spec in specs
    }
    engine = Engine(models, settings=settings)
    engine.warm_up()
    return engine


def _announce(loaded: Sequence["Engine"], address: tuple[str, int], keys: int) -> None:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    models = ", ".join(f"{name} {encoder.precision}" for engine in loaded for name, encoder in engine.models.items())
    keyed = f"{keys} API keys" if keys else "no API key"
    typer.echo(f"potstill serve: http://{host}:{address[1]}, {models}, {keyed}", err=True)
    for engine in loaded:
        if engine.plan is not None:
            typer.echo(describe_plan(engine.plan), err=True)


def describe_plan(plan: "Plan") -> str:
    """Return what the engine measured and chose, a line for all and one for each model."""
    lines = [
        f"plan: runs at a time {plan.runners}, threads of each {plan.threads}, 429 beyond "
        f"{plan.wait_ms['standing']:g} ms of waiting ({plan.wait_ms['burst']:g} ms in a burst)"
    ]
    if plan.memory_bytes is not None:
        lines[0] += f", memory about {plan.memory_bytes / 1e6:.0f} MB"
    for name, model in plan.models.items():
        alone = [sample for sample in model.samples if sample.rows == 1]
        times = ", ".join(f"{sample.length} tokens {sample.seconds * 1e3:.1f} ms" for sample in alone)
        lines.append(f"plan: {name}: {model.why}; {times}")
    return "\n".join(lines)


def read_specs(given: Sequence[str], *, precision: str | None) -> list[Spec]:
    """Read FOLDER, NAME=FOLDER and NAME=FOLDER@PRECISION; a folder without a name gives its own.

    Raises:
        UsageError: if a name cannot stand in a path, or comes twice.
    """
    specs: list[Spec] = []
    for text in given:
        match = _SPEC.fullmatch(text)
        if match is None:
            raise UsageError("a bundle's folder is empty; pass the folder that `potstill export` wrote")
        folder = Path(match["path"])
        name = match["name"] or folder.resolve().name
        ending = folder.name.rpartition("@")[2]
        if match["precision"] is None and "@" in folder.name and not folder.exists():
            raise UsageError(f"{text} asks for the precision {ending!r}; there are {', '.join(MODEL_FILES)}")
        otherwise = shlex.quote(f"student={folder}" + (f"@{match['precision']}" if match["precision"] else ""))
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a model's name in a URL; name it as in {otherwise}")
        if any(name == spec.name for spec in specs):
            raise UsageError(f"two models are named {name}; name them as in {otherwise}")
        specs.append(Spec(name, folder, match["precision"] or precision))
    return specs


def _check_folder(spec: Spec) -> None:
    """Refuse a folder that is misspelt, before anything is loaded; what is in it is read later."""
    near = similar(str(spec.folder))
    if not spec.folder.exists() and near:
        raise BundleError(f"{spec.folder} is not a folder; {near}")


def read_keys(file: Path | None, more: str) -> list[str]:
    """Return the API keys of a file, one per line, and of a list with commas.

    Raises:
        UsageError: if the file cannot be read or has none, or a key could not stand in a header.
    """
    keys = [key.strip() for key in more.split(",")]
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise UsageError(f"the file of API keys {file} cannot be read: {type(error).__name__}") from error
        if not any(line.strip() for line in lines):
            raise UsageError(f"the file of API keys {file} has no key; write one per line")
        keys += [line.strip() for line in lines]
    keys = [key for key in keys if key]
    bad = [place for place, key in enumerate(keys, 1) if not _KEY.fullmatch(key)]
    if bad:
        # A key is a secret: its place is named, not the key.
        raise UsageError(
            f"API key {bad[0]} of {len(keys)} cannot be used; a key has 8 to 512 ASCII characters and no space"
        )
    return list(dict.fromkeys(keys))


def _shadow_pair(specs: Sequence[Spec], shadow: str) -> tuple[str, str]:
    names = [spec.name for spec in specs]
    if shadow not in names[1:]:
        raise UsageError(f"--shadow is {shadow!r}; it must name a second model, of {', '.join(names[1:]) or 'none'}")
    return names[0], shadow
