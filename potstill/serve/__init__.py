"""Answer with an exported bundle: numpy, onnxruntime and tokenizers, no PyTorch.

`Encoder` is the one implementation of "texts in, answers out" in potstill: the parity checks, the benchmarks,
`evaluate` and the server all run through it, so that what is checked and timed is what ships. The server itself
is `potstill.serve.http` (the application) and `potstill.serve.server` (the process); they load httptools and
uvicorn, and this package does not.
"""

from potstill.extras import needing

with needing("serve"):
    from potstill.serve.encoder import Encoder
    from potstill.serve.session import OnnxSession
    from potstill.serve.tasks.feature_extraction import SENTENCE_EMBEDDING
    from potstill.serve.tokenizer import BundleTokenizer, Row, Text

__all__ = [
    "SENTENCE_EMBEDDING",
    "BundleTokenizer",
    "Encoder",
    "OnnxSession",
    "Row",
    "Text",
]
