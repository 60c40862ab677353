"""Distil a BERT-family teacher, export it to ONNX, prove the result, serve it.

The rooms are `potstill.distill`, `potstill.export`, `potstill.bench` and `potstill.serve`; each is imported
by name and needs its own extra. Importing `potstill` itself loads nothing but the errors.
"""

from potstill.errors import CheckError, MissingError, PotstillError, UsageError

__version__ = "0.1.0"

__all__ = ["CheckError", "MissingError", "PotstillError", "UsageError", "__version__"]
