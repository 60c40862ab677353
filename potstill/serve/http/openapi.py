"""`GET /openapi.json`: OpenAPI 3.1, made from the models that check the requests and from what is served."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import TypeAdapter

import potstill
from potstill.serve.encoder import Encoder
from potstill.serve.http.context import Context
from potstill.serve.http.exchange import LONGEST_TIMEOUT_MS, SHORTEST_TIMEOUT_MS
from potstill.serve.http.facts import mask_token
from potstill.serve.http.openai import EmbeddingsBody
from potstill.serve.http.tokens import Tokenized
from potstill.serve.http_errors import ErrorType
from potstill.serve.limits import Limits
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, TEXT_CLASSIFICATION

_ERRORS = {
    400: "The request cannot be read: not HTTP, not JSON, not UTF-8, or nested too deeply.",
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
_ALWAYS = (400, 408, 414, 431, 503)
_WORK = (413, 415, 422, 429, 500, 504)
_RETRIES = (429, 503)
_TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "Milliseconds after which the answer is of no use: the work is then dropped, and a 504 sent.",
    "schema": {"type": "integer", "minimum": SHORTEST_TIMEOUT_MS, "maximum": LONGEST_TIMEOUT_MS},
}


def document(context: Context, *, with_keys: bool, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document.

    Args:
        context: what is served.
        with_keys: whether a bearer key is needed.
        more: paths that are described elsewhere, as OpenAPI has them; their errors and the header
            X-Request-Timeout-Ms are added here.
    """
    paths = _work_paths(context) | _fact_paths(context)
    for path, operations in _page_paths().items():
        paths[path] = operations | paths.get(path, {})
    for path, operations in more.items():
        paths[path] = {method: _with_errors(operation, method) for method, operation in operations.items()}
    return _secured(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "potstill",
                "version": potstill.__version__,
                "summary": f"Answers of {', '.join(context.models)}.",
                "description": "One input gives one answer, a list of inputs a list. Every error has one shape.",
            },
            "paths": paths,
            "components": {"schemas": {"Error": _error_schema()}, "securitySchemes": {}},
        },
        with_keys=with_keys,
    )


def _with_errors(operation: dict[str, Any], method: str) -> dict[str, Any]:
    if method != "post":
        return operation | {"responses": operation["responses"] | _errors(_ALWAYS)}
    parameters = [*operation.get("parameters", ()), _TIMEOUT]
    return operation | {
        "parameters": parameters, "responses": operation["responses"] | _errors(_ALWAYS + _WORK),
    }  # fmt: skip


def _work_paths(context: Context) -> dict[str, Any]:
    first = next(iter(context.models))
    paths = {
        "/": {"post": _hugging_face(context.models[first], context.limits)},
        "/predict": {"post": _predict(context.models[first], context.limits)},
        "/tokenize": {"post": _tokenize(context.models[first], context.limits)},
    }
    vectors = [name for name, model in context.models.items() if model.manifest.task == FEATURE_EXTRACTION.name]
    if vectors:
        paths["/embed"] = {"post": _embed(context.models[vectors[0]], context.limits)}
        paths["/v1/embeddings"] = {"post": _embeddings(context, vectors)}
    for name, encoder in context.models.items():
        paths[f"/models/{name}"] = {
            "get": _get(f"What {name} is, and how it was checked", {"type": "object"})["get"],
            "post": _hugging_face(encoder, context.limits, name=name),
        }
        paths[f"/models/{name}/predict"] = {"post": _predict(encoder, context.limits, name=name)}
        paths[f"/models/{name}/tokenize"] = {"post": _tokenize(encoder, context.limits, name=name)}
        if name in vectors:
            paths[f"/models/{name}/embed"] = {"post": _embed(encoder, context.limits, name=name)}
    return paths


def _predict(encoder: Encoder, limits: Limits, *, name: str | None = None) -> dict[str, Any]:
    answer = _schema(encoder.task.answer, mode="serialization")
    return _work(
        _title("Predict", encoder, name),
        _body(_inputs_schema(encoder, limits), _example(encoder)),
        _one_or_more(answer),
        description="A list of inputs gives a list of answers, one input gives one answer.",
    )


def _embed(encoder: Encoder, limits: Limits, *, name: str | None = None) -> dict[str, Any]:
    return _work(
        _title("Embed", encoder, name),
        _body(_inputs_schema(encoder, limits, flat=True), _example(encoder)),
        _one_or_more({"type": "array", "items": {"type": "number"}}),
        description="One vector per text. The parameters stand beside the inputs.",
    )


def _hugging_face(encoder: Encoder, limits: Limits, *, name: str | None = None) -> dict[str, Any]:
    task = encoder.manifest.task
    answer = _schema(encoder.task.answer, mode="serialization")
    flat = task == FEATURE_EXTRACTION.name
    wrapped = flat or task == TEXT_CLASSIFICATION.name
    return _work(
        _title("Predict, as the Hugging Face API does", encoder, name),
        _body(_inputs_schema(encoder, limits, flat=flat), _example(encoder)),
        {"type": "array", "items": answer} if wrapped else _one_or_more(answer),
        description="For huggingface_hub.InferenceClient. As /predict, but one text's labels and one text's vector "
        "come as a list of one.",
    )


def _tokenize(encoder: Encoder, limits: Limits, *, name: str | None = None) -> dict[str, Any]:
    text = {"type": "string", "maxLength": _most(encoder, limits)}
    schema = _object({"inputs": _one_or_more(text, most=limits.inputs)}, required=["inputs"])
    return _work(
        _title("Tokenize", encoder, name),
        _body(schema, {"inputs": "a great movie"}),
        _one_or_more(_schema(Tokenized, mode="serialization")),
        description="How texts are cut into the tokens that the model reads.",
    )


def _embeddings(context: Context, vectors: list[str]) -> dict[str, Any]:
    most = min(_most(context.models[name], context.limits) for name in vectors)
    schema = _schema(EmbeddingsBody)
    schema["properties"]["input"] = _one_or_more({"type": "string", "maxLength": most}, most=context.limits.inputs)
    _cap_dimensions(schema, context.models[vectors[0]])
    schema["properties"]["model"] = {"anyOf": [{"enum": vectors}, {"type": "null"}]}
    vector = {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}
    count = {"type": "integer", "minimum": 0}
    row = _object({"object": {"const": "embedding"}, "index": count, "embedding": vector})
    answer = _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": row},
            "model": {"enum": vectors},
            "usage": _object({"prompt_tokens": count, "total_tokens": count}),
        }
    )
    return _work(
        "Embed, as OpenAI does",
        _body(schema, {"input": "a great movie", "model": vectors[0]}),
        answer,
        description="For the openai client.",
        errors=(404,),
    )


def _fact_paths(context: Context) -> dict[str, Any]:
    free: dict[str, Any] = {"type": "object"}
    status = _object({"status": {"const": "ok"}})
    paths = {
        "/health/live": _get("Whether the process answers", status, tag="health"),
        "/health/ready": _get("Whether requests are taken", status, tag="health"),
        "/health": _get("The same as /health/ready", status, tag="health"),
        "/info": _get("What is served, and within which limits; /models/{name} says how it was checked", free),
        "/metrics": _get("Counters for Prometheus", {"type": "string"}, media="text/plain"),
        "/v1/models": _get("The models, as OpenAI lists them", free),
        "/openapi.json": _get("This document", free),
    }
    for name in context.models:
        paths[f"/v1/models/{name}"] = _get(f"{name}, as OpenAI describes it", free)
    return paths


def _page_paths() -> dict[str, Any]:
    pages = {"/": "A page to try the model by hand", "/docs": "This document as a page"}
    return {path: _get(title, {"type": "string"}, media="text/html", tag="pages") for path, title in pages.items()}


def _get(title: str, schema: dict[str, Any], *, media: str = "application/json", tag: str = "facts") -> dict[str, Any]:
    answer = {"description": "The answer.", "content": {media: {"schema": schema}}}
    return {"get": {"tags": [tag], "summary": title, "responses": {"200": answer} | _errors(_ALWAYS)}}


def _work(
    title: str, body: dict[str, Any], answer: dict[str, Any], *, description: str, errors: tuple[int, ...] = ()
) -> dict[str, Any]:
    number = {"schema": {"type": "number", "minimum": 0}, "required": True}
    headers = {
        "X-Tokenize-Time-Ms": number | {"description": "Milliseconds in the tokenizer."},
        "X-Queue-Time-Ms": number | {"description": "Milliseconds of waiting."},
        "X-Inference-Time-Ms": number | {"description": "Milliseconds in the model."},
        "X-Tokens": {"schema": {"type": "integer", "minimum": 0}, "required": True, "description": "Tokens read."},
        "X-Request-Id": {"schema": {"type": "string"}, "required": True, "description": "The request's own, or new."},
    }
    answered = {"description": "The answer.", "headers": headers, "content": {"application/json": {"schema": answer}}}
    return {
        "tags": ["model"],
        "summary": title,
        "description": description,
        "parameters": [_TIMEOUT],
        "requestBody": body,
        "responses": {"200": answered} | _errors(_ALWAYS + _WORK + errors),
    }


def _errors(statuses: tuple[int, ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {}
    for status in sorted(statuses):
        responses[str(status)] = {"description": _ERRORS[status], "content": content}
        if status in _RETRIES:
            responses[str(status)]["headers"] = {
                "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}
            }
    return responses


def _body(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def _inputs_schema(encoder: Encoder, limits: Limits, *, flat: bool = False) -> dict[str, Any]:
    shape = encoder.task
    item = _capped(_schema(shape.item), _most(encoder, limits))
    if encoder.manifest.task == FILL_MASK.name:
        item["description"] = "A text with the model's mask token in it."
    parameters = _schema(shape.parameters)
    if encoder.manifest.task == FEATURE_EXTRACTION.name:
        _cap_dimensions(parameters, encoder)
    beside = parameters["properties"] if flat else {"parameters": parameters}
    return _object({"inputs": _one_or_more(item, most=limits.inputs)} | beside, required=["inputs"])


def _cap_dimensions(schema: dict[str, Any], encoder: Encoder) -> None:
    width = encoder.session.engine.get_outputs()[-1].shape[-1]
    if isinstance(width, int):
        schema["properties"]["dimensions"]["anyOf"][0]["maximum"] = width


def _example(encoder: Encoder) -> dict[str, Any]:
    example = encoder.task.example
    if isinstance(example, str):
        example = example.replace("[MASK]", mask_token(encoder) or "[MASK]")
    return {"inputs": example}


def _title(verb: str, encoder: Encoder, name: str | None) -> str:
    return f"{verb}: {encoder.manifest.task}" + (f", by {name}" if name else "")


def _most(encoder: Encoder, limits: Limits) -> int:
    return limits.characters_per_token * encoder.manifest.max_length


def _one_or_more(item: dict[str, Any], *, most: int | None = None) -> dict[str, Any]:
    several: dict[str, Any] = {"type": "array", "items": item}
    if most is not None:
        several |= {"minItems": 1, "maxItems": most}
    return {"anyOf": [item, several]}


def _object(properties: dict[str, Any], *, required: list[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def _error_schema() -> dict[str, Any]:
    return _object({"error": {"type": "string"}, "error_type": {"enum": list(get_args(ErrorType))}})


def _schema(kind: Any, *, mode: Any = "validation") -> dict[str, Any]:
    """Return a type's schema with its definitions filled in, and without the titles that pydantic makes of names."""
    schema = TypeAdapter(kind).json_schema(mode=mode)
    found: dict[str, Any] = _inline(schema, schema.pop("$defs", {}))
    return found


def _inline(value: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_inline(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inline(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {
        key: _inline(item, definitions) for key, item in value.items() if not (key == "title" and isinstance(item, str))
    }


def _capped(schema: Any, most: int) -> Any:
    if isinstance(schema, list):
        return [_capped(item, most) for item in schema]
    if not isinstance(schema, dict):
        return schema
    capped = {key: _capped(item, most) for key, item in schema.items()}
    return capped | {"maxLength": most} if schema.get("type") == "string" else capped


def _secured(content: dict[str, Any], *, with_keys: bool) -> dict[str, Any]:
    if not with_keys:
        del content["components"]["securitySchemes"]
        return content
    content["components"]["securitySchemes"]["key"] = {"type": "http", "scheme": "bearer"}
    for path, operations in content["paths"].items():
        for operation in operations.values():
            is_open = path.startswith(("/health", "/v2/health", "/openapi")) or operation.get("tags") == ["pages"]
            if not is_open:
                operation["security"] = [{"key": []}]
                operation["responses"] |= _errors((401,))
    return content
