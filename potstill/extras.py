"""One helpful message when an extra is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from potstill.errors import MissingExtraError

EXTRAS = {
    "cli": ("typer", "rich"),
    "serve": ("onnxruntime", "tokenizers", "uvicorn", "httptools", "prometheus_client"),
    "bench": ("psutil", "jinja2", "matplotlib", "scipy", "cpuinfo"),
    "distill": ("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "pyarrow"),
    "export": ("torch", "transformers", "optimum", "onnx", "onnxscript", "onnxruntime", "tokenizers"),
    "ray": ("ray", "starlette"),
}
"""What each extra brings, by the names of the modules; those of `serve` come with `bench` and `export` too."""


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


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Say which extra is missing where one of its modules cannot be imported; for the imports of a whole package.

    Raises:
        MissingExtraError: if a module of the extra is not installed. Any other failure passes through.
    """
    try:
        yield
    except (ModuleNotFoundError, MissingExtraError) as error:
        # What a package inside has said of its own extra is said again of the one that was asked for.
        first = error.__cause__ if isinstance(error, MissingExtraError) else error
        module = (getattr(first, "name", None) or "").split(".")[0]
        if module not in {*EXTRAS[extra], *EXTRAS["serve"]}:
            raise
        raise MissingExtraError(
            f"{module} is not installed and potstill.{extra} needs it: pip install 'potstill[{extra}]'"
        ) from error
