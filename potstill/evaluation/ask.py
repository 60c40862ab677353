"""Ask any model about texts of any task, as the server asks it, for numbers that a judge scores without the model.

How a text becomes a model's inputs and what its outputs mean is `potstill.serve.tasks`'s alone: windows, lengths,
pooling, scores. So the score of a model is that of the answers that it serves, whatever runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.bundle import Pooling
from potstill.errors import CheckError, DataError, UsageError
from potstill.evaluation.answers import Session
from potstill.serve import BundleTokenizer, Text
from potstill.serve.encoder import unpad
from potstill.serve.http_errors import RequestError
from potstill.serve.tasks.feature_extraction import VectorParameters, preprocess_vectors
from potstill.serve.tasks.features import Features, Outputs
from potstill.serve.tasks.fill_mask import preprocess_hidden
from potstill.serve.tasks.question_answering import QuestionParameters, preprocess_questions
from potstill.serve.tasks.text_classification import preprocess_scores
from potstill.serve.tasks.token_classification import preprocess_words
from potstill.serve.tokenizer import Pieces
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    PROBLEM_TYPES,
    QUESTION_ANSWERING,
    REGRESSION,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)

Arrays: TypeAlias = dict[str, NDArray[Any]]

# One word in seven is hidden, as in BERT's training, and always the same ones; the first is near the text's beginning.
_MASK_EVERY, _FIRST_MASKED = 7, 3
# Nothing else waits here, so a context may take as many windows as it has.
_MOST_WINDOWS = 2**31
_FUNCTIONS = {MULTI_LABEL: "sigmoid", REGRESSION: "none"}


def ask(
    session: Session,
    tokenizer: BundleTokenizer,
    texts: Sequence[Any],
    *,
    kind: str,
    outputs: Sequence[str],
    function: str | None = None,
    pooling: Pooling | str | None = None,
    batch_invariant: bool = True,
    batch_size: int = 1,
) -> Arrays:
    """Return a model's answers as named arrays, for `numpy.savez` and `numpy.load(..., allow_pickle=False)`.

    For N texts, by kind:

    - single label, several labels: `values`, float32 (N, labels), the logits
    - regression: `values`, float64 (N, 1), the amounts
    - token-classification, W words in all: `values`, float32 (W, tags), the logits of each word's first token;
      `texts`, int64 (W,), whose word it is; `seen`, bool (W,), false for a word beyond the longest input
      or without a token
    - question-answering: `answers`, str (N,), and `answers_or_none`, the same where "" for no answer is allowed;
      `scores`, float64 (N,), of `answers`
    - feature-extraction of pairs: `values`, float64 (N, 1), the cosines
    - fill-mask, H hidden words: `nll`, float64 (H,), the surprise at each in nats; `choices` and `wanted`, int64
      (H,), the likeliest and the true token, and `choice_words` and `wanted_words` their texts; `texts`, int64 (H,);
      `vocabulary`, int64 (), how many tokens the model chooses from

    An answer whose numbers are NaN or infinite, which a server refuses to give, is NaN (of a question `scores` is, of a
    hidden word `nll`, of a text with tags every word's `values`); that is for the judge to count, and no error.

    Args:
        session: the model.
        tokenizer: the model's.
        texts: as `potstill.data.Examples.texts`, also from JSON: a pair may be a list of two strings.
        kind: `potstill.tasks.kind_of`.
        outputs: the model's outputs in the order of the manifest.
        function: what makes scores of a classifier's logits (`serve.tasks.text_classification.scoring_function`); None
            is the kind's usual.
        pooling: how feature-extraction makes a vector of a text's tokens, or its mode by name; None is their mean.
        batch_invariant: whether a text's answer is independent of its batch mates; if not, texts run one by one.
        batch_size: rows per run. One, as a server runs a request that is alone, gives to the last digit what it gives.

    Raises:
        DataError: if there is nothing to ask about, or texts do not fit the kind.
        UsageError: if fill-mask has a tokenizer without a mask token.
    """
    size = batch_size if batch_invariant else 1
    if kind == TOKEN_CLASSIFICATION.name:
        return _ask_words(session, tokenizer, texts, output=outputs[0], batch_size=size)
    asked = _texts(texts, kind)
    if kind == QUESTION_ANSWERING.name:
        return _ask_questions(session, tokenizer, asked, outputs=outputs, batch_size=size)
    if kind == FILL_MASK.name:
        # A word has a vocabulary of logits, so texts go one by one.
        return _ask_hidden(session, tokenizer, asked, output=outputs[0])
    if kind == FEATURE_EXTRACTION.name:
        known = Pooling.model_validate({"mode": pooling, "normalize": False}) if isinstance(pooling, str) else pooling
        return _ask_pairs(session, tokenizer, asked, outputs=outputs, pooling=known, batch_size=size)
    prepared = [
        preprocess_scores(
            tokenizer, [text], function=function or _FUNCTIONS.get(kind, "softmax"), output=outputs[0]
        )
        for text in asked
    ]  # fmt: skip
    found = _run(session, tokenizer, prepared, kind=kind, batch_size=size)
    served, dtype = (1, np.float64) if kind == REGRESSION else (0, np.float32)
    rows = [[np.nan] * one.width if isinstance(one, _Lost) else one[served] for one in found]
    return {"values": np.array(rows, dtype=dtype)}


@dataclass(frozen=True, slots=True)
class _Lost:
    """An answer whose numbers were NaN or infinite."""

    width: int
    """How many numbers there are of each thing that is asked about."""


def _run(
    session: Session, tokenizer: BundleTokenizer, prepared: Sequence[Features], *, kind: str, batch_size: int
) -> list[Any]:
    """Return the answer to each request of one input, `_Lost` where its numbers are NaN or infinite."""
    task = TEXT_CLASSIFICATION.name if kind in PROBLEM_TYPES else kind
    rows = [(owner, place) for owner, one in enumerate(prepared) for place in range(len(one.rows))]
    # Longest first, because onnxruntime's memory grows to the largest batch and stays there.
    rows.sort(key=lambda row: -len(prepared[row[0]].rows[row[1]]["input_ids"]))
    # Without a mask the padding would be read as words.
    size = batch_size if rows and "attention_mask" in prepared[0].rows[0] else 1
    answers: list[Any] = [None] * len(prepared)
    waiting: dict[int, dict[int, Outputs]] = {}
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        given = [prepared[owner].rows[place] for owner, place in batch]
        found = unpad(session.run(tokenizer.pad(given)), given, task=task, left=tokenizer.pads_left)
        for (owner, place), outputs in zip(batch, found, strict=True):
            one, kept = prepared[owner], waiting.setdefault(owner, {})
            kept[place] = one.keep(place, outputs)
            if len(kept) == len(one.rows):
                answers[owner] = _read(one, [kept[number] for number in range(len(one.rows))])
                del waiting[owner]
    return answers


def _read(prepared: Features, outputs: Sequence[Outputs]) -> Any:
    try:
        return prepared.decode(outputs)[0]
    except CheckError:
        return _Lost(next(iter(outputs[0].values())).shape[-1])


def _texts(texts: Sequence[Any], kind: str) -> list[Text]:
    """Return texts and pairs as a tokenizer takes them, whether they came through JSON or not."""
    if not texts:
        raise DataError("there are no texts to ask about")
    asked: list[Text] = [tuple(text) if isinstance(text, list) else text for text in texts]
    if kind in {QUESTION_ANSWERING.name, FEATURE_EXTRACTION.name}:
        single = next((text for text in asked if not isinstance(text, tuple)), None)
        if single is not None:
            raise DataError(f"{kind} is judged by pairs of texts, and {str(single)[:60]!r} is one; name two columns")
    return asked


def _ask_words(
    session: Session, tokenizer: BundleTokenizer, texts: Sequence[Sequence[str]], *, output: str, batch_size: int
) -> Arrays:
    sizes = [len(words) for words in texts]
    if not sum(sizes):
        raise DataError("there are no words to ask about; give texts that are not empty")
    prepared = [preprocess_words(tokenizer, [words], output=output) for words in texts]
    found = _run(session, tokenizer, prepared, kind=TOKEN_CLASSIFICATION.name, batch_size=batch_size)
    both = [
        (np.full((size, one.width), np.nan), np.ones(size, dtype=np.bool_)) if isinstance(one, _Lost) else one
        for one, size in zip(found, sizes, strict=True)
    ]
    return {
        "values": np.concatenate([values for values, _ in both]).astype(np.float32),
        "texts": np.repeat(np.arange(len(texts)), sizes),
        "seen": np.concatenate([seen for _, seen in both]),
    }


def _ask_questions(
    session: Session, tokenizer: BundleTokenizer, pairs: Sequence[Any], *, outputs: Sequence[str], batch_size: int
) -> Arrays:
    """Ask with the parameters that a request has by default, and once more with "no answer" among the answers."""
    always, perhaps = QuestionParameters(), QuestionParameters(handle_impossible_answer=True)
    prepared = [_both_ways(tokenizer, number, pair, (always, perhaps), outputs) for number, pair in enumerate(pairs)]
    found = _run(session, tokenizer, prepared, kind=QUESTION_ANSWERING.name, batch_size=batch_size)
    lost = {"answer": "", "score": np.nan}
    answers = [(lost, lost) if isinstance(one, _Lost) else one for one in found]
    return {
        "answers": np.array([one["answer"] for one, _ in answers], dtype=np.str_),
        "answers_or_none": np.array([one["answer"] for _, one in answers], dtype=np.str_),
        "scores": np.array([one["score"] for one, _ in answers], dtype=np.float64),
    }


def _both_ways(
    tokenizer: BundleTokenizer,
    number: int,
    pair: tuple[str, str],
    ways: Sequence[QuestionParameters],
    outputs: Sequence[str],
) -> Features:
    """Return a question whose answer is read once by each of the parameters, which ask for the same windows."""
    try:
        prepared = [
            preprocess_questions(tokenizer, [pair], way, outputs=outputs, most_windows=_MOST_WINDOWS) for way in ways
        ]
    except RequestError as error:
        raise DataError(f"question {number + 1} cannot be asked: {error}") from error
    return Features(prepared[0].rows, lambda given: [[one.decode(given)[0] for one in prepared]])


def _ask_pairs(
    session: Session,
    tokenizer: BundleTokenizer,
    pairs: Sequence[Any],
    *,
    outputs: Sequence[str],
    pooling: Pooling | None,
    batch_size: int,
) -> Arrays:
    """Return the cosine of the two vectors of each pair."""
    each = list(dict.fromkeys(text for pair in pairs for text in pair))
    settings = VectorParameters()
    prepared = [
        preprocess_vectors(tokenizer, [text], settings, outputs=outputs, pooling=pooling, width=None) for text in each
    ]
    found = _run(session, tokenizer, prepared, kind=FEATURE_EXTRACTION.name, batch_size=batch_size)
    filled = [[np.nan] * one.width if isinstance(one, _Lost) else one for one in found]
    vectors = dict(zip(each, filled, strict=True))
    one, two = (np.array([vectors[text] for text in side], dtype=np.float64) for side in zip(*pairs, strict=True))
    return {"values": metrics.row_cosines(one, two)[:, None]}


def _ask_hidden(session: Session, tokenizer: BundleTokenizer, texts: Sequence[Text], *, output: str) -> Arrays:
    """Hide every 7th of the words that are one token, and return the surprise at each."""
    if tokenizer.mask_id is None:
        raise UsageError("fill-mask needs a tokenizer with a mask token, and this one has none")
    masked = [_hide(tokenizer, text if isinstance(text, str) else " ".join(text)) for text in texts]
    rows = tokenizer.rows([text for text, _ in masked])
    # A text that shows another number of masks than were put into it, such as one that has some itself, is left out.
    shown = [int((row["input_ids"] == tokenizer.mask_id).sum()) for row in rows]
    asked = [number for number, (_, hidden) in enumerate(masked) if hidden and shown[number] == len(hidden)]
    if not asked:
        raise DataError("there are no words to hide from a language model; give texts that are not empty")
    prepared = [preprocess_hidden(tokenizer, [masked[at][0]], [masked[at][1]], output=output) for at in asked]
    found = _run(session, tokenizer, prepared, kind=FILL_MASK.name, batch_size=1)
    sizes = [len(masked[at][1]) for at in asked]
    filled = [
        [(np.nan, 0, one.width)] * size if isinstance(one, _Lost) else one
        for one, size in zip(found, sizes, strict=True)
    ]
    triples = [triple for one in filled for triple in one]
    scores = np.array([score for score, _, _ in triples], dtype=np.float64)
    choices = np.array([choice for _, choice, _ in triples], dtype=np.int64)
    wanted = np.array([token for at in asked for token in masked[at][1]], dtype=np.int64)
    return {
        # A score that is too small for a number counts as the smallest that there is.
        "nll": -np.log(np.maximum(scores, np.nextafter(0.0, 1.0))),
        "choices": choices,
        "wanted": wanted,
        "choice_words": np.array([tokenizer.token(number) for number in choices.tolist()]),
        "wanted_words": np.array([tokenizer.token(number) for number in wanted.tolist()]),
        "texts": np.repeat(asked, sizes),
        "vocabulary": np.array(triples[0][2]),
    }


def _hide(tokenizer: BundleTokenizer, text: str) -> tuple[str, list[int]]:
    """Return a text with some of its words behind masks, as a client would write it, and the tokens behind them."""
    whole = tokenizer.pieces([text])[0]
    kept = tokenizer.kept(len(whole.ids))
    seen = Pieces(whole.ids[kept], whole.places[kept], whole.words[kept])
    alone = [place for place in range(len(seen.ids)) if _is_a_word(tokenizer, text, seen, place)]
    mask = tokenizer.token(tokenizer.mask_id if tokenizer.mask_id is not None else -1)
    parts, end = [], 0
    hidden = []
    for place in alone[min(_FIRST_MASKED, len(alone) // 2) :: _MASK_EVERY]:
        start, stop = seen.places[place].tolist()
        parts += [text[end:start], mask]
        end = stop
        hidden.append(seen.ids[place])
    return "".join([*parts, text[end:]]), hidden


def _is_a_word(tokenizer: BundleTokenizer, text: str, seen: Pieces, place: int) -> bool:
    """Return whether a token is a known word by itself: only such a one can be hidden in a text."""
    own, count = seen.words[place], len(seen.ids)
    before = seen.words[place - 1] if place else -1
    after = seen.words[place + 1] if place + 1 < count else -1
    start, end = seen.places[place]
    is_known = own >= 0 and seen.ids[place] != tokenizer.unknown_id
    return bool(is_known and own not in (before, after) and text[start:end].strip())
