"""`potstill serve`: answer over HTTP from one bundle or several."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.errors import UsageError
from potstill.extras import require

if TYPE_CHECKING:
    from potstill.serve.engine import Plan

_SPEC = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)=)?(?P<path>.+?)(?:@(?P<precision>fp32|fp16|int8))?", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-~]{8,512}")


@dataclass(frozen=True, slots=True)
class Spec:
    """One model to serve."""

    name: str
    folder: Path
    precision: str


def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...",
            help="Folders that `potstill export` wrote, each FOLDER, NAME=FOLDER or NAME=FOLDER@PRECISION. "
            "The first one answers where a request names no model.",
            show_default=False,
        ),
    ],
    precision: Annotated[
        str, typer.Option(help="Which of a bundle's files answers: fp32, fp16 or int8; @PRECISION says it of one.")
    ] = "fp32",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    shadow: Annotated[
        str | None,
        typer.Option(
            help="NAME of a second model that is asked what the first was asked, when there is time; "
            "/metrics says how often they agree."
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Threads of one inference; more answer a lone client sooner, and a crowd later.", min=1)
    ] = 1,
    runners: Annotated[
        int | None, typer.Option(help="Inferences at a time.", min=1, show_default="the cores over --threads")
    ] = None,
    allow_drift: Annotated[
        bool,
        typer.Option("--allow-drift", help="Batch texts even where a file's answers depend on their company."),
    ] = False,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="One bearer key per line; POTSTILL_API_KEYS, separated by commas, adds to them."),
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request body, in bytes.", min=1)] = 2_000_000,
    max_inputs: Annotated[int, typer.Option(help="Most texts in one request.", min=1)] = 64,
    max_characters_per_token: Annotated[
        int, typer.Option(help="Longest text, in characters per token of the model's max length.", min=1)
    ] = 250,
    max_connections: Annotated[int, typer.Option(help="Most open connections.", min=1)] = 2_048,
    max_wait_ms: Annotated[
        float | None,
        typer.Option(
            help="Predicted wait beyond which a request gets 429.", show_default="chosen from what requests take"
        ),
    ] = None,
    request_seconds: Annotated[float, typer.Option(help="Longest time that a request may take.")] = 60.0,
    drain_seconds: Annotated[
        float, typer.Option(help="After SIGTERM, time to go on answering while /health/ready says no.", min=0)
    ] = 2.0,
    shutdown_seconds: Annotated[float, typer.Option(help="Time to finish after that.")] = 20.0,
) -> None:
    """Answer over HTTP from a bundle, without PyTorch: POST /predict, GET /docs and more.

    Example: potstill serve student-onnx/ --precision int8 --port 8000

    Two models by name: potstill serve student=student-onnx/@int8 teacher=teacher-onnx/ --shadow teacher
    """
    for module in ("onnxruntime", "tokenizers", "uvicorn", "httptools", "prometheus_client"):
        require(module, extra="serve")
    from potstill.serve import Encoder
    from potstill.serve import server as serving
    from potstill.serve.api import create_app
    from potstill.serve.engine import Engine, EngineSettings, Plan
    from potstill.serve.limits import Limits

    specs = read_specs(bundles, precision=precision)
    limits = Limits(
        body_bytes=max_body_bytes,
        inputs=max_inputs,
        characters_per_token=max_characters_per_token,
        connections=max_connections,
        wait_ms=max_wait_ms,
        request_seconds=request_seconds,
        drain_seconds=drain_seconds,
        shutdown_seconds=shutdown_seconds,
    )
    keys = read_keys(api_key_file, os.environ.get("POTSTILL_API_KEYS", ""))
    settings = EngineSettings(
        threads=threads,
        runners=runners,
        allow_drift=allow_drift,
        limits=limits,
        shadow=None if shadow is None else _shadow_pair(specs, shadow),
    )
    plans: list[Plan] = []

    def load() -> serving.Loaded:
        models = {
            spec.name: Encoder(spec.folder, precision=spec.precision, threads=threads, spinning=False)
            for spec in specs
        }  # fmt: skip
        engine = Engine(models, settings=settings)
        plans.append(engine.warm_up())
        return engine, create_app(engine, limits=limits, api_keys=keys)

    with serving.bind(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"

        def announce() -> None:
            models = ", ".join(f"{spec.name} {spec.precision}" for spec in specs)
            keyed = f"{len(keys)} API keys" if keys else "no API key"
            typer.echo(f"potstill serve: {address}, {models}, {keyed}", err=True)
            typer.echo(describe_plan(plans[0]), err=True)

        serving.serve(listener, load, limits=limits, on_ready=announce)


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


def read_specs(given: Sequence[str], *, precision: str) -> list[Spec]:
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
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a model's name in a URL; name it as in student={text}")
        if any(name == spec.name for spec in specs):
            raise UsageError(f"two models are named {name}; name them as in student={text}")
        specs.append(Spec(name, folder, match["precision"] or precision))
    return specs


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
