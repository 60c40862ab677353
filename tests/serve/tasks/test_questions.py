"""Question answering against a plain reference: windows by transformers' tokenizer, scores by torch, every span tried.

`tests/interop/question_answering.py` holds the same answers against the pipeline of transformers 4 itself.
"""

import numpy as np
import pytest
import torch

from potstill.errors import CheckError, UsageError
from potstill.serve.http_errors import RequestError

from .models import LONGEST, TEXTS, TOKENIZERS, load

TOLERANCE = 1e-5
CONTEXTS = [
    *(text for text in TEXTS if text.strip()),
    "Ada Lovelace lived in London. " * 8,
    "the good film was long, " * 10 + "東京 🙂 cafe\u0301.",
]
QUESTIONS = ["Where did Ada live?", "is 東京 good? 🙂"]
CASES = [
    {},
    {"top_k": 3},
    {"top_k": 4, "align_to_words": False, "max_answer_len": 4},
    {"handle_impossible_answer": True, "top_k": 5},
    {"doc_stride": 5, "max_seq_len": 42, "top_k": 2},
]


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def case(request, tmp_path_factory):
    return load("question-answering", request.param, tmp_path_factory.mktemp("models"))


def reference(model, tokenizer, question, context, *, top_k=1, doc_stride=None, max_seq_len=LONGEST, **settings):
    """Return the positive answers by the rules of transformers 4, the best first, each span scored by itself.

    A window gives its best spans. The second value is the score of spans that two machines may choose among otherwise:
    those so near to the last one that is taken that the rounding of one product decides.
    """
    longest, align = settings.get("max_answer_len", 15), settings.get("align_to_words", True)
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_seq_len,
        return_overflowing_tokens=True,
        stride=max_seq_len // 2 if doc_stride is None else doc_stride,
    )
    answers, none, undecided = [], 1.0, 0.0
    for number, ids in enumerate(encoded["input_ids"]):
        own = encoded.encodings[number]
        names = [name for name in tokenizer.model_input_names if name in encoded]
        with torch.no_grad():
            given = model(**{name: torch.tensor([encoded[name][number]]) for name in names})
        allowed = torch.tensor(
            [side == 1 or ids[at] == tokenizer.cls_token_id for at, side in enumerate(own.sequence_ids)]
        )
        starts, ends = (
            torch.softmax(logits[0].double().masked_fill(~allowed, -torch.inf), 0).numpy()
            for logits in (given.start_logits, given.end_logits)
        )
        none = min(none, starts[0] * ends[0])
        spans = [
            (starts[first] * ends[last], first, last)
            for first in range(len(ids))
            for last in range(first, min(first + longest, len(ids)))
            if own.sequence_ids[first] == 1 and own.sequence_ids[last] == 1
        ]
        spans.sort(key=lambda span: -span[0])
        taken = top_k * 2 + 10 if align else top_k
        if len(spans) > taken and spans[taken - 1][0] - spans[taken][0] < TOLERANCE * spans[taken][0]:
            undecided += spans[taken][0]
        for score, first, last in spans[:taken]:
            start, end = own.offsets[first][0], own.offsets[last][1]
            if align:
                start = own.word_to_chars(own.token_to_word(first), sequence_index=1)[0]
                end = own.word_to_chars(own.token_to_word(last), sequence_index=1)[1]
            text = context[start:end]
            same = next((answer for answer in answers if answer["answer"].lower() == text.lower()), None)
            if same is None:
                answers.append({"score": score, "start": start, "end": end, "answer": text})
            else:
                same["score"] += score
    if settings.get("handle_impossible_answer"):
        answers.append({"score": none, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: -answer["score"])[:top_k], undecided


@pytest.mark.parametrize("parameters", CASES, ids=str)
def test_answers_are_those_of_the_plain_rules(case, parameters):
    model, tokenizer, encoder = case
    texts = [(question, context) for place, context in enumerate(CONTEXTS) for question in QUESTIONS[place % 2 :]]
    for text, ours in zip(texts, encoder.predict(texts, parameters=parameters), strict=True):
        theirs, undecided = reference(model, tokenizer, *text, **parameters)
        ours = ours if isinstance(ours, list) else [ours]
        assert [answer | {"score": None} for answer in ours] == [answer | {"score": None} for answer in theirs]
        scores = [answer["score"] for answer in ours]
        assert scores == pytest.approx([float(answer["score"]) for answer in theirs], abs=TOLERANCE + undecided)


@pytest.mark.parametrize("text", [("", ""), ("a good?", ""), ("a good?", " \t"), ("", "a good film")])
def test_an_empty_side_is_answered(task_encoder, text):
    encoder = task_encoder("qa")
    answer = encoder.predict(text)
    assert text[1][answer["start"] : answer["end"]] == answer["answer"]
    assert (answer["score"] > 0) == bool(text[1].strip())
    silent = encoder.predict(text, parameters={"handle_impossible_answer": True, "top_k": 500})
    assert silent[-1]["answer"] == "" or len(silent) > 1
    assert sum(entry["answer"] == "" for entry in silent) == 1


def test_a_long_question_leaves_half_a_window_to_the_context(task_encoder):
    encoder = task_encoder("qa")
    prepared = encoder.prepare([("very " * 60, "good bad film " * 20)])
    sizes = {len(row["input_ids"]) for row in prepared.rows[:-1]}
    assert sizes == {32}
    assert [int((row["token_type_ids"] == 0).sum()) for row in prepared.rows] == [2 + 14] * len(prepared.rows)
    # 60 tokens in windows of 15 that share 7.
    assert len(prepared.rows) == 7


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_seq_len": 33}, "max_seq_len is 33; expected from 5 to 32"),
        ({"max_seq_len": 4}, "max_seq_len is 4"),
        ({"doc_stride": 40}, "doc_stride is 40; beside the question"),
        ({"top_k": 0}, r"parameters\.top_k"),
        ({"answers": 3}, "there is no such parameter; there are top_k"),
        ({"align_to_words": "secret"}, r"parameters\.align_to_words: Input should be a valid boolean$"),
    ],
)
def test_parameters_that_cannot_be_are_refused(task_encoder, parameters, message):
    with pytest.raises(UsageError, match=message) as caught:
        task_encoder("qa").predict(("good?", "good film " * 60), parameters=parameters)
    assert caught.value.status == 422
    assert "secret" not in str(caught.value)


def test_too_many_windows_and_too_long_answers_are_refused(task_encoder):
    encoder = task_encoder("qa")
    with pytest.raises(RequestError, match="takes 128 windows; at most 64 are read") as caught:
        encoder.prepare([("good?", "good " * 1300 + "film " * 250)], {"doc_stride": 15})
    assert caught.value.status == 413
    with pytest.raises(RequestError, match="top_k times the contexts is 20000000 characters"):
        encoder.prepare([("good?", "x" * 20_000)], {"top_k": 1000})


def test_scores_that_are_no_numbers_are_a_check_error(task_encoder):
    prepared = task_encoder("qa").prepare([("good?", "a film")])
    bad = np.full(len(prepared.rows[0]["input_ids"]), np.nan)
    with pytest.raises(CheckError, match="NaN or infinity"):
        prepared.decode([{"start_logits": bad, "end_logits": bad}])
