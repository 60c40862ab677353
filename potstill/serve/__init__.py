"""Answer with an exported bundle: numpy, onnxruntime and tokenizers, no PyTorch.

`Encoder` is the one implementation of "texts in, logits out" in potstill: the parity checks, the benchmarks,
`evaluate` and the server all run through it, so that what is checked and timed is what ships. The server itself
is `potstill.serve.http` (the application) and `potstill.serve.server` (the process); they load starlette and
uvicorn, and this package does not.
"""

from potstill.serve.encoder import SENTENCE_EMBEDDING, Encoder, check_servable
from potstill.serve.postprocess import Answer, Score, rank
from potstill.serve.session import OnnxSession
from potstill.serve.tokenizer import BundleTokenizer, Row, Text

__all__ = [
    "SENTENCE_EMBEDDING",
    "Answer",
    "BundleTokenizer",
    "Encoder",
    "OnnxSession",
    "Row",
    "Score",
    "Text",
    "check_servable",
    "rank",
]
