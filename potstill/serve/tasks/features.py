"""What every task has: how a request becomes features for the model, and the model's outputs an answer."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from potstill.bundle import Pooling
from potstill.errors import CheckError
from potstill.serve.tokenizer import BundleTokenizer, Row

Floats: TypeAlias = NDArray[np.floating[Any]]
Outputs: TypeAlias = dict[str, Floats]
"""The model's outputs for one row, padding cut off: name -> (tokens, ...) or (...). They are views into a batch."""


def keep_all(_: int, outputs: Outputs) -> Outputs:
    """Return a row's outputs as they are."""
    return outputs


DecodedAnswer: TypeAlias = Any
"""One input's answer, as plain JSON values; `ServedTask.answer` is its schema. An evaluation's answers are arrays."""


class Features(NamedTuple):
    """One request, tokenised, and the function that decodes its answers."""

    rows: list[Row]
    """What the model runs, in any order and in any batches; a question with a long context has several rows."""
    decode: Callable[[Sequence[Outputs]], list[DecodedAnswer]]
    """Turns the outputs of `rows`, in their order, into one answer per input, as plain JSON values. It takes the
    outputs whole, or as `keep` returned them. Raises CheckError if numbers are NaN or infinite."""
    keep: Callable[[int, Outputs], Outputs] = keep_all
    """Returns what `decode` needs of the outputs of row number n, as a copy, so that the batch's arrays can be freed. A
    language model gives a vocabulary of logits per token, 60 MB for a text of 512 tokens; one token's are needed."""
    decide: Callable[[DecodedAnswer], Hashable] | None = None
    """`ServedTask.decide`, where the answers are those of a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskModel:
    """What a task must know of a model."""

    tokenizer: BundleTokenizer
    outputs: Sequence[str]
    """The names of the graph's outputs, in the order of the manifest."""
    labels: Sequence[str] = ()
    """In the order of the logits."""
    function: str = "softmax"
    """What turns a classifier's logits into scores where the request does not say: `softmax`, `sigmoid` or `none`."""
    pooling: Pooling | None = None
    """How a vector is made of a text's tokens; None is their mean, as it is."""
    width: int | None = None
    """The length of the last axis of the graph's last output; None where the graph leaves it open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTask:
    """One task: the schemas of its requests and answers, and its decoder.

    A request has one input or a list of them; one input in gives one answer out, a list in gives a list out.
    """

    item: Any
    """The type of one input."""
    parameters: type[BaseModel]
    answer: Any
    """The type of one input's answer."""
    example: str | dict[str, str]
    """An input that the OpenAPI document shows."""
    preprocess: Callable[[TaskModel, Sequence[object], Any, int], Features]
    """Takes the model, the inputs, an instance of `parameters`, and in how many windows a long input may be read.
    Raises RequestError if an input or a parameter does not fit. Pure, and safe in any thread."""
    decide: Callable[[DecodedAnswer], Hashable] | None = None
    """Returns what an answer decides, without its scores, so that the answers of two models can be compared: a label,
    a span. None where answers decide nothing, as vectors."""
    one_output_per_text: bool = False
    """Whether the graph's outputs have one entry per text; those of other tasks have one per token."""
    has_windows: bool = False
    """Whether a long input is read in several rows; other tasks cut it."""


def check_finite(values: Floats) -> NDArray[np.float64]:
    """Return numbers as float64.

    Raises:
        CheckError: if one of them is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise not_finite()
    return values.astype(np.float64)


def not_finite() -> CheckError:
    """Return the error of numbers that are NaN or infinite."""
    return CheckError("the model gave NaN or infinity; use another precision or export the checkpoint again")


def wrong_label_count(logits: int, labels: int) -> CheckError:
    """Return the error of a model that gives more or fewer logits than its manifest names labels."""
    return CheckError(f"the model gives {logits} logits and its manifest names {labels} labels")
