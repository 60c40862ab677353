"""One helpful message when an extra is not installed."""

from importlib import import_module
from types import ModuleType

from potstill.errors import MissingExtraError


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises:
        MissingExtraError: if it is not installed. Any other failure inside the module passes through.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed and this needs it: pip install 'potstill[{extra}]'"
        ) from error
