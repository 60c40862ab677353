"""Import optional dependencies, and name the extra to install where one is missing."""

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
    "openvino": ("openvino",),
    "ray": ("ray", "starlette"),
}
"""The modules that each extra installs; `bench` and `export` install those of `serve` as well."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises:
        MissingExtraError: if it is not installed. Any other failure inside the module passes through.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A module that is installed and lacks one of its own dependencies is broken; naming the extra would mislead.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed and this needs it: pip install 'potstill[{extra}]'"
        ) from error


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Name the missing extra if an import within the block fails; for the imports in a package's `__init__`.

    Raises:
        MissingExtraError: if a module of the extra is not installed. Any other failure passes through.
    """
    try:
        yield
    except (ModuleNotFoundError, MissingExtraError) as error:
        # A nested package names its own extra (`serve` within `bench`); the user asked for the outer one.
        first = error.__cause__ if isinstance(error, MissingExtraError) else error
        module = (getattr(first, "name", None) or "").split(".")[0]
        if module not in {*EXTRAS[extra], *EXTRAS["serve"]}:
            raise
        raise MissingExtraError(
            f"{module} is not installed and potstill.{extra} needs it: pip install 'potstill[{extra}]'"
        ) from error
