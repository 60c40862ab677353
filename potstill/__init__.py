"""Distil a BERT-family teacher, export it to ONNX, prove the result, serve it.

Import `potstill.distill`, `potstill.export`, `potstill.bench` or `potstill.serve` by name; each has its own extra.
Importing `potstill` itself loads nothing but the errors.
"""

from potstill.errors import CheckError, MissingError, PotstillError, UsageError

__version__ = "0.1.0"

__all__ = ["CheckError", "MissingError", "PotstillError", "UsageError", "__version__"]
