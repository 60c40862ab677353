"""Read and check a request: its headers, its body, the JSON in it, and the inputs and parameters in that.

No error message repeats what the client sent, not even the names of keys: messages name places, types and counts. All
of this runs on the event loop, so whatever a client can make slow has a limit.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from email.message import Message
from itertools import accumulate, islice
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from potstill.messages import nearest_name
from potstill.serve.encoder import Encoder
from potstill.serve.http_errors import RequestError, invalid, malformed, too_large, unavailable
from potstill.serve.limits import Limits
from potstill.serve.tokenizer import without_surrogates

Model = TypeVar("Model", bound=BaseModel)

SHORTEST_TIMEOUT_MS, LONGEST_TIMEOUT_MS = 10, 86_400_000
"""Bounds of X-Request-Timeout-Ms. Below the shortest nothing can be promised, as any process is paused for so long now
and then. The longest is a day; the server's own `request_seconds` is shorter, and holds too."""
_TIMEOUT = re.compile(r"[0-9]{1,8}")
_PLAIN_JSON = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"})
_BODIES_BYTES = 128 << 20  # of incomplete bodies over all connections: 64 of the largest

_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
# Limits of a request's JSON per allowed input. A pair is one object; a row of ids is one list with a value per token.
_LISTS_PER_INPUT = 64
_VALUES_PER_INPUT = 4_096
_BRACKET = re.compile(rb"[\[\]{}]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# pydantic's error type -> our message, as its own may repeat the input. Placeholders are filled from its context, which
# does not.
_EXPECTED = {
    "string_type": "is {kind}; expected a string",
    "int_type": "is {kind}; expected a whole number",
    "float_type": "is {kind}; expected a number",
    "bool_type": "is {kind}; expected true or false",
    "list_type": "is {kind}; expected a list",
    "model_type": "is {kind}; expected an object",
    "none_required": "is {kind}; expected null",
    "greater_than_equal": "is too small; expected at least {ge}",
    "greater_than": "is too small; expected more than {gt}",
    "less_than_equal": "is too large; expected at most {le}",
    "too_long": "has too many entries; expected at most {max_length}",
    "too_short": "has too few entries; expected at least {min_length}",
    "literal_error": "is not one of {expected}",
}


# ---------------------------------------------------------------- headers and bytes


def timeout_of(request: Request, limits: Limits) -> float | None:
    """Return the request's timeout in seconds, at most the server's own; None if the client sets none.

    Raises:
        RequestError: 422 if X-Request-Timeout-Ms is not a whole number, or out of bounds.
    """
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return None
    if not _TIMEOUT.fullmatch(given) or not SHORTEST_TIMEOUT_MS <= int(given) <= LONGEST_TIMEOUT_MS:
        raise invalid(
            "X-Request-Timeout-Ms must be a whole number of milliseconds"
            f" from {SHORTEST_TIMEOUT_MS} to {LONGEST_TIMEOUT_MS}"
        )
    return min(int(given) / 1e3, limits.request_seconds)


def media_type_of(request: Request) -> tuple[str, str]:
    """Return the media type and the character set of the body; ("", "utf-8") without Content-Type."""
    given = request.headers.get("content-type", "")
    # The usual values need no parser; after a run the caches are cold, and everything that is touched counts.
    if given in _PLAIN_JSON or not given:
        return ("application/json" if given else ""), "utf-8"
    header = Message()  # the standard library's parser of media types and their parameters (RFC 9110, section 8.3.1)
    header["content-type"] = given
    return header.get_content_type(), str(header.get_param("charset", "utf-8")).lower()


def check_media_type(request: Request) -> None:
    """Refuse a body that is not declared as JSON in UTF-8 without compression.

    Raises:
        RequestError: 415.
    """
    kind, charset = media_type_of(request)
    if kind != "application/json" or charset not in {"utf-8", "utf8"} or is_encoded(request):
        raise unsupported(
            "the body must be plain JSON in UTF-8: send Content-Type: application/json and no Content-Encoding"
        )


def is_encoded(request: Request) -> bool:
    """Return whether the body has a Content-Encoding, such as gzip."""
    return request.headers.get("content-encoding", "identity").lower() != "identity"


def unsupported(message: str) -> RequestError:
    """Return a 415: the body is of another type."""
    return RequestError(message, status=415, error_type="unsupported_media_type")


class _Unfinished:
    """Count the bytes of incomplete bodies, because many slow ones together must not fill the memory.

    Only the event loop changes it, so it needs no lock.
    """

    total = 0


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the whole body.

    Raises:
        RequestError: 413 if it is over the limit, 400 if the client leaves before its end, 503 if the incomplete bodies
            of all clients are too large together.
    """
    # `HttpProtocol` has checked it already; under Ray another server is in front.
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise too_large(f"the body is over {limits.body_bytes} bytes; send fewer texts")
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            _Unfinished.total += len(part)
            if size > limits.body_bytes:
                raise too_large(f"the body is over {limits.body_bytes} bytes; send fewer texts")
            if _Unfinished.total > _BODIES_BYTES:
                raise unavailable("too many bodies are on their way")
    except ClientDisconnect:
        raise malformed("the body ended early") from None
    finally:
        _Unfinished.total -= size
    return b"".join(parts)


# ---------------------------------------------------------------- JSON


def parse_object(body: bytes, limits: Limits, *, shape: str) -> dict[str, Any]:
    """Return the JSON object in `body`; of a key that comes twice the last counts.

    What pydantic's fast parser refuses is parsed again by `json`: to say where it is wrong, and because a lone
    surrogate (half of an emoji that a program cut) is no error here. As in the tokenizer it becomes U+FFFD, the
    replacement character.

    Args:
        body: the bytes.
        limits: limits of sizes, counts and times.
        shape: what to send instead, for the message.

    Raises:
        RequestError: 400 if it is not JSON in UTF-8, 413 if it has far too many values, 422 if it is not an object.
    """
    _check_parts(body, limits)
    try:
        # The parser caches strings for the next bodies: only keys, because values are private.
        content = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        content = _parse_slowly(body, limits)
    # Fewer brackets than levels cannot be too deep: nearly every body passes here, and counting bytes costs nothing.
    if body.count(b"[") + body.count(b"{") > limits.nesting and _is_deeper(content, limits.nesting):
        raise _too_deep(limits)
    if not isinstance(content, dict):
        raise invalid(f"the body is {kind_of(content)}; {shape}")
    return content


def _check_parts(body: bytes, limits: Limits) -> None:
    """Refuse a body of nothing but brackets and commas, which would take the event loop half a second and 300 MB.

    Texts may have any number of them: where there are many, they are counted again outside of strings.

    Raises:
        RequestError: 400 if it is nested too deeply, 413 if it has too many lists or values.
    """
    most_lists, most_values = _LISTS_PER_INPUT * limits.inputs, _VALUES_PER_INPUT * limits.inputs
    if body.count(b"[") + body.count(b"{") <= most_lists and body.count(b",") <= most_values:
        return
    # Without escaped backslashes and quotes, every second part between quotes is a string. A body that is not JSON may
    # be counted wrongly, and is refused by the parser.
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    if outside.count(b"[") + outside.count(b"{") > most_lists:
        # The first brackets tell whether depth is what is wrong, which is the better message.
        brackets = islice(_BRACKET.finditer(outside), most_lists)
        if max(accumulate(1 if found[0] in b"[{" else -1 for found in brackets)) > limits.nesting:
            raise _too_deep(limits)
        raise too_large(f"the JSON has over {most_lists} lists and objects")
    if outside.count(b",") > most_values:
        raise too_large(f"the JSON has over {most_values} values")


def _parse_slowly(body: bytes, limits: Limits) -> Any:
    try:
        content = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise malformed(f"the body is not UTF-8: byte {error.start} is wrong") from None
    except json.JSONDecodeError as error:
        raise malformed(f"the body is not JSON: it breaks at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise _too_deep(limits) from None
    except RequestError:
        raise
    except ValueError:  # an integer of more digits than Python converts
        raise malformed("the body holds a number with too many digits") from None
    if not _SURROGATE.search(body) or _is_deeper(content, limits.nesting):
        return content
    return _without_surrogates(content)


def _refuse_constant(name: str) -> NoReturn:
    raise malformed(f"the body holds {name}, which JSON does not have")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_surrogates(item) for key, item in value.items()}  # a key with one is not known
    return value


def _is_deeper(content: Any, levels: int) -> bool:
    # Level by level instead of by recursion, which a client could make overflow.
    layer = [content] if isinstance(content, (dict, list)) else []
    for _ in range(levels):
        groups = (item.values() if isinstance(item, dict) else item for item in layer)
        layer = [child for group in groups for child in group if isinstance(child, (dict, list))]
    return bool(layer)


def _too_deep(limits: Limits) -> RequestError:
    return malformed(f"the JSON is nested too deeply; at most {limits.nesting} levels are read")


# ---------------------------------------------------------------- values


def kind_of(value: object) -> str:
    """Return the JSON type of a value in words, such as "a list"."""
    return _TYPES.get(type(value), "a number")


def check_keys(value: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuse a key that is not known, without repeating its name; the message suggests the nearest known one.

    Raises:
        RequestError: 422.
    """
    unknown = next((key for key in value if key not in known), None)
    if unknown is None:
        return
    nearest = nearest_name(unknown[:64], known, cutoff=0.6)  # difflib would take long for a key of megabytes
    hint = f"did you mean '{nearest}'?" if nearest else f"known: {', '.join(known) or 'none'}"
    raise invalid(f"{where} has a key that is not known; {hint}")


def check_length(text: str, where: str, most: int) -> int:
    """Return the number of characters of a text; refuse it with 413 if there are more than `most`."""
    if len(text) > most:
        raise too_large(f"{where} has {len(text)} characters; at most {most} are read")
    return len(text)


def validate(model: type[Model], value: object, where: str) -> Model:
    """Return `value` as an instance of a pydantic model.

    Raises:
        RequestError: 422, naming the place, the type that is there, and what was expected.
    """
    if not isinstance(value, dict):
        raise invalid(f"{where} is {kind_of(value)}; expected an object with {_names(model)}")
    if model.model_config.get("extra") == "forbid":
        # Before pydantic, which makes an error of every unknown key: half a second for 170,000 of them.
        check_keys(value, tuple(model.model_fields), where)
    try:
        return model.model_validate(value)
    except ValidationError:
        pass
    # JSON has one kind of number, and JSON Schema calls 3.0 an integer, too; pydantic's strict integers do not.
    whole = {key: int(found) if _is_whole(found) else found for key, found in value.items()}
    try:
        return model.model_validate(whole)
    except ValidationError as error:
        _explain(error, model, value, where)


def _explain(error: ValidationError, model: type[BaseModel], value: Mapping[str, Any], where: str) -> NoReturn:
    found = error.errors(include_url=False, include_input=False)[0]
    kind, location = found["type"], found["loc"]
    if kind == "missing":
        raise invalid(f"{where} has no '{location[-1]}'; expected an object with {_names(model)}")
    # Every part of the location is a field of ours or an index, never a client's key: those were refused before.
    place, inner = where, value
    for part in location:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
        inner = _child(inner, part)
    says = _EXPECTED.get(kind, "is not what was expected")
    raise invalid(f"{place} {says.format(kind=kind_of(inner), **found.get('ctx', {}))}")


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < 2**53  # beyond, a float skips integers


def _child(value: Any, part: int | str) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return value


def _names(model: type[BaseModel]) -> str:
    return ", ".join(f"'{name}'" for name in model.model_fields)


# ---------------------------------------------------------------- inputs


class Inputs(NamedTuple):
    """The checked inputs of a request."""

    items: list[Any]
    is_list: bool
    """Whether the client sent a list, and so gets a list."""
    characters: list[int]
    """The number of characters of each item."""


class InputReader:
    """Read the `inputs` and `parameters` of requests to one model.

    Args:
        encoder: the model.
        limits: limits of sizes, counts and times.
        texts: whether inputs are single texts, whatever the task of the model.
    """

    def __init__(self, encoder: Encoder, limits: Limits, *, texts: bool = False) -> None:
        shape = encoder.task
        options: list[Any] = [str] if texts else _types_of(shape.item)
        self._limits = limits
        self._takes_text = str in options
        self._item_model = next((option for option in options if option is not str), None)
        self._parameters = shape.parameters
        self._defaults = shape.parameters()  # immutable, so requests without parameters share it
        self._most_characters = limits.characters_per_token * encoder.manifest.max_length
        expected = ["a string"] if self._takes_text else []
        if self._item_model is not None:
            expected.append("an object with " + " and ".join(f"'{name}'" for name in self._item_model.model_fields))
        self._expected = " or ".join(expected)
        self._shape = f'send {{"inputs": ...}}, where an input is {self._expected}, or a list of such'

    def read(self, body: bytes, *, flat: bool = False) -> tuple[Inputs, BaseModel]:
        """Return the inputs and the parameters of a body.

        Args:
            body: the bytes of the body.
            flat: whether parameters stand beside "inputs", as in text-embeddings-inference.

        Raises:
            RequestError: 400, 413 or 422.
        """
        content = parse_object(body, self._limits, shape=self._shape)
        if flat:
            check_keys(content, ("inputs", *self._parameters.model_fields), "the body")
            parameters: object = {key: value for key, value in content.items() if key != "inputs"}
        else:
            check_keys(content, ("inputs", "parameters"), "the body")
            parameters = content.get("parameters", {})
        inputs = self.inputs(content, "inputs")
        return inputs, self._defaults if parameters == {} else validate(self._parameters, parameters, "parameters")

    def read_texts(self, body: bytes) -> Inputs:
        """Return the inputs of a body that must have no other key.

        Raises:
            RequestError: 400, 413 or 422.
        """
        content = parse_object(body, self._limits, shape=self._shape)
        check_keys(content, ("inputs",), "the body")
        return self.inputs(content, "inputs")

    def inputs(self, content: Mapping[str, Any], key: str) -> Inputs:
        """Return the inputs under a key of a parsed body.

        Raises:
            RequestError: 413 or 422.
        """
        if key not in content:
            raise invalid(f"the body has no '{key}'; {self._shape}")
        given = content[key]
        if not isinstance(given, list):
            item, characters = self._item(given, key)
            return Inputs([item], False, [characters])
        if not given:
            raise invalid(f"'{key}' is an empty list; {self._shape}")
        if len(given) > self._limits.inputs:
            raise too_large(f"'{key}' has {len(given)} entries; at most {self._limits.inputs} go into one request")
        items, sizes = zip(*(self._item(value, f"{key}[{index}]") for index, value in enumerate(given)), strict=True)
        return Inputs(list(items), True, list(sizes))

    def _item(self, value: Any, where: str) -> tuple[Any, int]:
        if self._takes_text and isinstance(value, str):
            return value, check_length(value, where, self._most_characters)
        if self._item_model is None or not isinstance(value, dict):
            raise invalid(f"{where} is {kind_of(value)}; expected {self._expected}")
        item = validate(self._item_model, value, where)
        return item, sum(check_length(text, f"{where}.{name}", self._most_characters) for name, text in item)


def _types_of(item: Any) -> list[Any]:
    """Return the types that an item may have, from its annotation: `str`, one pydantic model, or both."""
    options = (item,) if get_origin(item) is Annotated or isinstance(item, type) else get_args(item)
    return [option if isinstance(option, type) else get_args(option)[0] for option in options]
