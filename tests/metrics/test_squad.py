import pytest

from potstill import metrics
from potstill.tasks import METRICS, QUESTION_ANSWERING


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel-Tower!", "eiffeltower"),
        ("an apple, a day; the doctor", "apple day doctor"),
        ("another theme at a theatre", "another theme at theatre"),
        ("a.b", "ab"),  # punctuation goes before articles are looked for
        ("$5,000.00", "500000"),
        ("\tMünchen\n– Süd", "münchen – süd"),  # only ASCII's punctuation is taken off
        ("The", ""),
        ("", ""),
    ],
)
def test_answers_are_compared_without_what_does_not_matter(text, expected):
    assert metrics.normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("accepted", "prediction", "exact", "f1"),
    [
        (["Denver Broncos"], "the Denver Broncos", 1.0, 1.0),
        (["Denver Broncos"], "Broncos", 0.0, 2 / 3),
        (["the cat sat"], "cat cat", 0.0, 0.5),  # a word counts as often as it is there: 1 of 2 and 1 of 2
        (["Carolina", "Denver Broncos"], "Broncos of Denver", 0.0, 0.8),  # the best of the accepted answers
        (["Denver"], "Carolina", 0.0, 0.0),
        (["Denver"], "", 0.0, 0.0),
        ([], "", 1.0, 1.0),
        ([], "the", 1.0, 1.0),  # nothing is left of it
        ([], "Denver", 0.0, 0.0),
        (["The", "Denver"], "the", 0.0, 0.0),  # an accepted answer of which nothing is left does not count
    ],
)
def test_one_answer_by_hand(accepted, prediction, exact, f1):
    assert metrics.squad_exact_match(accepted, prediction) == exact
    assert metrics.squad_f1(accepted, prediction) == pytest.approx(f1)


def reference(*texts):
    return {"text": list(texts), "answer_start": [0] * len(texts)}


def test_a_set_of_questions_is_the_mean():
    found = metrics.squad_scores([reference("Denver Broncos"), reference("Rome")], ["Broncos", "rome."])
    assert found == pytest.approx({"f1": (2 / 3 + 1) / 2, "exact_match": 0.5})
    assert tuple(found) == METRICS[QUESTION_ANSWERING.name]


def test_questions_with_and_without_an_answer_are_told_apart_too():
    references = [reference("Denver Broncos"), reference(), reference(), reference("Rome")]
    found = metrics.squad_scores(references, ["Broncos", "", "Rome", ""])
    assert found == pytest.approx(
        {
            "f1": (2 / 3 + 1) / 4,
            "exact_match": 0.25,
            "answerable_f1": 1 / 3,
            "answerable_exact_match": 0.0,
            "unanswerable_accuracy": 0.5,
        }
    )


def test_questions_that_all_have_no_answer_need_no_table():
    assert metrics.squad_scores([reference()], [""]) == {"f1": 1.0, "exact_match": 1.0}


def test_every_question_needs_a_prediction():
    with pytest.raises(ValueError, match="zip"):
        metrics.squad_scores([reference("x"), reference("y")], ["x"])
