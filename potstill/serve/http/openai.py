"""The part of OpenAI's API that an encoder can answer: embeddings, and the list of models."""

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.requests import Request
from starlette.responses import Response

from potstill.serve.http.predict import ModelEndpoints, json_response
from potstill.serve.http.request import InputReader, parse_object, validate
from potstill.serve.http_errors import invalid, not_found
from potstill.serve.limits import Limits
from potstill.serve.tasks.feature_extraction import VectorParameters

_SHAPE = 'send {"input": "text", "model": "NAME"}, or a list of texts'


class EmbeddingsRequest(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

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


class Embedding(BaseModel):
    """One text's vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: Annotated[int, Field(ge=0)]
    total_tokens: Annotated[int, Field(ge=0)]


class EmbeddingsResponse(BaseModel):
    """What a client gets."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Embeddings:
    """`POST /v1/embeddings`.

    Args:
        models: the models that make vectors, by name; the first answers where a request names none.
        limits: limits of sizes, counts and times.
    """

    def __init__(self, models: Mapping[str, ModelEndpoints], limits: Limits) -> None:
        self._models = models
        self._limits = limits
        self._readers = {name: InputReader(model.encoder, limits, texts=True) for name, model in models.items()}

    async def embed(self, request: Request) -> Response:
        """Answer with one vector per text."""
        # The model is named in the body, so before that only the first one's queue can refuse the request.
        first = next(iter(self._models))
        content = parse_object(await self._models[first].body(request), self._limits, shape=_SHAPE)
        asked = validate(EmbeddingsRequest, content, "the body")
        name = first if asked.model is None else asked.model
        if name not in self._models:
            raise not_found(f"no model of this name makes vectors; there are: {', '.join(self._models)}")
        if _holds_token_ids(asked.input):
            raise invalid(
                "input holds token ids, and this server reads texts, for every model has a vocabulary of its own; "
                "LangChain's OpenAIEmbeddings sends texts with check_embedding_ctx_length=False"
            )
        inputs = self._readers[name].inputs(content, "input")
        parameters = VectorParameters(dimensions=asked.dimensions)
        answered = await self._models[name].answer(request, inputs.items, parameters, characters=inputs.characters)
        as_base64 = asked.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
            for index, vector in enumerate(answered.answers)
        ]
        tokens = answered.timings.tokens  # embeddings have no completion, so prompt and total are equal
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": name, "usage": usage}, answered)


def describe_model(name: str) -> dict[str, object]:
    """Return the content of `GET /v1/models/NAME`; `created` is 0, because a bundle's date is not known."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "potstill"}


def _holds_token_ids(value: object) -> bool:
    """Return whether `input` is a list of token ids, or a list of such lists."""
    if not isinstance(value, list) or not value:
        return False
    # The first element decides; a list that mixes both is refused as texts are.
    first = value[0][0] if isinstance(value[0], list) and value[0] else value[0]
    return isinstance(first, int) and not isinstance(first, bool)


def _base64(vector: list[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
