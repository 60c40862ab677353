"""Read a request of the Open Inference Protocol: JSON, or JSON with the tensors' bytes behind it.

Every size is checked against the bytes that came before anything of that size is made, and no message repeats what
the client sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill.serve.http.oip_messages import LONGEST_ID, Envelope, InferOutput, InferTensor, RequestParameters
from potstill.serve.http.oip_signature import Mode, Signature
from potstill.serve.http.reading import check_length, kind_of, parse_object, validate
from potstill.serve.http_errors import invalid, malformed, too_large
from potstill.serve.limits import Limits

Ids: TypeAlias = NDArray[np.int64]
_SHAPE = 'send {"inputs": [{"name": ..., "shape": [...], "datatype": ..., "data": [...]}]}'
_WIDTHS: Mapping[str, str] = {"INT32": "<i4", "INT64": "<i8"}
_LENGTH_BYTES = 4  # in front of every text of a binary tensor, little-endian
_SHARED = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks, checked."""

    mode: Mode
    rows: int
    texts: Mapping[str, list[str]]
    """Of the way "text": input name -> one text per row."""
    ids: Mapping[str, Ids]
    """Of the way "ids": input name -> shape (rows, tokens)."""
    wanted: Mapping[str, bool]
    """Output name -> whether it goes behind the JSON."""
    id: str | None
    timeout_s: float | None
    parameters: Mapping[str, Any]
    """The task's."""


class _Tail:
    """The bytes behind the JSON; each binary tensor takes the next of them."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: Any, where: str) -> memoryview:
        """Return the next `size` bytes."""
        if type(size) is not int or size < 0:
            raise invalid(f"{where}.parameters.binary_data_size must be a whole number of bytes, at least 0")
        if size > len(self._data) - self._at:
            raise malformed(f"{where}.parameters.binary_data_size is more than the bytes that the body has left")
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def end(self) -> None:
        """Refuse bytes that belong to no tensor."""
        if self._at != len(self._data):
            raise malformed(f"the body has {len(self._data) - self._at} bytes behind the last tensor")


def read_infer(body: bytes, header_length: bytes | None, *, signature: Signature, limits: Limits) -> Asked:
    """Return what a request asks.

    Args:
        body: all of it.
        header_length: the value of Inference-Header-Content-Length, the bytes of JSON in front; None is all.
        signature: what the model takes.
        limits: the caps.

    Raises:
        RequestError: 400 if it cannot be read, 413 if it is over a limit, 422 if it asks for what is not there.
    """
    size = _header_size(header_length, len(body))
    tail = _Tail(memoryview(body)[size:])
    envelope = validate(Envelope, parse_object(body[:size], limits, shape=_SHAPE), "the body")
    if envelope.id is not None and len(envelope.id) > LONGEST_ID:
        raise invalid(f"the body's id has {len(envelope.id)} characters; at most {LONGEST_ID} come back")
    common = validate(RequestParameters, envelope.parameters, "parameters")
    mode, tensors = _tensors(envelope.inputs, signature)
    rows, tokens = _check_shapes(mode, tensors, signature=signature, limits=limits)
    texts, ids = {}, {}
    for index, tensor in enumerate(tensors):
        where = f"inputs[{index}]"
        binary = tail.take(tensor.parameters["binary_data_size"], where) if _is_binary(tensor, where) else None
        if mode.kind == "text":
            found = _json_texts(tensor, rows, where) if binary is None else _binary_texts(binary, rows, where)
            most = limits.characters_per_token * signature.max_length
            for place, text in enumerate(found):
                check_length(text, f"{where}.data[{place}]", most)
            texts[tensor.name] = found
        else:
            ids[tensor.name] = (
                _json_ids(tensor, rows, tokens, where) if binary is None else _binary_ids(binary, tensor, where)
            )
    tail.end()
    if ids:
        ids = _check_ids(ids, signature)
    own = RequestParameters.model_fields
    return Asked(
        mode=mode,
        rows=rows,
        texts=texts,
        ids=ids,
        wanted=_wanted(envelope.outputs, mode, binary=common.binary_data_output),
        id=envelope.id,
        timeout_s=None if common.timeout is None else common.timeout / 1e6,
        parameters={name: value for name, value in envelope.parameters.items() if name not in own},
    )


def _header_size(given: bytes | None, size: int) -> int:
    if given is None:
        return size
    if not given.isdigit() or len(given) > 12 or int(given) > size:
        raise malformed("Inference-Header-Content-Length must be the number of bytes of JSON that the body begins with")
    return int(given)


def _tensors(inputs: Sequence[Any], signature: Signature) -> tuple[Mode, list[InferTensor]]:
    """Return the inputs and the way of asking that they belong to; every name comes once."""
    takes = f"it takes {_names(signature.text)}, or {_names(signature.ids)}"
    if len(inputs) > max(len(signature.text.inputs), len(signature.ids.inputs)):
        raise invalid(f"there are {len(inputs)} inputs, more than this model takes; {takes}")
    tensors: list[InferTensor] = []
    chosen: Mode | None = None
    for index, value in enumerate(inputs):
        where = f"inputs[{index}]"
        tensor = validate(InferTensor, value, where)
        mode = signature.mode_of(tensor.name)
        if mode is None or (chosen is not None and mode is not chosen):
            raise invalid(f"{where}.name is not one that this model takes there; {takes}")
        if any(tensor.name == other.name for other in tensors):
            raise invalid(f"{where} has the name of an input before it")
        if tensor.datatype not in mode.datatypes:
            raise invalid(f"{where}.datatype must be {' or '.join(mode.datatypes)}")
        tensors.append(tensor)
        chosen = mode
    if chosen is None or not chosen.required <= {tensor.name for tensor in tensors}:
        raise invalid(f"an input is missing; this model needs {_needs(signature.text)}, or {_needs(signature.ids)}")
    return chosen, tensors


def _check_shapes(
    mode: Mode, tensors: Sequence[InferTensor], *, signature: Signature, limits: Limits
) -> tuple[int, int]:
    """Return rows and tokens, the same for every tensor; a text has one token here."""
    first = tensors[0].shape
    for index, tensor in enumerate(tensors):
        where, shape = f"inputs[{index}].shape", tensor.shape
        if mode.kind == "ids" and len(shape) != 2:
            raise invalid(f"{where} has one dimension; expected two, texts and tokens")
        if min(shape) < 1:
            raise invalid(f"{where} has a dimension below 1")
        if shape[0] > limits.inputs:
            raise too_large(f"{where} has more than {limits.inputs} texts, the most that go into one request")
        if mode.kind == "text" and shape[1:] not in ([], [1]):
            raise invalid(f"{where} must be the number of texts, or that and 1")
        if mode.kind == "ids" and shape[1] > signature.max_length:
            raise invalid(f"{where} has more tokens than this model reads, {signature.max_length}")
        if shape[0] != first[0] or (mode.kind == "ids" and shape != first):
            raise invalid(f"{where} is not that of the first input")
    return first[0], first[1] if len(first) == 2 else 1


def _is_binary(tensor: InferTensor, where: str) -> bool:
    if any(name in tensor.parameters for name in _SHARED):
        raise invalid(f"{where} is in shared memory, which this server does not read")
    is_binary = "binary_data_size" in tensor.parameters
    if is_binary == (tensor.data is not None):
        raise invalid(f"{where} needs its data: either 'data', or 'binary_data_size' among its parameters")
    return is_binary


def _flat(tensor: InferTensor, rows: int, columns: int, where: str) -> list[Any]:
    """Return the data row by row, whether nested or flat."""
    data: list[Any] = tensor.data or []
    if data and isinstance(data[0], list):
        is_right = len(data) == rows and len(tensor.shape) == 2
        if not is_right or not all(isinstance(row, list) and len(row) == columns for row in data):
            raise invalid(f"{where}.data is not nested as its shape says")
        return list(chain.from_iterable(data))
    if len(data) != rows * columns:
        raise invalid(f"{where}.data has {len(data)} entries; its shape says {rows * columns}")
    return data


def _json_texts(tensor: InferTensor, rows: int, where: str) -> list[str]:
    texts = _flat(tensor, rows, 1, where)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise invalid(f"{where}.data[{index}] is {kind_of(text)}; expected a string")
    return texts


def _json_ids(tensor: InferTensor, rows: int, tokens: int, where: str) -> Ids:
    numbers = _flat(tensor, rows, tokens, where)
    for index, number in enumerate(numbers):
        if type(number) is not int:  # a bool is an int to Python
            raise invalid(f"{where}.data[{index}] is {kind_of(number)}; expected whole numbers")
    try:
        return np.array(numbers, dtype=np.int64).reshape(rows, tokens)
    except OverflowError:
        raise invalid(f"{where}.data has a number beyond {tensor.datatype}") from None


def _binary_ids(data: memoryview, tensor: InferTensor, where: str) -> Ids:
    kind = np.dtype(_WIDTHS[tensor.datatype])
    rows, tokens = tensor.shape
    if len(data) != rows * tokens * kind.itemsize:
        raise invalid(f"{where} has {len(data)} bytes; its shape and datatype say {rows * tokens * kind.itemsize}")
    return np.frombuffer(data, dtype=kind).reshape(rows, tokens).astype(np.int64)


def _binary_texts(data: memoryview, rows: int, where: str) -> list[str]:
    texts, at = [], 0
    for index in range(rows):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[start - _LENGTH_BYTES : start], "little")
        if start > len(data) or at > len(data):
            raise malformed(f"{where} ends within text {index}; its shape says {rows} texts")
        try:
            texts.append(str(data[start:at], "utf-8"))
        except UnicodeDecodeError:
            raise malformed(f"{where} is not UTF-8: text {index}") from None
    if at != len(data):
        raise malformed(f"{where} has bytes behind its last text; its shape says {rows} texts")
    return texts


def _check_ids(ids: Mapping[str, Ids], signature: Signature) -> dict[str, Ids]:
    """Return all inputs of the graph: what is missing is as the tokenizer makes it of one text."""
    shape = ids["input_ids"].shape
    whole = {
        name: ids[name] if name in ids else np.full(shape, name == "attention_mask", dtype=np.int64)
        for name in signature.ids.inputs
    }
    below = {"input_ids": signature.vocab_size, "attention_mask": 2, "token_type_ids": signature.types}
    for name, values in whole.items():
        if values.min() < 0 or values.max() >= below[name]:
            raise invalid(f"{name} has a number that is not from 0 to {below[name] - 1}")
    if "attention_mask" in whole and not whole["attention_mask"].any(axis=1).all():
        raise invalid("attention_mask hides every token of a row")
    return whole


def _wanted(outputs: Sequence[Any] | None, mode: Mode, *, binary: bool) -> dict[str, bool]:
    """Return the outputs that are wanted, in their order, and whether each goes behind the JSON."""
    if not outputs:
        return dict.fromkeys(mode.outputs, binary)
    gives = f"these inputs give {', '.join(mode.outputs)}"
    if len(outputs) > len(mode.outputs):
        raise invalid(f"there are {len(outputs)} outputs asked for; {gives}")
    wanted: dict[str, bool] = {}
    for index, value in enumerate(outputs):
        where = f"outputs[{index}]"
        output = validate(InferOutput, value, where)
        if output.name not in mode.outputs:
            raise invalid(f"{where}.name is none that there is; {gives}")
        if output.name in wanted:
            raise invalid(f"{where} has the name of an output before it")
        wanted[output.name] = _is_behind(output, where, default=binary)
    return wanted


def _is_behind(output: InferOutput, where: str, *, default: bool) -> bool:
    if "classification" in output.parameters or any(name in output.parameters for name in _SHARED):
        raise invalid(f"{where}.parameters ask for classification or shared memory, which this server does not have")
    binary = output.parameters.get("binary_data", default)
    if not isinstance(binary, bool):
        raise invalid(f"{where}.parameters.binary_data is {kind_of(binary)}; expected true or false")
    return binary


def _names(mode: Mode) -> str:
    return " and ".join(mode.inputs)


def _needs(mode: Mode) -> str:
    return " and ".join(name for name in mode.inputs if name in mode.required)
