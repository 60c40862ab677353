import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from potstill.data import choose_splits, load_examples, splits
from potstill.errors import DataError, MissingExtraError
from potstill.tasks import TEXT_CLASSIFICATION

ROWS = [
    {"sentence": "a good film", "label": 1},
    {"sentence": 'it said "no", twice', "label": 0},
    {"sentence": "café, naïve\u2028と", "label": 1},
]
PAIRS = [
    {"premise": "it rains", "hypothesis": "it is wet", "label": "entailment"},
    {"premise": "it rains", "hypothesis": "it is dry", "label": "contradiction"},
]
FORMATS = ["jsonl", "json", "csv", "tsv", "parquet"]


def write(folder, rows, kind, split="train"):
    file = folder / f"{split}.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == "json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "csv":
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "tsv":
        lines = [list(rows[0]), *(row.values() for row in rows)]
        file.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def raw(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def load(name, *, split="train", **options):
    return load_examples(str(name), split=split, task=TEXT_CLASSIFICATION, **options)


def refusal(name, **options):
    with pytest.raises(DataError) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_examples(tmp_path, kind):
    found = load(write(tmp_path, ROWS, kind))
    assert found.texts == [row["sentence"] for row in ROWS]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.labels.dtype == np.int64
    assert found.label_names == ("0", "1")
    assert len(found) == 3


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_is_read_by_split(tmp_path, kind):
    write(tmp_path, ROWS, kind)
    write(tmp_path, ROWS[:1], kind, split="validation")
    assert len(load(tmp_path)) == 3
    found = load(tmp_path, split="validation")
    assert (found.name, found.split, found.texts) == (str(tmp_path), "validation", ["a good film"])


def test_the_hash_is_of_the_content_and_not_of_its_format(tmp_path):
    assert len({load(write(tmp_path, ROWS, kind)).sha256 for kind in FORMATS}) == 1


def test_the_hash_is_the_same_on_every_machine(tmp_path):
    # printf '[["a","\\u00e9"],[0,1]]' | sha256sum
    rows = [{"text": "a", "label": 0}, {"text": "é", "label": 1}]
    expected = "eb246d04394deaa5fbcec96d40c5c7b08b0c89bfbde0913c330799ee4866f39f"
    assert load(write(tmp_path, rows, "jsonl")).sha256 == expected


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[::-1],
        ROWS[:2],
        [{**ROWS[0], "label": 0}, *ROWS[1:]],
        [{**ROWS[0], "sentence": "a good Film"}, *ROWS[1:]],
    ],
    ids=["order", "length", "label", "text"],
)
def test_the_hash_changes_with_the_content(tmp_path, rows):
    assert load(write(tmp_path, rows, "jsonl")).sha256 != load(write(tmp_path, ROWS, "json")).sha256


@pytest.mark.parametrize("kind", FORMATS)
def test_pairs_are_found_by_their_usual_names(tmp_path, kind):
    found = load(write(tmp_path, PAIRS, kind))
    assert found.texts == [("it rains", "it is wet"), ("it rains", "it is dry")]
    assert found.label_names == ("contradiction", "entailment")
    assert found.labels.tolist() == [1, 0]


def test_named_columns_win_over_the_usual_ones(tmp_path):
    file = write(tmp_path, PAIRS, "jsonl")
    assert load(file, text_columns=["hypothesis"]).texts == ["it is wet", "it is dry"]
    assert load(file, text_columns=["hypothesis", "premise"]).texts[0] == ("it is wet", "it rains")


def test_three_text_columns_are_refused_and_none_is_dropped(tmp_path):
    message = refusal(write(tmp_path, PAIRS, "jsonl"), text_columns=["premise", "hypothesis", "label"])
    assert "--text-column names premise, hypothesis, label; text-classification reads one column or two" in message


def test_a_limit_keeps_the_first_rows(tmp_path):
    file = write(tmp_path, ROWS, "jsonl")
    assert load(file, limit=2).texts == [row["sentence"] for row in ROWS[:2]]
    assert load(file, limit=99).sha256 == load(file).sha256


@pytest.mark.parametrize("kind", FORMATS)
def test_a_text_column_that_is_not_there_is_refused_with_those_that_are(tmp_path, kind):
    message = refusal(write(tmp_path, ROWS, kind), text_columns=["words"])
    assert "has no column 'words'; it has sentence, label; name it with --text-column" in message


def test_unknown_column_names_are_refused_with_a_way_out(tmp_path):
    message = refusal(write(tmp_path, [{"words": "x", "label": 0}], "jsonl"))
    assert "has no text column that potstill knows; it has words, label; name it with --text-column" in message


@pytest.mark.parametrize("kind", FORMATS)
def test_a_wrong_label_column_is_refused_with_the_columns_there_are(tmp_path, kind):
    message = refusal(write(tmp_path, ROWS, kind), label_column="klass")
    assert " (train) has no column 'klass'; it has sentence, label; name it with --label-column" in message


def test_a_row_without_its_text_is_refused_by_number(tmp_path):
    message = refusal(write(tmp_path, [*ROWS, {"label": 1}], "jsonl"))
    assert message == "row 4 has no column 'sentence'; it has label; name it with --text-column (twice for pairs)"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", b""),
        ("train.jsonl", b"\n \n"),
        ("train.json", b"[]"),
        ("train.csv", b""),
        ("train.csv", b"sentence,label\n"),
        ("train.tsv", b"sentence\tlabel\n"),
    ],
)
def test_an_empty_file_is_refused(tmp_path, name, content):
    assert refusal(raw(tmp_path, name, content)) == f"{tmp_path / name} is empty; it needs at least one row"


def test_an_empty_parquet_file_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table(
        {"sentence": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], pyarrow.int64())}
    )
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "train.parquet")
    assert "train.parquet is empty" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "nothing.jsonl", "a/b/c", "data/train.csv"])
def test_a_missing_folder_or_file_never_reaches_the_hub(name, monkeypatch):
    monkeypatch.setattr(splits, "require", lambda *_args, **_kwargs: pytest.fail("the hub was asked"))
    assert f"there is no file or folder {name}; name a data folder, a file, or a hub id" in refusal(name)


def test_a_missing_split_is_refused_with_the_files_there_are(tmp_path):
    write(tmp_path, ROWS, "csv")
    write(tmp_path, ROWS, "jsonl", split="dev")
    message = refusal(tmp_path, split="validation")
    assert message == (
        f"{tmp_path} has no validation split (validation{{.jsonl,.json,.csv,.tsv,.parquet,.arrow}}); "
        "it has dev.jsonl, train.csv"
    )


def test_a_folder_without_data_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert refusal(tmp_path).endswith("it has no data files")


def test_a_file_of_another_kind_is_refused(tmp_path):
    message = refusal(raw(tmp_path, "train.txt", b"x"))
    assert message.endswith("is not a data file; its name must end in .jsonl, .json, .csv, .tsv, .parquet, .arrow")


@pytest.mark.parametrize("broken", ['{"sentence": "x"', "nonsense", "[" * 100_000], ids=["half", "words", "deep"])
def test_a_broken_json_line_is_refused_by_number(tmp_path, broken):
    file = write(tmp_path, ROWS[:2], "jsonl")
    file.write_text(file.read_text() + "\n" + broken + "\n")
    assert f"{file} line 4 is not JSON: " in refusal(file)


def test_a_json_line_that_is_no_object_is_refused(tmp_path):
    assert "line 1 is not an object with columns" in refusal(raw(tmp_path, "train.jsonl", b'["x", 1]\n'))


def test_broken_json_is_refused(tmp_path):
    assert "train.json is not JSON: " in refusal(raw(tmp_path, "train.json", b'[{"sentence": "x"'))
    assert "train.json is not JSON: " in refusal(raw(tmp_path, "train.json", b"[" * 100_000))


@pytest.mark.parametrize("content", [b"{}", b"[1]", b'{"sentence": ["x"]}', b'[{"sentence": "x", "label": 0}, null]'])
def test_json_that_is_no_array_of_objects_is_refused(tmp_path, content):
    assert "is not a JSON array of objects with columns" in refusal(raw(tmp_path, "train.json", content))


def test_a_broken_parquet_file_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    assert "train.parquet is not a parquet file: " in refusal(raw(tmp_path, "train.parquet", b"PAR1 nonsense"))


@pytest.mark.parametrize("content", [b"sentence,label\nx,1\ny\n", b"sentence,label\nx,1\ny,z,0\n"])
def test_a_csv_line_with_another_number_of_columns_is_refused_by_number(tmp_path, content):
    message = refusal(raw(tmp_path, "train.csv", content))
    assert re.search(r"train\.csv line 3 has [13] columns, the head has 2; quote cells that hold ','", message)


def test_a_csv_field_longer_than_pythons_own_limit_is_read(tmp_path):
    limit = csv.field_size_limit()
    found = load(raw(tmp_path, "train.csv", b"sentence,label\n" + b"a" * 200_000 + b",1\n"))
    assert [len(text) for text in found.texts] == [200_000]
    assert csv.field_size_limit() == limit


def test_a_quoted_csv_field_may_span_lines(tmp_path):
    found = load(raw(tmp_path, "train.csv", b'sentence,label\r\n"one\ntwo",1\r\n'))
    assert found.texts == ["one\ntwo"]


def test_a_lone_quotation_mark_in_a_tsv_is_text(tmp_path):
    found = load(raw(tmp_path, "train.tsv", b'sentence\tlabel\n"open\t1\n5" wide\t0\n'))
    assert found.texts == ['"open', '5" wide']


@pytest.mark.parametrize(
    ("value", "shown"),
    [(7, "7"), (None, "None"), (["x"], r"['x']"), (1.5, "1.5")],
    ids=["int", "none", "list", "float"],
)
def test_a_cell_that_is_no_text_is_refused_by_row_and_column(tmp_path, value, shown):
    message = refusal(write(tmp_path, [*ROWS, {"sentence": value, "label": 0}], "jsonl"))
    assert message == f"row 4: column 'sentence' holds {shown}, not a text"


def test_an_empty_text_is_a_text(tmp_path):
    assert load(write(tmp_path, [{"sentence": "", "label": 0}], "csv")).texts == [""]


@pytest.mark.parametrize(
    ("label", "shown", "has"),
    [
        (2, "2", "0, 1, 2"),
        (-2, "-2", "-2, 0, 1"),
        ("2", "'2'", "0, 1, 2"),
        ("maybe", "'maybe'", "0, 1, maybe"),
        (True, "True", "0, 1, true"),
        ("²", "'²'", "0, 1, ²"),
    ],
)
def test_a_label_that_the_model_has_not_is_refused_by_row_with_both_lists(tmp_path, label, shown, has):
    rows = [*ROWS, {"sentence": "x", "label": label}]
    message = refusal(write(tmp_path, rows, "jsonl"), label_names=["negative", "positive"])
    assert message.startswith(
        f"row 4: label {shown} in column 'label' is none of the model's 2 labels (negative, positive); "
        f"the data has {has}; "
    )


def test_what_is_no_label_at_all_is_refused_by_row(tmp_path):
    for value, said in (({"a": 1}, "which is no label"), (["x"], "which is no label"), (0.5, "is an amount")):
        rows = [*ROWS, {"sentence": "x", "label": value}]
        message = refusal(write(tmp_path, rows, "jsonl"), label_names=["negative", "positive"])
        assert message.startswith("row 4: ")
        assert said in message


def test_a_long_list_of_labels_is_cut_in_the_message(tmp_path):
    names = [f"class{number}" for number in range(20)]
    message = refusal(write(tmp_path, [{"sentence": "x", "label": 20}], "jsonl"), label_names=names)
    assert "none of the model's 20 labels (" + ", ".join(names[:8]) + ", ...); the data has 20; " in message


def test_label_names_are_looked_up_in_the_models_order(tmp_path):
    rows = [{"sentence": "x", "label": word} for word in ("positive", "negative", "positive")]
    found = load(write(tmp_path, rows, "csv"), label_names=["positive", "neutral", "negative"])
    assert found.labels.tolist() == [0, 2, 0]
    assert found.label_names == ("positive", "neutral", "negative")


def test_label_ids_are_taken_as_the_models_ids(tmp_path):
    found = load(write(tmp_path, ROWS, "csv"), label_names=["negative", "positive"])
    assert found.labels.tolist() == [1, 0, 1]
    assert found.label_names == ("negative", "positive")


def test_names_and_ids_of_the_same_labels_give_the_same_hash(tmp_path):
    names = ["negative", "positive"]
    by_name = [{**row, "label": names[row["label"]]} for row in ROWS]
    found = load(write(tmp_path, by_name, "jsonl"), label_names=names)
    assert found.sha256 == load(write(tmp_path, ROWS, "csv"), label_names=names).sha256


def test_a_model_whose_label_names_are_numbers_takes_them_as_names(tmp_path):
    rows = [{"sentence": "x", "label": "5"}, {"sentence": "y", "label": "1"}]
    assert load(write(tmp_path, rows, "jsonl"), label_names=["5", "1"]).labels.tolist() == [0, 1]


def test_string_labels_without_a_model_are_sorted(tmp_path):
    rows = [{"sentence": "x", "label": word} for word in ("up", "down", "--5", "up")]
    found = load(write(tmp_path, rows, "csv"))
    assert found.label_names == ("--5", "down", "up")
    assert found.labels.tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_a_byte_that_is_not_utf8_is_refused_by_its_line_in_the_whole_file(tmp_path, kind):
    file = write(tmp_path, [{"sentence": "abcdefgh", "label": 0}] * 3000, kind)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\xff" + content[-1:])
    line = {"jsonl": 3000, "json": 1, "csv": 3001, "tsv": 3001}[kind]
    assert refusal(file).startswith(f"{file} line {line} is not UTF-8; convert the file first (iconv ")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_the_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_text(tmp_path, kind):
    file = write(tmp_path, ROWS, kind)
    plain = load(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load(file).sha256 == plain.sha256


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_windows_line_ends_are_no_part_of_the_text(tmp_path, kind):
    file = write(tmp_path, ROWS, kind)
    plain = load(file)
    file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert load(file).sha256 == plain.sha256


def hub(monkeypatch, load_dataset):
    def answer(module, *, extra):
        assert (module, extra) == ("datasets", "distill")
        return SimpleNamespace(load_dataset=load_dataset)

    monkeypatch.setattr(splits, "require", answer)
    monkeypatch.setattr(splits, "check_name", lambda *_: None)  # the hub has it


class HubData(list):
    @property
    def features(self):
        return {
            "label": SimpleNamespace(names=["negative", "positive"]),
            "topic": SimpleNamespace(names=["film", "book", "play"]),
            "sentence": SimpleNamespace(),
        }


def test_a_hub_id_is_asked_with_its_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return HubData(ROWS)

    hub(monkeypatch, load_dataset)
    found = load("nyu-mll/glue:sst2", split="validation")
    assert load("imdb").texts == found.texts
    assert asked == [(("nyu-mll/glue", "sst2"), {"split": "validation"}), (("imdb", None), {"split": "train"})]
    assert found.label_names == ("negative", "positive")
    assert found.name == "nyu-mll/glue:sst2"


def test_the_hubs_names_are_those_of_the_label_column(monkeypatch):
    rows = [{**row, "topic": 2} for row in ROWS]
    hub(monkeypatch, lambda *_args, **_kwargs: HubData(rows))
    found = load("user/films", label_column="topic")
    assert found.label_names == ("film", "book", "play")
    assert found.labels.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("no route to host\nTraceback of the client ..."), "no route to host"),
        (FileNotFoundError(), "FileNotFoundError"),
        (RuntimeError("x" * 900), "x" * 300),
    ],
)
def test_any_failure_of_the_hub_is_one_clear_line(monkeypatch, error, told):
    def load_dataset(*_args, **_kwargs):
        raise error

    hub(monkeypatch, load_dataset)
    assert refusal("nyu-mll/glue:sst2") == (
        f"cannot load 'nyu-mll/glue:sst2' (train) from the hub: {told}; check the name and the network, "
        "or pass a folder with train and validation files"
    )


def test_a_hub_id_without_the_library_names_the_extra(monkeypatch):
    def missing(module, *, extra):
        raise MissingExtraError(f"{module} {extra}")

    monkeypatch.setattr(splits, "require", missing)
    with pytest.raises(MissingExtraError, match="datasets distill"):
        load("imdb")


def test_an_empty_split_of_the_hub_is_refused(monkeypatch):
    hub(monkeypatch, lambda *_args, **_kwargs: HubData())
    assert refusal("imdb") == "imdb has no rows in its split 'train'"


def test_local_files_ask_for_no_library(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "require", lambda *_args, **_kwargs: pytest.fail("a library was asked for"))
    for kind in ("jsonl", "json", "csv", "tsv"):
        assert len(load(write(tmp_path, ROWS, kind))) == 3


def test_the_embedded_data_has_chapter_names_in_every_limit(monkeypatch):
    monkeypatch.setattr(splits, "read_python_docs", lambda split: [(f"{split} text", "numbers"), ("more", "files")])
    found = load("python-docs", limit=1)
    assert found.texts == ["train text"]
    assert found.label_names == splits.CHAPTERS
    assert found.label_names[found.labels[0]] == "numbers"


@pytest.mark.parametrize("split", ["trian", "dev", "trian/held-out"])
def test_one_file_has_no_split_that_is_mistyped(tmp_path, split):
    file = write(tmp_path, ROWS, "csv")
    with pytest.raises(DataError, match="is one file and has no split"):
        load(file, split=split)
    for train, evaluation in ((split, "validation"), ("train", split)):
        with pytest.raises(DataError, match="is one file and has no split"):
            choose_splits(str(file), train=train, evaluation=evaluation)
