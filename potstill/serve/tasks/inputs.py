"""Read the inputs and the parameters of a request, whether they come as JSON or as Python objects.

The schemas of a task's parameters and answers stand in the task's own module. They check requests, and the OpenAPI
document is made of them. Their names and values are those of the Hugging Face task specifications
(`huggingface_hub.inference._generated.types`).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from potstill.errors import UsageError
from potstill.serve.http_errors import RequestError, invalid

MAX_COUNT = 1_000
"""The largest `top_k` and the longest list in a parameter: more than any vocabulary or text has use for."""
Count = Annotated[StrictInt, Field(ge=1, le=MAX_COUNT)]

_Model = TypeVar("_Model", bound=BaseModel)


class RequestModel(BaseModel):
    """A part of a request: unknown keys are refused, and a field's docstring is its description in OpenAPI."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def read_texts(items: Sequence[object]) -> list[str]:
    """Return the inputs of a task that takes single texts.

    Raises:
        RequestError: 422 if one of them is no text.
    """
    texts = []
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise wrong_input(index, item, "a text")
        texts.append(item)
    return texts


def read_two_texts(index: int, item: object, model: type[BaseModel], expected: str) -> tuple[str, str]:
    """Return the two texts of one input.

    Args:
        index: the input's place in the request, for the message.
        item: an instance of `model`, a mapping with exactly its keys, or a tuple of two.
        model: a pydantic model with two texts as fields.
        expected: what the task takes, for the message.

    Raises:
        RequestError: 422 if the item is something else.
    """
    names = list(model.model_fields)
    if isinstance(item, model):
        values = [getattr(item, name) for name in names]
    elif isinstance(item, Mapping) and set(item) == set(names):
        values = [item[name] for name in names]
    elif isinstance(item, tuple) and len(item) == len(names):
        values = list(item)
    else:
        raise wrong_input(index, item, expected)
    if not all(isinstance(value, str) for value in values):
        raise wrong_input(index, item, expected)
    return values[0], values[1]


def read_parameters(model: type[_Model], parameters: BaseModel | Mapping[str, Any] | None) -> _Model:
    """Return a request's parameters as an instance of the task's schema; None takes the defaults.

    Raises:
        RequestError: 422 for the first wrong parameter.
        UsageError: if they are an instance of another task's schema.
    """
    if isinstance(parameters, model):
        return parameters
    if isinstance(parameters, BaseModel):
        raise UsageError(f"the parameters are {type(parameters).__name__}; this task takes {model.__name__}")
    try:
        return model.model_validate(dict(parameters or {}))
    except ValidationError as error:
        # Without the input: the message must not repeat what a client sent.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        raise invalid(f"there is no such parameter; there are {', '.join(model.model_fields)}")
    raise invalid(f"parameters.{first['loc'][0]}: {first['msg']}")


def wrong_input(index: int, item: object, expected: str) -> RequestError:
    """Return the error for an input whose type the task does not take; the message does not repeat its content."""
    return invalid(f"input {index} is {type(item).__name__}; this model takes {expected}")
