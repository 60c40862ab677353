"""What a model gave for a batch, row by row and without the padding."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from potstill.serve.tasks.prepared import Outputs
from potstill.serve.tasks.vectors import SENTENCE_EMBEDDING
from potstill.serve.tokenizer import Row
from potstill.tasks import TEXT_CLASSIFICATION


def unpad(given: Mapping[str, NDArray[Any]], rows: Sequence[Row], *, task: str, left: bool = False) -> list[Outputs]:
    """Return the outputs of each row of a batch, padding cut off: views into the arrays that a run gave.

    Args:
        given: what the model gave for the batch.
        rows: the batch's rows, before they were padded.
        task: the task's name.
        left: whether they were padded on the left.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    padded = max(lengths, default=0)
    per_token = {name for name in given if task != TEXT_CLASSIFICATION.name and name != SENTENCE_EMBEDDING}

    def tokens(length: int) -> slice:
        return slice(padded - length, None) if left else slice(length)

    return [
        {name: values[at][tokens(length)] if name in per_token else values[at] for name, values in given.items()}
        for at, length in enumerate(lengths)
    ]
