"""Turn logits into labels with scores."""

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from potstill.errors import UsageError
from potstill.metrics import softmax


class Score(TypedDict):
    """One label and its probability."""

    label: str
    score: float


Answer: TypeAlias = list[Score]
"""One text's labels, the most likely first."""


def rank(logits: NDArray[np.floating], labels: Sequence[str], *, top_k: int | None = None) -> list[Answer]:
    """Return the `top_k` most likely labels of each row, most likely first; None returns all.

    Equal scores keep the order of `labels`.

    Args:
        logits: shape (texts, labels).
        labels: the names of the columns.
        top_k: 1 to the number of labels.

    Raises:
        UsageError: if `top_k` is outside of that.
    """
    if top_k is not None and not 1 <= top_k <= len(labels):
        raise UsageError(f"top_k is {top_k}; it must be from 1 to {len(labels)}, the number of labels")
    scores = softmax(logits)
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    return [
        [Score(label=labels[column], score=float(row[column])) for column in columns]
        for row, columns in zip(scores, order, strict=True)
    ]
