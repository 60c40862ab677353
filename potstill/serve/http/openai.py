"""The part of OpenAI's interface that an encoder can answer: embeddings, and the list of models."""

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from potstill.serve.http.asked import TextReader
from potstill.serve.http.context import Context
from potstill.serve.http.exchange import Call, Reply, json_reply, timing_fields
from potstill.serve.http.reading import parse_object, validate
from potstill.serve.http.work import Work
from potstill.serve.http_errors import RequestError
from potstill.serve.tasks.feature_extraction import VectorParameters

_SHAPE = 'send {"input": "text", "model": "NAME"}, or a list of texts'


class EmbeddingsBody(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")

    input: Any
    """A text or a list of texts; token ids are not taken, as every model cuts texts in its own way."""
    model: StrictStr | None = None
    """The name of a model; the first that makes vectors by default."""
    encoding_format: Literal["float", "base64"] | None = None
    """`base64` is little-endian float32."""
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None
    """Only the first so many numbers of a vector, for models trained for it."""
    user: StrictStr | None = None
    """Not looked at."""


class Embeddings:
    """`POST /v1/embeddings`."""

    def __init__(self, context: Context, works: Mapping[str, Work]) -> None:
        self._context = context
        self._works = works
        self._readers = {name: TextReader(context.models[name], context.limits) for name in works}

    async def embed(self, call: Call) -> Reply:
        """Answer with one vector per text."""
        body = await self._works[call.model].body(call)
        asked = validate(EmbeddingsBody, parse_object(body, self._context.limits, shape=_SHAPE), "the body")
        name = call.model if asked.model is None else asked.model
        if name not in self._works:
            raise RequestError(
                f"no model of this name makes vectors; there are: {', '.join(self._works)}",
                status=404,
                error_type="not_found",
            )
        texts, _, characters = self._readers[name].texts(asked.input, "input")
        answered = await self._works[name].answer(
            call, texts, VectorParameters(dimensions=asked.dimensions), characters=characters
        )
        write = _base64 if asked.encoding_format == "base64" else _floats
        tokens = answered.timings.tokens
        content = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": write(vector)}
                for index, vector in enumerate(answered.answers)
            ],
            "model": name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return json_reply(content, fields=timing_fields(answered))


def list_models(context: Context) -> dict[str, Any]:
    """Return what `GET /v1/models` says."""
    return {"object": "list", "data": [describe_model(name) for name in context.models]}


def describe_model(name: str) -> dict[str, Any]:
    """Return what `GET /v1/models/NAME` says; a bundle's date is not known, and 0 stands for that."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "potstill"}


def _floats(vector: list[float]) -> list[float]:
    return vector


def _base64(vector: list[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
