"""Word messages: the nearest known name for a misspelt one, and other libraries' errors as one line."""

import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence

if typing.TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails


def first_line(error: BaseException, *, longest: int = 300) -> str:
    """Return the first line of an error's message, with the second if the first ends in a colon.

    At most `longest` characters; the error's class name if it has no message.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__
    if isinstance(error, KeyError):  # its message is nothing but the key
        said = f"nothing is called {said}"
    return said[:longest]


def nearest_name(word: str, known: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """Return the known name that is spelt most like a word, ignoring case, or None.

    `cutoff` is the least similarity, 0 to 1, as `difflib.get_close_matches` computes it.
    """
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown word: the nearest known one, or the list of all."""
    found = nearest_name(word, known)
    return f"; did you mean {found!r}?" if found else f"; known are {', '.join(known)}"


def describe_fault(fault: "ErrorDetails", model: "type[BaseModel]", *, whole: str = "it") -> str:
    """Return a validation error as one line: the key, what is wrong, and the value.

    Args:
        fault: one of pydantic's `ValidationError.errors()`.
        model: the model that was validated; for an unknown key, the nearest field of the same section is named.
        whole: what stands in place of the key if the fault concerns the whole model.
    """
    from pydantic import BaseModel

    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key{did_you_mean(str(fault['loc'][-1]), fields_at(model, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    shown = "" if isinstance(fault["input"], Mapping | BaseModel) else f" (it is {fault['input']!r})"
    return f"{where or whole}: {fault_message(fault)}{shown}"


def fault_message(fault: "ErrorDetails") -> str:
    """Return pydantic's message in lower case and without its prefix, to stand within a sentence."""
    # pydantic puts this before whatever a validator of ours raised.
    message = fault["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def fields_at(model: "type[BaseModel]", location: Sequence[str | int]) -> list[str]:
    """Return the field names of the nested model that a location of pydantic leads to."""
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:  # an entry of a list or mapping
            continue
        # The model may be inside Optional, list or Annotated: search the arguments of the annotation.
        pending = [model.model_fields[part].annotation]
        while pending:
            annotation = pending.pop()
            if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
                model = annotation
                break
            pending += typing.get_args(annotation)
    return list(model.model_fields)
