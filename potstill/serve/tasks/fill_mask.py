"""Fill-mask: the likeliest words for each mask of a text, by the rules of transformers' fill-mask pipeline."""

from collections.abc import Hashable, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictStr

from potstill.metrics import softmax
from potstill.serve.http_errors import invalid
from potstill.serve.tasks.features import Features, Floats, Outputs, ServedTask, TaskModel, check_finite
from potstill.serve.tasks.inputs import MAX_COUNT, Count, RequestModel, read_texts
from potstill.serve.tokenizer import BundleTokenizer, Row, without_surrogates

# Characters of one target, which is a word: without a limit a string of 1.9 MB was tokenised for 2.6 s, and all but its
# first token was dropped.
_MOST_TARGET_CHARACTERS = 128
# Tokens of all the sequences in one response: every word for every mask comes with its whole text, which would be
# gigabytes for a text of masks and the largest top_k.
_MOST_TOKENS = 2_000_000
_KEPT = "logits of the masks"

_Target = Annotated[StrictStr, Field(max_length=_MOST_TARGET_CHARACTERS)]


class MaskParameters(RequestModel):
    """Of fill-mask."""

    top_k: Count = 5
    """How many words, the best first."""
    targets: Annotated[list[_Target], Field(min_length=1, max_length=MAX_COUNT)] | None = None
    """The only words to choose from."""


class Filling(BaseModel):
    """One word for the mask."""

    score: float
    token: int
    token_str: str
    sequence: str


def preprocess(model: TaskModel, items: Sequence[object], parameters: MaskParameters, _: int = 0) -> Features:
    """Tokenise texts with masks; the answer is a list of words for one mask, or a list of such lists for several.

    Raises:
        RequestError: 422 if an item is no text or has no mask among the tokens that are read, if none of the targets is
            a token, or if the answer would be too large.
    """
    tokenizer, output = model.tokenizer, model.outputs[0]
    rows, masks = _find_masks(tokenizer, read_texts(items))
    for index, places in enumerate(masks):
        if not len(places):
            mask = tokenizer.token(-1 if tokenizer.mask_id is None else tokenizer.mask_id)
            raise invalid(f"input {index} has no {mask} within the {tokenizer.max_length} tokens that are read")
    targets = None if parameters.targets is None else _target_tokens(tokenizer, parameters.targets)
    top_k = parameters.top_k if targets is None else min(parameters.top_k, len(targets))
    size = top_k * sum(len(places) * len(row["input_ids"]) for places, row in zip(masks, rows, strict=True))
    if size > _MOST_TOKENS:
        raise invalid(f"the answer would repeat {size} tokens of text, over {_MOST_TOKENS}; ask for a lower top_k")

    def keep(index: int, outputs: Outputs) -> Outputs:
        return {_KEPT: outputs[output][masks[index]]}

    def decode(outputs: Sequence[Outputs]) -> list[object]:
        answers: list[object] = []
        for index, own in enumerate(outputs):
            logits = check_finite((own if _KEPT in own else keep(index, own))[_KEPT])
            found = _fill(tokenizer, rows[index]["input_ids"], masks[index], logits, targets=targets, top_k=top_k)
            answers.append(found[0] if len(found) == 1 else found)
        return answers

    return Features(rows=rows, decode=decode, keep=keep)


def preprocess_hidden(model: TaskModel, texts: Sequence[str], hidden: Sequence[Sequence[int]]) -> Features:
    """Tokenise texts whose masks hide known tokens, for an evaluation; the answer is a list of triples, one per mask.

    A triple is the score of the hidden token (its probability, the one that `preprocess` gives), the id of the
    likeliest token, and the number of tokens that the model chooses from.

    Args:
        model: its first output has the logits.
        texts: with mask tokens, as a client would send them.
        hidden: the id of the token behind each mask of each text.

    Raises:
        RequestError: 422 if there is no mask token, or a text has another number of masks than of hidden tokens.
    """
    tokenizer, output = model.tokenizer, model.outputs[0]
    rows, masks = _find_masks(tokenizer, texts)
    for index, (places, tokens) in enumerate(zip(masks, hidden, strict=True)):
        if len(places) != len(tokens):
            raise invalid(f"input {index} has {len(places)} masks and {len(tokens)} hidden tokens")

    def keep(index: int, outputs: Outputs) -> Outputs:
        return {_KEPT: outputs[output][masks[index]]}

    def decode(outputs: Sequence[Outputs]) -> list[object]:
        answers: list[object] = []
        for index, own in enumerate(outputs):
            scores = softmax(check_finite((own if _KEPT in own else keep(index, own))[_KEPT]))
            answers.append(
                [
                    (float(row[token]) if token < len(row) else 0.0, int(_best(row, 1)[0]), len(row))
                    for row, token in zip(scores, hidden[index], strict=True)
                ]
            )
        return answers

    return Features(rows=rows, decode=decode, keep=keep)


def _find_masks(tokenizer: BundleTokenizer, texts: Sequence[str]) -> tuple[list[Row], list[NDArray[np.intp]]]:
    """Return the rows of texts, and the positions of the masks in each row."""
    if tokenizer.mask_id is None:
        raise invalid("this model's tokenizer has no mask token, so it cannot fill masks")
    rows = tokenizer.rows(texts)
    return rows, [np.flatnonzero(row["input_ids"] == tokenizer.mask_id) for row in rows]


def _fill(
    tokenizer: BundleTokenizer,
    ids: NDArray[np.int64],
    masks: NDArray[np.intp],
    logits: NDArray[np.float64],
    *,
    targets: NDArray[np.int64] | None,
    top_k: int,
) -> list[list[dict[str, Any]]]:
    """Return the best words for each mask of one text; `logits` has shape (masks, vocabulary)."""
    scores = softmax(logits)  # over the whole vocabulary, also where only targets are wanted, as the pipeline
    # A target beyond the model's own vocabulary, which may be smaller than the tokenizer's, has no score.
    columns = np.arange(scores.shape[1]) if targets is None else targets[targets < scores.shape[1]]
    answers = []
    for mask, row in zip(masks, scores[:, columns], strict=True):
        best = _best(row, top_k)
        sequences = np.repeat(ids[None], len(best), axis=0)
        sequences[:, mask] = columns[best]
        # The text is for people, so special tokens are left out; with several masks the other masks must stay.
        texts = tokenizer.decode(
            [sequence[sequence != tokenizer.pad_id].tolist() for sequence in sequences], skip_special=len(masks) == 1
        )
        words = tokenizer.decode([[token] for token in columns[best].tolist()])
        answers.append(
            [
                {"score": float(row[place]), "token": int(columns[place]), "token_str": word, "sequence": text}
                for place, word, text in zip(best, words, texts, strict=True)
            ]
        )
    return answers


def _best(scores: Floats, count: int) -> NDArray[np.intp]:
    """Return the indices of the `count` largest scores, the largest first; equal ones by index."""
    if count < len(scores):
        # Sort only those that can be among them: partition is linear, and a vocabulary has 30,000 entries or more.
        least = np.partition(scores, -count)[-count]
        candidates = np.flatnonzero(scores >= least)
    else:
        candidates = np.arange(len(scores))
    chosen: NDArray[np.intp] = candidates[np.argsort(-scores[candidates], kind="stable")[:count]]
    return chosen


def _target_tokens(tokenizer: BundleTokenizer, words: Sequence[str]) -> NDArray[np.int64]:
    """Return the distinct ids of words, ascending; for a word that is no token its first token stands."""
    known = {word: tokenizer.id_of(word) for word in map(without_surrogates, words)}
    others = [pieces.ids for pieces in tokenizer.pieces([word for word, id_ in known.items() if id_ is None])]
    # As the pipeline, which truncates such a word to one token at the tokenizer's own side.
    place = -1 if tokenizer.truncation_side == "left" else 0
    found = {number for number in known.values() if number is not None} | {ids[place] for ids in others if ids}
    if not found:
        raise invalid("none of the targets is a token of this model")
    return np.array(sorted(found), dtype=np.int64)


def _decide(answer: list[Any]) -> Hashable:
    """Return the id of the best word for each mask."""
    masks = answer if answer and isinstance(answer[0], list) else [answer]
    return tuple(words[0]["token"] if words else None for words in masks)


TASK = ServedTask(
    item=StrictStr,
    parameters=MaskParameters,
    answer=list[Filling] | list[list[Filling]],
    example="Paris is the [MASK] of France.",
    preprocess=preprocess,
    decide=_decide,
)
