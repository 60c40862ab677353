"""A request of any task, tokenised."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from potstill.bundle import Manifest
from potstill.serve.tasks.classification import prepare_texts
from potstill.serve.tasks.entities import prepare_tokens
from potstill.serve.tasks.fillings import prepare_masks
from potstill.serve.tasks.items import read_parameters, read_questions, read_texts, read_texts_and_pairs
from potstill.serve.tasks.prepared import Prepared
from potstill.serve.tasks.questions import prepare_questions
from potstill.serve.tasks.shapes import (
    ClassificationParameters,
    MaskParameters,
    QuestionParameters,
    TokenParameters,
    VectorParameters,
)
from potstill.serve.tasks.vectors import prepare_vectors
from potstill.serve.tokenizer import BundleTokenizer
from potstill.tasks import FILL_MASK, QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION


def prepare(
    manifest: Manifest,
    tokenizer: BundleTokenizer,
    items: Sequence[Any],
    parameters: BaseModel | Mapping[str, Any] | None,
    *,
    function: str,
    width: int | None,
    most_windows: int,
) -> Prepared:
    """Return a request as rows for the model, and what reads its answers.

    Args:
        manifest: says the task.
        tokenizer: the model's.
        items: `shape_of(manifest).item`, or tuples for pairs and questions.
        parameters: `shape_of(manifest).parameters`, or a mapping of them; None takes the defaults.
        function: what makes a classifier's scores where the parameters do not say.
        width: how many numbers a vector has, where it is known.
        most_windows: windows that one question's context may be read in.

    Raises:
        RequestError: if an item or a parameter is none of this task.
    """
    outputs = manifest.outputs
    if manifest.task == TEXT_CLASSIFICATION.name:
        ranked = read_parameters(ClassificationParameters, parameters)
        both = read_texts_and_pairs(items)
        return prepare_texts(tokenizer, both, ranked, labels=manifest.labels, function=function, output=outputs[0])
    if manifest.task == TOKEN_CLASSIFICATION.name:
        tagged = read_parameters(TokenParameters, parameters)
        return prepare_tokens(tokenizer, read_texts(items), tagged, labels=manifest.labels, output=outputs[0])
    if manifest.task == QUESTION_ANSWERING.name:
        asked = read_parameters(QuestionParameters, parameters)
        questions = read_questions(items)
        return prepare_questions(tokenizer, questions, asked, outputs=outputs, most_windows=most_windows)
    if manifest.task == FILL_MASK.name:
        filled = read_parameters(MaskParameters, parameters)
        return prepare_masks(tokenizer, read_texts(items), filled, output=outputs[0])
    embedded = read_parameters(VectorParameters, parameters)
    texts = read_texts(items)
    return prepare_vectors(tokenizer, texts, embedded, outputs=outputs, pooling=manifest.pooling, width=width)
