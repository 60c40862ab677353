"""What goes in and what comes out, by task, in the words of the Hugging Face tasks.

The types here check requests, and make the schemas of the OpenAPI document. A request has one item or a list of them;
one item in gives one answer out, a list in gives a list out.

Source: the task specifications in huggingface_hub (`huggingface_hub.inference._generated.types`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from potstill.bundle import Manifest
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

# More than any vocabulary or text offers; what is asked beyond what there is gets what there is.
_MOST = 1_000
Count = Annotated[StrictInt, Field(ge=1, le=_MOST)]


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Pair(_Exact):
    """Two texts that are read together."""

    text: StrictStr
    text_pair: StrictStr


class Question(_Exact):
    """A question and the text that answers it."""

    question: StrictStr
    context: StrictStr


class ClassificationParameters(_Exact):
    """Of text-classification."""

    top_k: Count | None = None
    """How many labels, the best first; all by default."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """Scores from logits; by default softmax, sigmoid where several labels may hold or there is only one, none for a
    checkpoint that says itself that it is a regression."""


class TokenParameters(_Exact):
    """Of token-classification."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "simple"
    """How tokens become words and entities, as in transformers' pipeline."""
    ignore_labels: Annotated[list[StrictStr], Field(max_length=_MOST)] = ["O"]
    """Labels that are left out."""


class QuestionParameters(_Exact):
    """Of question-answering."""

    top_k: Count = 1
    """How many answers, the best first; above 1 an answer is a list of them."""
    doc_stride: Count | None = None
    """Tokens that neighbouring windows share; 128 by default, less where the model reads little."""
    max_answer_len: Count = 15
    """An answer's greatest length in tokens."""
    max_question_len: Count = 64
    """Tokens of the question that are read; half of a window at most where its neighbours would share more."""
    max_seq_len: Count | None = None
    """Tokens of a window; by default 384, or what the model can read."""
    handle_impossible_answer: StrictBool = False
    """Whether "no answer" (an empty text) is one of the answers."""
    align_to_words: StrictBool = True
    """Whether an answer begins and ends with whole words."""


class MaskParameters(_Exact):
    """Of fill-mask."""

    top_k: Count = 5
    """How many words, the best first."""
    targets: Annotated[list[StrictStr], Field(min_length=1, max_length=_MOST)] | None = None
    """The only words to choose from."""


class VectorParameters(_Exact):
    """Of feature-extraction, where a text gets one vector."""

    normalize: StrictBool | None = None
    """Whether vectors get length 1; by default as the model was trained."""
    truncate: StrictBool = True
    """Whether a text longer than the model reads is cut; otherwise it is refused."""
    truncation_direction: Literal["left", "right"] | None = None
    """Which end of a long text is cut; by default the tokenizer's own choice."""
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None
    """Only the first so many numbers of a vector, for models trained for it; its length is made 1 again if it was."""
    prompt_name: None = None
    """Prompts are not kept in bundles."""
    encoding_format: Literal["float"] | None = None


class Score(BaseModel):
    """One label and its score."""

    label: str
    score: float


class Entity(BaseModel):
    """One token, word or entity; `entity_group` where tokens were joined, else `entity` and `index`."""

    entity_group: str | None = None
    entity: str | None = None
    score: float
    index: int | None = None
    word: str
    start: int
    end: int


class Answer(BaseModel):
    """A part of the context, in characters."""

    answer: str
    score: float
    start: int
    end: int


class Filling(BaseModel):
    """One word for the mask."""

    score: float
    token: int
    token_str: str
    sequence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The shape of one task's requests and answers."""

    item: Any
    """The type of one input."""
    parameters: type[BaseModel]
    answer: Any
    """The type of one input's answer."""
    example: Any
    """An input that shows it."""


_SHAPES: Mapping[str, Shape] = {
    TEXT_CLASSIFICATION.name: Shape(
        item=StrictStr | Pair, parameters=ClassificationParameters, answer=list[Score], example="a great movie"
    ),
    TOKEN_CLASSIFICATION.name: Shape(
        item=StrictStr, parameters=TokenParameters, answer=list[Entity], example="Ada Lovelace lived in London"
    ),
    QUESTION_ANSWERING.name: Shape(
        item=Question, parameters=QuestionParameters, answer=Answer | list[Answer],
        example={"question": "Where did she live?", "context": "Ada Lovelace lived in London."},
    ),
    FILL_MASK.name: Shape(
        item=StrictStr, parameters=MaskParameters, answer=list[Filling] | list[list[Filling]],
        example="Paris is the [MASK] of France.",
    ),
    FEATURE_EXTRACTION.name: Shape(
        item=StrictStr, parameters=VectorParameters, answer=list[float], example="a great movie"
    ),
}  # fmt: skip


def shape_of(manifest: Manifest) -> Shape:
    """Return the shape of a bundle's task."""
    return _SHAPES[manifest.task]
