"""What a body asks of one model: its items and parameters, checked."""

from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from potstill.serve.encoder import Encoder
from potstill.serve.http.reading import check_keys, check_length, kind_of, parse_object, validate
from potstill.serve.http_errors import invalid, too_large
from potstill.serve.limits import Limits

_KEYS = ("inputs", "parameters")


class Asked(NamedTuple):
    """What a body asks."""

    items: list[Any]
    is_list: bool
    """Whether the client sent a list, and so gets one."""
    parameters: BaseModel
    characters: list[int]
    """Of each item."""


class Reader:
    """Reads the bodies of one model: {"inputs": ..., "parameters": ...}."""

    def __init__(self, encoder: Encoder, limits: Limits) -> None:
        shape = encoder.task
        options = _options(shape.item)
        self._takes_text = str in options
        self._model = next((option for option in options if option is not str), None)
        self._parameters = shape.parameters
        self._defaults = shape.parameters()
        self._limits = limits
        self._most = limits.characters_per_token * encoder.manifest.max_length
        wanted = ["a string"] if self._takes_text else []
        if self._model is not None:
            wanted.append("an object with " + " and ".join(f"'{name}'" for name in self._model.model_fields))
        self._wanted = " or ".join(wanted)
        self._shape = f'send {{"inputs": ...}}, where an input is {self._wanted}, or a list of such'

    def read(self, body: bytes, *, flat: bool = False) -> Asked:
        """Return what `body` asks.

        Args:
            body: JSON.
            flat: whether parameters stand beside "inputs", as text-embeddings-inference has them.

        Raises:
            RequestError: 400, 413 or 422.
        """
        content = parse_object(body, self._limits, shape=self._shape)
        if flat:
            check_keys(content, ("inputs", *self._parameters.model_fields), "the body")
            parameters = {key: value for key, value in content.items() if key != "inputs"}
        else:
            check_keys(content, _KEYS, "the body")
            parameters = content.get("parameters", {})
        if "inputs" not in content:
            raise invalid(f"the body has no 'inputs'; {self._shape}")
        items, is_list, characters = self.items(content["inputs"], "inputs")
        return Asked(items=items, is_list=is_list, parameters=self.parameters(parameters), characters=characters)

    def items(self, inputs: Any, where: str) -> tuple[list[Any], bool, list[int]]:
        """Return the checked items, whether they came as a list, and the characters of each."""
        if not isinstance(inputs, list):
            item, characters = self._item(inputs, where)
            return [item], False, [characters]
        if not inputs:
            raise invalid(f"'{where}' is an empty list; {self._shape}")
        if len(inputs) > self._limits.inputs:
            raise too_large(f"'{where}' has {len(inputs)} entries; at most {self._limits.inputs} go into one request")
        items: list[Any] = []
        sizes: list[int] = []
        for index, value in enumerate(inputs):
            item, more = self._item(value, f"{where}[{index}]")
            items.append(item)
            sizes.append(more)
        return items, True, sizes

    def parameters(self, value: Any) -> BaseModel:
        """Return the checked parameters."""
        return self._defaults if value == {} else validate(self._parameters, value, "parameters")

    def _item(self, value: Any, where: str) -> tuple[Any, int]:
        if self._takes_text and isinstance(value, str):
            return value, check_length(value, where, self._most)
        if self._model is None or not isinstance(value, dict):
            raise invalid(f"{where} is {kind_of(value)}; expected {self._wanted}")
        item = validate(self._model, value, where)
        return item, sum(check_length(text, f"{where}.{name}", self._most) for name, text in item)


class TextReader:
    """Reads a body that has texts and nothing else, whatever the model's task."""

    _SHAPE = 'send {"inputs": "text"}, or a list of texts'

    def __init__(self, encoder: Encoder, limits: Limits) -> None:
        self._limits = limits
        self._most = limits.characters_per_token * encoder.manifest.max_length

    def read(self, body: bytes) -> tuple[list[str], bool, list[int]]:
        """Return the texts, whether they came as a list, and the characters of each.

        Raises:
            RequestError: 400, 413 or 422.
        """
        content = parse_object(body, self._limits, shape=self._SHAPE)
        check_keys(content, ("inputs",), "the body")
        if "inputs" not in content:
            raise invalid(f"the body has no 'inputs'; {self._SHAPE}")
        return self.texts(content["inputs"], "inputs")

    def texts(self, inputs: Any, where: str) -> tuple[list[str], bool, list[int]]:
        """Check texts; what is returned is as by `read`."""
        is_list = isinstance(inputs, list)
        values: list[Any] = inputs if is_list else [inputs]
        if not values:
            raise invalid(f"'{where}' is an empty list; send a text, or a list of texts")
        if len(values) > self._limits.inputs:
            raise too_large(f"'{where}' has {len(values)} entries; at most {self._limits.inputs} go into one request")
        characters = []
        for index, value in enumerate(values):
            place = f"{where}[{index}]" if is_list else where
            if not isinstance(value, str):
                raise invalid(f"{place} is {kind_of(value)}; expected a string")
            characters.append(check_length(value, place, self._most))
        return values, is_list, characters


def _options(item: Any) -> list[Any]:
    """Return the types of an item: `str` for text, and at most one model."""
    options = (item,) if get_origin(item) is Annotated or isinstance(item, type) else get_args(item)
    return [option if isinstance(option, type) else get_args(option)[0] for option in options]
