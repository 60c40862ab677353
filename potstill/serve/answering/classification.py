"""Text classification: a row of logits becomes labels with scores.

The rules are those of transformers' text-classification pipeline: softmax over the labels, sigmoid of each where
several may hold or where there is only one, and the number itself for a regression.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.metrics import softmax
from potstill.serve.answering.prepared import Outputs, Prepared, check_finite, check_labelled
from potstill.serve.answering.shapes import ClassificationParameters
from potstill.serve.tokenizer import BundleTokenizer, Text


def prepare_texts(
    tokenizer: BundleTokenizer,
    texts: Sequence[Text],
    parameters: ClassificationParameters,
    *,
    labels: Sequence[str],
    function: str,
    output: str,
) -> Prepared:
    """Return texts and pairs to classify; each gets its labels with scores, the best first.

    Args:
        tokenizer: the model's.
        texts: at least one.
        parameters: what the request says.
        labels: in the order of the logits.
        function: `softmax`, `sigmoid` or `none`, where the request does not say.
        output: the name of the logits.
    """
    chosen = parameters.function_to_apply or function

    def read(outputs: Sequence[Outputs]) -> list[Any]:
        logits = [check_labelled(own[output], labels) for own in outputs]
        return [rank(row[None], labels, function=chosen, top_k=parameters.top_k)[0] for row in logits]

    return Prepared(rows=tokenizer.rows(texts), read=read)


def rank(
    logits: NDArray[np.floating[Any]], labels: Sequence[str], *, function: str = "softmax", top_k: int | None = None
) -> list[list[dict[str, Any]]]:
    """Return the `top_k` best labels of each row with their scores, the best first; None returns all.

    Equal scores keep the order of `labels`.

    Args:
        logits: shape (texts, labels).
        labels: the names of the columns.
        function: what makes scores of logits: `softmax`, `sigmoid` or `none`.
        top_k: at least 1; beyond the number of labels it means all.

    Raises:
        CheckError: if a logit is NaN or infinite.
    """
    scores = _scores(check_finite(logits), function)
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    return [
        [{"label": labels[column], "score": float(row[column])} for column in columns]
        for row, columns in zip(scores, order, strict=True)
    ]


def _scores(logits: NDArray[np.float64], function: str) -> NDArray[np.floating[Any]]:
    if function == "softmax":
        return softmax(logits)
    # Written with tanh, which does not overflow.
    return 0.5 * (1 + np.tanh(0.5 * logits)) if function == "sigmoid" else logits
