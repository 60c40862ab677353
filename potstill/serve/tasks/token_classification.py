"""Token classification: logits of tokens become tokens, words or named entities with their places in the text.

The rules are those of transformers' token-classification pipeline and its five aggregation strategies.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictStr

from potstill.metrics import softmax
from potstill.serve.tasks.features import (
    Features,
    Floats,
    Outputs,
    ServedTask,
    TaskModel,
    check_finite,
    wrong_label_count,
)
from potstill.serve.tasks.inputs import MAX_COUNT, RequestModel, read_texts
from potstill.serve.tokenizer import BundleTokenizer, Pieces, without_surrogates


class TokenParameters(RequestModel):
    """Of token-classification."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "simple"
    """How tokens become words and entities, as in transformers' pipeline."""
    ignore_labels: list[StrictStr] = Field(default=["O"], max_length=MAX_COUNT)
    """Labels that are left out."""


class Entity(BaseModel):
    """One token, word or entity; `entity_group` where tokens were joined, else `entity` and `index`."""

    entity_group: str | None = None
    entity: str | None = None
    score: float
    index: int | None = None
    word: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Token:
    """One token of a text."""

    index: int
    """Its place in the row, special tokens counted."""
    word: str
    """What the vocabulary calls it."""
    scores: NDArray[np.float64]
    """Of each label, shape (labels,)."""
    start: int
    end: int
    continues_word: bool
    """Whether it goes on with the word of the token before."""


@dataclass(frozen=True, slots=True)
class _LabelledWord:
    """A token or a word whose label is chosen."""

    label: str
    score: float
    word: str
    start: int
    end: int


def preprocess(model: TaskModel, items: Sequence[object], parameters: TokenParameters, _: int = 0) -> Features:
    """Tokenise texts; each gets its tokens or entities in the order of the text. Of a long one the beginning is read.

    Raises:
        RequestError: 422 if an item is no text.
    """
    tokenizer, output = model.tokenizer, model.outputs[0]
    texts = [without_surrogates(text) for text in read_texts(items)]
    pieces = _pieces_read(tokenizer, texts)

    def keep(_: int, outputs: Outputs) -> Outputs:
        return {output: outputs[output].copy()}

    def decode(outputs: Sequence[Outputs]) -> list[object]:
        answers: list[object] = []
        for text, read, own in zip(texts, pieces, outputs, strict=True):
            if own[output].shape[-1] != len(model.labels):
                raise wrong_label_count(own[output].shape[-1], len(model.labels))
            logits = _logits_of_text(tokenizer, read, own[output])
            tokens = _tokens(tokenizer, text, read, softmax(logits))
            answers.append(_aggregate(tokenizer, tokens, parameters, model.labels))
        return answers

    return Features(rows=[tokenizer.frame(read.ids) for read in pieces], decode=decode, keep=keep)


def preprocess_words(model: TaskModel, texts: Sequence[Sequence[str]]) -> Features:
    """Tokenise texts that come as lists of words, for an evaluation; they are joined by spaces.

    The answer to W words is an array (W, labels) of their logits and one (W,) of truth values, false for a word that no
    token touches: one behind the longest input, or one that the tokenizer leaves out. A word has the logits of the
    first token that touches it: of what `preprocess` lists with `aggregation_strategy` "none", the token at which it
    begins.
    """
    tokenizer, output = model.tokenizer, model.outputs[0]
    clean = [[without_surrogates(word) for word in words] for words in texts]
    pieces = _pieces_read(tokenizer, [" ".join(words) for words in clean])

    def decode(outputs: Sequence[Outputs]) -> list[object]:
        answers: list[object] = []
        for words, read, own in zip(clean, pieces, outputs, strict=True):
            logits = _logits_of_text(tokenizer, read, own[output])
            sizes = np.array([len(word) for word in words], dtype=np.int64)
            begins = np.cumsum(sizes + 1) - sizes - 1
            firsts = np.full(len(words), -1, dtype=np.int64)
            # From the last token to the first, so that the first that touches a word stays.
            for token, (start, end) in reversed(list(enumerate(read.places))):
                firsts[(sizes > 0) & (begins < end) & (begins + sizes > start)] = token
            # A word without a token gets the first one's logits, and false beside them.
            padded = logits if len(logits) else np.zeros((1, own[output].shape[-1]))
            answers.append((padded[np.maximum(firsts, 0)], firsts >= 0))
        return answers

    return Features(rows=[tokenizer.frame(read.ids) for read in pieces], decode=decode)


def _pieces_read(tokenizer: BundleTokenizer, texts: Sequence[str]) -> list[Pieces]:
    """Return of each text the tokens that the model reads, without special ones."""
    found = []
    for whole in tokenizer.pieces(texts):
        kept = tokenizer.kept(len(whole.ids))
        found.append(Pieces(whole.ids[kept], whole.places[kept], whole.words[kept]))
    return found


def _logits_of_text(tokenizer: BundleTokenizer, read: Pieces, given: Floats) -> NDArray[np.float64]:
    """Return the logits of a text's own tokens, without those of the special ones around them."""
    before = len(tokenizer.single.ids[0])
    return check_finite(given)[before : before + len(read.ids)]


def _tokens(tokenizer: BundleTokenizer, text: str, read: Pieces, scores: NDArray[np.float64]) -> list[_Token]:
    """Return a text's tokens; which of them go on with a word is told as transformers' pipeline tells it."""
    tokens = []
    before = len(tokenizer.single.ids[0])
    for index, (number, (start, end)) in enumerate(zip(read.ids, read.places.tolist(), strict=True)):
        word, shown = tokenizer.token(number), text[start:end]
        if tokenizer.continues_words:
            continues_word = len(word) != len(shown)
        else:
            continues_word = start > 0 and " " not in text[start - 1 : start + 1]
        if number == tokenizer.unknown_id:
            word, continues_word = shown, False
        tokens.append(_Token(before + index, word, scores[index], start, end, continues_word))
    return tokens


def _aggregate(
    tokenizer: BundleTokenizer, tokens: Sequence[_Token], parameters: TokenParameters, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return tokens as they are, or joined to entities, by one of the five strategies."""
    strategy, ignored = parameters.aggregation_strategy, set(parameters.ignore_labels)
    if strategy == "none":
        found: list[dict[str, Any]] = []
        for token in tokens:
            best = int(token.scores.argmax())
            found.append(
                {
                    "entity": labels[best],
                    "score": float(token.scores[best]),
                    "index": token.index,
                    "word": token.word,
                    "start": token.start,
                    "end": token.end,
                }
            )
        return [answer for answer in found if answer["entity"] not in ignored]
    words: list[list[_Token]] = []
    for token in tokens:
        if words and token.continues_word and strategy != "simple":
            words[-1].append(token)
        else:
            words.append([token])
    groups: list[list[_LabelledWord]] = []
    for word in words:
        one = _label_word(tokenizer, word, labels, strategy)
        # A B- begins a new entity; a label without B- or I- goes on with the last.
        is_new = not groups or one.label.startswith("B-") or _kind(one.label) != _kind(groups[-1][-1].label)
        if is_new:
            groups.append([])
        groups[-1].append(one)
    entities = [
        {
            # The name is what stands behind the first hyphen, whatever stands before it, as in the pipeline.
            "entity_group": group[0].label.split("-", 1)[-1],
            "score": float(np.mean([one.score for one in group])),
            "word": tokenizer.join([one.word for one in group]),
            "start": group[0].start,
            "end": group[-1].end,
        }
        for group in groups
    ]
    return [entity for entity in entities if entity["entity_group"] not in ignored]


def _label_word(
    tokenizer: BundleTokenizer, word: Sequence[_Token], labels: Sequence[str], strategy: str
) -> _LabelledWord:
    """Give all tokens of a word one label: that of its first, that of its surest, or that of their mean."""
    if strategy in {"simple", "first"}:
        scores = word[0].scores
    elif strategy == "max":
        scores = max(word, key=lambda token: float(token.scores.max())).scores
    else:
        scores = np.mean([token.scores for token in word], axis=0)
    best = int(scores.argmax())
    text = word[0].word if strategy == "simple" else tokenizer.join([token.word for token in word])
    return _LabelledWord(labels[best], float(scores[best]), text, word[0].start, word[-1].end)


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _decide(answer: list[dict[str, object]]) -> Hashable:
    """Return all entities, and where they stand."""
    return tuple((one.get("entity") or one.get("entity_group"), one["start"], one["end"]) for one in answer)


TASK = ServedTask(
    item=StrictStr,
    parameters=TokenParameters,
    answer=list[Entity],
    example="Ada Lovelace lived in London",
    preprocess=preprocess,
    decide=_decide,
)
