"""How a text is cut into tokens, for `POST /tokenize`."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from potstill.serve.encoder import Encoder
from potstill.serve.tasks.features import Features
from potstill.serve.tokenizer import between_chunks


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


class Tokens:
    """Cuts texts as one model's tokenizer does."""

    def __init__(self, encoder: Encoder) -> None:
        # A copy: the tokenizer's own has its lock to itself.
        self._tokenizer = encoder.tokenizer.copy()

    def prepare(self, texts: Sequence[str]) -> Callable[[], Features]:
        """Return work for the engine that asks nothing of the model."""

        def work() -> Features:
            found = []
            for text in texts:
                found.append(self._one(text))
                between_chunks.get()()
            return Features(rows=[], decode=lambda _: found)

        return work

    def _one(self, text: str) -> dict[str, Any]:
        # A batch of one: unlike `encode`, it releases the interpreter's lock.
        encoding = self._tokenizer.encode_batch([text])[0]
        columns = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
        return {
            "tokens": [
                {"id": number, "token": token, "start": start, "end": end, "special": bool(special)}
                for number, token, (start, end), special in columns
            ],
            "truncated": bool(encoding.overflowing),
        }
