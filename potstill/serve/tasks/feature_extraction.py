"""Feature extraction: one vector per text, as sentence-transformers makes it.

A graph that pools has the output `sentence_embedding`; otherwise the token vectors are pooled here, in float64.
"""

from collections.abc import Sequence
from math import inf
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictBool, StrictInt, StrictStr

from potstill.bundle import Pooling
from potstill.serve.http_errors import invalid
from potstill.serve.tasks.features import Features, Floats, Outputs, ServedTask, TaskModel, check_finite
from potstill.serve.tasks.inputs import RequestModel, read_texts
from potstill.serve.tokenizer import BundleTokenizer

SENTENCE_EMBEDDING = "sentence_embedding"
"""The name of the output of a graph that pools: one vector per text."""

_KEPT = "vector"
_SHORTEST = 1e-12  # the `eps` of torch.nn.functional.normalize: it divides by no less
_AS_IT_IS = Pooling(mode="mean", normalize=False)


class VectorParameters(RequestModel):
    """Of feature-extraction, where a text gets one vector."""

    normalize: StrictBool | None = None
    """Whether vectors get length 1; by default as the model was trained."""
    truncate: StrictBool = True
    """Whether a text longer than the model reads is cut; otherwise it is refused."""
    truncation_direction: Literal["left", "right"] | None = None
    """Which end of a long text is cut; by default the tokenizer's own choice."""
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None
    """Only the first so many numbers of a vector, for models trained for it; its length is made 1 again if it was."""
    prompt_name: None = None
    """Prompts are not kept in bundles."""
    encoding_format: Literal["float"] | None = None


def preprocess(model: TaskModel, items: Sequence[object], parameters: VectorParameters, _: int = 0) -> Features:
    """Tokenise texts; the answer to each is its vector, a list of floats.

    Raises:
        RequestError: 422 if an item is no text or is too long with `truncate` false, or if the parameters ask for a
            vector that this model cannot give.
    """
    tokenizer, outputs, texts = model.tokenizer, model.outputs, read_texts(items)
    if parameters.dimensions is not None and parameters.dimensions > (model.width or inf):
        raise invalid(f"parameters.dimensions is {parameters.dimensions}; this model's vectors have {model.width}")
    if not parameters.truncate:
        _check_lengths(tokenizer, texts)
    is_pooled = SENTENCE_EMBEDDING in outputs
    known = model.pooling or _AS_IT_IS
    if is_pooled and known.normalize and parameters.normalize is False:
        # The graph has normalised its vector; with its original length it can only be pooled again from the tokens.
        is_pooled = False
        if not known.is_simple or all(name == SENTENCE_EMBEDDING for name in outputs):
            raise invalid("parameters.normalize is false; this model gives vectors of length 1 and nothing else")
    wanted = known.normalize if parameters.normalize is None else parameters.normalize
    # A vector that is cut to fewer dimensions has to be normalised again.
    is_due = wanted and not (is_pooled and known.normalize and parameters.dimensions is None)

    def keep(_: int, given: Outputs) -> Outputs:
        return {_KEPT: given[SENTENCE_EMBEDDING].copy() if is_pooled else _pool(given[outputs[0]], known.mode)}

    def decode(given: Sequence[Outputs]) -> list[object]:
        answers: list[object] = []
        for index, own in enumerate(given):
            vector = check_finite((own if _KEPT in own else keep(index, own))[_KEPT])[: parameters.dimensions]
            if is_due:
                vector = vector / max(float(np.linalg.norm(vector)), _SHORTEST)
            answers.append(vector.tolist())
        return answers

    return Features(rows=tokenizer.rows(texts, side=parameters.truncation_direction), decode=decode, keep=keep)


def _pool(states: Floats, mode: str) -> NDArray[np.float64]:
    """Return one vector, shape (width,), pooled from a text's token vectors, shape (tokens, width)."""
    # For CLS only the first token is converted: all of them are megabytes.
    wide = (states[:1] if mode == "cls" else states).astype(np.float64)
    pooled: NDArray[np.float64] = wide.max(axis=0) if mode == "max" else wide.mean(axis=0)
    return pooled


def _check_lengths(tokenizer: BundleTokenizer, texts: Sequence[str]) -> None:
    """Refuse texts that the model would truncate.

    Raises:
        RequestError: 422 for the first such text.
    """
    for index, whole in enumerate(tokenizer.pieces(texts)):
        tokens = len(whole.ids) + tokenizer.single.size
        if tokens > tokenizer.max_length:
            raise invalid(
                f"input {index} has {tokens} tokens and this model reads {tokenizer.max_length}; "
                "shorten it or leave out truncate: false"
            )


TASK = ServedTask(
    item=StrictStr,
    parameters=VectorParameters,
    answer=list[float],
    example="a great movie",
    preprocess=preprocess,
)
