"""A model's answers to a data set, decoded as the server decodes them, and its raw outputs.

`predict` is for scoring: how a text becomes a model's inputs, and what its outputs mean (windows, lengths, pooling,
scores), is left to `potstill.serve.tasks`, so the score of a model is that of the answers that it serves.
`collect_outputs` is for comparing two files of one model, number by number.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from potstill import metrics
from potstill.bundle import Pooling
from potstill.errors import CheckError, DataError, UsageError
from potstill.serve import SENTENCE_EMBEDDING, BundleTokenizer, Row, Text
from potstill.serve.encoder import unpad
from potstill.serve.http_errors import RequestError
from potstill.serve.tasks import Features, Outputs, TaskModel, feature_extraction, question_answering, served_task
from potstill.serve.tasks.feature_extraction import VectorParameters
from potstill.serve.tasks.fill_mask import preprocess_hidden
from potstill.serve.tasks.question_answering import QuestionParameters
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

Floats: TypeAlias = NDArray[np.floating]
Predictions: TypeAlias = Mapping[str, NDArray[Any]]
"""What `predict` returns: named arrays, for `numpy.savez` and `numpy.load(..., allow_pickle=False)`."""

# One word in seven is masked, about BERT's 15 %, and always the same ones, so that models can be compared; the first
# is the fourth, which has some words before it.
_MASK_EVERY, _FIRST_MASKED = 7, 3
# Most masked words in collected outputs: enough for a share, and no more numbers than fit in 256 MiB, since each word
# has a logit per vocabulary entry.
_MAX_MASKED, _MAX_NUMBERS = 1000, 2**26
# The server bounds the windows of a context for the sake of other clients; here there are none.
_MAX_WINDOWS = 2**31
# What makes scores of logits where a model does not say; softmax for every other kind.
_FUNCTIONS = {MULTI_LABEL: "sigmoid", REGRESSION: "none"}


class Session(Protocol):
    """A model that runs padded batches: an `OnnxSession`, a torch model's adapter, or a runner of a bench."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name for a padded batch."""


def predict(
    session: Session,
    tokenizer: BundleTokenizer,
    texts: Sequence[Any],
    *,
    kind: str,
    outputs: Sequence[str],
    function: str | None = None,
    pooling: Pooling | str | None = None,
    batch_size: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Predictions:
    """Return a model's answers to texts as named arrays.

    For N texts, by kind:

    - single label, several labels: `values`, float32 (N, labels), the logits
    - regression: `values`, float64 (N, 1), the predicted numbers
    - token-classification, W words in all: `values`, float32 (W, tags), the logits of each word's first token;
      `texts`, int64 (W,), the text of each word; `seen`, bool (W,), false for a word beyond the longest input
      or without a token
    - question-answering: `answers`, str (N,), and `answers_or_none`, the same where "" for no answer is allowed;
      `scores`, float64 (N,), of `answers`
    - feature-extraction of pairs: `values`, float64 (N, 1), the cosines
    - fill-mask, H masked words: `nll`, float64 (H,), the negative log-likelihood of each in nats; `choices` and
      `wanted`, int64 (H,), the likeliest and the true token, and `choice_words` and `wanted_words` their texts;
      `texts`, int64 (H,); `vocabulary`, int64 (), how many tokens the model chooses from

    An answer with NaN or infinity, which a server refuses to give, is NaN: of a question in `scores`, of a masked word
    in `nll`, of a text with tags in the `values` of all its words. Scoring counts them as wrong; they are no error.

    Args:
        session: the model.
        tokenizer: the model's.
        texts: as `potstill.data.Examples.texts`, also from JSON: a pair may be a list of two strings.
        kind: `potstill.tasks.kind_of`.
        outputs: the model's outputs in the order of the manifest.
        function: what makes scores of a classifier's logits (`serve.tasks.text_classification.scoring_function`); None
            is the kind's usual.
        pooling: how feature-extraction makes a vector of a text's tokens, or its mode by name; None is their mean.
        batch_size: rows per run. 1, as a server runs a request that is alone, gives to the last digit what it gives; a
            model whose answers depend on the batch needs it.
        progress: is called after each run with the number of answers so far; each side of a pair is one.

    Raises:
        DataError: if there is nothing to predict, or texts do not fit the kind.
        UsageError: if fill-mask has a tokenizer without a mask token.
    """
    model = TaskModel(
        tokenizer=tokenizer,
        outputs=outputs,
        function=function or _FUNCTIONS.get(kind, "softmax"),
        pooling=Pooling.model_validate({"mode": pooling, "normalize": False}) if isinstance(pooling, str) else pooling,
    )
    run = partial(_run, session, tokenizer, kind=kind, batch_size=batch_size, progress=progress)
    if kind == TOKEN_CLASSIFICATION.name:
        return _predict_words(run, model, texts)
    if not texts:
        raise DataError("there are no texts to ask about")
    inputs: list[Any] = [tuple(text) if isinstance(text, list) else text for text in texts]
    if kind in {QUESTION_ANSWERING.name, FEATURE_EXTRACTION.name}:
        single = next((text for text in inputs if not isinstance(text, tuple)), None)
        if single is not None:
            raise DataError(f"{kind} is judged by pairs of texts, and {str(single)[:60]!r} is one; name two columns")
    if kind == QUESTION_ANSWERING.name:
        return _predict_answers(run, model, inputs)
    if kind == FILL_MASK.name:
        # Each word has a vocabulary of logits, so texts go one by one.
        return _predict_masked_words(partial(run, batch_size=1), model, inputs)
    if kind == FEATURE_EXTRACTION.name:
        return _predict_similarities(run, model, inputs)
    features = [preprocess_scores(model, [text]) for text in inputs]
    # A text's answer is (logits, scores); what is served of a regression is the score.
    answers = run(features, lambda _, width: ([np.nan] * width, [np.nan] * width))
    if kind == REGRESSION:
        return {"values": np.array([scores for _, scores in answers], dtype=np.float64)}
    return {"values": np.array([logits for logits, _ in answers], dtype=np.float32)}


def load_predictions(file: Path) -> Predictions:
    """Return predictions that `numpy.savez` wrote."""
    # A pickled array would run code of whoever wrote the file.
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


_NotFinite: TypeAlias = Callable[[int, int], Any]
"""Makes the answer to a request whose outputs are NaN or infinite, from its number and the outputs' last dimension."""
_Run: TypeAlias = Callable[[Sequence[Features], _NotFinite], list[Any]]


def _run(
    session: Session,
    tokenizer: BundleTokenizer,
    features: Sequence[Features],
    not_finite: _NotFinite,
    *,
    kind: str,
    batch_size: int,
    progress: Callable[[int], None],
) -> list[Any]:
    """Run the rows of all requests and return the decoded answer to each; every request has one input."""
    owners = [owner for owner, one in enumerate(features) for _ in one.rows]
    places = [place for one in features for place in range(len(one.rows))]
    rows = [row for one in features for row in one.rows]
    answers: dict[int, Any] = {}
    waiting: dict[int, dict[int, Outputs]] = {}
    for index, outputs in _run_rows(session, tokenizer, rows, kind=kind, batch_size=batch_size):
        owner, place = owners[index], places[index]
        # Windows of a request come in any order, since rows are sorted by length; it is decoded when the last is there.
        one, kept = features[owner], waiting.setdefault(owner, {})
        # Fill-mask keeps the masked words' logits alone: those of every token are 60 MB for a text of 512.
        kept[place] = one.keep(place, outputs)
        if len(kept) < len(one.rows):
            continue
        whole = [kept[number] for number in range(len(one.rows))]
        try:
            answers[owner] = one.decode(whole)[0]
        except CheckError:
            answers[owner] = not_finite(owner, next(iter(whole[0].values())).shape[-1])
        del waiting[owner]
        progress(len(answers))
    return [answers[owner] for owner in range(len(features))]


def _run_rows(
    session: Session,
    tokenizer: BundleTokenizer,
    rows: Sequence[Row],
    *,
    kind: str,
    batch_size: int,
    shuffle: np.random.Generator | None = None,
) -> Iterator[tuple[int, Outputs]]:
    """Run rows in batches, and yield each one's number and its outputs without padding.

    One batch is alive at a time, since outputs may be as long as a vocabulary.
    """
    task = served_task(TEXT_CLASSIFICATION.name if kind in PROBLEM_TYPES else kind)
    # Without a mask the padding would be read as words.
    size = batch_size if rows and "attention_mask" in rows[0] else 1
    # Longest first, because onnxruntime's memory grows to the largest batch and stays there.
    lengths = np.array([-len(row["input_ids"]) for row in rows])
    order = np.argsort(lengths, kind="stable") if shuffle is None else shuffle.permutation(len(rows))
    for start in range(0, len(rows), size):
        batch = order[start : start + size].tolist()
        given = [rows[index] for index in batch]
        # `unpad` gives views into the batch's arrays: whoever keeps one keeps the whole batch alive.
        outputs = unpad(session.run(tokenizer.pad(given)), given, task=task, left=tokenizer.pads_left)
        yield from zip(batch, outputs, strict=True)


def _predict_words(run: _Run, model: TaskModel, texts: Sequence[Sequence[str]]) -> Predictions:
    sizes = [len(words) for words in texts]
    if not sum(sizes):
        raise DataError("there are no words to ask about; give texts that are not empty")
    features = [preprocess_words(model, [words]) for words in texts]
    answers = run(
        features, lambda text, width: (np.full((sizes[text], width), np.nan), np.ones(sizes[text], dtype=np.bool_))
    )
    return {
        "values": np.concatenate([values for values, _ in answers]).astype(np.float32),
        "texts": np.repeat(np.arange(len(texts)), sizes),
        "seen": np.concatenate([seen for _, seen in answers]),
    }


def _predict_answers(run: _Run, model: TaskModel, pairs: Sequence[tuple[str, str]]) -> Predictions:
    """Answer with the parameters that a request has by default, and once more with "no answer" among the answers."""
    # Both are kept because only the data tells which is asked for: SQuAD 2 has questions without an answer.
    ways = QuestionParameters(), QuestionParameters(handle_impossible_answer=True)
    features = []
    for number, pair in enumerate(pairs):
        try:
            always, perhaps = (question_answering.preprocess(model, [pair], way, _MAX_WINDOWS) for way in ways)
        except RequestError as error:
            raise DataError(f"question {number + 1} cannot be asked: {error}") from error
        features.append(_decode_twice(always, perhaps))
    nothing = {"answer": "", "score": np.nan}
    answers = run(features, lambda *_: (nothing, nothing))
    return {
        "answers": np.array([one["answer"] for one, _ in answers], dtype=np.str_),
        "answers_or_none": np.array([one["answer"] for _, one in answers], dtype=np.str_),
        "scores": np.array([one["score"] for one, _ in answers], dtype=np.float64),
    }


def _decode_twice(one: Features, other: Features) -> Features:
    """Return features whose windows run once and are decoded in both ways."""
    return Features(one.rows, lambda outputs: [[each.decode(outputs)[0] for each in (one, other)]])


def _predict_similarities(run: _Run, model: TaskModel, pairs: Sequence[tuple[str, str]]) -> Predictions:
    """Return the cosine of the two vectors of each pair."""
    # Each text once: data sets of pairs repeat their sentences.
    each = list(dict.fromkeys(text for pair in pairs for text in pair))
    settings = VectorParameters()
    features = [feature_extraction.preprocess(model, [text], settings) for text in each]
    vectors = dict(zip(each, run(features, lambda _, width: [np.nan] * width), strict=True))
    one, two = (np.array([vectors[text] for text in side], dtype=np.float64) for side in zip(*pairs, strict=True))
    return {"values": metrics.row_cosines(one, two)[:, None]}


def _predict_masked_words(run: _Run, model: TaskModel, texts: Sequence[Text]) -> Predictions:
    """Mask every 7th of the words that are one token, and return the likelihood of each."""
    tokenizer = model.tokenizer
    if tokenizer.mask_id is None:
        raise UsageError("fill-mask needs a tokenizer with a mask token, and this one has none")
    # Masked as text, not as ids: so the score is that of what a client would send and get.
    masked = [mask_words(tokenizer, text if isinstance(text, str) else " ".join(text)) for text in texts]
    rows = tokenizer.rows([text for text, _ in masked])
    # A text that shows another number of masks than were put into it, such as one that has some itself, is left out.
    shown = [int((row["input_ids"] == tokenizer.mask_id).sum()) for row in rows]
    chosen = [number for number, (_, hidden) in enumerate(masked) if hidden and shown[number] == len(hidden)]
    if not chosen:
        raise DataError("there are no words to hide from a language model; give texts that are not empty")
    features = [preprocess_hidden(model, [masked[at][0]], [masked[at][1]]) for at in chosen]
    sizes = [len(masked[at][1]) for at in chosen]
    answers = run(features, lambda number, width: [(np.nan, 0, width)] * sizes[number])
    triples = [triple for answer in answers for triple in answer]
    scores = np.array([score for score, _, _ in triples], dtype=np.float64)
    choices = np.array([choice for _, choice, _ in triples], dtype=np.int64)
    wanted = np.array([token for at in chosen for token in masked[at][1]], dtype=np.int64)
    return {
        # A score that is too small for a float counts as the smallest that there is.
        "nll": -np.log(np.maximum(scores, np.nextafter(0.0, 1.0))),
        "choices": choices,
        "wanted": wanted,
        "choice_words": np.array([tokenizer.token(number) for number in choices.tolist()]),
        "wanted_words": np.array([tokenizer.token(number) for number in wanted.tolist()]),
        "texts": np.repeat(chosen, sizes),
        "vocabulary": np.array(triples[0][2]),
    }


def mask_words(tokenizer: BundleTokenizer, text: str) -> tuple[str, list[int]]:
    """Return a text with every 7th of its words masked, as a client would write it, and the tokens behind the masks.

    Only a known word that is a single token can be masked in a text.
    """
    whole = tokenizer.pieces([text])[0]
    kept = tokenizer.kept(len(whole.ids))
    seen = Pieces(whole.ids[kept], whole.places[kept], whole.words[kept])
    alone = []
    for place, (own, (start, end)) in enumerate(zip(seen.words, seen.places.tolist(), strict=True)):
        before = seen.words[place - 1] if place else -1
        after = seen.words[place + 1] if place + 1 < len(seen.ids) else -1
        # A word of several tokens would need several masks, and then ask for each part alone; the unknown token is no
        # word.
        is_known = own >= 0 and seen.ids[place] != tokenizer.unknown_id
        if is_known and own not in (before, after) and text[start:end].strip():
            alone.append(place)
    mask = tokenizer.token(tokenizer.mask_id if tokenizer.mask_id is not None else -1)
    parts, end = [], 0
    hidden = []
    # A short text still gives one mask, in its middle.
    for place in alone[min(_FIRST_MASKED, len(alone) // 2) :: _MASK_EVERY]:
        start, stop = seen.places[place].tolist()
        parts += [text[end:start], mask]
        end = stop
        hidden.append(seen.ids[place])
    return "".join([*parts, text[end:]]), hidden


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """The raw outputs of one file for a list of texts."""

    values: Floats
    """Shape (rows, columns): logits or scores, numbers or vectors. Positions that a question's text lacks are -inf."""
    texts: NDArray[np.int64]
    """Which text each row is about, shape (rows,), ascending."""
    kind: str
    """What kind of model gave them: `potstill.tasks.kind_of`."""

    def decisions(self) -> NDArray[np.int64] | None:
        """Return what each row decides, shape (rows, decisions); None where an answer is a number or a vector."""
        if self.kind in {REGRESSION, FEATURE_EXTRACTION.name}:
            return None
        if self.kind == MULTI_LABEL:
            return (self.values > 0).astype(np.int64)
        chosen: NDArray[np.int64] = self.values.argmax(axis=1)[:, None]
        return chosen


def collect_outputs(
    session: Session,
    tokenizer: BundleTokenizer,
    rows: Sequence[Row],
    *,
    kind: str,
    outputs: Sequence[str],
    batch_size: int = 8,
    mask_id: int | None = None,
    shuffle: np.random.Generator | None = None,
) -> ModelOutputs:
    """Return a file's outputs for `rows`, which `tokenizer.rows(texts)` made.

    A text has one row of outputs in general; one per token between the special ones for
    token-classification; two for question-answering, the scores of start and end over its tokens; one per masked token
    for fill-mask, which masks every 7th and stops at 1000.

    Args:
        session: the file.
        tokenizer: pads.
        rows: at least one.
        kind: `potstill.tasks.kind_of`.
        outputs: the graph's outputs, in the order of the manifest; of feature-extraction `sentence_embedding` is taken
            where it is among them, else the mean of the token vectors.
        batch_size: texts per run; 1 for a file whose answers depend on the batch.
        mask_id: the mask token, for fill-mask.
        shuffle: groups texts at random; None puts texts of similar length together.

    Raises:
        UsageError: if fill-mask has no `mask_id`.
        DataError: if there is nothing to ask about.
    """
    places: list[NDArray[np.intp]] | None = None
    if rows and kind in {TOKEN_CLASSIFICATION.name, FILL_MASK.name}:
        # What the tokenizer makes of nothing, for one text and for a pair, are all its special tokens.
        special = np.concatenate([row["input_ids"] for row in tokenizer.rows(["", ("", "")])])
        places = [np.flatnonzero(~np.isin(row["input_ids"], special)) for row in rows]
        if kind == FILL_MASK.name:
            # A run tells how many logits a word has, whatever the tokenizer's vocabulary.
            columns = session.run(tokenizer.pad(rows[:1]))[outputs[0]].shape[-1]
            limit = min(_MAX_MASKED, _MAX_NUMBERS // columns)
            rows, places = _mask_tokens(rows, places, mask_id=mask_id, limit=limit)
            # Each word has a vocabulary of logits.
            batch_size = batch_size if shuffle is not None else 1
    if not rows or (places is not None and not any(map(len, places))):
        raise DataError(f"there are no words to ask a {kind} model about; give texts that are not empty")
    found: dict[int, Floats] = {}
    for index, own in _run_rows(session, tokenizer, rows, kind=kind, batch_size=batch_size, shuffle=shuffle):
        first = own[outputs[0]]
        if kind == QUESTION_ANSWERING.name:
            found[index] = np.stack([own[name] for name in outputs])
        elif kind == FEATURE_EXTRACTION.name:
            pooled = own[SENTENCE_EMBEDDING][None] if SENTENCE_EMBEDDING in outputs else None
            found[index] = first.mean(axis=0, keepdims=True) if pooled is None else pooled
        else:
            # A copy, so that the batch's arrays can be freed.
            found[index] = first[None].copy() if places is None else first[places[index]]
    parts = [found[index] for index in range(len(rows))]
    width = max(part.shape[1] for part in parts)
    # Only questions differ in width. -inf is probability 0 to softmax, so padding changes no answer.
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-np.inf) for part in parts]
    return ModelOutputs(
        values=np.concatenate(padded).astype(np.float32, copy=False),
        texts=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        kind=kind,
    )


def _mask_tokens(
    rows: Sequence[Row], ordinary: Sequence[NDArray[np.intp]], *, mask_id: int | None, limit: int
) -> tuple[list[Row], list[NDArray[np.intp]]]:
    """Return the rows with every 7th ordinary token masked, and where those are, up to `limit`; later rows are left."""
    if mask_id is None:
        raise UsageError("fill-mask needs the id of the mask token; this tokenizer seems to have none")
    masked: list[Row] = []
    places: list[NDArray[np.intp]] = []
    for row, positions in zip(rows, ordinary, strict=True):
        if limit == 0:
            break
        chosen = positions[min(_FIRST_MASKED, len(positions) // 2) :: _MASK_EVERY][:limit]
        ids = row["input_ids"].copy()
        ids[chosen] = mask_id
        masked.append({**row, "input_ids": ids})
        places.append(chosen)
        limit -= len(chosen)
    return masked, places
