"""The Open Inference Protocol's part of the OpenAPI document.

That shape, datatype and data of a tensor agree is more than JSON Schema can say, so a request that fits the document
may still get a 400, 413 or 422.
"""

from typing import Any

from potstill.serve.encoder import Encoder
from potstill.serve.http.context import Context
from potstill.serve.http.facts import mask_token
from potstill.serve.http.oip_messages import LONGEST_ID
from potstill.serve.http.oip_signature import VERSION, VERSIONS, Mode, Signature, signature_of
from potstill.serve.limits import Limits

Schema = dict[str, Any]
_TAG = "open inference protocol"
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_LENGTH = "Inference-Header-Content-Length"


def v2_paths(context: Context) -> dict[str, Any]:
    """Return the protocol's paths as OpenAPI has them, with the answers of status 200 only."""
    paths = {
        "/v2": _get("Who answers", _object(name=_TEXT, version=_TEXT, extensions=_list(_TEXT))),
        "/v2/health/live": _get("Whether the process answers", _object(live={"const": True}), tag="health"),
        "/v2/health/ready": _get("Whether requests are taken", _object(ready={"const": True}), tag="health"),
    }
    for name, encoder in context.models.items():
        about, ready = _object_of_metadata(name), _object(name={"const": name}, ready={"const": True})
        infer = _infer(name, encoder, context.limits)
        for version in VERSIONS:
            path = f"/v2/models/{name}{version}"
            paths[path] = _get(f"What {name} takes and gives", about)
            paths[f"{path}/ready"] = _get(f"Whether {name} takes requests", ready)
            paths[f"{path}/infer"] = {"post": infer}
    return paths


def _get(title: str, schema: Schema, *, tag: str = _TAG) -> dict[str, Any]:
    answer = {"description": "The answer.", "content": {"application/json": {"schema": schema}}}
    return {"get": {"tags": [tag], "summary": title, "responses": {"200": answer}}}


def _infer(name: str, encoder: Encoder, limits: Limits) -> dict[str, Any]:
    signature = signature_of(encoder)
    body: Schema = {"schema": _request(signature, limits), "example": _example(encoder)}
    content = {"application/json": {"schema": _reply(name, signature)}, "application/octet-stream": {}}
    length = {"schema": _COUNT, "description": "Bytes of JSON in front of the tensors' bytes, where there are such."}
    return {
        "tags": [_TAG],
        "summary": f"Infer: {encoder.manifest.task}, by {name}",
        "description": f"Texts ({', '.join(signature.text.inputs)}) give {', '.join(signature.text.outputs)}; ids "
        f"({', '.join(signature.ids.inputs)}) give {', '.join(signature.ids.outputs)}. Tensors may also go and come "
        f"as bytes behind the JSON, as in Triton's binary tensor extension: the header {_LENGTH} says how long the "
        "JSON is.",
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": {"description": "The answer.", "headers": {_LENGTH: length}, "content": content}},
    }


def _request(signature: Signature, limits: Limits) -> Schema:
    text, ids = signature.text, signature.ids
    rows = {"type": "integer", "minimum": 1, "maximum": limits.inputs}
    tokens = {"type": "integer", "minimum": 1, "maximum": signature.max_length}
    texts = _list(rows, least=1, most=2)
    pairs = {"type": "array", "prefixItems": [rows, tokens], "minItems": 2, "maxItems": 2}
    number = {"type": "integer", "minimum": 0, "maximum": signature.vocab_size - 1}
    most = limits.characters_per_token * signature.max_length
    return _object(
        ["inputs"],
        id={"type": ["string", "null"], "maxLength": LONGEST_ID},
        parameters={"type": "object"},
        inputs={
            "anyOf": [
                _list(_tensor(text, texts, _TEXT | {"maxLength": most}), least=1, most=len(text.inputs)),
                _list(_tensor(ids, pairs, number), least=1, most=len(ids.inputs)),
            ]
        },
        outputs={"anyOf": [{"type": "null"}, *(_list(_output(mode), most=len(mode.outputs)) for mode in (text, ids))]},
    )


def _tensor(mode: Mode, shape: Schema, value: Schema) -> Schema:
    required = ["name", "shape", "datatype", "data"]
    return _object(
        required,
        name={"enum": list(mode.inputs)},
        shape=shape,
        datatype={"enum": list(mode.datatypes)},
        data={"anyOf": [_list(value), _list(_list(value))]},
        parameters={"type": "object"},
    )


def _output(mode: Mode) -> Schema:
    parameters = {"type": "object", "properties": {"binary_data": {"type": "boolean"}}}
    return _object(["name"], name={"enum": list(mode.outputs)}, parameters=parameters)


def _reply(name: str, signature: Signature) -> Schema:
    output = _object(
        ["name", "datatype", "shape"],
        name={"enum": [*signature.text.outputs, *signature.ids.outputs]},
        datatype={"enum": ["BYTES", "FP32"]},
        shape=_list(_COUNT),
        data=_list({"type": ["string", "number"]}),
        parameters=_object(binary_data_size=_COUNT),
    )
    return _object(
        ["model_name", "model_version", "outputs"],
        model_name={"const": name},
        model_version={"const": VERSION},
        id=_TEXT,
        outputs=_list(output),
    )


def _example(encoder: Encoder) -> dict[str, Any]:
    example = encoder.task.example
    values = {"text": example} if isinstance(example, str) else example
    return {
        "inputs": [
            {"name": name, "shape": [1], "datatype": "BYTES", "data": [_with_mask(text, encoder)]}
            for name, text in values.items()
        ]
    }


def _with_mask(text: str, encoder: Encoder) -> str:
    return text.replace("[MASK]", mask_token(encoder) or "[MASK]")


def _object_of_metadata(name: str) -> Schema:
    tensor = _object(name=_TEXT, datatype=_TEXT, shape=_list({"type": "integer", "minimum": -1}))
    return _object(
        name={"const": name}, versions=_list(_TEXT), platform=_TEXT, inputs=_list(tensor), outputs=_list(tensor)
    )


def _object(required: list[str] | None = None, /, **properties: Schema) -> Schema:
    """Return the schema of an object that has no other keys; all are required unless `required` says which."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def _list(items: Schema, *, least: int | None = None, most: int | None = None) -> Schema:
    schema: Schema = {"type": "array", "items": items}
    if least is not None:
        schema["minItems"] = least
    return schema if most is None else schema | {"maxItems": most}
