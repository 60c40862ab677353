"""Put the application together: which path is answered by what.

    POST /predict  /embed  /tokenize         the first model; /models/NAME/... names one
    POST /v1/embeddings     GET /v1/models   OpenAI's
    POST /                                   Hugging Face's, of the first model
    GET  /health/live  /health/ready  /health  /info  /metrics  /models/NAME
    GET  /  /docs  /openapi.json             for people
    /v2/...                                  the Open Inference Protocol

    every error    {"error": "what was wrong, what was expected", "error_type": "validation"}

Neither errors nor logs hold a client's text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.serve.http import facts
from potstill.serve.http.context import Context, Engine
from potstill.serve.http.exchange import Call, Reply, json_reply
from potstill.serve.http.front import Endpoint, Front, Handler, Keys
from potstill.serve.http.metrics import CONTENT_TYPE, Metrics
from potstill.serve.http.oip import add_v2
from potstill.serve.http.oip_document import v2_paths
from potstill.serve.http.openai import Embeddings, describe_model, list_models
from potstill.serve.http.openapi import document
from potstill.serve.http.pages import pages
from potstill.serve.http.work import Work, works
from potstill.serve.http_errors import unavailable
from potstill.serve.limits import Limits
from potstill.tasks import FEATURE_EXTRACTION


def create_app(engine: Engine, *, limits: Limits | None = None, api_keys: Sequence[str] = ()) -> Front:
    """Return the ASGI application that answers with `engine`, and let it count what the engine does.

    Args:
        engine: warmed up and started by whoever runs the application.
        limits: the caps; the defaults if None.
        api_keys: bearer keys; with none of them everybody is answered. /health, the pages and their document are
            always open.
    """
    context = Context(engine=engine, limits=limits or Limits(), models=engine.models)
    metrics = Metrics(engine)
    engine.observer = metrics.watch
    table = _Table(metrics, default=next(iter(context.models)))
    _add_work(table, context)
    _add_facts(table, context, metrics)
    add_v2(table, context)
    _add_pages(table, document(context, with_keys=bool(api_keys), more=v2_paths(context)))
    return Front(
        engine=engine,
        table=table.paths,
        keys=Keys(api_keys),
        traffic=metrics.traffic,
    )


class _Table:
    """Collects the endpoints."""

    def __init__(self, metrics: Metrics, *, default: str) -> None:
        self.paths: dict[str, dict[str, Endpoint]] = {}
        self._traffic = metrics.traffic
        self._default = default

    def post(self, path: str, handler: Handler, *, template: str | None = None, model: str | None = None) -> None:
        """Add what asks the model: it is refused while the engine is full."""
        self._add("POST", path, handler, template=template, model=model, is_work=True, is_open=False)

    def get(
        self, path: str, handler: Handler, *, template: str | None = None, model: str | None = None,
        is_open: bool = False,
    ) -> None:  # fmt: skip
        """Add what is only read, for GET and HEAD."""
        for method in ("GET", "HEAD"):
            self._add(method, path, handler, template=template, model=model, is_work=False, is_open=is_open)

    def _add(
        self, method: str, path: str, handler: Handler, *, template: str | None, model: str | None, is_work: bool,
        is_open: bool,
    ) -> None:  # fmt: skip
        counts = self._traffic.counts(method, template or path)
        endpoint = Endpoint(handler, counts, model=model or self._default, is_work=is_work, is_open=is_open)
        self.paths.setdefault(path, {})[method] = endpoint


def _add_work(table: _Table, context: Context) -> None:
    models = works(context)
    first = next(iter(models.values()))
    table.post("/", first.hugging_face)
    table.post("/predict", first.predict)
    table.post("/tokenize", first.tokenize)
    for name, work in models.items():
        table.post(f"/models/{name}", work.hugging_face, template="/models/{name}", model=name)
        table.post(f"/models/{name}/predict", work.predict, template="/models/{name}/predict", model=name)
        table.post(f"/models/{name}/tokenize", work.tokenize, template="/models/{name}/tokenize", model=name)
    vectors = {name: work for name, work in models.items() if _makes_vectors(context, name)}
    if vectors:
        _add_vectors(table, context, vectors)


def _add_vectors(table: _Table, context: Context, vectors: Mapping[str, Work]) -> None:
    name, first = next(iter(vectors.items()))
    table.post("/embed", first.embed, model=name)
    table.post("/v1/embeddings", Embeddings(context, vectors).embed, model=name)
    for name, work in vectors.items():
        table.post(f"/models/{name}/embed", work.embed, template="/models/{name}/embed", model=name)


def _add_facts(table: _Table, context: Context, metrics: Metrics) -> None:
    engine = context.engine

    async def live(_: Call) -> Reply:
        if not engine.is_alive():
            raise unavailable("the engine does not answer; restart the server")
        return json_reply({"status": "ok"})

    async def ready(_: Call) -> Reply:
        if not engine.is_alive() or not engine.is_ready():
            raise unavailable("the server is starting or ending, or its engine does not answer")
        return json_reply({"status": "ok"})

    async def info(_: Call) -> Reply:
        return json_reply(facts.describe_server(context))

    async def model(call: Call) -> Reply:
        return json_reply(facts.describe_model(context.models[call.model]))

    async def measured(_: Call) -> Reply:
        return Reply(200, metrics.text(), [(b"content-type", CONTENT_TYPE.encode())])

    table.get("/health/live", live, is_open=True)
    table.get("/health/ready", ready, is_open=True)
    table.get("/health", ready, is_open=True)
    table.get("/info", info)
    table.get("/metrics", measured)
    table.get("/v1/models", _constant(json_reply(list_models(context))))
    for name in context.models:
        described = _constant(json_reply(describe_model(name)))
        table.get(f"/v1/models/{name}", described, template="/v1/models/{name}", model=name)
        table.get(f"/models/{name}", model, template="/models/{name}", model=name)


def _add_pages(table: _Table, described: Mapping[str, Any]) -> None:
    for path, reply in pages().items():
        table.get(path, _constant(reply), is_open=True, template="/static/{file}" if "/static/" in path else None)
    table.get("/openapi.json", _constant(json_reply(described)), is_open=True)


def _constant(reply: Reply) -> Handler:
    async def answer(_: Call) -> Reply:
        return reply

    return answer


def _makes_vectors(context: Context, name: str) -> bool:
    return context.models[name].manifest.task == FEATURE_EXTRACTION.name
