"""Question answering: logits of first and last tokens become parts of the context.

The rules are those of the question-answering pipeline of transformers 4; transformers 5 has none. A part of the context
scores the product of two softmaxes, of its first and its last token over a window; parts that read the same, in several
windows or by another token of the same word, add up. Unlike there, a question may be longer than its context leaves
room for (it is cut), and no answer has the score 0.
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

# Of transformers' pipeline: the tokens of a window, and those that neighbours share.
_WINDOW, STRIDE = 384, 128
# Characters of all the answers to one request, each as long as its context at worst.
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
    """A question with one window of its context, as a row of the model."""

    row: Row
    part: slice
    """Which of the context's tokens it holds."""
    inside: slice
    """Where in the row they stand."""


@dataclass(frozen=True, slots=True)
class _WindowedQuestion:
    """One question with its context."""

    context: str
    pieces: Pieces
    """Of the context."""
    windows: list[_Window]


class _Probabilities(NamedTuple):
    """What the model says of one window; the first two have the shape (tokens of the context in it,)."""

    starts: NDArray[np.float64]
    """How likely an answer begins with each token."""
    ends: NDArray[np.float64]
    """How likely one ends with it."""
    no_answer: float


def preprocess(model: TaskModel, items: Sequence[object], parameters: QuestionParameters, max_windows: int) -> Features:
    """Tokenise questions; each gets its best answer, or with `top_k` above 1 a list of answers, the best first.

    Args:
        model: its outputs are the logits of an answer's first token and of its last.
        items: (question, context), or an instance or a mapping of `Question`; at least one.
        parameters: what the request says.
        max_windows: windows that one context may be read in.

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
    """Yield the windows of a text of so many tokens; neighbours share `stride` tokens, and one at least there is.

    They are those of the tokenizers library (`Encoding::truncate`): from the beginning, the last one perhaps shorter,
    or with `side` "left" from the end backwards.

    Args:
        tokens: the text's.
        room: tokens of a window, above `stride`.
        stride: tokens that neighbours share.
        side: the end at which texts are cut.
    """
    step = room - stride
    for start in range(0, max(tokens, 1), step):
        stop = min(start + room, tokens)
        yield slice(tokens - stop, tokens - start) if side == "left" else slice(start, stop)
        if stop == tokens:
            return


def count_windows(tokens: int, *, room: int, stride: int) -> int:
    """Return how many windows there are, without making them; arguments as `windows`."""
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
    """Return the windows of a context, each with as much of the question as is read."""
    longest = parameters.max_seq_len or min(tokenizer.max_length, _WINDOW)
    if not tokenizer.pair.size + 2 <= longest <= tokenizer.max_length:
        raise invalid(
            f"parameters.max_seq_len is {longest}; expected from {tokenizer.pair.size + 2} to {tokenizer.max_length}"
        )
    both = longest - tokenizer.pair.size
    stride = min(longest // 2, STRIDE) if parameters.doc_stride is None else parameters.doc_stride
    read = question.ids[: parameters.max_question_len]
    if len(read) + len(context.ids) <= both:
        stride = 0
    elif both - len(read) <= stride:
        # Where transformers' pipeline fails, half of a window is the context's, and every window has something new.
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
    # [CLS] says that there is no answer; other tokens outside of the context say nothing.
    counted = ids == (-1 if model.tokenizer.first_id is None else model.tokenizer.first_id)
    counted[window.inside] = True
    sides = []
    for name in model.outputs[:2]:
        logits = np.where(counted, check_finite(given[name]), -np.inf)
        raised = np.exp(logits - logits.max()) if counted.any() else np.zeros(len(ids))
        sides.append(raised / max(float(raised.sum()), 1.0))
    starts, ends = sides
    return _Probabilities(starts[window.inside], ends[window.inside], float(starts[0] * ends[0]))


def _best_answers(
    question: _WindowedQuestion, probabilities: Sequence[_Probabilities], parameters: QuestionParameters
) -> list[dict[str, Any]]:
    """Return the best answers to one question, the best first; none where the context has no token."""
    # Those of one word become one answer, so more than the wanted are looked at.
    tried = parameters.top_k * 2 + 10 if parameters.align_to_words else parameters.top_k
    found: dict[str, dict[str, Any]] = {}
    for window, (starts, ends, _) in zip(question.windows, probabilities, strict=True):
        places, words = question.pieces.places[window.part], question.pieces.words[window.part]
        for first, last, score in _best_spans(starts, ends, count=tried, longest=parameters.max_answer_len):
            if parameters.align_to_words and words[first] >= 0 and words[last] >= 0:
                # Of a word that the window cuts, the part in the window counts.
                first = int(np.flatnonzero(words == words[first])[0])
                last = int(np.flatnonzero(words == words[last])[-1])
            start, end = int(places[first, 0]), int(places[last, 1])
            answer = question.context[start:end]
            one = found.setdefault(answer.lower(), {"score": 0.0, "start": start, "end": end, "answer": answer})
            one["score"] += score
    answers = list(found.values())
    if parameters.handle_impossible_answer:
        answers.append({**_NO_ANSWER, "score": min(one.no_answer for one in probabilities)})
    return sorted(answers, key=lambda answer: -float(answer["score"]))[: parameters.top_k]


def _best_spans(
    starts: NDArray[np.float64], ends: NDArray[np.float64], *, count: int, longest: int
) -> list[tuple[int, int, float]]:
    """Return first token, last token and score of the likeliest spans; none of probability 0."""
    tokens = len(starts)
    reach = min(longest, tokens)
    # Row by row the spans that begin there; beyond the text's end they are impossible.
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
    """Return where the best answer stands."""
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
