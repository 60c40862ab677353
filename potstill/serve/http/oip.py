"""The Open Inference Protocol v2 over HTTP, for clients such as `tritonclient.http`.

    GET  /v2                                     who answers
    GET  /v2/health/live     /v2/health/ready
    GET  /v2/models/NAME     /v2/models/NAME/ready      also with /versions/1 behind NAME
    POST /v2/models/NAME/infer

Texts give answers: the input `text` (with `text_pair` for a pair, or `question` and `context`) of datatype BYTES gives
`answers`, the JSON that `POST /predict` gives, one per row; a classifier also gives the best `label` and its `score`,
a model of vectors gives `embedding` alone. Ids give the graph's own outputs: `input_ids`, and if need be
`attention_mask` and `token_type_ids`, INT64 or INT32. Errors have the shape of all other paths, which holds the
protocol's. Source: https://github.com/kserve/open-inference-protocol and Triton's binary tensor extension.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

import potstill
from potstill.errors import CheckError
from potstill.serve.http.context import Context
from potstill.serve.http.exchange import (
    Call,
    Headers,
    Reply,
    json_reply,
    read_body,
    received_at,
    timeout_of,
    timing_fields,
)
from potstill.serve.http.front import Handler
from potstill.serve.http.oip_messages import Live, ModelReady, Ready, ServerMetadata
from potstill.serve.http.oip_reading import Asked, read_infer
from potstill.serve.http.oip_signature import VERSIONS, signature_of
from potstill.serve.http.oip_writing import check_numbers, columns_of_answers, columns_of_outputs, write_reply
from potstill.serve.http.reading import validate
from potstill.serve.http_errors import RequestError, invalid, unavailable
from potstill.serve.tasks.features import Features, Outputs
from potstill.serve.tasks.question_answering import Question
from potstill.serve.tasks.text_classification import Pair

# A text's characters per token in English, where there are only tokens: the engine guesses a request's cost from it.
_CHARACTERS = 4
_MEDIA_TYPES = frozenset({b"", b"application/json", b"application/octet-stream"})
# Triton's names for what of its protocol there is beyond the standard.
_EXTENSIONS = ["binary_tensor_data", "parameters"]


class Table(Protocol):
    """Where endpoints are put."""

    def get(
        self, path: str, handler: Handler, *, template: str | None = None, model: str | None = None,
        is_open: bool = False,
    ) -> None:  # fmt: skip
        """Add what is only read."""

    def post(self, path: str, handler: Handler, *, template: str | None = None, model: str | None = None) -> None:
        """Add what asks the model."""


def add_v2(table: Table, context: Context) -> None:
    """Add the protocol's endpoints, for all models."""
    engine = context.engine
    server = json_reply(
        ServerMetadata(name="potstill", version=potstill.__version__, extensions=_EXTENSIONS).model_dump()
    )

    async def about(_: Call) -> Reply:
        return server

    async def live(_: Call) -> Reply:
        if not engine.is_alive():
            raise unavailable("the engine does not answer; restart the server")
        return json_reply(Live(live=True).model_dump())

    async def ready(_: Call) -> Reply:
        _check_ready(context)
        return json_reply(Ready(ready=True).model_dump())

    table.get("/v2", about)
    table.get("/v2/health/live", live, is_open=True)
    table.get("/v2/health/ready", ready, is_open=True)
    for name in context.models:
        model = Model(name, context)
        for version in VERSIONS:
            path, template = f"/v2/models/{name}{version}", f"/v2/models/{{name}}{version}"
            table.get(path, model.about, template=template, model=name)
            table.get(f"{path}/ready", model.ready, template=f"{template}/ready", model=name)
            table.post(f"{path}/infer", model.infer, template=f"{template}/infer", model=name)


class Model:
    """The endpoints of one model."""

    def __init__(self, name: str, context: Context) -> None:
        self._name = name
        self._context = context
        self._encoder = context.models[name]
        self._signature = signature_of(self._encoder)
        self._metadata = json_reply(self._signature.metadata(name).model_dump())

    async def about(self, _: Call) -> Reply:
        """Say what the model takes and gives."""
        return self._metadata

    async def ready(self, _: Call) -> Reply:
        """Say whether the model takes requests."""
        _check_ready(self._context)
        return json_reply(ModelReady(name=self._name, ready=True).model_dump())

    async def infer(self, call: Call) -> Reply:
        """Answer texts or ids."""
        limits = self._context.limits
        _check_headers(call.headers)
        given_s = timeout_of(call.headers, limits)
        body = await read_body(call.receive, call.headers, limits)
        length = call.headers.get(b"inference-header-content-length")
        asked = read_infer(body, length, signature=self._signature, limits=limits)
        prepare, characters = (self._texts if asked.mode.kind == "text" else self._ids)(asked)
        answered = await self._context.engine.answer(
            self._name,
            prepare,
            characters=characters,
            client=call.client,
            timeout_s=_shortest(given_s, asked.timeout_s, limits.request_seconds),
            received_at=received_at(call.scope),
        )
        columns = (columns_of_answers if asked.mode.kind == "text" else columns_of_outputs)(
            answered.answers, asked.wanted
        )
        return write_reply(asked, columns, model=self._name, fields=timing_fields(answered))

    def _texts(self, asked: Asked) -> tuple[Callable[[], Features], list[int]]:
        """Return what prepares the same request as `POST /predict` has, and the characters of each text."""
        encoder, columns, windows = self._encoder, asked.texts, self._context.limits.windows
        parameters = validate(encoder.task.parameters, dict(asked.parameters), "parameters")
        items: list[Any] = columns.get("text", [])
        if "text_pair" in columns:
            sides = zip(columns["text"], columns["text_pair"], strict=True)
            items = [Pair(text=text, text_pair=pair) for text, pair in sides]
        elif "question" in columns:
            asks = zip(columns["question"], columns["context"], strict=True)
            items = [Question(question=question, context=context) for question, context in asks]
        prepare = partial(encoder.prepare, items, parameters, most_windows=windows)
        return prepare, [sum(map(len, item)) for item in zip(*columns.values(), strict=True)]

    def _ids(self, asked: Asked) -> tuple[Callable[[], Features], list[int]]:
        """Return what hands the ids to the model as they are, and what their texts may have had of characters."""
        if asked.parameters:
            raise invalid("parameters has a key that is not known; the task's parameters go with texts, not with ids")
        ids, wanted = asked.ids, asked.wanted
        tokens = ids["input_ids"].shape[1]
        sizes = {name: self._signature.numbers(name, rows=asked.rows, tokens=tokens) for name in wanted}
        written = sum(size for name, size in sizes.items() if not wanted[name])
        check_numbers(sum(sizes.values()), written=written)

        def keep(_: int, outputs: Outputs) -> Outputs:
            return {name: np.array(outputs[name], dtype=np.float32) for name in wanted}

        def prepare() -> Features:
            rows = [{name: values[row] for name, values in ids.items()} for row in range(asked.rows)]
            return Features(rows=rows, decode=_read_outputs, keep=keep)

        return prepare, [tokens * _CHARACTERS] * asked.rows


def _read_outputs(rows: Sequence[Outputs]) -> list[Any]:
    for row in rows:
        for name, values in row.items():
            if not np.isfinite(values).all():
                raise CheckError(f"the model gave NaN or infinity as {name}")
    return list(rows)


def _check_ready(context: Context) -> None:
    if not context.engine.is_alive() or not context.engine.is_ready():
        raise unavailable("the server is starting or ending, or its engine does not answer")


def _check_headers(headers: Headers) -> None:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind not in _MEDIA_TYPES or headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError(
            "the body must be plain: Content-Type application/json or application/octet-stream, no Content-Encoding",
            status=415,
            error_type="unsupported_media_type",
        )


def _shortest(given_s: float | None, asked_s: float | None, most_s: float) -> float | None:
    """Return the time that the client gives the request, at most the server's own; None if it gives none."""
    known = [seconds for seconds in (given_s, asked_s) if seconds is not None]
    return min([*known, most_s]) if known else None
