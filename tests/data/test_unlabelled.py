"""Texts without a label: left out with a word where labels are all there is, learned from where a teacher answers."""

import json

import numpy as np
import pytest

from potstill.data import Extra, load_examples, load_splits
from potstill.errors import AbsentError, DataError
from potstill.tasks import QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

NAMES = ["no", "yes"]


def lines(folder, rows, split="train"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def labelled(labels, stem="text"):
    return [{"text": f"{stem} {number}", "label": label} for number, label in enumerate(labels)]


def splits(name, task=TEXT_CLASSIFICATION, **how):
    how = {"train": ("train", None), "evaluation": ("validation", None), "extra": Extra()} | how
    return load_splits(name, task=task, **how)


def test_a_text_without_a_label_is_left_out_with_a_word(tmp_path):
    name = lines(tmp_path, labelled([1, None, 0, ""]))
    found = load_examples(name, split="train", task=TEXT_CLASSIFICATION, label_names=NAMES)
    assert found.texts == ["text 0", "text 2"]
    assert found.notes == (f"2 of 4 rows of {name} (train) have no label and are left out",)
    with pytest.raises(AbsentError, match="has no labels: column 'label' is empty"):
        load_examples(
            lines(tmp_path / "b", labelled([None, None])), split="train", task=TEXT_CLASSIFICATION, label_names=NAMES
        )


@pytest.mark.parametrize("nothing", [None, "", -1, "missing"])
def test_with_a_teacher_it_is_learned_from_behind_those_that_have_one(tmp_path, nothing):
    rows = labelled([1, nothing, 0])
    if nothing == "missing":
        del rows[1]["label"]
    lines(tmp_path, labelled([0, 1], "held"), "validation")
    found = splits(lines(tmp_path, rows), label_names=NAMES)
    assert found.train.texts == ["text 0", "text 2", "text 1"]
    assert found.train.labels.tolist() == [1, 0, -1]
    assert found.train.num_unlabelled == 1
    assert found.evaluation.labels.tolist() == [0, 1]
    assert found.evaluation.notes == ()


def test_a_first_row_without_the_column_hides_it_from_nobody(tmp_path):
    lines(tmp_path, labelled([0, 1], "held"), "validation")
    found = splits(lines(tmp_path, [{"text": "bare"}, *labelled([1, 0])]))
    assert found.train.labels.tolist() == [1, 0, -1]
    assert found.train.label_names == ("0", "1")


def test_training_texts_may_have_no_label_at_all(tmp_path):
    lines(tmp_path, labelled([0, 1], "held"), "validation")
    found = splits(lines(tmp_path, [{"text": "a"}, {"text": "b"}]), label_names=NAMES)
    assert found.train.labels.tolist() == [-1, -1]
    assert found.evaluation.labels.tolist() == [0, 1]


def test_without_labels_to_score_by_there_are_none(tmp_path):
    lines(tmp_path, [{"text": "c"}], "validation")
    found = splits(lines(tmp_path, [{"text": "a"}, {"text": "b"}]), label_names=NAMES)
    assert found.evaluation.labels is None
    assert found.evaluation.label_names == ("no", "yes")
    lines(tmp_path / "some", [{"text": "c"}], "validation")
    some = splits(lines(tmp_path / "some", labelled([1, 0])), label_names=NAMES)
    assert some.train.labels.tolist() == [1, 0]
    assert some.evaluation.labels is None


def test_of_one_file_a_tenth_of_the_labelled_texts_is_held_out_and_every_other_is_learned_from(tmp_path):
    """The same tenth that `evaluate` takes, which leaves the other rows out."""
    rows = labelled([0, 1] * 15) + labelled([None] * 40, "bare")
    file = tmp_path / "all.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = splits(str(file), train=("rest", None), evaluation=("held-out", None), label_names=NAMES)
    alone = load_examples(str(file), split="held-out", task=TEXT_CLASSIFICATION, label_names=NAMES)
    assert found.evaluation.texts == alone.texts
    assert len(found.evaluation) == 3
    assert (len(found.train), found.train.num_unlabelled) == (67, 40)
    assert found.evaluation.notes == ()


def test_a_further_data_set_gives_texts_but_none_that_are_there_already(tmp_path):
    lines(tmp_path, labelled([0, 1], "held"), "validation")
    name = lines(tmp_path, labelled([1, 0]))
    rows = [{"sentence": text, "label": "x"} for text in ("new", "text 0", "held 1", "newer")]
    more = lines(tmp_path / "more", rows)
    found = splits(name, label_names=NAMES, extra=Extra(unlabelled=more))
    assert found.train.texts == ["text 0", "text 1", "new", "newer"]
    assert found.train.labels.tolist() == [1, 0, -1, -1]
    assert any(note.startswith(f"2 of 4 texts of {more} (train) are in") for note in found.evaluation.notes)
    (tmp_path / "more.txt").write_text("one line\n\nanother\n")
    found = splits(name, label_names=NAMES, extra=Extra(unlabelled=str(tmp_path / "more.txt")))
    assert found.train.texts[2:] == ["one line", "another"]


def test_pairs_are_not_mixed_with_single_texts(tmp_path):
    lines(tmp_path, labelled([0, 1], "held"), "validation")
    more = lines(tmp_path / "more", [{"premise": "a", "hypothesis": "b"}])
    with pytest.raises(DataError, match="both must be single texts, or pairs"):
        splits(lines(tmp_path, labelled([1, 0])), label_names=NAMES, extra=Extra(unlabelled=more))


def test_amounts_and_several_labels_and_tags_know_no_label_either(tmp_path):
    lines(tmp_path / "amount", labelled([0.5], "held"), "validation")
    found = splits(lines(tmp_path / "amount", labelled([1.5, None])))
    np.testing.assert_array_equal(found.train.labels, [1.5, np.nan])
    lines(tmp_path / "several", labelled([["a"]], "held"), "validation")
    found = splits(lines(tmp_path / "several", labelled([["a", "b"], None, []])))
    np.testing.assert_array_equal(found.train.labels, [[1, 1], [0, 0], [np.nan, np.nan]])
    words = [{"tokens": ["a", "b"], "tags": ["O", "B"]}, {"tokens": ["c"], "tags": None}]
    lines(tmp_path / "tags", [{"tokens": ["d"], "tags": ["O"]}], "validation")
    found = splits(lines(tmp_path / "tags", words), TOKEN_CLASSIFICATION)
    assert [ids.tolist() for ids in found.train.labels] == [[0, 1], [-1]]


def test_a_question_needs_its_answers(tmp_path):
    row = {"question": "who", "context": "Ann came", "answers": {"text": ["Ann"], "answer_start": [0]}}
    lines(tmp_path, [row | {"context": "Ann went"}], "validation")
    with pytest.raises(DataError, match="row 2: column 'answers' holds None"):
        splits(lines(tmp_path, [row, row | {"answers": None}]), QUESTION_ANSWERING)


def test_a_column_of_answers_comes_with_both_splits_and_names_the_labels(tmp_path):
    rows = [{"text": f"t {number}", "llm": {"pos": 0.9, "neg": 0.1}} for number in range(2)]
    lines(tmp_path, [{"text": "held", "llm": {"pos": 0.2, "neg": 0.8}}], "validation")
    found = splits(lines(tmp_path, rows), extra=Extra(answers="llm"))
    assert found.train.label_names == found.evaluation.label_names == ("neg", "pos")
    np.testing.assert_allclose(found.train.answers, [[0.1, 0.9]] * 2)
    np.testing.assert_allclose(found.evaluation.answers, [[0.8, 0.2]])
    with pytest.raises(DataError, match=r"has no column 'lm'; it has text, llm; .*--teacher-column"):
        splits(lines(tmp_path, rows), extra=Extra(answers="lm"))


def test_a_column_that_may_be_the_label_is_not_overlooked(tmp_path):
    lines(tmp_path, [{"text": "held", "mood": "x"}], "validation")
    name = lines(tmp_path, [{"id": 7, "text": "a", "mood": "y"}])
    with pytest.raises(AbsentError, match=r"name it with --label-column.*no labels: --label-column none"):
        splits(name, label_names=NAMES)
    assert splits(name, label_names=NAMES, label_column="none").train.labels.tolist() == [-1]


def test_the_column_of_answers_is_not_taken_for_the_label(tmp_path):
    rows = [{"text": f"t {number}", "label": [0.1, 0.9]} for number in range(2)]
    lines(tmp_path, [{"text": "held", "label": [0.3, 0.7]}], "validation")
    found = splits(lines(tmp_path, rows), label_names=NAMES, extra=Extra(answers="label"))
    assert found.train.labels.tolist() == [-1, -1]
    assert found.train.label_columns == ()


def test_a_wrong_answer_in_the_further_data_is_told_with_its_name(tmp_path):
    rows = [row | {"llm": [0.5, 0.5]} for row in labelled([1, 0])]
    lines(tmp_path, labelled([0, 1], "held"), "validation")
    more = lines(tmp_path / "more", [{"text": "x", "llm": [0.5, 0.1]}])
    with pytest.raises(DataError, match=r"more row 1: the probabilities in column 'llm' add up to 0\.6"):
        splits(lines(tmp_path, rows), label_names=NAMES, extra=Extra(unlabelled=more, answers="llm"))


def test_texts_with_neither_a_label_nor_an_answer_are_left_out_with_a_word(tmp_path):
    rows = [
        {"text": "both", "label": 1, "llm": [0.1, 0.9]},
        {"text": "label", "label": 0, "llm": None},
        {"text": "answer", "label": None, "llm": [0.8, 0.2]},
        {"text": "nothing", "label": None, "llm": None},
    ]
    lines(tmp_path, labelled([0, 1], "held"), "validation")
    found = splits(lines(tmp_path, rows), label_names=NAMES, extra=Extra(answers="llm"))
    assert found.train.texts == ["both", "label", "answer"]
    assert found.train.labels.tolist() == [1, 0, -1]
    np.testing.assert_array_equal(found.train.answers, [[0.1, 0.9], [np.nan, np.nan], [0.8, 0.2]])
    assert found.train.num_unlabelled == 1
    assert found.evaluation.notes == (
        "1 of 4 texts have neither a label nor an answer in column 'llm' and are left out",
    )


def test_further_texts_without_the_column_of_answers_are_refused(tmp_path):
    """Where no model is asked, nothing could be learned from them."""
    lines(tmp_path, labelled([0, 1], "held"), "validation")
    name = lines(tmp_path, [row | {"llm": "yes"} for row in labelled([1, 0])])
    (tmp_path / "more.txt").write_text("further\n")
    with pytest.raises(DataError, match=r"more.txt \(train\) has no column 'llm'; it has text"):
        splits(name, label_names=NAMES, extra=Extra(answers="llm", unlabelled=str(tmp_path / "more.txt")))


def test_a_column_of_answers_without_one_is_refused(tmp_path):
    lines(tmp_path, labelled([0, 1], "held"), "validation")
    name = lines(tmp_path, [row | {"llm": ""} for row in labelled([1, 0])])
    with pytest.raises(DataError, match=r"column 'llm' of .* is empty: there is no answer to learn from"):
        splits(name, label_names=NAMES, extra=Extra(answers="llm"))
