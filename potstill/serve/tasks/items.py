"""Inputs and parameters as they come, from JSON or from Python, in the plain form that the tasks take."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from potstill.errors import UsageError
from potstill.serve.http_errors import RequestError, invalid
from potstill.serve.tasks.shapes import Pair, Question
from potstill.serve.tokenizer import Text

_Model = TypeVar("_Model", bound=BaseModel)


def read_texts(items: Sequence[Any]) -> list[str]:
    """Return items that must be single texts.

    Raises:
        RequestError: 422 if one is something else.
    """
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise _not_what(index, item, "a text")
    return list(items)


def read_texts_and_pairs(items: Sequence[Any]) -> list[Text]:
    """Return items that may be texts or pairs.

    Raises:
        RequestError: 422 if one is neither.
    """
    return [
        item if isinstance(item, str) else _two(index, item, Pair, "a text, or a pair of text and text_pair")
        for index, item in enumerate(items)
    ]


def read_questions(items: Sequence[Any]) -> list[tuple[str, str]]:
    """Return items that must be questions, as (question, context).

    Raises:
        RequestError: 422 if one is none.
    """
    return [_two(index, item, Question, "a question with its context") for index, item in enumerate(items)]


def read_parameters(model: type[_Model], parameters: BaseModel | Mapping[str, Any] | None) -> _Model:
    """Return parameters as their model; None takes the defaults.

    Raises:
        RequestError: 422 naming the first that is wrong.
        UsageError: if they are another task's.
    """
    if isinstance(parameters, model):
        return parameters
    if isinstance(parameters, BaseModel):
        raise UsageError(f"the parameters are {type(parameters).__name__}; this task takes {model.__name__}")
    try:
        return model.model_validate(dict(parameters or {}))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        raise invalid(f"there is no such parameter; there are {', '.join(model.model_fields)}")
    raise invalid(f"parameters.{first['loc'][0]}: {first['msg']}")


def _two(index: int, item: Any, model: type[BaseModel], wanted: str) -> tuple[str, str]:
    """Return the two texts of a model, of a mapping with its keys, or of a tuple."""
    names = list(model.model_fields)
    if isinstance(item, model):
        values = [getattr(item, name) for name in names]
    elif isinstance(item, Mapping) and set(item) == set(names):
        values = [item[name] for name in names]
    elif isinstance(item, tuple) and len(item) == len(names):
        values = list(item)
    else:
        raise _not_what(index, item, wanted)
    for value in values:
        if not isinstance(value, str):
            raise _not_what(index, item, wanted)
    return values[0], values[1]


def _not_what(index: int, item: Any, wanted: str) -> RequestError:
    return invalid(f"input {index} is {type(item).__name__}; this model takes {wanted}")
