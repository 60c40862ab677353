"""Token classification: logits of tokens become tokens, words or entities with their places in the text.

The rules are those of transformers' token-classification pipeline and its five aggregation strategies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictStr

from potstill.metrics import softmax
from potstill.serve.tasks.features import Features, LoadedModel, Outputs, ServedTask, check_finite, check_label_count
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
    """One token, or one word of several."""

    index: int
    """Its place in the row, special tokens counted."""
    word: str
    scores: NDArray[np.floating[Any]]
    """Of each label, shape (labels,)."""
    start: int
    end: int
    goes_on: bool
    """Whether it goes on with the word of the token before."""


@dataclass(frozen=True, slots=True)
class _Tagged:
    """A token or a word whose label is chosen."""

    label: str
    score: float
    word: str
    start: int
    end: int


def preprocess_tokens(
    tokenizer: BundleTokenizer, texts: Sequence[str], parameters: TokenParameters, *, labels: Sequence[str], output: str
) -> Features:
    """Return texts whose tokens are to be labelled; each gets its tokens or entities in the order of the text.

    Args:
        tokenizer: the model's.
        texts: at least one; of a long one what the model reads is labelled.
        parameters: what the request says.
        labels: in the order of the logits.
        output: the name of the logits.
    """
    clean = [without_surrogates(text) for text in texts]
    pieces = [_seen(tokenizer, whole) for whole in tokenizer.pieces(clean)]
    before = len(tokenizer.single.ids[0])

    def decode(outputs: Sequence[Outputs]) -> list[Any]:
        answers = []
        for text, seen, own in zip(clean, pieces, outputs, strict=True):
            logits = _logits(tokenizer, seen, check_label_count(own[output], labels))
            tokens = _tokens(tokenizer, text, seen, softmax(logits), first=before)
            answers.append(_aggregate(tokenizer, tokens, parameters, labels))
        return answers

    return Features(rows=[tokenizer.frame(seen.ids) for seen in pieces], decode=decode)


def preprocess_words(tokenizer: BundleTokenizer, texts: Sequence[Sequence[str]], *, output: str) -> Features:
    """Return texts that come as lists of words, joined by spaces; each gets its words' logits, and which were read.

    A word is labelled by the first token that touches it: of what `preprocess_tokens` lists with `aggregation_strategy`
    "none", the tokens at which words begin. The answer to W words is an array (W, labels) and one (W,) of truth values,
    false for a word that no token touches: one behind the longest input, or one that the tokenizer leaves out.

    Args:
        tokenizer: the model's.
        texts: at least one.
        output: the name of the logits.
    """
    clean = [[without_surrogates(word) for word in words] for words in texts]
    pieces = [_seen(tokenizer, whole) for whole in tokenizer.pieces([" ".join(words) for words in clean])]

    def decode(outputs: Sequence[Outputs]) -> list[Any]:
        answers = []
        for words, seen, own in zip(clean, pieces, outputs, strict=True):
            logits = _logits(tokenizer, seen, own[output])
            firsts = _first_tokens(words, seen.places)
            # A word without a token has the first one's logits, beside the word that they are not its own.
            padded = logits if len(logits) else np.zeros((1, own[output].shape[-1]))
            answers.append((padded[np.maximum(firsts, 0)], firsts >= 0))
        return answers

    return Features(rows=[tokenizer.frame(seen.ids) for seen in pieces], decode=decode)


def _first_tokens(words: Sequence[str], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first token that touches each word of a text joined by spaces, -1 for a word that none touches."""
    sizes = np.array([len(word) for word in words], dtype=np.int64)
    begins = np.cumsum(sizes + 1) - sizes - 1
    firsts = np.full(len(words), -1, dtype=np.int64)
    for token in range(len(places) - 1, -1, -1):
        start, end = places[token]
        firsts[(sizes > 0) & (begins < end) & (begins + sizes > start)] = token
    return firsts


def _logits(tokenizer: BundleTokenizer, seen: Pieces, given: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the logits of a text's own tokens, without those of the special ones around them."""
    before = len(tokenizer.single.ids[0])
    return check_finite(given)[before : before + len(seen.ids)]


def _seen(tokenizer: BundleTokenizer, whole: Pieces) -> Pieces:
    kept = tokenizer.kept(len(whole.ids))
    return Pieces(whole.ids[kept], whole.places[kept], whole.words[kept])


def _tokens(
    tokenizer: BundleTokenizer, text: str, seen: Pieces, scores: NDArray[np.floating[Any]], *, first: int
) -> list[_Token]:
    """Return the text's tokens; which of them go on with a word is told as the pipeline tells it."""
    tokens = []
    for index, (number, (start, end)) in enumerate(zip(seen.ids, seen.places.tolist(), strict=True)):
        word, shown = tokenizer.token(number), text[start:end]
        if tokenizer.continues_words:
            goes_on = len(word) != len(shown)
        else:
            goes_on = start > 0 and " " not in text[start - 1 : start + 1]
        if number == tokenizer.unknown_id:
            word, goes_on = shown, False
        tokens.append(_Token(first + index, word, scores[index], start, end, goes_on))
    return tokens


def _aggregate(
    tokenizer: BundleTokenizer, tokens: Sequence[_Token], parameters: TokenParameters, labels: Sequence[str]
) -> list[dict[str, Any]]:
    strategy, ignored = parameters.aggregation_strategy, set(parameters.ignore_labels)
    if strategy == "none":
        found = [_of_token(token, labels) for token in tokens]
        return [answer for answer in found if answer["entity"] not in ignored]
    if strategy == "simple":
        tagged = [_tag(token.scores, token.word, [token], labels) for token in tokens]
    else:
        tagged = [_of_word(tokenizer, word, labels, strategy) for word in _words(tokens)]
    groups = [_of_group(tokenizer, group) for group in _groups(tagged)]
    return [answer for answer in groups if answer["entity_group"] not in ignored]


def _of_token(token: _Token, labels: Sequence[str]) -> dict[str, Any]:
    best = int(token.scores.argmax())
    return {
        "entity": labels[best], "score": float(token.scores[best]), "index": token.index,
        "word": token.word, "start": token.start, "end": token.end,
    }  # fmt: skip


def _words(tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
    word: list[_Token] = []
    for token in tokens:
        if word and not token.goes_on:
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def _of_word(tokenizer: BundleTokenizer, word: Sequence[_Token], labels: Sequence[str], strategy: str) -> _Tagged:
    """Give all tokens of a word one label: that of its first, that of its surest, or that of their mean."""
    if strategy == "first":
        scores = word[0].scores
    elif strategy == "max":
        scores = max(word, key=lambda token: float(token.scores.max())).scores
    else:
        scores = np.mean([token.scores for token in word], axis=0)
    return _tag(scores, tokenizer.join([token.word for token in word]), word, labels)


def _tag(scores: NDArray[np.floating[Any]], word: str, tokens: Sequence[_Token], labels: Sequence[str]) -> _Tagged:
    best = int(scores.argmax())
    return _Tagged(labels[best], float(scores[best]), word, tokens[0].start, tokens[-1].end)


def _groups(tagged: Sequence[_Tagged]) -> Iterator[list[_Tagged]]:
    """Join neighbours of one kind; a B- begins a new group, a label without B- or I- goes on with the last."""
    group: list[_Tagged] = []
    for item in tagged:
        if group and (item.label.startswith("B-") or _kind(item.label) != _kind(group[-1].label)):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _of_group(tokenizer: BundleTokenizer, group: Sequence[_Tagged]) -> dict[str, Any]:
    return {
        # The name is what stands behind the first hyphen, whatever stands before it, as in the pipeline.
        "entity_group": group[0].label.split("-", 1)[-1],
        "score": float(np.mean([item.score for item in group])),
        "word": tokenizer.join([item.word for item in group]),
        "start": group[0].start,
        "end": group[-1].end,
    }  # fmt: skip


def _preprocess(model: LoadedModel, items: Sequence[object], parameters: TokenParameters, _: int) -> Features:
    return preprocess_tokens(
        model.tokenizer,
        read_texts(items),
        parameters,
        labels=model.manifest.labels,
        output=model.manifest.outputs[0],
    )


TASK = ServedTask(
    item=StrictStr,
    parameters=TokenParameters,
    answer=list[Entity],
    example="Ada Lovelace lived in London",
    preprocess=_preprocess,
)
