"""What one model takes and gives in the words of the Open Inference Protocol: two sets of tensors.

Texts give answers, as `POST /predict` has them; ids give what the graph gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from potstill.serve.encoder import Encoder
from potstill.serve.http.oip_messages import ModelMetadata, TensorMetadata
from potstill.serve.tasks.feature_extraction import SENTENCE_EMBEDDING
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

VERSION = "1"
"""The only version there is: a bundle does not change."""
VERSIONS = ("", f"/versions/{VERSION}")
"""What may stand behind a model's name in a path."""
ANSWERS, LABEL, SCORE, EMBEDDING = "answers", "label", "score", "embedding"
_IDS = ("INT64", "INT32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One of the two ways to ask."""

    kind: Literal["text", "ids"]
    inputs: tuple[str, ...]
    required: frozenset[str]
    datatypes: tuple[str, ...]
    """That its inputs may have; metadata name the first."""
    outputs: Mapping[str, TensorMetadata]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What one model takes and gives."""

    text: Mode
    ids: Mode
    max_length: int
    """Tokens of the longest row."""
    vocab_size: int
    """Ids are below it."""
    types: int
    """Token types are below it."""

    def mode_of(self, name: str) -> Mode | None:
        """Return the way to ask that an input belongs to."""
        return next((mode for mode in (self.text, self.ids) if name in mode.inputs), None)

    def numbers(self, output: str, *, rows: int, tokens: int) -> int:
        """Return how many numbers an output of the graph has, as far as the graph says."""
        shape = self.ids.outputs[output].shape
        dynamic = [rows, tokens]
        return prod(size if size > 0 else (dynamic.pop(0) if dynamic else 1) for size in shape)

    def metadata(self, name: str) -> ModelMetadata:
        """Return what `GET /v2/models/NAME` says."""
        texts = [TensorMetadata(name=each, datatype="BYTES", shape=[-1]) for each in self.text.inputs]
        ids = [TensorMetadata(name=each, datatype="INT64", shape=[-1, -1]) for each in self.ids.inputs]
        return ModelMetadata(
            name=name,
            versions=[VERSION],
            platform="onnx_onnxv1",
            inputs=[*texts, *ids],
            outputs=[*self.text.outputs.values(), *self.ids.outputs.values()],
        )


def signature_of(encoder: Encoder) -> Signature:
    """Return what a model takes and gives."""
    manifest, tokenizer = encoder.manifest, encoder.tokenizer
    vocab_size = manifest.architecture.vocab_size
    frame = tokenizer.pair
    types = [*frame.text_types, *(int(kind) for piece in frame.types for kind in piece)]
    return Signature(
        text=_text_mode(manifest.task),
        ids=Mode(
            kind="ids",
            inputs=encoder.session.inputs,
            required=frozenset({"input_ids"}),
            datatypes=_IDS,
            outputs=_graph_outputs(encoder),
        ),
        max_length=manifest.max_length,
        vocab_size=vocab_size if isinstance(vocab_size, int) else tokenizer.vocabulary_size(),
        types=1 + max(types),
    )


def _text_mode(task: str) -> Mode:
    answers = TensorMetadata(name=ANSWERS, datatype="BYTES", shape=[-1])
    inputs: tuple[str, ...] = ("text",)
    required, outputs = inputs, [answers]
    if task == QUESTION_ANSWERING.name:
        inputs = required = ("question", "context")
    elif task == TEXT_CLASSIFICATION.name:
        inputs = ("text", "text_pair")
        outputs.append(TensorMetadata(name=LABEL, datatype="BYTES", shape=[-1]))
        outputs.append(TensorMetadata(name=SCORE, datatype="FP32", shape=[-1]))
    elif task == FEATURE_EXTRACTION.name:
        # A vector of numbers is a tensor; as JSON inside of one it would only be longer.
        outputs = [TensorMetadata(name=EMBEDDING, datatype="FP32", shape=[-1, -1])]
    return Mode(
        kind="text",
        inputs=inputs,
        required=frozenset(required),
        datatypes=("BYTES",),
        outputs={each.name: each for each in outputs},
    )


def _graph_outputs(encoder: Encoder) -> dict[str, TensorMetadata]:
    """Return the outputs of the manifest; what a graph leaves open is taken from the task where it says it."""
    manifest = encoder.manifest
    shapes = {node.name: node.shape or [] for node in encoder.session.engine.get_outputs()}
    widths = {
        TEXT_CLASSIFICATION.name: len(manifest.labels),
        TOKEN_CLASSIFICATION.name: len(manifest.labels),
        FILL_MASK.name: manifest.architecture.vocab_size,
        FEATURE_EXTRACTION.name: manifest.architecture.hidden_size,
    }
    found = {}
    for name in manifest.outputs:
        per_token = not (encoder.task.one_output_per_text or name == SENTENCE_EMBEDDING)
        shape = [-1, -1] if per_token else [-1]
        if manifest.task != QUESTION_ANSWERING.name:
            # A dimension without a size has a name, or None.
            sizes = [size for size in (*shapes[name][-1:], widths.get(manifest.task)) if isinstance(size, int)]
            shape.append(sizes[0] if sizes else -1)
        found[name] = TensorMetadata(name=name, datatype="FP32", shape=shape)
    return found
