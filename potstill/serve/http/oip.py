"""The Open Inference Protocol v2 over HTTP, for clients such as `tritonclient.http`.

    GET  /v2                                     the server's metadata
    GET  /v2/health/live     /v2/health/ready
    GET  /v2/models/NAME     /v2/models/NAME/ready      also with /versions/1 behind NAME
    POST /v2/models/NAME/infer

There are two modes. Texts: the inputs `text` (with `text_pair` for a pair, or `question` and `context`) of datatype
BYTES give `answers`, one JSON text per row as of `POST /predict`; a classifier also gives the best `label` and its
`score`, a model of vectors gives `embedding` alone. Ids: `input_ids`, and optionally `attention_mask` and
`token_type_ids`, INT64 or INT32, give the graph's own outputs. Tensors are JSON, or binary after the JSON.

Every size that a client declares is checked against the bytes that arrived before anything of that size is allocated,
and no message repeats what the client sent.

Source: https://github.com/kserve/open-inference-protocol (`inference_rest.md`), and Triton's binary tensor extension
(`extension_binary_data.md`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

import potstill
from potstill.errors import CheckError
from potstill.serve.encoder import Encoder
from potstill.serve.http.info import check_ready
from potstill.serve.http.predict import per_model, timing_headers
from potstill.serve.http.request import (
    SHORTEST_TIMEOUT_MS,
    check_length,
    is_encoded,
    kind_of,
    media_type_of,
    parse_object,
    read_body,
    timeout_of,
    unsupported,
    validate,
)
from potstill.serve.http_errors import invalid, malformed, too_large, unavailable
from potstill.serve.limits import Limits
from potstill.serve.tasks.feature_extraction import SENTENCE_EMBEDDING
from potstill.serve.tasks.features import Features, Outputs
from potstill.serve.tasks.question_answering import Question
from potstill.serve.tasks.text_classification import Pair
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

if TYPE_CHECKING:
    from potstill.serve.batching import Engine

VERSION = "1"
"""The only version there is: a bundle does not change."""
VERSIONS = ("", f"/versions/{VERSION}")
"""What may follow a model's name in a path."""
LONGEST_ID = 1_024
"""Most characters of a request's id, which comes back with its answer."""
MOST_NUMBERS = 4_194_304
"""Most numbers in one answer, 16 MiB as float32. A language model's graph gives more for a few long texts."""
MOST_WRITTEN = 524_288
"""Most numbers in one answer as JSON, which takes 20 times as long to write as binary."""
ANSWERS, LABEL, SCORE, EMBEDDING = "answers", "label", "score", "embedding"

Ids: TypeAlias = NDArray[np.int64]
Column: TypeAlias = NDArray[np.float32] | list[bytes]
"""One output for all rows: an array, or a list of UTF-8 texts."""

# The extensions of the protocol that this server has, under Triton's names.
_EXTENSIONS = ["binary_tensor_data", "parameters"]
_MEDIA_TYPES = frozenset({"", "application/json", "application/octet-stream"})
# Characters per token in English: the engine estimates costs from characters, and here there are only tokens.
_CHARACTERS = 4
_SHAPE = 'send {"inputs": [{"name": ..., "shape": [...], "datatype": ..., "data": [...]}]}'
_WIDTHS: Mapping[str, str] = {"INT32": "<i4", "INT64": "<i8"}  # binary tensors are little-endian
_LENGTH_BYTES = 4  # an unsigned little-endian length before every text of a binary tensor
# Parameters of Triton's shared-memory extensions, which this server refuses.
_SHARED = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")

# ---------------------------------------------------------------- what is sent and got

Datatype = Literal["INT32", "INT64", "FP32", "BYTES"]


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class InferTensor(_Exact):
    """One input. Its numbers or texts are in `data`, or behind the JSON if `binary_data_size` says so."""

    name: StrictStr
    shape: list[StrictInt] = Field(min_length=1, max_length=2)
    """[texts] or [texts, 1] for texts, [texts, tokens] for ids."""
    datatype: StrictStr
    parameters: dict[str, Any] = {}
    """`binary_data_size`, in bytes; other parameters are not looked at."""
    data: list[Any] | None = None
    """Row-major, nested or flat."""


class InferOutput(_Exact):
    """One output that is wanted."""

    name: StrictStr
    parameters: dict[str, Any] = {}
    """`binary_data`: whether it comes behind the JSON; other parameters are not looked at."""


class InferRequest(_Exact):
    """The body of a request; its tensors and outputs are looked at one by one."""

    id: StrictStr | None = None
    """Comes back with the answer."""
    parameters: dict[str, Any] = {}
    """The task's parameters, for texts; and `RequestParameters`."""
    inputs: list[Any] = Field(min_length=1)
    outputs: list[Any] | None = None
    """The outputs that are wanted; all by default."""


class TensorMetadata(BaseModel):
    """One input or output; -1 stands for a dimension of any size."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives: texts for answers, or the graph's inputs for the graph's outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The server runs."""

    live: bool


class Ready(BaseModel):
    """The server takes requests."""

    ready: bool


class ModelReady(BaseModel):
    """The model takes requests."""

    name: str
    ready: bool


class RequestParameters(BaseModel):
    """Parameters of a request that are the protocol's and not the task's."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    binary_data_output: StrictBool = False
    """Whether outputs come behind the JSON, unless they say otherwise themselves."""
    timeout: StrictInt | None = Field(default=None, ge=SHORTEST_TIMEOUT_MS * 1000)
    """Microseconds that the client gives the request; as X-Request-Timeout-Ms, of which the shorter counts."""
    priority: StrictInt = Field(default=0, ge=0)
    """Not looked at: requests are answered as they come."""
    content_type: StrictStr | None = None
    """Not looked at: MLServer's name for how tensors are to be read."""


class InferOutputTensor(BaseModel):
    """One output. Its numbers or texts are in `data`, or behind the JSON if `binary_data_size` says so."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    data: list[str | float] = []
    parameters: dict[str, int] = {}


class InferResponse(BaseModel):
    """The answer."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[InferOutputTensor]


# ---------------------------------------------------------------- what a model takes and gives


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One of the two modes: texts in and answers out, or ids in and the graph's outputs out."""

    kind: Literal["text", "ids"]
    inputs: tuple[str, ...]
    required: frozenset[str]
    datatypes: tuple[str, ...]
    """The datatypes that its inputs may have; the metadata name the first."""
    outputs: Mapping[str, TensorMetadata]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What one model takes and gives."""

    text: Mode
    ids: Mode
    max_length: int
    """Most tokens of a row."""
    vocab_size: int
    """Upper bound of ids, exclusive."""
    types: int
    """Upper bound of token types, exclusive."""

    def mode_of(self, name: str) -> Mode | None:
        """Return the mode to which an input belongs; None if no mode has it."""
        return next((mode for mode in (self.text, self.ids) if name in mode.inputs), None)

    def numbers(self, output: str, *, rows: int, tokens: int) -> int:
        """Return how many numbers an output of the graph has, as far as its shape is known."""
        shape = self.ids.outputs[output].shape
        # The first two open dimensions are rows and tokens; any other counts as 1.
        dynamic = [rows, tokens]
        return prod(size if size > 0 else (dynamic.pop(0) if dynamic else 1) for size in shape)

    def metadata(self, name: str) -> ModelMetadata:
        """Return the content of `GET /v2/models/NAME`."""
        texts = [TensorMetadata(name=each, datatype="BYTES", shape=[-1]) for each in self.text.inputs]
        ids = [TensorMetadata(name=each, datatype="INT64", shape=[-1, -1]) for each in self.ids.inputs]
        return ModelMetadata(
            name=name,
            versions=[VERSION],
            platform="onnx_onnxv1",
            inputs=[*texts, *ids],
            outputs=[*self.text.outputs.values(), *self.ids.outputs.values()],
        )


def signature_of(encoder: Encoder) -> Signature:
    """Return the inputs and outputs of a model in both modes."""
    manifest, tokenizer = encoder.manifest, encoder.tokenizer
    vocab_size = manifest.architecture.vocab_size
    frame = tokenizer.pair
    types = [*frame.text_types, *(int(kind) for piece in frame.types for kind in piece)]
    return Signature(
        text=_text_mode(manifest.task),
        ids=Mode(
            kind="ids",
            inputs=encoder.session.inputs,
            required=frozenset({"input_ids"}),
            datatypes=("INT64", "INT32"),
            outputs=_graph_outputs(encoder),
        ),
        max_length=manifest.max_length,
        vocab_size=vocab_size if isinstance(vocab_size, int) else tokenizer.vocabulary_size(),
        types=1 + max(types),
    )


def _text_mode(task: str) -> Mode:
    answers = TensorMetadata(name=ANSWERS, datatype="BYTES", shape=[-1])
    inputs: tuple[str, ...] = ("text",)
    required, outputs = inputs, [answers]
    if task == QUESTION_ANSWERING.name:
        inputs = required = ("question", "context")
    elif task == TEXT_CLASSIFICATION.name:
        inputs = ("text", "text_pair")
        outputs.append(TensorMetadata(name=LABEL, datatype="BYTES", shape=[-1]))
        outputs.append(TensorMetadata(name=SCORE, datatype="FP32", shape=[-1]))
    elif task == FEATURE_EXTRACTION.name:
        # A vector is a tensor already; as JSON within a tensor of texts it would only be longer.
        outputs = [TensorMetadata(name=EMBEDDING, datatype="FP32", shape=[-1, -1])]
    return Mode(
        kind="text",
        inputs=inputs,
        required=frozenset(required),
        datatypes=("BYTES",),
        outputs={each.name: each for each in outputs},
    )


def _graph_outputs(encoder: Encoder) -> dict[str, TensorMetadata]:
    """Return the outputs of the manifest; a width that the graph leaves open is taken from the task if it fixes one."""
    manifest = encoder.manifest
    widths = {
        TEXT_CLASSIFICATION.name: len(manifest.labels),
        TOKEN_CLASSIFICATION.name: len(manifest.labels),
        FILL_MASK.name: manifest.architecture.vocab_size,
        FEATURE_EXTRACTION.name: manifest.architecture.hidden_size,
    }
    found = {}
    for name in manifest.outputs:
        per_token = not (encoder.task.one_output_per_text or name == SENTENCE_EMBEDDING)
        shape = [-1, -1] if per_token else [-1]
        if manifest.task != QUESTION_ANSWERING.name:
            shape.append(encoder.session.output_widths[name] or widths.get(manifest.task) or -1)
        found[name] = TensorMetadata(name=name, datatype="FP32", shape=shape)
    return found


# ---------------------------------------------------------------- the endpoints


def v2_routes(engine: "Engine", limits: Limits) -> list[BaseRoute]:
    """Return the routes of the protocol for all models."""
    models = {name: ModelV2(name, engine, limits) for name in engine.models}

    async def about(_: Request) -> Response:
        server = ServerMetadata(name="potstill", version=potstill.__version__, extensions=_EXTENSIONS)
        return JSONResponse(server.model_dump())

    async def live(_: Request) -> Response:
        if not engine.is_alive():
            raise unavailable("the engine does not answer; restart the server")
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        check_ready(engine, request)
        return JSONResponse({"ready": True})

    routes: list[BaseRoute] = [
        Route("/v2", about),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
    ]
    for version in VERSIONS:
        path = f"/v2/models/{{name}}{version}"
        routes.append(Route(f"{path}/infer", per_model(models, ModelV2.infer), methods=["POST"]))
        routes.append(Route(f"{path}/ready", per_model(models, ModelV2.ready)))
        routes.append(Route(path, per_model(models, ModelV2.about)))
    return routes


class ModelV2:
    """The endpoints of one model.

    Args:
        name: the model's name.
        engine: what answers; it has the model under this name.
        limits: limits of sizes, counts and times.
    """

    def __init__(self, name: str, engine: "Engine", limits: Limits) -> None:
        self._name = name
        self._engine = engine
        self._limits = limits
        self._encoder: Encoder = engine.models[name]
        self._signature = signature_of(self._encoder)

    async def about(self, _: Request) -> Response:
        """Answer `GET /v2/models/NAME`: the model's metadata."""
        return JSONResponse(self._signature.metadata(self._name).model_dump())

    async def ready(self, request: Request) -> Response:
        """Answer `GET /v2/models/NAME/ready`."""
        check_ready(self._engine, request)
        return JSONResponse({"name": self._name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Answer `POST /v2/models/NAME/infer`."""
        client: str = request.state.client
        self._engine.refuse_if_full(self._name, client=client)
        _check_headers(request)
        timeout_s = timeout_of(request, self._limits)
        body = await read_body(request, self._limits)
        length = request.headers.get("inference-header-content-length")
        parsed = read_infer(body, length, signature=self._signature, limits=self._limits)
        if parsed.timeout_s is not None:
            timeout_s = min(parsed.timeout_s, self._limits.request_seconds if timeout_s is None else timeout_s)
        prepare, characters = (self._texts if parsed.mode.kind == "text" else self._ids)(parsed)
        answered = await self._engine.answer(
            self._name,
            prepare,
            characters=characters,
            client=client,
            timeout_s=timeout_s,
            received_at=request.scope["state"].get("received_at"),
        )
        if parsed.mode.kind == "text":
            columns = {name: _column(answered.answers, name) for name in parsed.wanted}
        else:  # stacking works because all rows of such a request have the same number of tokens
            columns = {name: np.stack([row[name] for row in answered.answers]) for name in parsed.wanted}
        return write_response(parsed, columns, model=self._name, headers=timing_headers(answered))

    def _texts(self, parsed: "ParsedRequest") -> tuple[Callable[[], Features], list[int]]:
        """Return a function that prepares the request as `POST /predict` would, and the characters of each input."""
        encoder, columns, windows = self._encoder, parsed.texts, self._limits.windows
        parameters = validate(encoder.task.parameters, dict(parsed.parameters), "parameters")
        items: list[Any] = columns.get("text", [])
        if "text_pair" in columns:
            sides = zip(columns["text"], columns["text_pair"], strict=True)
            items = [Pair(text=text, text_pair=pair) for text, pair in sides]
        elif "question" in columns:
            asks = zip(columns["question"], columns["context"], strict=True)
            items = [Question(question=question, context=context) for question, context in asks]
        prepare = partial(encoder.prepare, items, parameters, most_windows=windows)
        return prepare, [sum(map(len, item)) for item in zip(*columns.values(), strict=True)]

    def _ids(self, parsed: "ParsedRequest") -> tuple[Callable[[], Features], list[int]]:
        """Return a function that passes the ids to the model unchanged, and an estimate of each row's characters."""
        if parsed.parameters:
            raise invalid("parameters has a key that is not known; the task's parameters go with texts, not with ids")
        ids, wanted = parsed.ids, parsed.wanted
        tokens = ids["input_ids"].shape[1]
        sizes = {name: self._signature.numbers(name, rows=parsed.rows, tokens=tokens) for name in wanted}
        written = sum(size for name, size in sizes.items() if not wanted[name])
        check_numbers(sum(sizes.values()), written=written)  # before the run, as far as the sizes are known

        def keep(_: int, outputs: Outputs) -> Outputs:
            return {name: np.array(outputs[name], dtype=np.float32) for name in wanted}

        def prepare() -> Features:
            rows = [{name: values[row] for name, values in ids.items()} for row in range(parsed.rows)]
            return Features(rows=rows, decode=_read_outputs, keep=keep)

        return prepare, [tokens * _CHARACTERS] * parsed.rows


def _read_outputs(rows: Sequence[Outputs]) -> list[Any]:
    for row in rows:
        for name, values in row.items():
            if not np.isfinite(values).all():
                raise CheckError(f"the model gave NaN or infinity as {name}")
    return list(rows)


def _check_headers(request: Request) -> None:
    kind, _ = media_type_of(request)
    if kind not in _MEDIA_TYPES or is_encoded(request):
        raise unsupported(
            "the body must be plain: Content-Type application/json or application/octet-stream, no Content-Encoding"
        )
    # A body without a type is no reason for a CORS preflight, so any web page could have its reader's browser send one:
    # Fetch standard, "CORS-safelisted request-header".
    origin = request.headers.get("origin")
    if not kind and origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise unsupported("a web page must send Content-Type: application/json or application/octet-stream")


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """A request whose inputs, outputs and parameters are checked."""

    mode: Mode
    rows: int
    texts: Mapping[str, list[str]]
    """In the mode "text": input name -> one text per row."""
    ids: Mapping[str, Ids]
    """In the mode "ids": input name -> shape (rows, tokens)."""
    wanted: Mapping[str, bool]
    """Output name -> whether it is sent as binary after the JSON."""
    id: str | None
    timeout_s: float | None
    parameters: Mapping[str, Any]
    """The task's parameters, not checked yet."""


class _BinaryTail:
    """The bytes after the JSON; binary tensors take them in the order in which the JSON names them."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: Any, where: str) -> memoryview:
        """Return the next `size` bytes, without a copy.

        Raises:
            RequestError: 422 if `size` is no number of bytes, 400 if there are fewer bytes.
        """
        if type(size) is not int or size < 0:  # not isinstance: True is an int to Python
            raise invalid(f"{where}.parameters.binary_data_size must be a whole number of bytes, at least 0")
        if size > len(self._data) - self._at:
            raise malformed(f"{where}.parameters.binary_data_size is more than the bytes that the body has left")
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def end(self) -> None:
        """Refuse bytes that belong to no tensor.

        Raises:
            RequestError: 400.
        """
        if self._at != len(self._data):
            raise malformed(f"the body has {len(self._data) - self._at} bytes behind the last tensor")


def read_infer(body: bytes, header_length: str | None, *, signature: Signature, limits: Limits) -> ParsedRequest:
    """Parse and check the body of an infer request.

    Args:
        body: the whole body.
        header_length: the header Inference-Header-Content-Length: bytes of JSON in front; None if all of it is JSON.
        signature: the inputs and outputs of the model.
        limits: limits of sizes, counts and times.

    Raises:
        RequestError: 400 if it cannot be read, 413 if it is over a limit, 422 if it does not fit the model.
    """
    size = _header_size(header_length, len(body))
    tail = _BinaryTail(memoryview(body)[size:])
    envelope = validate(InferRequest, parse_object(body[:size], limits, shape=_SHAPE), "the body")
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
    return ParsedRequest(
        mode=mode,
        rows=rows,
        texts=texts,
        ids=ids,
        wanted=_wanted(envelope.outputs, mode, binary=common.binary_data_output),
        id=envelope.id,
        timeout_s=None if common.timeout is None else common.timeout / 1e6,
        parameters={name: value for name, value in envelope.parameters.items() if name not in own},
    )


def _header_size(given: str | None, size: int) -> int:
    if given is None:
        return size
    # isdigit alone takes other scripts' digits; and int of a very long text raises (sys.set_int_max_str_digits).
    if not (given.isascii() and given.isdigit()) or len(given) > 12 or int(given) > size:
        raise malformed("Inference-Header-Content-Length must be the number of bytes of JSON that the body begins with")
    return int(given)


def _tensors(inputs: Sequence[Any], signature: Signature) -> tuple[Mode, list[InferTensor]]:
    """Return the checked inputs, and the mode to which they all belong; refuse a name that comes twice."""
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
    """Return the number of rows and of tokens per row, which all tensors must share; tokens are 1 for texts."""
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
    """Return the data as a flat list, row by row; the protocol allows nested and flat data."""
    data: list[Any] = tensor.data or []
    # The first entry decides; others of another kind are refused by whoever reads the entries.
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
    return np.frombuffer(data, dtype=kind).reshape(rows, tokens).astype(np.int64)  # a copy: the body can be freed


def _binary_texts(data: memoryview, rows: int, where: str) -> list[str]:
    texts, at = [], 0
    for index in range(rows):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[start - _LENGTH_BYTES : start], "little")
        # A slice beyond the end is short and no error, so both ends are checked before the text is read.
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
    """Return all inputs of the graph, after checking their values.

    A missing attention_mask is all ones and missing token_type_ids are all zeros, as a tokenizer makes them of one
    text. Ids beyond the vocabulary are refused here, because one of them fails a run that other requests may share.
    """
    shape = ids["input_ids"].shape
    whole = {
        name: ids[name] if name in ids else np.full(shape, name == "attention_mask", dtype=np.int64)
        for name in signature.ids.inputs
    }
    below = {"input_ids": signature.vocab_size, "attention_mask": 2, "token_type_ids": signature.types}
    for name, values in whole.items():
        if values.min() < 0 or values.max() >= below[name]:
            raise invalid(f"{name} has a number that is not from 0 to {below[name] - 1}")
    # Without a token to attend to there is no meaningful answer: a softmax over none is NaN, or uniform over padding.
    if "attention_mask" in whole and not whole["attention_mask"].any(axis=1).all():
        raise invalid("attention_mask hides every token of a row")
    return whole


def _wanted(outputs: Sequence[Any] | None, mode: Mode, *, binary: bool) -> dict[str, bool]:
    """Return the requested outputs in their order, and whether each is sent as binary after the JSON."""
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


# ---------------------------------------------------------------- writing


def check_numbers(count: int, *, written: int) -> None:
    """Refuse an answer of too many numbers, of which `written` would be sent as JSON.

    Raises:
        RequestError: 413.
    """
    if count > MOST_NUMBERS:
        raise too_large(f"the answer has {count} numbers, over {MOST_NUMBERS}; send fewer or shorter texts")
    if written > MOST_WRITTEN:
        raise too_large(
            f"the answer has {written} numbers as JSON, over {MOST_WRITTEN}; ask for binary_data, or send fewer texts"
        )


def write_response(
    parsed: ParsedRequest, columns: Mapping[str, Column], *, model: str, headers: Mapping[str, str]
) -> Response:
    """Return the response of an infer request.

    Args:
        parsed: the request.
        columns: the requested outputs, in the order of the request.
        model: the model's name.
        headers: further headers of the response.

    Raises:
        RequestError: 413 if it has too many numbers.
    """
    sizes = {name: column.size for name, column in columns.items() if isinstance(column, np.ndarray)}
    written = sum(size for name, size in sizes.items() if not parsed.wanted[name])
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
        if parsed.wanted[name]:
            tail.append(_behind(column))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = _written(column)
        outputs.append(output)
    content = {"model_name": model, "model_version": VERSION}
    head = to_json(content | ({} if parsed.id is None else {"id": parsed.id}) | {"outputs": outputs})
    if not any(parsed.wanted.values()):
        return Response(head, headers=headers, media_type="application/json")
    return Response(
        b"".join([head, *tail]),
        headers={**headers, "Inference-Header-Content-Length": str(len(head))},
        media_type="application/octet-stream",
    )


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
