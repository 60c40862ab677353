"""From labelled examples of any task to rows of tokens with their labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from potstill.checkpoint.tokenizer import glues_words
from potstill.data import Examples
from potstill.distill.masking import IGNORED
from potstill.errors import CheckpointError, DataError
from potstill.serve.tasks.question_answering import STRIDE, QuestionParameters

_LONGEST_QUESTION: int = QuestionParameters().max_question_len
LENGTH_COLUMN = "length"
LABELS = "labels"
EXAMPLE = "example"
"""The number of the example that a row was cut from (question answering)."""
WORD_STARTS = "word_starts"
"""The position of each word's first token, -1 for a word that has none (token classification)."""
OFFSETS = ("offset_starts", "offset_ends")
"""Where in the context each token begins and ends, -1 for tokens outside it (question answering)."""


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
    """Return rows with the tokenizer's inputs unpadded, `length` in tokens, and their labels if there are any.

    - A text or pair is a row; `labels` is a class id, a score, or a vector with one 0/1 per class.
    - Words (token classification) are a row; `labels` holds one id per token: the word's on its first token, -100 on
      all others. `word_starts` says where each word begins.
    - A question with its context becomes one row per window of the context, which share 128 tokens where there is room.
      `start_positions` and `end_positions` are the answer's first and last token, or both that of the [CLS] token
      where the window does not hold the whole answer. `example`, `offset_starts` and `offset_ends` say
      which part of which context a window holds.

    Token types are always there when the tokenizer makes them: a BERT teacher needs them even when its DistilBERT
    student has none.

    Raises:
        DataError: if a row cannot be tokenised, or `max_length` leaves no room for a question and its context.
    """
    if len(examples.texts) and isinstance(examples.texts[0], list):
        columns = _words(examples, tokenizer, max_length=max_length)
    elif _asks_questions(examples.labels):
        columns = _windows(examples, tokenizer, max_length=max_length)
    else:
        columns = _texts(examples, tokenizer, max_length=max_length)
    columns[LENGTH_COLUMN] = [len(ids) for ids in columns["input_ids"]]
    return Dataset.from_dict(columns)


def _asks_questions(labels: Any) -> bool:
    return labels is not None and len(labels) > 0 and isinstance(labels[0], dict)


def _texts(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> dict[str, Any]:
    pairs = [text if isinstance(text, tuple) else (text, None) for text in examples.texts]
    seconds = [second for _, second in pairs]
    encoded = tokenizer(
        [first for first, _ in pairs],
        seconds if any(second is not None for second in seconds) else None,
        truncation=True,
        max_length=max_length,
    )
    labels = {} if examples.labels is None else {LABELS: list(examples.labels)}
    return {**encoded, **labels}


def _words(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> dict[str, Any]:
    if glues_words(tokenizer):
        raise CheckpointError(
            "this tokenizer marks a word by the space before it, so it cannot take lists of words; set "
            '"add_prefix_space": true in the pre_tokenizer of its tokenizer.json'
        )
    encoded = tokenizer(list(examples.texts), is_split_into_words=True, truncation=True, max_length=max_length)
    columns: dict[str, Any] = {**encoded, WORD_STARTS: []}
    if examples.labels is not None:
        columns[LABELS] = []
    for number, words in enumerate(examples.texts):
        word_ids = encoded.word_ids(number)
        starts = [-1] * len(words)
        for place in range(len(word_ids) - 1, -1, -1):
            if word_ids[place] is not None:
                starts[word_ids[place]] = place
        columns[WORD_STARTS].append(starts)
        if examples.labels is not None:
            columns[LABELS].append(_token_labels(examples.labels[number], starts, len(word_ids), number))
    return columns


def _token_labels(labels: Sequence[int], starts: list[int], length: int, number: int) -> list[int]:
    if len(labels) != len(starts):
        raise DataError(f"row {number + 1} has {len(starts)} words and {len(labels)} labels; each word needs one")
    found = [IGNORED] * length
    for label, start in zip(labels, starts, strict=True):
        if start >= 0:
            found[start] = int(label)
    return found


def _windows(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> dict[str, Any]:
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    longest = min(_LONGEST_QUESTION, room // 2)
    if longest < 1:
        raise DataError(f"max_length is {max_length}; a question and its context need more")
    questions = _shorten([str(question) for question, _ in examples.texts], tokenizer, longest=longest)
    encoded = tokenizer(
        questions,
        [context for _, context in examples.texts],
        truncation="only_second",
        max_length=max_length,
        stride=min(STRIDE, (room - longest) // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners = encoded.pop("overflow_to_sample_mapping")
    all_offsets = encoded.pop("offset_mapping")
    columns: dict[str, Any] = {**encoded, EXAMPLE: owners, "start_positions": [], "end_positions": []}
    columns |= {name: [] for name in OFFSETS}
    for number, offsets in enumerate(all_offsets):
        is_context = np.array([part == 1 for part in encoded.sequence_ids(number)])
        places = np.where(is_context[:, None], np.array(offsets, dtype=np.int32), -1)
        first, last = _answer_tokens(places, examples.labels[owners[number]])
        if first < 0:
            first = last = cls_position(encoded["input_ids"][number], tokenizer)
        for name, value in zip(
            ("start_positions", "end_positions", *OFFSETS), (first, last, places[:, 0], places[:, 1]), strict=True
        ):
            columns[name].append(value)
    return columns


def _shorten(questions: list[str], tokenizer: PreTrainedTokenizerBase, *, longest: int) -> list[str]:
    """Cut questions behind their first `longest` tokens."""
    # Spaces in front of a question, which SQuAD has, would count as text to some tokenizers.
    questions = [question.lstrip() for question in questions]
    offsets = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return [
        question if len(spans) <= longest else question[: spans[longest - 1][1]]
        for question, spans in zip(questions, offsets, strict=True)
    ]


def _answer_tokens(places: np.ndarray, answers: dict[str, Any]) -> tuple[int, int]:
    """Return the first and last token of the first answer, or -1 twice where this window lacks a part of it."""
    inside = np.flatnonzero(places[:, 1] > places[:, 0])
    if not len(answers["text"]) or not len(inside):
        return -1, -1
    start = int(answers["answer_start"][0])
    end = start + len(answers["text"][0])
    if places[inside[0], 0] > start or places[inside[-1], 1] < end:
        return -1, -1
    touched = inside[(places[inside, 1] > start) & (places[inside, 0] < end)]
    return (int(touched[0]), int(touched[-1])) if len(touched) else (-1, -1)


def cls_position(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return where a row's [CLS] token stands, which also means "no answer here"."""
    return list(ids).index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
