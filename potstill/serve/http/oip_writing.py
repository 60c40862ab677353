"""Write an answer of the Open Inference Protocol: JSON, with the tensors' bytes behind it where that was asked for."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from potstill.serve.http.exchange import Fields, Reply
from potstill.serve.http.oip_reading import Asked
from potstill.serve.http.oip_signature import ANSWERS, EMBEDDING, LABEL, SCORE, VERSION
from potstill.serve.http_errors import too_large
from potstill.serve.tasks.features import Outputs

Column: TypeAlias = NDArray[np.float32] | list[bytes]
"""One output of all rows."""
MOST_NUMBERS = 4_194_304
"""Of one answer: 16 MiB. The graph of a language model gives more for a few long texts."""
MOST_WRITTEN = 524_288
"""Of one answer as JSON, which takes 20 times as long to write."""


def check_numbers(count: int, *, written: int) -> None:
    """Refuse an answer of too many numbers, of which `written` are to be JSON.

    Raises:
        RequestError: 413.
    """
    if count > MOST_NUMBERS:
        raise too_large(f"the answer has {count} numbers, over {MOST_NUMBERS}; send fewer or shorter texts")
    if written > MOST_WRITTEN:
        raise too_large(
            f"the answer has {written} numbers as JSON, over {MOST_WRITTEN}; ask for binary_data, or send fewer texts"
        )


def columns_of_answers(answers: Sequence[Any], wanted: Mapping[str, bool]) -> dict[str, Column]:
    """Return the wanted outputs of a task's answers."""
    return {name: _column(answers, name) for name in wanted}


def columns_of_outputs(rows: Sequence[Outputs], wanted: Mapping[str, bool]) -> dict[str, Column]:
    """Return the wanted outputs of the graph; every row has as many tokens as the others."""
    return {name: np.stack([row[name] for row in rows]) for name in wanted}


def write_reply(asked: Asked, columns: Mapping[str, Column], *, model: str, fields: Fields) -> Reply:
    """Return the answer.

    Raises:
        RequestError: 413 if it has too many numbers.
    """
    sizes = {name: column.size for name, column in columns.items() if isinstance(column, np.ndarray)}
    written = sum(size for name, size in sizes.items() if not asked.wanted[name])
    check_numbers(sum(sizes.values()), written=written)
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, column in columns.items():
        is_text = isinstance(column, list)
        output: dict[str, Any] = {
            "name": name,
            "datatype": "BYTES" if is_text else "FP32",
            "shape": [len(column)] if is_text else list(np.shape(column)),
        }
        if asked.wanted[name]:
            tail.append(_behind(column))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = _written(column)
        outputs.append(output)
    content = {"model_name": model, "model_version": VERSION}
    head = to_json(content | ({} if asked.id is None else {"id": asked.id}) | {"outputs": outputs})
    if not any(asked.wanted.values()):
        return Reply(200, head, [(b"content-type", b"application/json"), *fields])
    kinds = [
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", str(len(head)).encode()),
    ]
    return Reply(200, b"".join([head, *tail]), [*kinds, *fields])


def _column(answers: Sequence[Any], name: str) -> Column:
    if name == ANSWERS:
        return [to_json(answer) for answer in answers]
    if name == LABEL:
        return [answer[0]["label"].encode() for answer in answers]
    if name == SCORE:
        return np.array([answer[0]["score"] for answer in answers], dtype=np.float32)
    if name == EMBEDDING:
        return np.array(answers, dtype=np.float32)
    raise ValueError(f"answers have no output {name}")


def _behind(column: Column) -> bytes:
    if isinstance(column, list):
        return b"".join(part for text in column for part in (len(text).to_bytes(4, "little"), text))
    return column.astype("<f4", copy=False).tobytes()


def _written(column: Column) -> list[Any]:
    if isinstance(column, list):
        return [text.decode() for text in column]
    numbers: list[Any] = column.ravel().tolist()
    return numbers
