"""The endpoints of one model: predict, embed, tokenize, and Hugging Face's root."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from potstill.serve.batching import Answered
from potstill.serve.encoder import Encoder
from potstill.serve.http.request import InputReader, check_media_type, read_body, timeout_of
from potstill.serve.http_errors import not_found
from potstill.serve.limits import Limits
from potstill.serve.tasks.features import Features
from potstill.serve.tokenizer import between_chunks
from potstill.tasks import FEATURE_EXTRACTION, TEXT_CLASSIFICATION

if TYPE_CHECKING:
    from potstill.serve.batching import Engine

Model = TypeVar("Model")
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

# The tasks for which the Hugging Face API answers one text with a list of one answer.
_WRAPPED = (TEXT_CLASSIFICATION.name, FEATURE_EXTRACTION.name)


class Token(BaseModel):
    """One token; `start` and `end` count characters of the text, both 0 for a special token."""

    id: int
    token: str
    start: int
    end: int
    special: bool


class Tokenized(BaseModel):
    """One text's tokens, as the model reads them."""

    tokens: list[Token]
    truncated: bool
    """Whether the text is longer than the model reads."""


class ModelEndpoints:
    """The endpoints of one model.

    Args:
        name: the model's name.
        engine: what answers; it has the model under this name.
        limits: limits of sizes, counts and times.
    """

    def __init__(self, name: str, engine: "Engine", limits: Limits) -> None:
        self.name = name
        self.encoder: Encoder = engine.models[name]
        self._engine = engine
        self._limits = limits
        self._reader = InputReader(self.encoder, limits)
        self._text_reader = InputReader(self.encoder, limits, texts=True)
        # A copy that truncates, because the encoder's own must not: its settings are shared by all threads.
        self._tokenizer = self.encoder.tokenizer.copy()

    async def predict(self, request: Request) -> Response:
        """Answer `POST /predict`: a list of inputs with a list, one input with one answer."""
        return await self._predict(request)

    async def embed(self, request: Request) -> Response:
        """Answer `POST /embed`: as predict, with the parameters beside the inputs instead of under "parameters"."""
        return await self._predict(request, flat=True)

    async def hugging_face(self, request: Request) -> Response:
        """Answer as the Hugging Face API does: the labels or the vector of one text come as a list of one."""
        task = self.encoder.manifest.task
        return await self._predict(request, flat=task == FEATURE_EXTRACTION.name, wrapped=task in _WRAPPED)

    async def tokenize(self, request: Request) -> Response:
        """Answer `POST /tokenize`: the tokens of each text, as the model reads them."""
        inputs = self._text_reader.read_texts(await self.body(request))

        def prepare() -> Features:
            found = []
            for text in inputs.items:
                found.append(self._tokenize(text))
                between_chunks.get()()  # let shorter requests pass, as `BundleTokenizer` does
            return Features(rows=[], decode=lambda _: found)  # no rows: it passes the queue, and no model runs

        answered = await self.run(request, prepare, characters=inputs.characters)
        return json_response(answered.answers if inputs.is_list else answered.answers[0], answered)

    async def body(self, request: Request) -> bytes:
        """Return the body, after refusing what the engine has no time for and what the headers already make wrong."""
        self._engine.refuse_if_full(self.name, client=request.state.client)
        check_media_type(request)
        timeout_of(request, self._limits)
        return await read_body(request, self._limits)

    async def answer(
        self, request: Request, items: Sequence[Any], parameters: BaseModel, *, characters: Sequence[int]
    ) -> Answered:
        """Return the answers to inputs that were checked, and their timings."""
        prepare = partial(self.encoder.prepare, items, parameters, most_windows=self._limits.windows)
        return await self.run(request, prepare, characters=characters)

    async def run(self, request: Request, prepare: Callable[[], Features], *, characters: Sequence[int]) -> Answered:
        """Have the engine answer what `prepare` makes of a request; `prepare` runs in a worker thread."""
        return await self._engine.answer(
            self.name,
            prepare,
            characters=characters,
            client=request.state.client,
            timeout_s=timeout_of(request, self._limits),
            received_at=request.scope["state"].get("received_at"),
        )

    async def _predict(self, request: Request, *, flat: bool = False, wrapped: bool = False) -> Response:
        inputs, parameters = self._reader.read(await self.body(request), flat=flat)
        answered = await self.answer(request, inputs.items, parameters, characters=inputs.characters)
        return json_response(answered.answers if inputs.is_list or wrapped else answered.answers[0], answered)

    def _tokenize(self, text: str) -> dict[str, Any]:
        # A batch of one: unlike `encode`, it releases the GIL.
        encoding = self._tokenizer.encode_batch([text])[0]
        columns = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
        return {
            "tokens": [
                {"id": number, "token": token, "start": start, "end": end, "special": bool(special)}
                for number, token, (start, end), special in columns
            ],
            "truncated": bool(encoding.overflowing),
        }


def per_model(models: Mapping[str, Model], action: Callable[[Model, Request], Awaitable[Response]]) -> Endpoint:
    """Return an endpoint that calls `action` with the model that the path names as `name`, or with the first one."""

    async def endpoint(request: Request) -> Response:
        name = request.path_params.get("name") or next(iter(models))
        if name not in models:
            raise not_found(f"there is no such model at this path; there are: {', '.join(models) or 'none'}")
        return await action(models[name], request)

    return endpoint


def json_response(content: object, answered: Answered) -> Response:
    """Return a JSON response with timing headers; floats are written so that they read back the same."""
    return Response(to_json(content), headers=timing_headers(answered), media_type="application/json")


def timing_headers(answered: Answered) -> dict[str, str]:
    """Return the headers with the milliseconds of each stage, and the tokens."""
    timings = answered.timings
    return {
        "X-Tokenize-Time-Ms": f"{timings.tokenise_s * 1e3:.3f}",
        "X-Queue-Time-Ms": f"{timings.queue_s * 1e3:.3f}",
        "X-Inference-Time-Ms": f"{timings.infer_s * 1e3:.3f}",
        "X-Tokens": str(timings.tokens),
    }
