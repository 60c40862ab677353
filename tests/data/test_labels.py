"""What the tasks other than single-label classification read from their columns."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from potstill.data import load_examples, load_texts, splits
from potstill.data.labels import read_list
from potstill.errors import DataError, UsageError
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)

PAIR = {"sentence1": "a plane takes off", "sentence2": "a plane is taking off"}
TAGGED = [
    {"tokens": ["Ada", "Lovelace", "left", "London"], "ner_tags": ["B-person", "I-person", "O", "B-location"]},
    {"tokens": ["nobody"], "ner_tags": ["O"]},
]
CONTEXT = "Rome was founded in 753 BC by Romulus."


def load(folder, table, *, task=TEXT_CLASSIFICATION, kind="jsonl", **options):
    file = folder / f"train.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(table), file)
    elif kind == "csv":
        lines = [",".join(table[0]), *(",".join(map(str, row.values())) for row in table)]
        file.write_text("\n".join(lines) + "\n")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in table))
    return load_examples(str(folder), split="train", task=task, **options)


def refusal(folder, table, **options):
    with pytest.raises(DataError) as caught:
        load(folder, table, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Regression


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_regression_reads_amounts(tmp_path, kind):
    table = [{"text": "x", "label": 5.0}, {"text": "y", "label": 0.25}, {"text": "z", "label": -3.0}]
    found = load(tmp_path, table, kind=kind, problem_type=REGRESSION)
    assert found.labels.tolist() == [5.0, 0.25, -3.0]
    assert found.labels.dtype == np.float64
    assert found.label_names == ()


def test_whole_numbers_are_amounts_too(tmp_path):
    assert load(tmp_path, [{"text": "x", "label": 4}], problem_type=REGRESSION).labels.tolist() == [4.0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [("high", "'high'"), ({}, "{}"), (True, "True"), ([1.0], r"[1.0]"), (float("nan"), "nan"), ("inf", "'inf'")],
)
def test_what_is_no_amount_is_refused_by_row(tmp_path, value, shown):
    table = [{"text": "x", "label": 1.0}, {"text": "y", "label": value}]
    message = refusal(tmp_path, table, problem_type=REGRESSION)
    assert message == f"row 2: label {shown} in column 'label' is not a finite number"


def test_an_integer_beyond_all_floats_is_refused_in_a_short_line(tmp_path):
    message = refusal(tmp_path, [{"text": "x", "label": 10**400}], problem_type=REGRESSION)
    assert "is not a finite number" in message
    assert len(message) < 200


def test_amounts_change_the_hash(tmp_path):
    one = load(tmp_path, [{"text": "x", "label": 1.0}], problem_type=REGRESSION).sha256
    assert load(tmp_path, [{"text": "x", "label": 1.5}], problem_type=REGRESSION).sha256 != one


def test_an_unknown_problem_type_is_refused(tmp_path):
    with pytest.raises(UsageError, match="problem type 'ranking' is not known"):
        load(tmp_path, [{"text": "x", "label": 1.0}], problem_type="ranking")


# Several labels


def several(folder, values, **options):
    table = [{"text": "x", "labels": value} for value in values]
    return load(folder, table, problem_type=MULTI_LABEL, **options)


def test_lists_of_names_become_ones(tmp_path):
    found = several(tmp_path, [["joy", "fear"], [], ["anger"]])
    assert found.label_names == ("anger", "fear", "joy")
    assert found.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert found.labels.dtype == np.float64


def test_names_are_looked_up_in_the_models_order(tmp_path):
    found = several(tmp_path, [["fear"], ["joy", "anger"]], label_names=["joy", "fear", "anger"])
    assert found.labels.tolist() == [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lists_of_ids_become_ones(tmp_path, kind):
    found = several(tmp_path, [[2], [0, 2], [1]], kind=kind)
    assert found.label_names == ("0", "1", "2")
    assert found.labels.tolist() == [[0, 0, 1], [1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("convert", [int, float, bool])
def test_lists_of_0_and_1_stay_as_they_are(tmp_path, convert):
    values = [[convert(flag) for flag in row] for row in ([0, 1, 1], [0, 0, 0], [1, 0, 0])]
    found = several(tmp_path, values)
    assert found.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert found.label_names == ("0", "1", "2")
    assert several(tmp_path, values, label_names=["a", "b", "c"]).label_names == ("a", "b", "c")


def test_lists_of_0_and_1_that_are_not_one_per_label_are_ids(tmp_path):
    assert several(tmp_path, [[0, 1], [1, 0]], label_names=["a", "b", "c"]).labels.tolist() == [[1, 1, 0]] * 2
    assert several(tmp_path, [[0], [1]]).labels.tolist() == [[1, 0], [0, 1]]


def test_names_and_ones_of_the_same_labels_give_the_same_hash(tmp_path):
    by_name = several(tmp_path, [["a"], ["a", "b"]], label_names=["a", "b"])
    assert several(tmp_path, [[1, 0], [1, 1]], label_names=["a", "b"]).sha256 == by_name.sha256


def test_one_label_where_a_list_belongs_is_refused(tmp_path):
    table = [{"text": "x", "labels": ["joy"]}, {"text": "y", "labels": "joy"}]
    assert refusal(tmp_path, table, problem_type=MULTI_LABEL) == (
        "row 2: column 'labels' holds 'joy', not a list of labels"
    )


def test_a_label_that_the_model_has_not_is_refused_in_its_row(tmp_path):
    table = [{"text": "x", "labels": ["joy"]}, {"text": "y", "labels": ["joy", "awe"]}]
    assert refusal(tmp_path, table, problem_type=MULTI_LABEL, label_names=["joy", "fear"]).startswith(
        "row 2: label 'awe' in column 'labels' is none of the model's 2 labels (joy, fear); the data has awe, joy; "
    )


def test_data_without_any_label_is_refused_unless_the_model_has_names(tmp_path):
    table = [{"text": "x", "labels": []}]
    assert "no row has any label in column 'labels'" in refusal(tmp_path, table, problem_type=MULTI_LABEL)
    assert several(tmp_path, [[]], label_names=["a", "b"]).labels.tolist() == [[0, 0]]


# Too many to be labels


def test_a_column_of_ids_or_texts_makes_an_error_and_no_list_of_names(tmp_path):
    table = [{"text": "x", "label": 10**15 + number} for number in range(1001)]
    message = refusal(tmp_path, table)
    assert message.startswith("column 'label' holds 1001 different values in 1001 rows, such as 1000000000000000")


def test_the_bound_is_above_real_data(tmp_path):
    table = [{"text": "x", "label": number % 2000} for number in range(4000)]
    assert len(load(tmp_path, table).label_names) == 2000


# Tags of words


def tagged(folder, table=TAGGED, **options):
    return load(folder, table, task=TOKEN_CLASSIFICATION, **options)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tags_get_ids_with_outside_first(tmp_path, kind):
    found = tagged(tmp_path, kind=kind)
    assert found.texts == [row["tokens"] for row in TAGGED]
    assert found.label_names == ("O", "B-location", "B-person", "I-person")
    assert [ids.tolist() for ids in found.labels] == [[2, 3, 0, 1], [0]]
    assert all(ids.dtype == np.int64 for ids in found.labels)


def test_tags_are_looked_up_in_the_models_order(tmp_path):
    names = ["I-person", "B-person", "B-location", "O"]
    found = tagged(tmp_path, label_names=names)
    assert found.label_names == tuple(names)
    assert [ids.tolist() for ids in found.labels] == [[1, 0, 3, 2], [3]]


def test_tags_may_be_ids(tmp_path):
    table = [{"words": ["a", "b"], "tags": [0, 3]}]
    found = tagged(tmp_path, table)
    assert found.label_names == ("0", "3")
    assert found.labels[0].tolist() == [0, 1]
    assert tagged(tmp_path, table, label_names=["O", "A", "B", "C"]).labels[0].tolist() == [0, 3]


def test_tags_of_words_need_no_outside(tmp_path):
    found = tagged(tmp_path, [{"tokens": ["dogs", "bark"], "tags": ["NOUN", "VERB"]}])
    assert found.label_names == ("NOUN", "VERB")


def test_the_callers_default_column_finds_the_tags_too(tmp_path):
    assert tagged(tmp_path, label_column="label").sha256 == tagged(tmp_path).sha256


def test_a_tag_that_the_model_has_not_is_refused_in_its_row(tmp_path):
    message = refusal(tmp_path, TAGGED[::-1], task=TOKEN_CLASSIFICATION, label_names=["O", "B-person", "I-person"])
    assert message.startswith(
        "row 2: tag 'B-location' in column 'ner_tags' is none of the model's 3 labels (O, B-person, I-person); "
        "the data has B-location, B-person, I-person, O; "
    )


@pytest.mark.parametrize("tags", [["O"] * 3, ["O"] * 5, []])
def test_every_word_needs_one_tag(tmp_path, tags):
    table = [TAGGED[1], {**TAGGED[0], "ner_tags": tags}]
    assert refusal(tmp_path, table, task=TOKEN_CLASSIFICATION) == (
        f"row 2: 4 words in column 'tokens', but {len(tags)} tags in 'ner_tags'; every word needs one tag"
    )


@pytest.mark.parametrize("words", ["Ada Lovelace", ["Ada", None], None])
def test_words_must_be_a_list_of_texts(tmp_path, words):
    message = refusal(tmp_path, [TAGGED[0], {**TAGGED[1], "tokens": words}], task=TOKEN_CLASSIFICATION)
    assert message == f"row 2: column 'tokens' holds {words!r}, not a list of words"


def test_tags_must_be_a_list(tmp_path):
    message = refusal(tmp_path, [{"tokens": ["Ada"], "ner_tags": "O"}], task=TOKEN_CLASSIFICATION)
    assert message == "row 1: column 'ner_tags' holds 'O', not a list of tags"


def test_a_text_without_words_is_left_out_and_the_others_keep_their_numbers(tmp_path):
    empty = {"tokens": [], "ner_tags": []}
    assert tagged(tmp_path, [empty, *TAGGED]).sha256 == tagged(tmp_path).sha256
    message = refusal(tmp_path, [empty, {"tokens": ["x"], "ner_tags": []}], task=TOKEN_CLASSIFICATION)
    assert message.startswith("row 2: 1 words")


def test_missing_tags_are_refused_with_the_names_that_were_tried(tmp_path):
    assert refusal(tmp_path, [{"tokens": ["x"]}], task=TOKEN_CLASSIFICATION) == (
        f"{tmp_path} (train) has no column 'ner_tags' or 'tags' or 'labels' or 'pos_tags' or 'chunk_tags'; it has "
        "tokens; name it with --label-column"
    )
    assert "has no column 'pos'; it has" in refusal(tmp_path, TAGGED, task=TOKEN_CLASSIFICATION, label_column="pos")


def test_tags_change_the_hash(tmp_path):
    other = [TAGGED[0], {"tokens": ["nobody"], "ner_tags": ["B-person"]}]
    assert tagged(tmp_path).sha256 != tagged(tmp_path, other).sha256


# Questions


def asked(folder, answers, **options):
    table = [{"question": "When?", "context": CONTEXT, "answers": one} for one in answers]
    return load(folder, table, task=QUESTION_ANSWERING, **options)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_answers_are_read_as_squad_has_them(tmp_path, kind):
    answers = [{"text": ["753 BC", "753"], "answer_start": [20, 20]}, {"text": ["Rome"], "answer_start": [0]}]
    found = asked(tmp_path, answers, kind=kind)
    assert found.texts == [("When?", CONTEXT)] * 2
    assert found.labels == answers
    assert found.label_names == ()


def test_empty_answers_are_no_answer(tmp_path):
    nothing = {"text": [], "answer_start": []}
    assert asked(tmp_path, [nothing, []]).labels == [nothing, nothing]


def test_answers_may_be_a_list_of_objects(tmp_path):
    listed = [{"text": "753 BC", "answer_start": 20}, {"text": "Rome", "answer_start": 0}]
    assert asked(tmp_path, [listed]).labels == [{"text": ["753 BC", "Rome"], "answer_start": [20, 0]}]


@pytest.mark.parametrize(
    "answers",
    [None, "753 BC", {"text": ["Rome"]}, {"text": "Rome", "answer_start": 0}, {"text": ["Rome"], "answer_start": []}],
)
def test_answers_of_another_shape_are_refused(tmp_path, answers):
    table = [{"question": "When?", "context": CONTEXT, "answers": answers}]
    message = refusal(tmp_path, table, task=QUESTION_ANSWERING)
    assert message.startswith(f"row 1: column 'answers' holds {answers!r}, not answers such as ")


@pytest.mark.parametrize(
    ("text", "start", "told"),
    [
        ("753 BC", 19, "answer '753 BC' should start at character 19, where ' 753 B' stands"),
        ("Rome", -1, "answer 'Rome' should start at character -1, where nothing stands"),
        ("Rome", 999, "answer 'Rome' should start at character 999, where '' stands"),
        ("Rome", "0", "answer 'Rome' at '0' is not a text and a count of characters"),
        (7, 0, "answer 7 at 0 is not a text and a count of characters"),
    ],
)
def test_an_answer_must_stand_where_it_says(tmp_path, text, start, told):
    table = [{"question": "When?", "context": CONTEXT, "answers": {"text": [text], "answer_start": [start]}}]
    assert refusal(tmp_path, table, task=QUESTION_ANSWERING) == f"row 1: {told}"


def test_answers_change_the_hash(tmp_path):
    one = asked(tmp_path, [{"text": ["753 BC"], "answer_start": [20]}]).sha256
    assert asked(tmp_path, [{"text": ["753"], "answer_start": [20]}]).sha256 != one


def test_a_question_needs_its_text(tmp_path):
    message = refusal(tmp_path, [{"question": "x", "answers": []}], task=QUESTION_ANSWERING, text_columns=["question"])
    assert message == ("--text-column names question; question-answering reads two columns, such as question, context")


# Running text


def test_running_text_has_no_labels_and_its_empty_lines_are_no_texts(tmp_path):
    table = [{"text": ""}, {"text": " = Title = \n"}, {"text": " \n"}, {"text": "a line"}]
    found = load(tmp_path, table, task=FILL_MASK, label_column="label")
    assert found.texts == [" = Title = \n", "a line"]
    assert (found.labels, found.label_names) == (None, ())
    assert load(tmp_path, table, task=FILL_MASK, limit=1).texts == [" = Title = \n"]
    assert load_texts(str(tmp_path), split="train", task=FILL_MASK) == found.texts


def test_labelled_texts_are_running_text_too(tmp_path):
    table = [{"sentence": "a good film", "label": 1}]
    found = load(tmp_path, table, task=FILL_MASK)
    assert found.labels is None
    assert found.sha256 != load(tmp_path, table).sha256


def test_text_that_is_all_empty_is_refused(tmp_path):
    message = refusal(tmp_path, [{"text": ""}, {"text": "\t"}], task=FILL_MASK)
    assert message == f"{tmp_path} (train) has nothing but empty texts in column 'text'"


def test_running_text_is_one_column(tmp_path):
    message = refusal(tmp_path, [PAIR], task=FILL_MASK, text_columns=["sentence1", "sentence2"])
    assert message == "--text-column names sentence1, sentence2; fill-mask reads one column, such as text"


def test_the_embedded_data_is_running_text(monkeypatch):
    monkeypatch.setattr(splits, "read_python_docs", lambda split: [(f"{split} text", "numbers")])
    found = load_examples("python-docs", split="train", task=FILL_MASK)
    assert (found.texts, found.labels) == (["train text"], None)


# Embeddings


@pytest.mark.parametrize("column", ["score", "label", "similarity_score"])
def test_pairs_have_the_score_of_any_usual_name(tmp_path, column):
    found = load(tmp_path, [{**PAIR, column: 3.8}], task=FEATURE_EXTRACTION)
    assert found.texts == [(PAIR["sentence1"], PAIR["sentence2"])]
    assert found.labels.tolist() == [3.8]


def test_the_score_wins_over_the_label_unless_the_label_is_asked_for(tmp_path):
    table = [{**PAIR, "label": 1, "score": 0.7}]
    assert load(tmp_path, table, task=FEATURE_EXTRACTION).labels.tolist() == [0.7]
    assert load(tmp_path, table, task=FEATURE_EXTRACTION, label_column="label").labels.tolist() == [1.0]


@pytest.mark.parametrize("label_column", [None, "label"])
def test_texts_to_embed_need_no_score(tmp_path, label_column):
    assert load(tmp_path, [PAIR], task=FEATURE_EXTRACTION, label_column=label_column).labels is None
    single = load(tmp_path, [{"text": "x", "label": "topic"}], task=FEATURE_EXTRACTION, label_column=label_column)
    assert (single.texts, single.labels) == (["x"], None)


def test_a_score_that_is_asked_for_must_be_there(tmp_path):
    message = refusal(tmp_path, [PAIR], task=FEATURE_EXTRACTION, label_column="gold")
    assert message == (
        f"{tmp_path} (train) has no column 'gold'; it has sentence1, sentence2; name it with --label-column"
    )


# Names that a data set of the hub has itself


def hub(monkeypatch, table, **features):
    class HubData(list):
        pass

    loaded = HubData(table)
    loaded.features = features
    monkeypatch.setattr(
        splits, "require", lambda *_args, **_kwargs: SimpleNamespace(load_dataset=lambda *_, **__: loaded)
    )
    monkeypatch.setattr(splits, "check_name", lambda *_: None)  # the hub has it


def test_the_hubs_names_of_tags_are_used(monkeypatch):
    table = [{"tokens": ["Ada", "left"], "ner_tags": [1, 0]}]
    feature = SimpleNamespace(feature=SimpleNamespace(names=["O", "B-PER"]))
    hub(monkeypatch, table, tokens=SimpleNamespace(feature=SimpleNamespace()), ner_tags=feature)
    found = load_examples("conll", split="train", task=TOKEN_CLASSIFICATION)
    assert found.label_names == ("O", "B-PER")
    assert found.labels[0].tolist() == [1, 0]


def test_the_hubs_names_of_several_labels_are_used(monkeypatch):
    feature = SimpleNamespace(feature=SimpleNamespace(names=["joy", "fear", "anger"]))
    hub(monkeypatch, [{"text": "x", "labels": [2]}], labels=feature, text=SimpleNamespace())
    found = load_examples("go", split="train", task=TEXT_CLASSIFICATION, problem_type=MULTI_LABEL)
    assert found.label_names == ("joy", "fear", "anger")
    assert found.labels.tolist() == [[0, 0, 1]]


def test_real_features_of_the_hubs_library_name_labels_and_tags():
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-PER"]
    assert splits.hub_label_names(datasets.ClassLabel(names=names)) == tuple(names)
    assert splits.hub_label_names(datasets.Sequence(datasets.ClassLabel(names=names))) == tuple(names)
    assert splits.hub_label_names(datasets.Sequence({"text": datasets.Value("string")})) is None
    assert splits.hub_label_names(datasets.Value("int64")) is None


def test_amounts_do_not_look_for_names(monkeypatch):
    hub(monkeypatch, [{**PAIR, "label": 3}], label=SimpleNamespace(names=["a", "b"]))
    found = load_examples("stsb", split="train", task=TEXT_CLASSIFICATION, problem_type=REGRESSION)
    assert (found.labels.tolist(), found.label_names) == ([3.0], ())


@pytest.mark.parametrize("cell", ["[{[]}]", "[1, 2", "[1 2]", "[__import__('os')]", "[" * 500 + "]" * 500])
def test_a_cell_that_only_looks_like_a_list_is_a_text(cell):
    assert read_list(cell) == cell
