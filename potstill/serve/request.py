"""Read the body of `POST /predict`, and say no in a way that helps.

No message repeats what the client sent: it may be private, and messages end in logs. They name places, types and
counts instead.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NoReturn, TypeAlias

from potstill.errors import UsageError
from potstill.serve.limits import Limits
from potstill.serve.tokenizer import Text

ErrorType: TypeAlias = Literal[
    "validation", "not_found", "method_not_allowed", "too_large", "unsupported_media_type", "overloaded", "backend"
]
_SHAPE = 'send {"inputs": "text"}, or a list of texts and {"text": ..., "text_pair": ...} pairs'
_CONTAINERS = (dict, list)
_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


class RequestError(UsageError):
    """A request that gets an error: its HTTP status, its `error_type`, and headers to send along."""

    def __init__(
        self, message: str, *, status: int, error_type: ErrorType, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """What a client asks."""

    texts: list[Text]
    is_list: bool
    """Whether the client sent a list, and so gets one."""
    top_k: int | None


def read_predict(body: bytes, *, limits: Limits, max_length: int, num_labels: int) -> PredictRequest:
    """Return the request that `body` holds.

    Of a key that comes twice the last counts, and a lone surrogate becomes U+FFFD when it is tokenised.

    Raises:
        RequestError: 400 if it is not JSON in UTF-8, 413 if it is over a limit, 422 if it asks for something else.
    """
    content = _parse(body, limits)
    if not isinstance(content, dict):
        _refuse(f"the body is {_name(content)}; {_SHAPE}")
    _check_keys(content, ("inputs", "parameters"), "the body")
    if "inputs" not in content:
        _refuse(f"the body has no 'inputs'; {_SHAPE}")
    inputs = content["inputs"]
    is_list = isinstance(inputs, list)
    if is_list and not inputs:
        _refuse(f"'inputs' is an empty list; {_SHAPE}")
    if is_list and len(inputs) > limits.inputs:
        _refuse_size(f"'inputs' has {len(inputs)} texts; at most {limits.inputs} go into one request")
    most = limits.characters_per_token * max_length
    texts = (
        [_text(item, f"inputs[{index}]", most) for index, item in enumerate(inputs)]
        if is_list
        else [_text(inputs, "inputs", most)]
    )
    return PredictRequest(texts=texts, is_list=is_list, top_k=_top_k(content.get("parameters", {}), num_labels))


def _parse(body: bytes, limits: Limits) -> Any:
    too_deep = f"the JSON is nested too deeply; at most {limits.nesting} levels are read"
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8: byte {error.start} is wrong") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"the body is not JSON: it breaks at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise _malformed(too_deep) from None
    except ValueError:  # an integer of more digits than Python converts
        raise _malformed("the body holds a number with too many digits") from None
    if _is_deeper(content, limits.nesting):
        raise _malformed(too_deep)
    return content


def _is_deeper(content: Any, levels: int) -> bool:
    layer = [content] if isinstance(content, _CONTAINERS) else []
    for _ in range(levels):
        groups = (item.values() if isinstance(item, dict) else item for item in layer)
        layer = [child for group in groups for child in group if isinstance(child, _CONTAINERS)]
    return bool(layer)


def _text(value: Any, where: str, most: int) -> Text:
    if isinstance(value, str):
        _check_length(value, where, most)
        return value
    if not isinstance(value, dict):
        _refuse(f"{where} is {_name(value)}; expected a string or a pair: {_SHAPE}")
    _check_keys(value, ("text", "text_pair"), where)
    for key in ("text", "text_pair"):
        if key not in value:
            _refuse(f"{where} has no '{key}'; a pair has both 'text' and 'text_pair'")
        if not isinstance(value[key], str):
            _refuse(f"{where}.{key} is {_name(value[key])}; expected a string")
        _check_length(value[key], f"{where}.{key}", most)
    return value["text"], value["text_pair"]


def _top_k(parameters: Any, num_labels: int) -> int | None:
    if not isinstance(parameters, dict):
        _refuse(f"'parameters' is {_name(parameters)}; expected an object such as {{\"top_k\": 1}}")
    _check_keys(parameters, ("top_k",), "'parameters'")
    if "top_k" not in parameters:
        return None
    top_k = parameters["top_k"]
    expected = f"expected a whole number from 1 to {num_labels}, the number of labels"
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        _refuse(f"parameters.top_k is {_name(top_k)}; {expected}")
    if not 1 <= top_k <= num_labels:
        _refuse(f"parameters.top_k is too {'small' if top_k < 1 else 'large'}; {expected}")
    return top_k


def _check_keys(value: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = next((key for key in value if key not in known), None)
    if unknown is None:
        return
    nearest = get_close_matches(unknown[:64], known, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(known)}"
    _refuse(f"{where} has a key that is not known; {hint}")


def _check_length(text: str, where: str, most: int) -> None:
    if len(text) > most:
        _refuse_size(f"{where} has {len(text)} characters; at most {most} are read")


def _name(value: Any) -> str:
    return _TYPES.get(type(value), "a number")


def _refuse(message: str) -> NoReturn:
    raise RequestError(message, status=422, error_type="validation")


def _refuse_size(message: str) -> NoReturn:
    raise RequestError(message, status=413, error_type="too_large")


def _refuse_constant(name: str) -> NoReturn:
    raise _malformed(f"the body holds {name}, which JSON does not have")


def _malformed(message: str) -> RequestError:
    return RequestError(message, status=400, error_type="validation")
