"""`potstill serve`: answer over HTTP from one bundle or several."""

import ipaddress
import os
import re
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from potstill.bundle import MODEL_FILES, EngineName
from potstill.cli import serve_options as options
from potstill.errors import BundleError, UsageError
from potstill.extras import require
from potstill.hub import similar
from potstill.machine import available_cores

if TYPE_CHECKING:
    from potstill.serve.batching import Engine, EngineSettings, Plan

# [NAME=]PATH[@PRECISION]; an @ elsewhere, and an = behind a character that no name has, belong to the path.
_SPEC = re.compile(
    rf"(?:(?P<name>[A-Za-z0-9._-]+)=)?(?P<path>.+?)(?:@(?P<precision>{'|'.join(MODEL_FILES)}))?", re.DOTALL
)
# A model's name stands in URL paths as it is, so it has only unreserved characters (RFC 3986, section 2.3).
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-~]{8,512}")  # visible ASCII, which a header field can hold (RFC 9110, section 5.5)
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://[^/?#\s]+")


@dataclass(frozen=True, slots=True)
class Spec:
    """One model to serve, as the command line names it."""

    name: str
    folder: Path
    precision: str | None
    """None is fp32, or the only one there is."""


def serve(
    bundles: options.BundlesArgument,
    precision: options.PrecisionOption = None,
    engine: options.EngineOption = "onnxruntime",
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
    uds: options.UdsOption = None,
    tls_cert: options.TlsCertOption = None,
    tls_key: options.TlsKeyOption = None,
    root_path: options.RootPathOption = "",
    cors_origin: options.CorsOriginOption = None,
    allowed_host: options.AllowedHostOption = None,
) -> None:
    """Answer over HTTP from a bundle, without PyTorch.

    POST /predict, GET /docs and more.

    Example: potstill serve student-onnx/ --precision int8 --port 8000

    Two models: potstill serve student=student-onnx/@int8 teacher=teacher-onnx/ --shadow teacher
    """
    specs = read_specs(bundles, precision=precision)
    keys = read_keys(api_key_file, os.environ.get("POTSTILL_API_KEYS"))
    pair = None if shadow is None else _shadow_pair(specs, shadow)
    if (tls_cert is None) is not (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together; pass both")
    if root_path and not _ROOT_PATH.fullmatch(root_path):
        raise UsageError(f"--root-path is {root_path!r}; expected a path such as /potstill, without a slash at its end")
    for origin in cors_origin or ():
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UsageError(f"--cors-origin is {origin!r}; expected scheme and host such as https://app.example, or *")
    for spec in specs:
        _check_folder(spec)
    # Before the socket is bound, so that a missing package is the first error, and names its extra.
    for module in ("onnxruntime", "tokenizers", "uvicorn", "httptools", "starlette", "prometheus_client"):
        require(module, extra="serve")
    if engine == "openvino":
        require("potstill.serve.openvino_session", extra=engine)
    from potstill.serve import server as serving
    from potstill.serve.batching import Engine, EngineSettings
    from potstill.serve.http import create_app
    from potstill.serve.limits import Limits

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
    settings = EngineSettings(threads=threads, runners=runners, allow_drift=allow_drift, limits=limits, shadow=pair)
    # Bound before the models are loaded: a port in use is an error at once, and health checks get an answer.
    listener = serving.bind(host, port) if uds is None else serving.bind_unix(uds)
    hosts = allowed_hosts(allowed_host or (), host=host, is_open=not keys and uds is None)
    loaded: list[Engine] = []

    def load() -> serving.Loaded:
        made = _load(specs, settings, engine)
        loaded.append(made)
        app = create_app(made, limits=limits, api_keys=keys, allowed_hosts=hosts, cors_origins=cors_origin or ())
        return made, app

    def announce() -> None:
        _announce(loaded[0], _url(listener, uds=uds, scheme="http" if tls_cert is None else "https"), len(keys))

    tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    serving.serve(listener, load, limits=limits, on_ready=announce, tls=tls, root_path=root_path)


def _load(specs: Sequence[Spec], settings: "EngineSettings", engine: EngineName) -> "Engine":
    from potstill.serve import Encoder
    from potstill.serve.batching import Engine

    models = {
        spec.name: Encoder(
            spec.folder,
            precision=spec.precision,
            engine=engine,
            threads=settings.threads,
            spinning=False,  # idle threads that wait busily would take the cores from the other runners
            runners=settings.count_runners(settings.threads or available_cores()),
        )
        for spec in specs
    }
    made = Engine(models, settings=settings)
    made.warm_up()
    return made


def _url(listener: socket.socket, *, uds: Path | None, scheme: str) -> str:
    if uds is not None:
        return f"{scheme}+unix://{uds}"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _announce(engine: "Engine", url: str, keys: int) -> None:
    models = ", ".join(
        f"{name} {encoder.precision}" + (f" in {encoder.engine}" if encoder.engine != "onnxruntime" else "")
        for name, encoder in engine.models.items()
    )
    typer.echo(f"potstill serve: {url}, {models}, {f'{keys} API keys' if keys else 'no API key'}", err=True)
    if engine.plan is not None:
        typer.echo(describe_plan(engine.plan), err=True)


def describe_plan(plan: "Plan") -> str:
    """Return the engine's plan as text: one line for the engine and one for each model."""
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
    """Parse FOLDER, NAME=FOLDER and NAME=FOLDER@PRECISION; without a name the folder's own is taken.

    Args:
        given: the command's arguments.
        precision: for those that name none.

    Raises:
        UsageError: if a name cannot be part of a URL's path, or comes twice, or there is no such precision.
    """
    specs: list[Spec] = []
    for text in given:
        match = _SPEC.fullmatch(text)
        if match is None:
            raise UsageError("a bundle's folder is empty; pass the folder that `potstill export` wrote")
        folder = Path(match["path"])
        name = match["name"] or folder.resolve().name
        ending = folder.name.rpartition("@")[2]
        # A folder's name may hold an @; only where there is no such folder it is a precision that is misspelt.
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
    """Refuse a folder that does not exist while one of a similar name does; its content is checked on loading."""
    near = similar(str(spec.folder))
    if not spec.folder.exists() and near:
        raise BundleError(f"{spec.folder} is not a folder; {near}")


def allowed_hosts(given: Sequence[str], *, host: str, is_open: bool) -> frozenset[str] | None:
    """Return the names that a request's Host header may have; None for any.

    A server without keys on loopback trusts its own machine, so it must refuse web pages whose name was made to point
    there (DNS rebinding).

    Args:
        given: the values of --allowed-host; "*" is any.
        host: the address that the server listens on.
        is_open: whether no key is needed and the server listens on an address.
    """
    if "*" in given:
        return None
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not given and not (is_open and is_loopback):
        return None
    return frozenset({*given, host, "localhost", "127.0.0.1", "::1"})


def read_keys(file: Path | None, more: str | None) -> list[str]:
    """Return the API keys of a file and of the environment, without duplicates.

    Args:
        file: a file with one key per line; None if there is none.
        more: keys separated by commas (POTSTILL_API_KEYS); None or empty if there are none.

    Raises:
        UsageError: if the file cannot be read, the file or the list has no key, or a key has other characters than a
            header can hold.
    """
    keys = [key.strip() for key in (more or "").split(",")]
    if more and not any(keys):
        # Whoever sets the variable wants keys: a server that is open to all would be the opposite.
        raise UsageError("POTSTILL_API_KEYS has no key; set keys, separated by commas, or unset it")
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
        # A key is a secret, so the message names its place and not the key.
        raise UsageError(
            f"API key {bad[0]} of {len(keys)} cannot be used; a key has 8 to 512 ASCII characters and no space"
        )
    return list(dict.fromkeys(keys))


def _shadow_pair(specs: Sequence[Spec], shadow: str) -> tuple[str, str]:
    names = [spec.name for spec in specs]
    if shadow not in names[1:]:
        raise UsageError(f"--shadow is {shadow!r}; it must name a second model, of {', '.join(names[1:]) or 'none'}")
    return names[0], shadow
