"""The endpoints that ask a model: predict, embed, tokenize, and Hugging Face's root."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from potstill.serve.batching import Answered
from potstill.serve.http.asked import Reader, TextReader
from potstill.serve.http.context import Context
from potstill.serve.http.exchange import (
    Call,
    Reply,
    check_media_type,
    json_reply,
    read_body,
    received_at,
    timeout_of,
    timing_fields,
)
from potstill.serve.http.tokens import Tokens
from potstill.serve.tasks.features import Features
from potstill.tasks import FEATURE_EXTRACTION, TEXT_CLASSIFICATION

# The tasks in which the Hugging Face API answers one text with a list of one.
_LISTS = (TEXT_CLASSIFICATION.name, FEATURE_EXTRACTION.name)


class Work:
    """The endpoints of one model."""

    def __init__(self, name: str, context: Context) -> None:
        self._name = name
        self._context = context
        self._encoder = context.models[name]
        self.reader = Reader(self._encoder, context.limits)
        self._tokens = Tokens(self._encoder)
        self._texts = TextReader(self._encoder, context.limits)

    def predict(self, call: Call) -> Awaitable[Reply]:
        """Answer a list with a list, and a scalar with a scalar."""
        return self._reply(call)

    def embed(self, call: Call) -> Awaitable[Reply]:
        """As predict, with the parameters beside the inputs."""
        return self._reply(call, flat=True)

    def hugging_face(self, call: Call) -> Awaitable[Reply]:
        """Answer as the Hugging Face API does: one text's labels, and one text's vector, come as a list of one."""
        task = self._encoder.manifest.task
        return self._reply(call, flat=task == FEATURE_EXTRACTION.name, wrapped=task in _LISTS)

    async def tokenize(self, call: Call) -> Reply:
        """Say how texts are cut into the tokens that the model reads."""
        items, is_list, characters = self._texts.read(await self.body(call))
        answered = await self.run(call, self._tokens.prepare(items), characters=characters)
        return json_reply(answered.answers if is_list else answered.answers[0], fields=timing_fields(answered))

    async def answer(
        self, call: Call, items: Sequence[Any], parameters: BaseModel, *, characters: Sequence[int]
    ) -> Answered:
        """Let the engine answer checked items."""
        windows = self._context.limits.windows
        prepare = partial(self._encoder.prepare, items, parameters, most_windows=windows)
        return await self.run(call, prepare, characters=characters)

    async def run(self, call: Call, prepare: Callable[[], Features], *, characters: Sequence[int]) -> Answered:
        """Let the engine run `prepare` and what it asks of the model."""
        context = self._context
        return await context.engine.answer(
            self._name,
            prepare,
            characters=characters,
            client=call.client,
            timeout_s=timeout_of(call.headers, context.limits),
            received_at=received_at(call.scope),
        )

    async def body(self, call: Call) -> bytes:
        """Return a request's body, if its headers are right."""
        check_media_type(call.headers)
        timeout_of(call.headers, self._context.limits)
        return await read_body(call.receive, call.headers, self._context.limits)

    async def _reply(self, call: Call, *, flat: bool = False, wrapped: bool = False) -> Reply:
        asked = self.reader.read(await self.body(call), flat=flat)
        answered = await self.answer(call, asked.items, asked.parameters, characters=asked.characters)
        content = answered.answers if asked.is_list or wrapped else answered.answers[0]
        return json_reply(content, fields=timing_fields(answered))


def works(context: Context) -> Mapping[str, Work]:
    """Return the endpoints of every model, by name."""
    return {name: Work(name, context) for name in context.models}
