"""The types that all tasks share: `ServedTask`, the features of a request, and the facts about a model.

`ServedTask.preprocess` turns a request into `Features`: rows to run, and functions that decode outputs into answers.
"""

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
"""The model's outputs for one row without padding: name -> (tokens, ...) or (...). They are views into a batch."""


def keep_all(_: int, outputs: Outputs) -> Outputs:
    """Return a row's outputs unchanged, as views into the batch: the default of `Features.keep`."""
    return outputs


DecodedAnswer: TypeAlias = Any
"""One input's answer, as plain JSON values; `ServedTask.answer` is its schema. An evaluation's answers are arrays."""


class Features(NamedTuple):
    """One tokenised request, and the functions that decode its answers."""

    rows: list[Row]
    """The rows to run, in any order and in any batches; a question with a long context has several."""
    decode: Callable[[Sequence[Outputs]], list[DecodedAnswer]]
    """Turns the outputs of `rows`, in their order, into one answer per input, as plain JSON values. It takes the
    outputs as the model gave them, or as `keep` returned them. Raises CheckError if numbers are NaN or infinite."""
    keep: Callable[[int, Outputs], Outputs] = keep_all
    """Takes the number and the outputs of a row; returns a copy of what `decode` needs, so that the batch's arrays can
    be freed. A language model gives a vocabulary of logits per token, 60 MB for a text of 512 tokens, of which those of
    the masks are needed."""
    decide: Callable[[DecodedAnswer], Hashable] | None = None
    """`ServedTask.decide`, where the answers are those of a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskModel:
    """The facts about a model that its task needs."""

    tokenizer: BundleTokenizer
    outputs: Sequence[str]
    """The names of the graph's outputs, in the order of the manifest."""
    labels: Sequence[str] = ()
    """The names of the labels, in the order of the logits."""
    function: str = "softmax"
    """Turns a classifier's logits into scores, unless the request names another: `softmax`, `sigmoid` or `none`."""
    pooling: Pooling | None = None
    """How a vector is made of a text's tokens; None is their mean, not normalised."""
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
    """The type of the answer to one input."""
    example: str | dict[str, str]
    """An input for the OpenAPI document to show."""
    preprocess: Callable[[TaskModel, Sequence[object], Any, int], Features]
    """Takes the model, the inputs, an instance of `parameters`, and the most windows of a long input. Raises
    RequestError if an input or a parameter does not fit. Pure, and safe in any thread."""
    decide: Callable[[DecodedAnswer], Hashable] | None = None
    """Returns the decision of an answer without its scores, such as a label or a span, by which the answers of two
    models are compared. None where answers decide nothing, as vectors."""
    one_output_per_text: bool = False
    """Whether the graph's outputs have one entry per text; otherwise they have one per token."""
    has_windows: bool = False
    """Whether a long input is split into several rows; otherwise it is truncated."""


def check_finite(values: Floats) -> NDArray[np.float64]:
    """Return numbers as float64, after checking that they are finite.

    Raises:
        CheckError: if one of them is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise not_finite()
    return values.astype(np.float64)


def not_finite() -> CheckError:
    """Return the error for outputs that are NaN or infinite."""
    return CheckError("the model gave NaN or infinity; use another precision or export the checkpoint again")


def wrong_label_count(logits: int, labels: int) -> CheckError:
    """Return the error for a model whose number of logits is not its manifest's number of labels."""
    return CheckError(f"the model gives {logits} logits and its manifest names {labels} labels")
