"""Read a JSON body, and say no in a way that helps.

No message repeats what the client sent, its key names included: they name places, types and counts instead.

What pydantic's own reader does not take is read again by `json`: to say where it breaks, and because a lone surrogate
(half of an emoji that a program cut) is no error here: as in the tokenizer it is read as U+FFFD, the replacement
character. pydantic then checks.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from potstill.errors import nearest_name
from potstill.serve.http_errors import RequestError, invalid, malformed, too_large
from potstill.serve.limits import Limits
from potstill.serve.tokenizer import without_surrogates

_Model = TypeVar("_Model", bound=BaseModel)
_CONTAINERS = (dict, list)
_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
# Of a request's JSON; a pair has one object, and a row of ids one list and as many values as it has tokens.
_LISTS_PER_INPUT = 64
_VALUES_PER_INPUT = 4_096
_BRACKET = re.compile(rb"[\[\]{}]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# What pydantic found -> what was expected; `{}` is filled from its context, which holds no input.
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


def parse_object(body: bytes, limits: Limits, *, shape: str) -> dict[str, Any]:
    """Return the JSON object that `body` holds; of a key that comes twice the last counts.

    Args:
        body: the bytes.
        limits: the caps.
        shape: what to send instead, for the message.

    Raises:
        RequestError: 400 if it is not JSON in UTF-8, 413 if it has far too many parts, 422 if it is not an object.
    """
    _check_parts(body, limits)
    try:
        # Of the strings it keeps for the next body only keys are kept: values are a client's.
        content = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        content = _read_again(body, limits)
    # Counting brackets is enough nearly always, and costs nothing.
    if body.count(b"[") + body.count(b"{") > limits.nesting and _is_deeper(content, limits.nesting):
        raise malformed(_too_deep(limits))
    if not isinstance(content, dict):
        raise invalid(f"the body is {kind_of(content)}; {shape}")
    return content


def _read_again(body: bytes, limits: Limits) -> Any:
    try:
        content = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise malformed(f"the body is not UTF-8: byte {error.start} is wrong") from None
    except json.JSONDecodeError as error:
        raise malformed(f"the body is not JSON: it breaks at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise malformed(_too_deep(limits)) from None
    except RequestError:
        raise
    except ValueError:  # an integer of more digits than Python converts
        raise malformed("the body holds a number with too many digits") from None
    if not _SURROGATE.search(body) or _is_deeper(content, limits.nesting):
        return content
    return _clean(content)


def check_keys(value: Iterable[str], known: Sequence[str], where: str) -> None:
    """Refuse a key that is not known, with a hint and without its name."""
    unknown = next((key for key in value if key not in known), None)
    if unknown is None:
        return
    nearest = nearest_name(unknown[:64], known, cutoff=0.6)
    hint = f"did you mean '{nearest}'?" if nearest else f"known: {', '.join(known) or 'none'}"
    raise invalid(f"{where} has a key that is not known; {hint}")


def check_length(text: str, where: str, most: int) -> int:
    """Return the number of characters, or refuse them with 413 if there are more than `most`."""
    if len(text) > most:
        raise too_large(f"{where} has {len(text)} characters; at most {most} are read")
    return len(text)


def validate(model: type[_Model], value: Any, where: str) -> _Model:
    """Return `value` as a model.

    Raises:
        RequestError: 422, naming the place, what is there, and what was expected.
    """
    if not isinstance(value, dict):
        raise invalid(f"{where} is {kind_of(value)}; expected an object with {_names(model)}")
    try:
        return model.model_validate(value)
    except ValidationError:
        pass
    # JSON has one kind of number, and its schemas call 3.0 an integer as well.
    whole = {key: int(found) if _is_whole(found) else found for key, found in value.items()}
    try:
        return model.model_validate(whole)
    except ValidationError as error:
        _explain(error, model, value, where)


def kind_of(value: Any) -> str:
    """Return the JSON type of a value in words."""
    return _TYPES.get(type(value), "a number")


def _explain(error: ValidationError, model: type[BaseModel], value: Mapping[str, Any], where: str) -> NoReturn:
    check_keys(value, tuple(model.model_fields), where)  # a misspelt key explains a missing one
    found = error.errors(include_url=False, include_input=False)[0]
    kind, location = found["type"], found["loc"]
    if kind == "missing":
        raise invalid(f"{where} has no '{location[-1]}'; expected an object with {_names(model)}")
    # Every part of the location is a field of ours or a position in a list: unknown keys ended above.
    place, inner = where, value
    for part in location:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
        inner = _child(inner, part)
    says = _EXPECTED.get(kind, "is not what was expected")
    raise invalid(f"{place} {says.format(kind=kind_of(inner), **found.get('ctx', {}))}")


def _check_parts(body: bytes, limits: Limits) -> None:
    """Refuse what would take the event loop half a second and 300 MB: a body of nothing but brackets and commas.

    Texts may have as many of them as they like; they are counted outside of strings where there are many.
    """
    most_lists, most_values = _LISTS_PER_INPUT * limits.inputs, _VALUES_PER_INPUT * limits.inputs
    if body.count(b"[") + body.count(b"{") <= most_lists and body.count(b",") <= most_values:
        return
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    if outside.count(b"[") + outside.count(b"{") > most_lists:
        brackets = islice(_BRACKET.finditer(outside), most_lists)
        depths = accumulate(1 if found[0] in b"[{" else -1 for found in brackets)
        if max(depths) > limits.nesting:
            raise malformed(_too_deep(limits))
        raise too_large(f"the JSON has over {most_lists} lists and objects")
    if outside.count(b",") > most_values:
        raise too_large(f"the JSON has over {most_values} values")


def _too_deep(limits: Limits) -> str:
    return f"the JSON is nested too deeply; at most {limits.nesting} levels are read"


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < 2**53


def _child(value: Any, part: int | str) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return value


def _names(model: type[BaseModel]) -> str:
    return ", ".join(f"'{name}'" for name in model.model_fields)


def _is_deeper(content: Any, levels: int) -> bool:
    layer = [content] if isinstance(content, _CONTAINERS) else []
    for _ in range(levels):
        groups = (item.values() if isinstance(item, dict) else item for item in layer)
        layer = [child for group in groups for child in group if isinstance(child, _CONTAINERS)]
    return bool(layer)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}  # a key with one is not known
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise malformed(f"the body holds {name}, which JSON does not have")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
