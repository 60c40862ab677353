"""The document of `GET /openapi.json`: OpenAPI 3.1, made of the pydantic models that check requests and answers.

The schemas depend on the models that are served: the items of a task, the longest text, the outputs. JSON Schema cannot
say that shape, datatype and data of a tensor agree, so a request of the Open Inference Protocol that fits the document
may still get a 400, 413 or 422.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from pydantic import BaseModel, TypeAdapter

import potstill
from potstill.serve.encoder import Encoder
from potstill.serve.http import oip
from potstill.serve.http.info import mask_token
from potstill.serve.http.openai import EmbeddingsRequest, EmbeddingsResponse
from potstill.serve.http.predict import Tokenized
from potstill.serve.http.request import LONGEST_TIMEOUT_MS, SHORTEST_TIMEOUT_MS
from potstill.serve.http_errors import ErrorType
from potstill.serve.limits import Limits
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, TEXT_CLASSIFICATION

if TYPE_CHECKING:
    from potstill.serve.batching import Engine

Schema: TypeAlias = dict[str, Any]
Operation: TypeAlias = dict[str, Any]

_ERRORS = {
    400: "The request cannot be read: not HTTP, not JSON, not UTF-8, nested too deeply, or for another host.",
    401: "A key is needed.",
    404: "There is no such path or model.",
    405: "The path answers other methods.",
    408: "The request did not come to its end in time.",
    413: "The body, a text or the number of texts is over a limit.",
    414: "The URL is too long.",
    415: "The body is not plain JSON in UTF-8.",
    422: "The request was understood and asks for what cannot be.",
    429: "Too much is waiting; Retry-After says when it would be taken.",
    431: "The headers are too large.",
    500: "The model failed on this request.",
    503: "The server is starting or ending, or its engine does not answer.",
    504: "Not answered within the time that the request had.",
}
# Errors of every path (the HTTP layer's), and those of paths that read a body and ask a model.
_ALWAYS = (400, 408, 414, 431, 503)
_WORK = (413, 415, 422, 429, 500, 504)
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_LENGTH = "Inference-Header-Content-Length"
_TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "Milliseconds after which the answer is of no use: the work is then dropped, and a 504 sent.",
    "schema": {"type": "integer", "minimum": SHORTEST_TIMEOUT_MS, "maximum": LONGEST_TIMEOUT_MS},
}
_MILLISECONDS = {"schema": {"type": "number", "minimum": 0}, "required": True}
_TIMINGS = {
    "X-Tokenize-Time-Ms": _MILLISECONDS | {"description": "Milliseconds in the tokenizer."},
    "X-Queue-Time-Ms": _MILLISECONDS | {"description": "Milliseconds of waiting."},
    "X-Inference-Time-Ms": _MILLISECONDS | {"description": "Milliseconds in the model."},
    "X-Tokens": {"schema": _COUNT, "required": True, "description": "Tokens read."},
    "X-Request-Id": {"schema": {"type": "string"}, "required": True, "description": "The request's own, or new."},
}


def document(
    engine: "Engine", limits: Limits, *, needs_key: Callable[[str, str], bool] | None = None
) -> dict[str, Any]:
    """Return the document as JSON values.

    Args:
        engine: the engine whose models are described.
        limits: limits that appear in the schemas as maxLength and maxItems.
        needs_key: whether a method of a path needs a bearer key; if None, none does.
    """
    first, vectors = next(iter(engine.models)), _vector_models(engine)
    paths: dict[str, dict[str, Operation]] = {
        "/predict": {"post": _predict(engine.models[first], limits)},
        "/tokenize": {"post": _tokenize(engine.models[first], limits)},
        "/": {
            "get": _page("A page to try the model by hand"),
            "post": _hugging_face(engine.models[first], limits),
        },
        "/docs": {"get": _page("This document as a page")},
        **_state_paths(),
    }
    if vectors:
        paths["/embed"] = {"post": _embed(engine.models[vectors[0]], limits)}
        paths["/v1/embeddings"] = {"post": _embeddings(engine, limits, vectors)}
    for name, encoder in engine.models.items():
        paths[f"/v1/models/{name}"] = {"get": _get(f"{name}, as OpenAI describes it", {"type": "object"}, path="/v1/")}
        paths[f"/models/{name}"] = {
            "get": _get(f"What {name} is, and how it was checked", {"type": "object"}),
            "post": _hugging_face(encoder, limits, name),
        }
        paths[f"/models/{name}/predict"] = {"post": _predict(encoder, limits, name)}
        paths[f"/models/{name}/tokenize"] = {"post": _tokenize(encoder, limits, name)}
        if name in vectors:
            paths[f"/models/{name}/embed"] = {"post": _embed(encoder, limits, name)}
        for version in oip.VERSIONS:
            path = f"/v2/models/{name}{version}"
            paths[path] = {"get": _v2_get(f"What {name} takes and gives", oip.ModelMetadata)}
            paths[f"{path}/ready"] = {"get": _v2_get(f"Whether {name} takes requests", oip.ModelReady)}
            paths[f"{path}/infer"] = {"post": _infer(name, encoder)}
    if needs_key is not None:
        for path, operations in paths.items():
            for method, operation in operations.items():
                if needs_key(method.upper(), path):
                    operation["security"] = [{"key": []}]
                    operation["responses"] |= _errors((401,), path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "potstill",
            "version": potstill.__version__,
            "summary": f"Answers of {', '.join(engine.models)}.",
            "description": "One input gives one answer, a list of inputs a list. Every error has one shape, and under "
            "/v1 that of OpenAI.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _error_schema(), "OpenAIError": _openai_error_schema()},
            **({"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if needs_key else {}),
        },
    }


def _vector_models(engine: "Engine") -> list[str]:
    return [name for name, model in engine.models.items() if model.manifest.task == FEATURE_EXTRACTION.name]


# ---------------------------------------------------------------- what is asked of a model


def _predict(encoder: Encoder, limits: Limits, name: str | None = None) -> Operation:
    return _work(
        _title("Predict", encoder, name),
        _inputs_body(encoder, limits),
        _one_or_more(_schema(encoder.task.answer)),
        description="A list of inputs gives a list of answers, one input gives one answer.",
    )


def _embed(encoder: Encoder, limits: Limits, name: str | None = None) -> Operation:
    return _work(
        _title("Embed", encoder, name),
        _inputs_body(encoder, limits, flat=True),
        _one_or_more({"type": "array", "items": {"type": "number"}}),
        description="One vector per text. The parameters stand beside the inputs.",
    )


def _hugging_face(encoder: Encoder, limits: Limits, name: str | None = None) -> Operation:
    task, answer = encoder.manifest.task, _schema(encoder.task.answer)
    flat = task == FEATURE_EXTRACTION.name
    return _work(
        _title("Predict, as the Hugging Face API does", encoder, name),
        _inputs_body(encoder, limits, flat=flat),
        {"type": "array", "items": answer} if flat or task == TEXT_CLASSIFICATION.name else _one_or_more(answer),
        description="For huggingface_hub.InferenceClient. As /predict, but one text's labels and one text's vector "
        "come as a list of one.",
    )


def _tokenize(encoder: Encoder, limits: Limits, name: str | None = None) -> Operation:
    text = {"type": "string", "maxLength": _most_characters(encoder, limits)}
    schema = _object({"inputs": _one_or_more(text, most=limits.inputs)})
    return _work(
        _title("Tokenize", encoder, name),
        _body(schema, {"inputs": "a great movie"}),
        _one_or_more(_schema(Tokenized)),
        description="How texts are cut into the tokens that the model reads.",
    )


def _embeddings(engine: "Engine", limits: Limits, vectors: list[str]) -> Operation:
    most = min(_most_characters(engine.models[name], limits) for name in vectors)
    schema = _schema(EmbeddingsRequest)
    schema["properties"]["input"] = _one_or_more({"type": "string", "maxLength": most}, most=limits.inputs)
    schema["properties"]["model"] = {"anyOf": [{"enum": vectors}, {"type": "null"}]}
    _cap_dimensions(schema, engine.models[vectors[0]])
    return _work(
        "Embed, as OpenAI does",
        _body(schema, {"input": "a great movie", "model": vectors[0]}),
        _schema(EmbeddingsResponse),
        description="For the openai client.",
        path="/v1/embeddings",
    )


def _inputs_body(encoder: Encoder, limits: Limits, *, flat: bool = False) -> Schema:
    shape = encoder.task
    item = _capped(_schema(shape.item), _most_characters(encoder, limits))
    example = shape.example
    if encoder.manifest.task == FILL_MASK.name:
        # BERT's mask is [MASK], RoBERTa's is <mask>: the example must work when it is tried.
        item["description"] = "A text with the model's mask token in it."
        example = str(example).replace("[MASK]", mask_token(encoder) or "[MASK]")
    parameters = _schema(shape.parameters)
    if encoder.manifest.task == FEATURE_EXTRACTION.name:
        _cap_dimensions(parameters, encoder)
    beside = parameters["properties"] if flat else {"parameters": parameters}
    schema = _object({"inputs": _one_or_more(item, most=limits.inputs)} | beside, required=["inputs"])
    return _body(schema, {"inputs": example})


def _work(title: str, body: Schema, answer: Schema, *, description: str, path: str = "") -> Operation:
    answered = {"description": "The answer.", "headers": _TIMINGS, "content": {"application/json": {"schema": answer}}}
    errors = (404,) if path else ()  # only under /v1 the body names a model, which may not exist
    return {
        "tags": ["model"],
        "summary": title,
        "description": description,
        "parameters": [_TIMEOUT],
        "requestBody": body,
        "responses": {"200": answered} | _errors((*_ALWAYS, *_WORK, *errors), path),
    }


def _infer(name: str, encoder: Encoder) -> Operation:
    signature, example = oip.signature_of(encoder), encoder.task.example
    inputs = [
        {"name": key, "shape": [1], "datatype": "BYTES", "data": [text.replace("[MASK]", mask_token(encoder) or "")]}
        for key, text in ({"text": example} if isinstance(example, str) else example).items()
    ]
    request = _schema(oip.InferRequest)
    # The model has list[Any] there, so that tensors are checked one by one and errors name their place.
    request["properties"]["inputs"]["items"] = _schema(oip.InferTensor)
    operation = _work(
        f"Infer: {encoder.manifest.task}, by {name}",
        _body(request, {"inputs": inputs}),
        _schema(oip.InferResponse),
        description=f"Texts ({', '.join(signature.text.inputs)}) give {', '.join(signature.text.outputs)}; ids "
        f"({', '.join(signature.ids.inputs)}) give {', '.join(signature.ids.outputs)}. Tensors may also go and come "
        f"as bytes behind the JSON, as in Triton's binary tensor extension: the header {_LENGTH} says how long the "
        "JSON is.",
    )
    length = {"schema": _COUNT, "description": "Bytes of JSON in front of the tensors' bytes, where there are such."}
    operation["responses"]["200"]["headers"] = _TIMINGS | {_LENGTH: length}
    operation["responses"]["200"]["content"]["application/octet-stream"] = {}
    return operation | {"tags": ["open inference protocol"]}


# ---------------------------------------------------------------- what is only read


def _state_paths() -> dict[str, dict[str, Operation]]:
    free: Schema = {"type": "object"}
    status = _object({"status": {"const": "ok"}})
    return {
        "/health/live": {"get": _get("Whether the process answers", status, tag="health")},
        "/health/ready": {"get": _get("Whether requests are taken", status, tag="health")},
        "/health": {"get": _get("The same as /health/ready", status, tag="health")},
        "/info": {"get": _get("What is served, and within which limits; /models/{name} says how it was checked", free)},
        "/metrics": {"get": _get("Counters for Prometheus", {"type": "string"}, media="text/plain")},
        "/v1/models": {"get": _get("The models, as OpenAI lists them", free, path="/v1/")},
        "/openapi.json": {"get": _get("This document", free)},
        "/v2": {"get": _v2_get("Who answers", oip.ServerMetadata)},
        "/v2/health/live": {"get": _v2_get("Whether the process answers", oip.Live, tag="health")},
        "/v2/health/ready": {"get": _v2_get("Whether requests are taken", oip.Ready, tag="health")},
    }


def _v2_get(title: str, answer: type[BaseModel], *, tag: str = "open inference protocol") -> Operation:
    return _get(title, _schema(answer), tag=tag)


def _page(title: str) -> Operation:
    return _get(title, {"type": "string"}, media="text/html", tag="pages")


def _get(
    title: str, schema: Schema, *, media: str = "application/json", tag: str = "facts", path: str = ""
) -> Operation:
    answer = {"description": "The answer.", "content": {media: {"schema": schema}}}
    return {"tags": [tag], "summary": title, "responses": {"200": answer} | _errors(_ALWAYS, path)}


# ---------------------------------------------------------------- schemas


def _errors(statuses: Iterable[int], path: str = "") -> dict[str, Any]:
    name = "OpenAIError" if path.startswith("/v1/") else "Error"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {
        str(status): {"description": _ERRORS[status], "content": content}
        | ({"headers": _RETRY_AFTER} if status in {429, 503} else {})
        for status in sorted(statuses)
    }


def _error_schema() -> Schema:
    return _object({"error": {"type": "string"}, "error_type": {"enum": list(get_args(ErrorType))}})


def _openai_error_schema() -> Schema:
    text = {"type": "string"}
    return _object({"error": _object({"message": text, "type": text, "param": {"type": "null"}, "code": text})})


def _title(verb: str, encoder: Encoder, name: str | None) -> str:
    return f"{verb}: {encoder.manifest.task}" + (f", by {name}" if name else "")


def _most_characters(encoder: Encoder, limits: Limits) -> int:
    return limits.characters_per_token * encoder.manifest.max_length


def _body(schema: Schema, example: object) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def _object(properties: Mapping[str, Schema], *, required: list[str] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def _one_or_more(item: Schema, *, most: int | None = None) -> Schema:
    several: Schema = {"type": "array", "items": item}
    if most is not None:
        several |= {"minItems": 1, "maxItems": most}
    return {"anyOf": [item, several]}


def _cap_dimensions(schema: Schema, encoder: Encoder) -> None:
    width = encoder.session.output_widths[encoder.session.outputs[-1]]
    if width is not None:
        schema["properties"]["dimensions"]["anyOf"][0]["maximum"] = width


def _capped(schema: Any, most: int) -> Any:
    """Return a copy of a schema in which every string has `maxLength`."""
    if isinstance(schema, list):
        return [_capped(item, most) for item in schema]
    if not isinstance(schema, dict):
        return schema
    capped = {key: _capped(item, most) for key, item in schema.items()}
    return capped | {"maxLength": most} if schema.get("type") == "string" else capped


def _schema(kind: Any) -> Schema:
    """Return a type's JSON schema with `$ref`s replaced by their definitions, and without pydantic's titles."""
    schema = TypeAdapter(kind).json_schema()
    found: Schema = _inline(schema, schema.pop("$defs", {}))
    return found


def _inline(value: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_inline(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:  # no model refers to itself, so this ends
        return _inline(definitions[value["$ref"].rpartition("/")[2]], definitions)
    # A title is a string; a property of that name is a schema and stays.
    return {
        key: _inline(item, definitions) for key, item in value.items() if not (key == "title" and isinstance(item, str))
    }
