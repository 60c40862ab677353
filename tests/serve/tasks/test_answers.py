"""What every task does at its edges: what is refused, what is kept of a run, and who may stand beside whom."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from potstill.errors import CheckError, UsageError
from potstill.serve import Encoder
from potstill.serve.tasks.fill_mask import MaskParameters
from potstill.serve.tasks.question_answering import Question, count_windows, windows
from potstill.serve.tasks.text_classification import Pair
from potstill.serve.tasks.token_classification import TokenParameters

SECRET = "Wanda's secret"
INPUTS = {
    "ner": ["Good film, very.", "", "xx " * 40, "🙂 中 é e\u0301"],
    "qa": [("a good?", "the film was not very good . " * 9), ("", "film"), ("is it?", "")],
    "mask": ["a [MASK] film", "[MASK] [MASK]", "[MASK] " + "good " * 50],
    "vector": ["good", "", "a film " * 40],
    "tokens": ["good", "", "a film " * 40],
    "multi": ["good", ("good", "bad"), ("a " * 90, "b " * 90)],
    "regression": ["good", ""],
}


@pytest.mark.parametrize("name", INPUTS)
def test_answers_are_json_and_the_same_alone_in_a_list_and_in_threads(task_encoder, name):
    encoder, inputs = task_encoder(name), INPUTS[name]
    together = encoder.predict(inputs * 3)
    assert json.loads(json.dumps(together, allow_nan=False)) == together
    assert near(together, [encoder.predict(one) for one in inputs] * 3)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(encoder.predict, [inputs * 3] * 8)) == [together] * 8
    assert encoder.predict([]) == []


@pytest.mark.parametrize("name", INPUTS)
def test_what_is_kept_of_a_run_reads_as_the_whole(task_encoder, name):
    encoder, inputs = task_encoder(name), INPUTS[name]
    prepared = encoder.prepare(inputs)
    whole = [encoder.unpad(encoder.session.run(encoder.tokenizer.pad([row])), [row])[0] for row in prepared.rows]
    kept = [prepared.keep(index, own) for index, own in enumerate(whole)]
    assert prepared.decode(kept) == prepared.decode(whole)
    assert len(prepared.decode(whole)) == len(inputs)
    for outputs, copies in zip(whole, kept, strict=True):
        assert not any(np.shares_memory(own, copy) for own in outputs.values() for copy in copies.values())


@pytest.mark.parametrize("name", INPUTS)
def test_outputs_that_are_no_numbers_are_a_check_error(task_encoder, name):
    encoder = task_encoder(name)
    prepared = encoder.prepare(INPUTS[name][:1])
    given = encoder.unpad(encoder.session.run(encoder.tokenizer.pad(prepared.rows)), prepared.rows)
    for wrong in (np.nan, np.inf):
        bad = [{output: np.full_like(values, wrong) for output, values in own.items()} for own in given]
        with pytest.raises(CheckError, match="NaN or infinity"):
            prepared.decode(bad)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(
    "wrong", [None, 3, b"x", [SECRET], {"text": SECRET}, {"text": SECRET, "text_pair": 1}, (SECRET,)]
)
def test_what_is_no_input_is_refused_without_repeating_it(task_encoder, name, wrong):
    with pytest.raises(UsageError, match=r"^input 1 is \w+; this model takes") as caught:
        task_encoder(name).predict([INPUTS[name][0], wrong])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", INPUTS)
def test_wrong_parameters_are_refused_without_repeating_them(task_encoder, name):
    encoder = task_encoder(name)
    for parameters in (
        {SECRET: 1},
        *({key: [SECRET, 1]} for key in encoder.task.parameters.model_fields),
    ):
        with pytest.raises(UsageError, match=r"^(there is no such parameter; there are|parameters\.\w+: )") as caught:
            encoder.predict(INPUTS[name][0], parameters=parameters)
        assert SECRET not in str(caught.value)


def test_items_come_as_the_models_of_requests_too(task_encoder):
    multi, qa = task_encoder("multi"), task_encoder("qa")
    assert multi.predict(Pair(text="good", text_pair="bad")) == multi.predict(("good", "bad"))
    asked = {"question": "a good?", "context": "a film"}
    assert qa.predict(Question(**asked)) == qa.predict(asked) == qa.predict(("a good?", "a film"))
    with pytest.raises(UsageError, match="MaskParameters; this task takes TokenParameters"):
        task_encoder("ner").prepare(["a"], MaskParameters())
    assert task_encoder("ner").prepare(["a"], TokenParameters()).rows


def test_lone_surrogates_are_read_as_replacement_characters(task_encoder):
    for name in ("ner", "mask", "vector"):
        encoder = task_encoder(name)
        assert encoder.predict("a \ud83d [MASK] b") == encoder.predict("a \ufffd [MASK] b")
    qa = task_encoder("qa")
    assert qa.predict(("\ud83d?", "a \ud83d\ude42 \udc00")) == qa.predict(("\ufffd?", "a 🙂 \ufffd"))


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ("no mask here", {}, r"^input 0 has no \[MASK\] within the 32 tokens"),
        ("good " * 40 + "[MASK]", {}, r"^input 0 has no \[MASK\]"),
        ("[MASK]", {"targets": ["", " "]}, "^none of the targets is a token"),
        ("[MASK]", {"targets": []}, r"^parameters\.targets"),
        # Row C11 of the faults found: 1.9 MB of one target took 2.6 s of tokenising.
        ("[MASK]", {"targets": ["good", "x" * 1_900_000]}, r"^parameters\.targets: .* at most 128 characters"),
        ("[MASK]", {"targets": ["x" * 129]}, r"^parameters\.targets: .* at most 128 characters"),
    ],
)
def test_masks_that_cannot_be_filled_are_refused(task_encoder, text, parameters, message):
    with pytest.raises(UsageError, match=message):
        task_encoder("mask").predict(text, parameters=parameters)


def test_an_answer_that_would_repeat_too_much_text_is_refused(task_encoder):
    encoder = task_encoder("mask")
    with pytest.raises(UsageError, match="would repeat 3840000 tokens of text"):
        encoder.prepare(["[MASK] " * 30] * 4, {"top_k": 1000})


def test_more_words_than_there_are_means_all(task_encoder):
    encoder = task_encoder("mask")
    assert len(encoder.predict("[MASK]", parameters={"top_k": 1000})) == encoder.tokenizer.vocabulary_size()
    assert len(encoder.predict("[MASK]", parameters={"targets": ["good", "bad", "good"]})) == 2
    assert len(encoder.predict("[MASK]", parameters={"targets": ["good", "x" * 128]})) == 2


def test_vectors_that_this_model_cannot_give_are_refused(task_encoder, resealed):
    encoder = task_encoder("vector")
    with pytest.raises(UsageError, match="dimensions is 17; this model's vectors have 16"):
        encoder.predict("good", parameters={"dimensions": 17})
    with pytest.raises(UsageError, match="input 1 has 42 tokens and this model reads 32"):
        encoder.predict(["good", "bad " * 40], parameters={"truncate": False})
    assert encoder.predict("bad " * 30, parameters={"truncate": False}) == encoder.predict("bad " * 30)


def test_an_answer_with_another_number_of_labels_is_a_check_error(own_bundle, monkeypatch):
    encoder = Encoder(own_bundle, threads=1)
    monkeypatch.setattr(encoder.session, "run", lambda feeds, stop=None: {"logits": np.zeros((1, 2), np.float32)})
    with pytest.raises(CheckError, match="gives 2 logits and its manifest names 3 labels"):
        encoder.predict("good")


def test_a_row_of_a_language_model_is_run_in_small_batches(task_encoder, monkeypatch):
    encoder, sizes = task_encoder("mask"), []
    run = encoder.session.run
    monkeypatch.setattr(
        encoder.session, "run", lambda feeds, stop=None: sizes.append(len(feeds["input_ids"])) or run(feeds)
    )
    monkeypatch.setattr("potstill.serve.encoder._MOST_NUMBERS", 3 * 5 * encoder.tokenizer.vocabulary_size())
    encoder.predict(["a [MASK] b"] * 8)
    assert sizes == [3, 3, 2]


@pytest.mark.parametrize("side", ["right", "left"])
def test_windows_cover_every_token_and_share_the_stride(side):
    for tokens in range(40):
        for room in range(1, 12):
            for stride in range(room):
                found = [range(*part.indices(tokens)) for part in windows(tokens, room=room, stride=stride, side=side)]
                found = found[::-1] if side == "left" else found
                assert len(found) == count_windows(tokens, room=room, stride=stride)
                assert sorted({token for part in found for token in part}) == list(range(tokens))
                full = found[1:] if side == "left" else found[:-1]
                assert all(len(part) == room for part in full)
                shared = [len(set(one) & set(two)) for one, two in pairwise(found)]
                assert shared == [stride] * (len(found) - 1)


def near(one, other):
    """Compare JSON values; numbers to what batches of another size may change."""
    if isinstance(one, float):
        return abs(one - other) < 1e-5
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return one == other if not isinstance(one, dict) else all(near(one[key], other[key]) for key in one | other)
