"""Question answering: logits of an answer's first and last token become spans of the context.

The rules are those of the question-answering pipeline of transformers 4; transformers 5 has none. The score of a span
is the product of two softmaxes over its window, of its first token and of its last. The scores of spans with equal
text, from several windows or from other tokens of the same words, are added. Unlike there, a question that leaves no
room for the context is cut, and spans of score 0 are left out.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, StrictBool, StrictStr

from potstill.serve.http_errors import invalid, too_large
from potstill.serve.tasks.features import Features, Outputs, ServedTask, TaskModel, check_finite
from potstill.serve.tasks.inputs import Count, RequestModel, read_two_texts
from potstill.serve.tokenizer import BundleTokenizer, Pieces, Row, without_surrogates

# The defaults of transformers' pipeline: tokens of a window, and tokens that neighbouring windows share.
_WINDOW, STRIDE = 384, 128
# Characters of all answers to one request, each of which may be as long as its context.
_MOST_CHARACTERS = 16_000_000
_NO_ANSWER = {"answer": "", "score": 0.0, "start": 0, "end": 0}


class Question(RequestModel):
    """A question and the text that answers it."""

    question: StrictStr
    context: StrictStr


class QuestionParameters(RequestModel):
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


class Answer(BaseModel):
    """A part of the context, in characters."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Window:
    """A question with one window of its context: one row of the model."""

    row: Row
    part: slice
    """The context's tokens that it holds."""
    inside: slice
    """Their positions in the row."""


@dataclass(frozen=True, slots=True)
class _WindowedQuestion:
    """One question with its context, split into windows."""

    context: str
    pieces: Pieces
    """The tokens of the whole context."""
    windows: list[_Window]


class _Probabilities(NamedTuple):
    """The probabilities of one window; `starts` and `ends` have the shape (tokens of the context in it,)."""

    starts: NDArray[np.float64]
    """Probability of each token to be the answer's first."""
    ends: NDArray[np.float64]
    """Probability of each token to be the answer's last."""
    no_answer: float
    """Probability that the window has no answer: that of [CLS] as first and last token."""


def preprocess(model: TaskModel, items: Sequence[object], parameters: QuestionParameters, max_windows: int) -> Features:
    """Tokenise questions; the answer to each is its best span, or with `top_k` above 1 a list of spans, the best first.

    Args:
        model: its first two outputs are the logits of an answer's first and last token.
        items: (question, context), or an instance or a mapping of `Question`; at least one.
        parameters: the request's parameters.
        max_windows: most windows into which one context may be split.

    Raises:
        RequestError: 422 if an item is no question or the parameters do not fit the model, 413 if a context is too
            long.
    """
    tokenizer, expected = model.tokenizer, "a question with its context"
    questions = [read_two_texts(index, item, Question, expected) for index, item in enumerate(items)]
    contexts = [without_surrogates(context) for _, context in questions]
    characters = parameters.top_k * sum(map(len, contexts))
    if characters > _MOST_CHARACTERS:
        raise invalid(f"top_k times the contexts is {characters} characters, over {_MOST_CHARACTERS}; ask for fewer")
    pieces = tokenizer.pieces([*(question for question, _ in questions), *contexts])
    windowed = []
    for index, context in enumerate(contexts):
        question_pieces, context_pieces = pieces[index], pieces[len(contexts) + index]
        windows = _split(tokenizer, question_pieces, context_pieces, parameters, most=max_windows, index=index)
        windowed.append(_WindowedQuestion(context, context_pieces, windows))

    def keep(_: int, outputs: Outputs) -> Outputs:
        return {name: outputs[name].copy() for name in model.outputs[:2]}

    def decode(given: Sequence[Outputs]) -> list[object]:
        left = iter(given)
        answers: list[object] = []
        for question in windowed:
            probabilities = [_probabilities(model, window, next(left)) for window in question.windows]
            found = _best_answers(question, probabilities, parameters)
            answers.append(found if parameters.top_k > 1 else (found or [dict(_NO_ANSWER)])[0])
        return answers

    return Features(rows=[window.row for question in windowed for window in question.windows], decode=decode, keep=keep)


def windows(tokens: int, *, room: int, stride: int, side: str = "right") -> Iterator[slice]:
    """Yield the windows of a text as slices of its tokens; there is at least one, even without tokens.

    They are the windows of the tokenizers library (`Encoding::truncate`): from the beginning, with a shorter one at the
    end, or with `side` "left" from the end backwards.

    Args:
        tokens: number of tokens of the text.
        room: tokens of a window, more than `stride`.
        stride: tokens that neighbouring windows share.
        side: the end at which the tokenizer cuts long texts, `left` or `right`.
    """
    step = room - stride
    for start in range(0, max(tokens, 1), step):
        stop = min(start + room, tokens)
        yield slice(tokens - stop, tokens - start) if side == "left" else slice(start, stop)
        if stop == tokens:
            return


def count_windows(tokens: int, *, room: int, stride: int) -> int:
    """Return the number of windows without making them; arguments as in `windows`."""
    # -(-a // b) is the ceiling of a / b.
    return 1 if tokens <= room else 1 + -(-(tokens - room) // (room - stride))


def _split(
    tokenizer: BundleTokenizer,
    question: Pieces,
    context: Pieces,
    parameters: QuestionParameters,
    *,
    most: int,
    index: int,
) -> list[_Window]:
    """Return the windows of a context, each as a row together with the question.

    Raises:
        RequestError: 422 if the parameters do not fit the model, 413 if there are more than `most` windows.
    """
    longest = parameters.max_seq_len or min(tokenizer.max_length, _WINDOW)
    if not tokenizer.pair.size + 2 <= longest <= tokenizer.max_length:
        raise invalid(
            f"parameters.max_seq_len is {longest}; expected from {tokenizer.pair.size + 2} to {tokenizer.max_length}"
        )
    both = longest - tokenizer.pair.size
    stride = min(longest // 2, STRIDE) if parameters.doc_stride is None else parameters.doc_stride
    read = question.ids[: parameters.max_question_len]
    if len(read) + len(context.ids) <= both:
        stride = 0  # one window, which shares nothing
    elif both - len(read) <= stride:
        # transformers' pipeline fails here. Instead the question is cut, so that half of a window is the context's and
        # every window has new tokens.
        read = read[: both // 2]
        if stride >= both - len(read):
            if parameters.doc_stride is not None:
                raise invalid(
                    f"parameters.doc_stride is {stride}; beside the question a window has {both - len(read)} tokens, "
                    "and neighbours cannot share them all"
                )
            stride = (both - len(read)) // 2
    room = max(1, both - len(read))
    count = count_windows(len(context.ids), room=room, stride=stride)
    if count > most:
        raise too_large(f"the context of input {index} takes {count} windows; at most {most} are read")
    first = len(tokenizer.pair.ids[0]) + len(read) + len(tokenizer.pair.ids[1])
    parts = windows(len(context.ids), room=room, stride=stride, side=tokenizer.truncation_side)
    return [
        _Window(tokenizer.frame(read, ids), part, slice(first, first + len(ids)))
        for part, ids in ((part, context.ids[part]) for part in parts)
    ]


def _probabilities(model: TaskModel, window: _Window, given: Outputs) -> _Probabilities:
    ids = window.row["input_ids"]
    # As the pipeline: the softmax runs over the context and [CLS], which stands for "no answer"; the rest is masked.
    counted = ids == (-1 if model.tokenizer.first_id is None else model.tokenizer.first_id)
    counted[window.inside] = True
    sides = []
    for name in model.outputs[:2]:
        logits = np.where(counted, check_finite(given[name]), -np.inf)
        # Less the largest logit, so that exp cannot overflow.
        raised = np.exp(logits - logits.max()) if counted.any() else np.zeros(len(ids))
        sides.append(raised / max(float(raised.sum()), 1.0))
    starts, ends = sides
    return _Probabilities(starts[window.inside], ends[window.inside], float(starts[0] * ends[0]))


def _best_answers(
    question: _WindowedQuestion, probabilities: Sequence[_Probabilities], parameters: QuestionParameters
) -> list[dict[str, Any]]:
    """Return the best answers to one question, the best first; none where the context has no token."""
    # Aligned to words several spans become one answer, so more than `top_k` are looked at, as in the pipeline.
    tried = parameters.top_k * 2 + 10 if parameters.align_to_words else parameters.top_k
    found: dict[str, dict[str, Any]] = {}
    for window, (starts, ends, _) in zip(question.windows, probabilities, strict=True):
        places, words = question.pieces.places[window.part], question.pieces.words[window.part]
        for first, last, score in _best_spans(starts, ends, count=tried, longest=parameters.max_answer_len):
            if parameters.align_to_words and words[first] >= 0 and words[last] >= 0:
                # Of a word that crosses the window's edge, the part within the window is taken.
                first = int(np.flatnonzero(words == words[first])[0])
                last = int(np.flatnonzero(words == words[last])[-1])
            start, end = int(places[first, 0]), int(places[last, 1])
            # Equal texts add up, whatever their case; the first one found gives place and spelling.
            answer = question.context[start:end]
            one = found.setdefault(answer.lower(), {"score": 0.0, "start": start, "end": end, "answer": answer})
            one["score"] += score
    answers = list(found.values())
    if parameters.handle_impossible_answer:
        # The minimum: if one window has an answer, the context has one.
        answers.append({**_NO_ANSWER, "score": min(one.no_answer for one in probabilities)})
    return sorted(answers, key=lambda answer: -float(answer["score"]))[: parameters.top_k]


def _best_spans(
    starts: NDArray[np.float64], ends: NDArray[np.float64], *, count: int, longest: int
) -> list[tuple[int, int, float]]:
    """Return (first token, last token, score) of the `count` likeliest spans of at most `longest` tokens.

    Spans of probability 0 are left out.
    """
    tokens = len(starts)
    reach = min(longest, tokens)
    # Row i has the spans that begin at token i, so the matrix is (tokens, reach) instead of (tokens, tokens). Ends
    # beyond the text have probability 0.
    padded = np.concatenate([ends, np.zeros(reach)])
    spans = starts[:, None] * np.lib.stride_tricks.sliding_window_view(padded, reach)[:tokens] if tokens else starts
    flat = spans.ravel()
    least = np.partition(flat, -count)[-count] if count < len(flat) else 0.0
    likely = np.flatnonzero((flat >= least) & (flat > 0))
    chosen = likely[np.argsort(-flat[likely], kind="stable")[:count]]
    best = []
    for place in chosen.tolist():
        first, more = divmod(place, reach)
        best.append((first, first + more, float(flat[place])))
    return best


def _decide(answer: dict[str, object] | list[dict[str, object]]) -> Hashable:
    """Return the place of the best answer in the context."""
    best = answer if isinstance(answer, dict) else (answer or [_NO_ANSWER])[0]
    return best["start"], best["end"]


TASK = ServedTask(
    item=Question,
    parameters=QuestionParameters,
    answer=Answer | list[Answer],
    example={"question": "Where did she live?", "context": "Ada Lovelace lived in London."},
    preprocess=preprocess,
    decide=_decide,
    has_windows=True,
)
