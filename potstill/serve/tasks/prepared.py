"""A request between its two halves: what the model shall run, and how its numbers are read."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.errors import CheckError
from potstill.serve.tokenizer import Row

Outputs: TypeAlias = dict[str, NDArray[np.floating[Any]]]
"""What the model gives for one row, padding cut off: name -> (tokens, ...) or (...); views into a batch's arrays."""


def keep_all(_: int, outputs: Outputs) -> Outputs:
    """Return a row's outputs as they are."""
    return outputs


class Prepared(NamedTuple):
    """One request, tokenised."""

    rows: list[Row]
    """What the model runs, in any order and any company; a question with a long context has several."""
    read: Callable[[Sequence[Outputs]], list[Any]]
    """Turns the outputs of `rows`, in their order, into one answer per input: JSON values (floats, not numpy's). It
    takes the outputs whole, or as `keep` returned them. Raises CheckError if numbers are NaN or infinite."""
    keep: Callable[[int, Outputs], Outputs] = keep_all
    """What of a row's outputs `read` needs, by the row's number: a copy, so that a batch's arrays can go at once. A
    language model answers every token with its vocabulary, 60 MB for one text of 512 tokens, and one word is asked."""


def check_finite(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
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


def check_labelled(logits: NDArray[np.floating[Any]], labels: Sequence[str]) -> NDArray[np.floating[Any]]:
    """Return logits whose last axis is that of the labels.

    Raises:
        CheckError: if there are more or fewer.
    """
    if logits.shape[-1] != len(labels):
        raise CheckError(f"the model gives {logits.shape[-1]} logits and its manifest names {len(labels)} labels")
    return logits
