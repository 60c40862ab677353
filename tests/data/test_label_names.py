"""Labels mean what they say: names before positions, the values that occur, and nothing scored that was learned."""

import json

import numpy as np
import pytest

from potstill.data import choose_splits, load_examples, load_splits, load_texts
from potstill.errors import AbsentError, DataError
from potstill.tasks import (
    MULTI_LABEL,
    QUESTION_ANSWERING,
    REGRESSION,
    SINGLE_LABEL,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)

STARS = ("1", "2", "3", "4", "5")


def lines(folder, rows, split="train"):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def csv(folder, values, column="label", split="train"):
    folder.mkdir(exist_ok=True, parents=True)
    rows = [f"text {number},{value}" for number, value in enumerate(values)]
    (folder / f"{split}.csv").write_text("\n".join([f"text,{column}", *rows]) + "\n")
    return folder


def labelled(values, column="label"):
    return [{"text": f"text {number}", column: value} for number, value in enumerate(values)]


def load(folder, *, split="train", task=TEXT_CLASSIFICATION, **options):
    return load_examples(str(folder), split=split, task=task, **options)


def refusal(folder, error=DataError, **options):
    with pytest.raises(error) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# B1: names map by name


def with_features(folder, rows, features, kind):
    """Write rows as the library `datasets` does, names of labels and all."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(rows, features=datasets.Features(features(datasets)))
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        data.to_parquet(folder / "train.parquet")
    elif kind == "shards":
        for number in (0, 1):
            data.shard(2, number, contiguous=True).to_parquet(folder / f"train-0000{number}-of-00002.parquet")
    elif kind == "clone of a hub repository":
        (folder / "data").mkdir()
        data.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    else:
        datasets.DatasetDict({"train": data}).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("kind", ["parquet", "shards", "clone of a hub repository", "saved to disk"])
def test_class_labels_of_a_file_are_looked_up_among_the_models_names(tmp_path, kind):
    """MNLI's swap: the data counts the same names in another order than the model."""

    def features(datasets):
        return {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}

    folder = with_features(tmp_path / "data", labelled([0, 1, 0, 1]), features, kind)
    found = load(folder, label_names=["negative", "positive"])
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert load(folder).label_names == ("positive", "negative")
    assert load(folder).labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", ["parquet", "saved to disk"])
def test_class_labels_of_tags_are_looked_up_by_their_names(tmp_path, kind):
    def features(datasets):
        names = ["O", "B-PER", "I-PER", "B-LOC"]
        return {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
        }

    rows = [{"tokens": ["Ada", "Lovelace", "left", "Paris"], "ner_tags": [1, 2, 0, 3]}]
    folder = with_features(tmp_path / "data", rows, features, kind)
    names = ["B-LOC", "B-PER", "I-PER", "O"]
    assert load(folder, task=TOKEN_CLASSIFICATION, label_names=names).labels[0].tolist() == [1, 2, 3, 0]
    message = refusal(folder, task=TOKEN_CLASSIFICATION, label_names=["O", "B-person", "I-person", "B-location"])
    assert "(O, B-person, I-person, B-location)" in message
    assert "the data has O, B-PER, I-PER, B-LOC" in message


def test_class_labels_of_several_labels_are_looked_up_by_their_names(tmp_path):
    def features(datasets):
        return {
            "text": datasets.Value("string"),
            "labels": datasets.List(datasets.ClassLabel(names=["joy", "fear"])),
        }

    folder = with_features(tmp_path / "data", labelled([[0, 1], [1], [0]], "labels"), features, "parquet")
    found = load(folder, label_names=["fear", "joy"], problem_type=MULTI_LABEL)
    # [0, 1] are the ids of both, not one flag for each.
    assert found.labels.tolist() == [[1, 1], [1, 0], [0, 1]]


CARD = """---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': positive
          '1': negative
---
# A card
"""
INFO = {"features": {"label": {"names": ["positive", "negative"], "_type": "ClassLabel"}}}


@pytest.mark.parametrize(("name", "content"), [("README.md", CARD), ("dataset_info.json", json.dumps(INFO))])
def test_the_names_in_a_dataset_card_count_for_files_that_hold_numbers(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert load(lines(tmp_path, labelled([0, 1])), label_names=["negative", "positive"]).labels.tolist() == [1, 0]


def test_the_names_that_datasets_1_and_2_wrote_count_where_all_configurations_agree(tmp_path):
    lines(tmp_path, labelled([0, 0, 1]))
    feature = {"label": {"names": ["positive", "negative"], "_type": "ClassLabel"}}
    (tmp_path / "dataset_infos.json").write_text(json.dumps({"default": {"features": feature}}))
    assert load(tmp_path, label_names=("negative", "positive")).labels.tolist() == [1, 1, 0]


def test_numbers_as_names_in_another_order_than_their_ids_are_no_positions(tmp_path):
    rows = labelled([0, 1, 1])
    names = ["1", "0"]

    def features(datasets):
        return {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}

    with_features(tmp_path / "data", rows, features, "parquet")
    assert "label 0 (1)" in refusal(tmp_path / "data", label_names=("negative", "positive"))
    assert load(tmp_path / "data", label_names=("0", "1")).labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize("beside", ["label_text", "label_name"])
def test_a_column_of_names_beside_the_ids_names_them(tmp_path, beside):
    names = ["good", "bad"]
    lines(tmp_path, [row | {beside: names[row["label"]]} for row in labelled([0, 1, 1])])
    assert load(tmp_path, label_names=("bad", "good")).labels.tolist() == [1, 0, 0]
    learned = load(tmp_path)
    assert learned.label_names == ("good", "bad")
    assert learned.labels.tolist() == [0, 1, 1]
    assert "is none of the model's 2 labels (sad, happy)" in refusal(tmp_path, label_names=("sad", "happy"))


def test_a_column_beside_the_ids_that_names_one_of_them_twice_is_no_names(tmp_path):
    rows = [row | {"label_text": f"text {number}"} for number, row in enumerate(labelled([0, 1, 1]))]
    assert load(lines(tmp_path, rows), label_names=("bad", "good")).labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(("values", "names"), [([-1, 1, 1], ("a", "b")), ([-1, 0, 1], ("a", "b", "c"))])
def test_a_minus_one_that_may_be_a_class_is_not_left_out(tmp_path, values, names):
    message = refusal(lines(tmp_path, labelled(values)), label_names=names)
    assert "-1 marks a text without a label, and here it may be one of the model's" in message


def test_white_space_at_a_labels_ends_makes_no_other_label(tmp_path):
    found = load(csv(tmp_path, ["pos ", "pos", " neg"]))
    assert found.label_names == ("neg", "pos")
    assert found.labels.tolist() == [1, 1, 0]


def test_names_that_differ_are_refused_with_both_lists(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    message = refusal(lines(tmp_path, labelled([0, 1])), label_names=["good", "bad"])
    assert message.startswith(
        "row 1: label 0 (positive) in column 'label' is none of the model's 2 labels (good, bad); "
        "the data has positive, negative; "
    )
    message = refusal(lines(tmp_path / "other", labelled(["up", "down"])), label_names=["LABEL_0", "LABEL_1"])
    assert "(LABEL_0, LABEL_1)" in message


def test_names_of_a_model_that_say_nothing_leave_the_data_its_positions(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    found = load(lines(tmp_path, labelled([0, 1])), label_names=["LABEL_0", "LABEL_1"])
    assert found.labels.tolist() == [0, 1]
    assert found.notes == ("labels in column 'label' are read by position (0 is LABEL_0, 1 is LABEL_1)",)
    assert "none of the model's 3 labels" in refusal(tmp_path, label_names=["LABEL_0", "LABEL_1", "LABEL_2"])


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (["POSITIVE", "NEGATIVE"], ["negative", "positive"]),
        (["pos", "neg"], ["NEGATIVE", "POSITIVE"]),
        (["not entailment", "entailment"], ["entailment", "not_entailment"]),
    ],
)
def test_names_may_differ_in_case_in_hyphens_and_in_length(tmp_path, data, model):
    found = load(lines(tmp_path, labelled(data)), label_names=model)
    assert found.labels.tolist() == [1, 0]


def test_a_name_is_never_taken_for_a_longer_one_among_others(tmp_path):
    rows = [{"tokens": ["x"], "ner_tags": ["B-ORG"]}]
    assert "none of the model's 2 labels" in refusal(
        lines(tmp_path, rows), task=TOKEN_CLASSIFICATION, label_names=["O", "B-ORGANISM"]
    )
    assert "none of the model's 3 labels" in refusal(
        lines(tmp_path, labelled(["class1"])), label_names=["class10", "class11", "class12"]
    )


# B3: the labels are the values that occur


@pytest.mark.parametrize(
    ("values", "names", "ids"),
    [
        ([1, 5, 1], ("1", "5"), [0, 1, 0]),
        ([-1, 1, 0], ("-1", "0", "1"), [0, 2, 1]),
        ([10, 9, 100], ("9", "10", "100"), [1, 0, 2]),
        ([0, 7_000_000], ("0", "7000000"), [0, 1]),
    ],
)
def test_integer_labels_are_those_that_occur_in_the_order_of_numbers(tmp_path, values, names, ids):
    for folder in (lines(tmp_path / "a", labelled(values)), csv(tmp_path / "b", values)):
        found = load(folder)
        assert found.label_names == names
        assert found.labels.tolist() == ids


def test_a_label_that_only_the_validation_has_is_a_label_of_both(tmp_path):
    lines(tmp_path, labelled(["a", "c", "a"]))
    lines(tmp_path, [{"text": "another", "label": "b"}, {"text": "one", "label": "a"}], "validation")
    found = load_splits(str(tmp_path), train=("train", None), evaluation=("validation", None), task=TEXT_CLASSIFICATION)
    assert found.train.label_names == found.evaluation.label_names == ("a", "b", "c")
    assert found.train.labels.tolist() == [0, 2, 0]
    assert found.evaluation.labels.tolist() == [1, 0]
    assert found.evaluation.notes == ("no text to learn from has the label b",)


def test_a_split_without_labels_is_told_so_and_rows_without_one_are_left_out_with_a_word(tmp_path):
    """GLUE's test splits hold -1 alone, SNLI has some."""
    for values in ([-1, -1], [-100]):
        message = refusal(lines(tmp_path, labelled(values)), AbsentError, label_names=["no", "yes"])
        assert "has no labels" in message
    found = load(lines(tmp_path, labelled([1, -1, 0, -1])), label_names=["no", "yes"])
    assert found.texts == ["text 0", "text 2"]
    assert found.labels.tolist() == [1, 0]
    assert found.notes == (f"2 of 4 rows of {tmp_path} (train) have no label (-1) and are left out",)


def test_one_label_alone_leaves_nothing_to_learn(tmp_path):
    rows = labelled(["a"] * 20)
    with pytest.raises(DataError, match="there is nothing to tell apart"):
        load_splits(
            str(lines(tmp_path, rows)), train=("rest", None), evaluation=("held-out", None), task=TEXT_CLASSIFICATION
        )


# B4: one rule for every format


@pytest.mark.parametrize("values", [[1, 5, 3], ["1", "5", "3"], [1.0, 5.0, 3.0], ["1.0", "5.0", "3.0"]])
def test_a_model_of_stars_reads_numbers_as_its_names_in_every_format(tmp_path, values):
    for folder in (lines(tmp_path / "a", labelled(values)), csv(tmp_path / "b", values)):
        assert load(folder, label_names=STARS).labels.tolist() == [0, 4, 2]


def test_numbers_that_are_not_all_names_are_positions_and_it_is_said(tmp_path):
    for folder in (lines(tmp_path / "a", labelled([0, 4, 1])), csv(tmp_path / "b", [0, 4, 1])):
        found = load(folder, label_names=STARS)
        assert found.labels.tolist() == [0, 4, 1]
        assert found.notes == ("labels in column 'label' are read by position (0 is 1, 1 is 2, 4 is 5)",)


def test_numbers_that_are_neither_are_refused(tmp_path):
    assert "none of the model's 5 labels (1, 2, 3, 4, 5)" in refusal(
        lines(tmp_path, labelled([0, 5])), label_names=STARS
    )


def test_both_splits_are_read_by_the_same_rule(tmp_path):
    """Alone, the validation's 1 to 4 would be names."""
    lines(tmp_path, labelled([0, 1, 2, 3, 4]))
    lines(tmp_path, [{"text": "x", "label": 1}, {"text": "y", "label": 4}], "validation")
    found = load_splits(
        str(tmp_path),
        train=("train", None),
        evaluation=("validation", None),
        task=TEXT_CLASSIFICATION,
        label_names=STARS,
    )
    assert found.evaluation.labels.tolist() == [1, 4]


# B12: what labels are is found out


@pytest.mark.parametrize(
    ("values", "problem", "names"),
    [
        ([True, False, True], SINGLE_LABEL, ("false", "true")),
        ([0.86, 0.1, 1.0], REGRESSION, ()),
        ([0.0, 1.0, 1.0], SINGLE_LABEL, ("0", "1")),
        ([[0, 1, 1], [1, 0, 0], [0, 0, 0]], MULTI_LABEL, ("0", "1", "2")),
        ([["joy"], [], ["fear", "joy"]], MULTI_LABEL, ("fear", "joy")),
        (["a", "b", "a"], SINGLE_LABEL, ("a", "b")),
    ],
)
def test_the_problem_type_is_what_the_labels_look_like(tmp_path, values, problem, names):
    found = load(lines(tmp_path, labelled(values)))
    assert (found.problem_type, found.label_names) == (problem, names)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["True", "False"], SINGLE_LABEL),
        (["0.86", "0.1"], REGRESSION),
        (['"[0, 1]"', '"[1, 1]"'], MULTI_LABEL),
        (["\"['joy']\"", '"[]"'], MULTI_LABEL),
    ],
)
def test_a_csv_says_the_same_with_text(tmp_path, values, problem):
    assert load(csv(tmp_path, values)).problem_type == problem


def test_true_and_false_are_the_second_and_the_first_of_two_labels(tmp_path):
    folder = lines(tmp_path, labelled([True, False]))
    assert load(folder, label_names=["ham", "spam"]).labels.tolist() == [1, 0]
    assert load(folder, label_names=["True", "False"]).labels.tolist() == [0, 1]


def test_amounts_and_lists_are_refused_by_a_model_of_one_label_with_the_way_out(tmp_path):
    message = refusal(lines(tmp_path, labelled([0.86, 0.2])), label_names=["no", "yes"])
    assert "label 0.86 in column 'label' is an amount" in message
    assert "--problem-type regression" in message
    message = refusal(lines(tmp_path, labelled([["a"], []])), label_names=["no", "yes"])
    assert "several labels per text" in message
    assert '"problem_type": "multi_label_classification"' in message


# B2: nothing is scored on what was learned


def texts_of(folder, split):
    return load_texts(str(folder), split=split, task=TEXT_CLASSIFICATION)


def test_a_tenth_of_one_file_is_held_out_the_same_in_any_order_and_format(tmp_path):
    rows = labelled([number % 2 for number in range(200)])
    file = lines(tmp_path / "a", rows) / "train.jsonl"
    assert choose_splits(str(file), train="train", evaluation="validation") == ("train/rest", "train/held-out")
    held_out, rest = texts_of(file, "train/held-out"), texts_of(file, "train/rest")
    assert len(held_out) == 20
    assert sorted(held_out + rest) == sorted(row["text"] for row in rows)
    shuffled = csv(tmp_path / "b", [0] * 200) / "train.csv"
    shuffled.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in reversed(rows)))
    assert sorted(texts_of(shuffled, "held-out")) == sorted(held_out)


def test_a_folder_of_one_split_and_a_split_named_twice_are_parted_too(tmp_path):
    folder = lines(tmp_path / "data", labelled([0, 1] * 10))
    parts = ("train/rest", "train/held-out")
    assert choose_splits(str(folder), train="train", evaluation="validation") == parts
    assert choose_splits(str(folder), train="train", evaluation="train") == parts
    assert choose_splits("owner/name", train="train", evaluation="train") == parts
    assert choose_splits(str(folder), train=parts[0], evaluation=parts[1]) == parts
    lines(folder, labelled([0, 1]), "validation")
    assert choose_splits(str(folder), train="train", evaluation="validation") == ("train", "validation")
    # What else is there may be what to score on: nobody but the user knows.
    other = lines(lines(tmp_path / "other", labelled([0, 1])), labelled([0, 1]), "dev")
    assert choose_splits(str(other), train="train", evaluation="validation") == ("train", "validation")


def test_equal_texts_are_on_one_side(tmp_path):
    rows = labelled([0, 1] * 30)
    file = lines(tmp_path, rows + rows[::-1]) / "train.jsonl"
    held_out, rest = texts_of(file, "held-out"), texts_of(file, "rest")
    assert not set(held_out) & set(rest)
    assert len(held_out) == 12
    assert len(rest) == 108


def test_questions_about_one_text_are_on_one_side(tmp_path):
    rows = [
        {"question": f"q{number}", "context": f"context {number % 20}", "answers": {"text": [], "answer_start": []}}
        for number in range(80)
    ]
    file = lines(tmp_path, rows) / "train.jsonl"
    parts = [load(file, split=split, task=QUESTION_ANSWERING).texts for split in ("held-out", "rest")]
    contexts = [{context for _, context in part} for part in parts]
    assert [len(each) for each in contexts] == [2, 18]
    assert not contexts[0] & contexts[1]


def test_texts_that_are_in_both_splits_are_counted_and_if_all_are_refused(tmp_path):
    rows = labelled([0, 1] * 5)
    lines(tmp_path, rows)
    lines(tmp_path, [*rows[:3], {"text": "new", "label": 1}], "validation")
    both = {"train": ("train", None), "evaluation": ("validation", None), "task": TEXT_CLASSIFICATION}
    assert load_splits(str(tmp_path), **both).shared == 3
    lines(tmp_path, rows[:3], "validation")
    with pytest.raises(DataError, match=r"every text of .* is in train as well"):
        load_splits(str(tmp_path), **both)


def test_one_text_cannot_be_parted(tmp_path):
    file = lines(tmp_path, labelled([1])) / "train.jsonl"
    assert "has one text alone" in refusal(file, split="held-out")


def test_a_limit_counts_within_a_part(tmp_path):
    file = lines(tmp_path, labelled([0, 1] * 50)) / "train.jsonl"
    whole = load(file, split="rest")
    assert load(file, split="rest", limit=7).texts == whole.texts[:7]
    assert np.array_equal(load(file, split="rest", limit=7).labels, whole.labels[:7])
