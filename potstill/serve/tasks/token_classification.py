"""Token classification: the logits of tokens become labelled tokens, words or entities with their places in the text.

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
    """Its position in the row, special tokens included."""
    word: str
    """The token as the vocabulary writes it."""
    scores: NDArray[np.float64]
    """The probability of each label, shape (labels,)."""
    start: int
    end: int
    continues_word: bool
    """Whether it continues the word of the token before."""


@dataclass(frozen=True, slots=True)
class _LabelledWord:
    """A token or a word whose label is chosen."""

    label: str
    score: float
    word: str
    start: int
    end: int


def preprocess(model: TaskModel, items: Sequence[object], parameters: TokenParameters, _: int = 0) -> Features:
    """Tokenise texts; the answer to each is its tokens or entities in the order of the text. Long texts are truncated.

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
    """Tokenise texts that come as lists of words, for an evaluation; the words are joined by spaces.

    The answer to W words is a pair of arrays: their logits, shape (W, labels), and whether each has any, shape (W,). A
    word has the logits of the first token that overlaps it, one that `preprocess` lists with `aggregation_strategy`
    "none". It has none if no token overlaps it: beyond the truncation, or where the tokenizer drops the word.
    """
    tokenizer, output = model.tokenizer, model.outputs[0]
    clean = [[without_surrogates(word) for word in words] for words in texts]
    pieces = _pieces_read(tokenizer, [" ".join(words) for words in clean])

    def decode(outputs: Sequence[Outputs]) -> list[object]:
        answers: list[object] = []
        for words, read, own in zip(clean, pieces, outputs, strict=True):
            logits = _logits_of_text(tokenizer, read, own[output])
            sizes = np.array([len(word) for word in words], dtype=np.int64)
            begins = np.cumsum(sizes + 1) - sizes - 1  # in characters; the 1 is the space between two words
            firsts = np.full(len(words), -1, dtype=np.int64)
            # From the last token to the first, so that the first one that overlaps a word remains.
            for token, (start, end) in reversed(list(enumerate(read.places))):
                firsts[(sizes > 0) & (begins < end) & (begins + sizes > start)] = token
            # A word without a token gets the first token's logits as a filler, and False beside them.
            padded = logits if len(logits) else np.zeros((1, own[output].shape[-1]))
            answers.append((padded[np.maximum(firsts, 0)], firsts >= 0))
        return answers

    return Features(rows=[tokenizer.frame(read.ids) for read in pieces], decode=decode)


def _pieces_read(tokenizer: BundleTokenizer, texts: Sequence[str]) -> list[Pieces]:
    """Return each text's tokens that remain after truncation, without special tokens."""
    found = []
    for whole in tokenizer.pieces(texts):
        kept = tokenizer.kept(len(whole.ids))
        found.append(Pieces(whole.ids[kept], whole.places[kept], whole.words[kept]))
    return found


def _logits_of_text(tokenizer: BundleTokenizer, read: Pieces, given: Floats) -> NDArray[np.float64]:
    """Return the logits of a text's own tokens, without those of the special tokens around them."""
    before = len(tokenizer.single.ids[0])
    return check_finite(given)[before : before + len(read.ids)]


def _tokens(tokenizer: BundleTokenizer, text: str, read: Pieces, scores: NDArray[np.float64]) -> list[_Token]:
    """Return a text's tokens; which of them continue a word is decided as in transformers' pipeline."""
    tokens = []
    before = len(tokenizer.single.ids[0])
    for index, (number, (start, end)) in enumerate(zip(read.ids, read.places.tolist(), strict=True)):
        word, shown = tokenizer.token(number), text[start:end]
        if tokenizer.continues_words:  # "##ing" is longer than the "ing" of the text
            continues_word = len(word) != len(shown)
        else:  # byte-level and Unigram tokens: a word begins after a space, which may be the token's first character
            continues_word = start > 0 and " " not in text[start - 1 : start + 1]
        if number == tokenizer.unknown_id:
            word, continues_word = shown, False
        tokens.append(_Token(before + index, word, scores[index], start, end, continues_word))
    return tokens


def _aggregate(
    tokenizer: BundleTokenizer, tokens: Sequence[_Token], parameters: TokenParameters, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return labelled tokens (strategy "none"), or entities joined from tokens by one of the other four strategies."""
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
    # "simple" labels every token by itself; the other strategies label whole words.
    for token in tokens:
        if words and token.continues_word and strategy != "simple":
            words[-1].append(token)
        else:
            words.append([token])
    groups: list[list[_LabelledWord]] = []
    for word in words:
        one = _label_word(tokenizer, word, labels, strategy)
        # B- begins a new entity; otherwise neighbours of one kind are joined, whether or not the label has I-.
        is_new = not groups or one.label.startswith("B-") or _kind(one.label) != _kind(groups[-1][-1].label)
        if is_new:
            groups.append([])
        groups[-1].append(one)
    entities = [
        {
            # The name is what follows the first hyphen, whatever precedes it, as in the pipeline.
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
    """Label a word: by the scores of its first token, of its most certain one ("max"), or by the mean of all."""
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
    """Return the label and the place of every entity."""
    return tuple((one.get("entity") or one.get("entity_group"), one["start"], one["end"]) for one in answer)


TASK = ServedTask(
    item=StrictStr,
    parameters=TokenParameters,
    answer=list[Entity],
    example="Ada Lovelace lived in London",
    preprocess=preprocess,
    decide=_decide,
)
