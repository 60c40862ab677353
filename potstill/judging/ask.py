"""Ask any model about texts of any task, for numbers that a judge scores without the model or its tokenizer."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.errors import DataError
from potstill.judging.answers import SENTENCE_EMBEDDING, Session, hide_words, ordinary_tokens, run_rows
from potstill.judging.questions import ask_questions
from potstill.judging.words import ask_words
from potstill.serve import BundleTokenizer, Text
from potstill.task import FEATURE_EXTRACTION, FILL_MASK, QUESTION_ANSWERING, TOKEN_CLASSIFICATION

Arrays: TypeAlias = dict[str, NDArray[Any]]


def ask(
    session: Session,
    tokenizer: BundleTokenizer,
    texts: Sequence[Any],
    *,
    kind: str,
    outputs: Sequence[str],
    batch_invariant: bool = True,
    pooling: str = "mean",
    batch_size: int = 32,
) -> Arrays:
    """Return a model's answers as named arrays, for `numpy.savez` and `numpy.load(..., allow_pickle=False)`.

    For N texts, by kind:

    - single label, several labels, regression: `values`, float32 (N, outputs), the logits or amounts
    - token-classification, W words in all: `values`, float32 (W, tags), the logits of each word's first token;
      `texts`, int64 (W,), whose word it is; `seen`, bool (W,), false for a word beyond the longest input
      or without a token
    - question-answering: `spans`, int64 (N, 2), where in the context the best answer begins and ends, in characters;
      `best`, float64 (N,), its score, -inf where there is no span; `null`, float64 (N,), the score of "no answer"
    - feature-extraction of pairs: `values`, float32 (N, 1), the cosines
    - fill-mask, H hidden words: `nll`, float64 (H,), the surprise at each in nats; `choices` and `wanted`, int64
      (H,), the likeliest and the true token, and `choice_words` and `wanted_words` their texts; `texts`, int64 (H,);
      `vocabulary`, int64 (), how many tokens the model chooses from

    A value that the model gave as NaN or infinite stays so (of a question `best` is NaN, of a hidden word `nll`); that
    is for the judge to count, and no error.

    Args:
        session: the model.
        tokenizer: the model's.
        texts: as `potstill.data.Examples.texts`, also from JSON: a pair may be a list of two strings.
        kind: `potstill.task.kind_of`.
        outputs: the model's outputs in the order of the manifest.
        batch_invariant: whether a text's answer is independent of its batch mates; if not, texts run one by one.
        pooling: `mean` or `cls`, where feature-extraction has no output `sentence_embedding`.
        batch_size: texts per run.

    Raises:
        DataError: if there is nothing to ask about, or texts do not fit the kind.
        UsageError: if fill-mask has a tokenizer without a mask token.
    """
    size = batch_size if batch_invariant else 1
    if kind == TOKEN_CLASSIFICATION.name:
        return ask_words(session, tokenizer, texts, outputs=outputs, batch_size=size)
    asked = _texts(texts, kind)
    if kind == QUESTION_ANSWERING.name:
        pairs = [text for text in asked if isinstance(text, tuple)]
        found = ask_questions(session, tokenizer, pairs, outputs=outputs, batch_size=size)
        return {"spans": found.places, "best": found.best, "null": found.null}
    if kind == FILL_MASK.name:
        return _ask_hidden(session, tokenizer, asked, output=outputs[0])
    if kind == FEATURE_EXTRACTION.name:
        one, two = (
            _embed(session, tokenizer, list(side), outputs=outputs, pooling=pooling, batch_size=size)
            for side in zip(*asked, strict=True)
        )
        return {"values": metrics.row_cosines(one, two).astype(np.float32)[:, None]}
    return {"values": _ask_texts(session, tokenizer, asked, output=outputs[0], batch_size=size)}


def _ask_texts(
    session: Session, tokenizer: BundleTokenizer, texts: Sequence[Text], *, output: str, batch_size: int
) -> NDArray[np.float32]:
    """Return one row of numbers per text."""
    rows = tokenizer.rows(texts)
    found: list[Any] = [None] * len(rows)
    for index, own, _ in run_rows(session, tokenizer, rows, outputs=[output], batch_size=batch_size):
        found[index] = own[output]
    return np.stack(found).astype(np.float32, copy=False)


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


def _embed(
    session: Session,
    tokenizer: BundleTokenizer,
    texts: Sequence[str],
    *,
    outputs: Sequence[str],
    pooling: str,
    batch_size: int,
) -> NDArray[np.float64]:
    """Return one vector per text, shape (texts, hidden): the graph's own, or pooled here."""
    rows = tokenizer.rows(list(texts))
    name = SENTENCE_EMBEDDING if SENTENCE_EMBEDDING in outputs else outputs[0]
    found: list[Any] = [None] * len(rows)
    for index, own, tokens in run_rows(session, tokenizer, rows, outputs=[name], batch_size=batch_size):
        if name == SENTENCE_EMBEDDING:
            found[index] = own[name]
        else:
            states = own[name][tokens].astype(np.float64)
            found[index] = states[0] if pooling == "cls" else states.mean(axis=0)
    return np.stack(found).astype(np.float64, copy=False)


def _ask_hidden(session: Session, tokenizer: BundleTokenizer, texts: Sequence[Text], *, output: str) -> Arrays:
    """Hide every 7th word and return the surprise at each. Texts go one by one: a word has a vocabulary of logits."""
    rows = tokenizer.rows(texts)
    hidden, places = hide_words(rows, ordinary_tokens(tokenizer, rows), mask_id=tokenizer.mask_id)
    if not any(map(len, places)):
        raise DataError("there are no words to hide from a language model; give texts that are not empty")
    asked = [index for index, chosen in enumerate(places) if len(chosen)]
    parts: list[Any] = [None] * len(asked)
    vocabulary = 0
    some = [hidden[index] for index in asked]
    for number, own, tokens in run_rows(session, tokenizer, some, outputs=[output], batch_size=1):
        chosen = places[asked[number]]
        logits, wanted = own[output][tokens][chosen], rows[asked[number]]["input_ids"][chosen]
        parts[number] = _surprise(logits, wanted)
        vocabulary = logits.shape[1]
    nll, choices = (np.concatenate(side) for side in zip(*parts, strict=True))
    wanted = np.concatenate([rows[index]["input_ids"][places[index]] for index in asked])
    words = tokenizer.copy()
    return {
        "nll": nll, "choices": choices, "wanted": wanted,
        "choice_words": np.array([words.id_to_token(number) or "" for number in choices.tolist()]),
        "wanted_words": np.array([words.id_to_token(number) or "" for number in wanted.tolist()]),
        "texts": np.repeat(asked, [len(places[index]) for index in asked]), "vocabulary": np.array(vocabulary),
    }  # fmt: skip


def _surprise(logits: NDArray[Any], wanted: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the negative log-likelihood of the true tokens, NaN where a logit is no number, and the likeliest ones."""
    nll = np.full(len(logits), np.nan)
    finite = np.isfinite(logits).all(axis=1)
    wide = logits[finite].astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    nll[finite] = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(wide)), wanted[finite]]
    return nll, logits.argmax(axis=1).astype(np.int64)
