"""The same server as a Ray Serve application, for those who outgrow one machine; `potstill[ray]` brings Ray.

    serve run potstill.serve.ray:app bundle=/models/student precision=int8 replicas=4 cpus=2

Each replica is the engine and the HTTP application of `potstill serve`; Ray brings the processes, the machines, the
routing between them and the scaling. The engine makes the batches and refuses what would wait too long, so
`serve.batch` is not used, and a replica is sent many requests at once.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from potstill.bundle import EngineName
from potstill.errors import UsageError
from potstill.extras import require
from potstill.serve.batching import Engine, EngineSettings
from potstill.serve.encoder import Encoder
from potstill.serve.http import create_app
from potstill.serve.limits import Limits

# Requests that Ray sends to one replica at a time: more than an engine accepts before it answers 429 itself. Ray's own
# default of 5 would leave it without batches.
_ONGOING = 256
_QUEUED = 256
"""Requests that one Ray proxy keeps while every replica is full; beyond it Ray answers 503."""
# onnxruntime from 1.29 on reports to its makers unless told not to before it is loaded (microsoft/onnxruntime#27379).
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1"}


class Arguments(BaseModel):
    """What `serve run` or a configuration file says, as `name=value`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    """The folder that `potstill export` wrote, at the same place on every machine."""
    precision: str | None = None
    """Which of the bundle's files answers; None is fp32, or the only one there is."""
    engine: EngineName = "onnxruntime"
    """What runs the bundle; openvino needs `potstill[openvino]` on every machine."""
    replicas: int = Field(default=1, ge=1)
    cpus: int = Field(default=1, ge=1)
    """Cores that one replica asks Ray for, and the threads of its inference."""
    allow_drift: bool = False
    """Batch texts even where a file's answers depend on the batch."""


class Replica:
    """One engine with its application, in a process that Ray starts."""

    async def __init__(self, arguments: Arguments) -> None:  # type: ignore[misc]  # Ray awaits it
        """Load the bundle and measure it; Ray routes no requests here before this returns.

        Raises:
            UsageError: if the list of API keys in the environment has none.
        """
        given = os.environ.get("POTSTILL_API_KEYS", "")
        keys = [key for key in map(str.strip, given.split(",")) if key]
        if given and not keys:
            # Whoever sets the variable wants keys: a server that is open to all would be the opposite.
            raise UsageError("POTSTILL_API_KEYS has no key; set keys, separated by commas, or unset it")
        self._limits = Limits()
        self._engine = await asyncio.to_thread(self._load, arguments)
        self._engine.start(asyncio.get_running_loop())
        self._app = create_app(self._engine, limits=self._limits, api_keys=keys)

    def _load(self, arguments: Arguments) -> Engine:
        settings = EngineSettings(threads=arguments.cpus, allow_drift=arguments.allow_drift, limits=self._limits)
        encoder = Encoder(
            arguments.bundle,
            precision=arguments.precision,
            engine=arguments.engine,
            threads=arguments.cpus,
            spinning=False,
            runners=settings.count_runners(arguments.cpus),
        )
        engine = Engine({arguments.bundle.name: encoder}, settings=settings)
        engine.warm_up()
        return engine

    async def __call__(self, request: Request) -> Response:
        """Answer one request as `potstill serve` does; Ray cancels this when the client has gone."""
        # The application is ASGI, and Ray wants a Response: collect the one from what the other sends.
        started: Message = {}
        body = bytearray()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                body.extend(message.get("body", b""))

        await self._app(request.scope, request.receive, send)
        response = Response(bytes(body), status_code=started["status"])
        # Ray's proxy has given the request its id, and puts the header in front of the client.
        response.raw_headers = [field for field in started["headers"] if field[0] != b"x-request-id"]
        return response

    def check_health(self) -> None:
        """Tell Ray to replace this replica, by raising, when the engine does not answer any more."""
        if not self._engine.is_alive():
            raise RuntimeError("the engine does not answer")


def app(arguments: Arguments) -> Any:
    """Build the application for `serve run potstill.serve.ray:app bundle=... precision=... replicas=... cpus=...`.

    Raises:
        MissingExtraError: if Ray is not installed.
    """
    serve = require("ray.serve", extra="ray")
    # Ray's processes have working folders of their own.
    arguments = arguments.model_copy(update={"bundle": arguments.bundle.expanduser().resolve()})
    deployment = serve.deployment(
        Replica,
        name="potstill",
        num_replicas=arguments.replicas,
        max_ongoing_requests=_ONGOING,
        max_queued_requests=_QUEUED,
        graceful_shutdown_timeout_s=Limits().shutdown_seconds,
        ray_actor_options={"num_cpus": arguments.cpus, "runtime_env": {"env_vars": _ENVIRONMENT}},
    )
    return deployment.bind(arguments)
