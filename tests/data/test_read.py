"""Files as other tools write them: every row is read, or one line says what to do."""

import csv
import io
import json
import random

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from potstill.data import load_examples
from potstill.data.read import SUFFIXES, open_data_file, read_rows
from potstill.errors import DataError
from potstill.tasks import MULTI_LABEL, QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

TEXTS = ['say "no", twice', "a;b", "tab\there", "one\ntwo", "plain", '"quoted"', '5" wide', ""]


def load(file, *, task=TEXT_CLASSIFICATION, **options):
    return load_examples(str(file), split="train", task=task, **options)


def refusal(file, **options):
    with pytest.raises(DataError) as caught:
        load(file, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(file, texts, **dialect):
    """Write a table with Python's own csv module."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, **dialect)
    writer.writerow(["text", "label"])
    writer.writerows([text, number % 2] for number, text in enumerate(texts))
    file.write_bytes(stream.getvalue().encode())
    return file


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_delimiter_and_quoting_gives_every_text_back(tmp_path, suffix, delimiter, quoting, end):
    file = written(tmp_path / f"train.{suffix}", TEXTS, delimiter=delimiter, quoting=quoting, lineterminator=end)
    assert load(file).texts == TEXTS


def test_glues_own_tsv_quotes_nothing_and_keeps_every_line(tmp_path):
    rows = ['"open', 'close"', '"wholly quoted"', 'in "the" middle', 'three "" marks']
    file = tmp_path / "train.tsv"
    file.write_text("text\tlabel\n" + "".join(f"{text}\t1\n" for text in rows))
    assert load(file).texts == rows


def test_a_tsv_whose_text_is_quoted_in_every_row_is_read_without_its_quotes(tmp_path):
    file = tmp_path / "train.tsv"
    file.write_text('text\tlabel\n"a great movie"\t1\n"an awful one"\t0\n')
    assert load(file).texts == ["a great movie", "an awful one"]


def test_a_quotation_mark_that_is_never_closed_swallows_no_rows(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text('text,label\n"open,1\nb,0\n"close" d,1\n')
    assert "train.csv line " in refusal(file)
    file.write_text('text,label\na,1\n"open,1\nb,0\n')
    assert "stands in quotation marks" in refusal(file)


def test_a_comma_in_a_text_is_no_reason_to_split_at_semicolons(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("text;label\na, b;1\nc;0\n")
    assert load(file).texts == ["a, b", "c"]
    file.write_text("text,label\na;b;c,1\nd;e;f,0\n")
    assert load(file).texts == ["a;b;c", "d;e;f"]
    file.write_text('text,label\n"a;b",1\nc,0\n')
    assert load(file).texts == ["a;b", "c"]


def test_a_head_that_names_a_column_twice_is_refused(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("text,label,text\na,1,b\n")
    assert "the head names 'text' twice" in refusal(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_what_a_byte_order_mark_says_is_believed(tmp_path, encoding, suffix):
    rows = [{"text": "naïve と", "label": 1}, {"text": "b", "label": 0}]
    mark = "\ufeff" if encoding.endswith(("le", "be")) else ""
    content = {
        "csv": "text,label\nnaïve と,1\nb,0\n",
        "tsv": "text\tlabel\nnaïve と\t1\nb\t0\n",
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": json.dumps(rows, ensure_ascii=False),
    }[suffix]
    file = tmp_path / f"train.{suffix}"
    file.write_bytes((mark + content).encode(encoding))
    assert load(file).texts == ["naïve と", "b"]


def test_latin1_is_refused_in_one_line_that_names_the_remedy(tmp_path):
    (tmp_path / "train.csv").write_bytes("text,label\nplain,1\ncafé,0\n".encode("latin1"))
    assert refusal(tmp_path / "train.csv").startswith(
        f"{tmp_path / 'train.csv'} line 3 is not UTF-8; convert the file first (iconv -f latin1 -t utf-8"
    )


# JSON


ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


@pytest.mark.parametrize(
    "document",
    [
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1.1", "rows": ROWS, "count": 2}),
        json.dumps({"columns": ["text", "label"], "index": [0, 1], "data": [["a", 1], ["b", 0]]}),
        "".join(json.dumps(row) + "\n" for row in ROWS),
    ],
    ids=["data", "another key", "pandas' split", "lines"],
)
def test_json_may_wrap_its_rows_or_have_one_per_line(tmp_path, document):
    (tmp_path / "train.json").write_text(document)
    assert load(tmp_path / "train.json").texts == ["a", "b"]


CONTEXT = "Rome was founded in 753 BC by Romulus."
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rome",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {"id": "1", "question": "When?", "answers": [{"text": "753 BC", "answer_start": 20}]},
                        {"id": "2", "question": "By whom?", "answers": [{"text": "Romulus", "answer_start": 30}]},
                        {
                            "id": "3",
                            "question": "Why?",
                            "answers": [],
                            "is_impossible": True,
                            "plausible_answers": [{"text": "Rome", "answer_start": 0}],
                        },
                    ],
                }
            ],
        },
        {"title": "Empty", "paragraphs": []},
    ],
}


def test_squads_own_nesting_is_read(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(SQUAD))
    found = load(tmp_path / "train.json", task=QUESTION_ANSWERING)
    assert found.texts == [("When?", CONTEXT), ("By whom?", CONTEXT), ("Why?", CONTEXT)]
    assert found.labels == [
        {"text": ["753 BC"], "answer_start": [20]},
        {"text": ["Romulus"], "answer_start": [30]},
        {"text": [], "answer_start": []},
    ]


def test_a_squad_that_lacks_a_part_is_refused_in_one_line(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"paragraphs": [{"qas": []}, {"context": "x"}]}]}))
    assert "is nested like SQuAD, but lacks 'qas'" in refusal(tmp_path / "train.json", task=QUESTION_ANSWERING)


# One column per label


TOXIC = "id,comment_text,toxic,insult,threat\n1,a,1,0,0\n2,b,0,0,0\n3,c,1,1,0\n"


def test_columns_of_0_and_1_are_several_labels(tmp_path):
    (tmp_path / "train.csv").write_text(TOXIC)
    found = load(tmp_path / "train.csv")
    assert (found.problem_type, found.label_names) == (MULTI_LABEL, ("toxic", "insult", "threat"))
    assert found.labels.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert found.label_columns == ("toxic", "insult", "threat")


def test_columns_of_labels_may_be_named_and_are_looked_up_in_the_models_order(tmp_path):
    (tmp_path / "train.csv").write_text(TOXIC.replace("threat", "length").replace(",0\n", ",17\n"))
    assert "several, as toxic,insult, if each label has its own" in refusal(tmp_path / "train.csv")
    assert load(tmp_path / "train.csv", label_column="insult,toxic").label_names == ("insult", "toxic")
    # The model knows its labels, and so which columns they are.
    found = load(tmp_path / "train.csv", label_names=["insult", "toxic"], problem_type=MULTI_LABEL)
    assert found.labels.tolist() == [[0, 1], [0, 0], [1, 1]]
    assert "holds 17" not in refusal(tmp_path / "train.csv", label_names=["rude", "kind"], problem_type=MULTI_LABEL)
    assert "column 'length' holds '17'; a column of one label holds 0 or 1" in refusal(
        tmp_path / "train.csv", label_column="toxic,length"
    )


def test_the_words_and_tags_of_a_csv_are_lists_as_text(tmp_path):
    (tmp_path / "train.csv").write_text("tokens,ner_tags\n\"['Ada', 'left']\",\"['B-PER', 'O']\"\n")
    found = load(tmp_path / "train.csv", task=TOKEN_CLASSIFICATION)
    assert found.texts == [["Ada", "left"]]
    assert found.label_names == ("O", "B-PER")


# Columns


@pytest.mark.parametrize("asked", [["a,b"], ["a", "b"]])
def test_a_pair_is_named_in_two_ways(tmp_path, asked):
    (tmp_path / "train.csv").write_text("a,b,label\nx,y,1\nz,w,0\n")
    assert load(tmp_path / "train.csv", text_columns=asked).texts == [("x", "y"), ("z", "w")]


def test_a_column_with_a_comma_in_its_name_is_found(tmp_path):
    (tmp_path / "train.csv").write_text('"a,b",label\nx,1\nz,0\n')
    assert load(tmp_path / "train.csv", text_columns=["a,b"]).texts == ["x", "z"]


@pytest.mark.parametrize(("text", "label"), [("Review", "Sentiment"), ("TEXT", "Label"), ("tweet", "category")])
def test_usual_names_are_found_in_any_case(tmp_path, text, label):
    (tmp_path / "train.csv").write_text(f"{text},{label}\nx,good\nz,bad\n")
    found = load(tmp_path / "train.csv")
    assert (found.text_columns, found.label_columns) == ((text,), (label,))


def test_a_split_in_two_formats_is_refused_rather_than_half_read(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    (tmp_path / "train.jsonl").write_text('{"text": "b", "label": 1}\n')
    assert "more than once, as train.jsonl, train.csv" in refusal(tmp_path)


def test_arrow_in_both_of_its_forms_is_read(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    for number, writer in enumerate((pyarrow.ipc.new_stream, pyarrow.ipc.new_file)):
        file = tmp_path / f"{number}.arrow"
        with writer(str(file), table.schema) as out:
            out.write_table(table)
        assert load(file).texts == ["a", "b"]
        assert [row for _, row in read_rows(file, ["label"])] == [{"label": 1}, {"label": 0}]
    (tmp_path / "bad.arrow").write_bytes(b"nonsense")
    assert "is not an arrow file" in refusal(tmp_path / "bad.arrow")


def test_a_table_of_pandas_whose_row_is_cut_is_named(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"columns": ["text", "label"], "data": [["a", 1], ["b"]]}))
    assert "row 2 of data is no list of 2 cells" in refusal(file)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-le"])
def test_wide_characters_without_a_mark_are_called_so(tmp_path, encoding):
    file = tmp_path / "x.csv"
    file.write_bytes("text,label\nfilm,1\n".encode(encoding))
    assert "the head holds NUL, so this is no UTF-8 but UTF-16" in refusal(file)


# Every row or an error, and a place to go on from


NASTY = ("a", "good film", 'say "x"', "two\nlines", "a,b", "", " ", "\r\n", "é🙂", '""', "x" * 90)
DAMAGE = (b'"', b'""', b"\n", b"\r", b",", b"\0", b"\xff", b"y" * 300, b'"\n"', b"\\", b";", b"\t")


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_csv_gives_what_pythons_strict_reader_gives_or_an_error_that_names_the_line(tmp_path, seed):
    draw = random.Random(seed)
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)), lineterminator="\n")
    writer.writerows([["id", "text"], *([f"row{number}", draw.choice(NASTY)] for number in range(12))])
    content = text.getvalue().encode()
    place = draw.randrange(len("id,text\n"), len(content))
    content = content[:place] + draw.choice(DAMAGE) + content[place:]
    (tmp_path / "in.csv").write_bytes(content)
    try:
        expected = [row for row in csv.reader(io.StringIO(content.decode(), newline="\n"), strict=True) if row][1:]
    except (csv.Error, UnicodeDecodeError):
        expected = None
    if expected is None or any(len(row) != 2 for row in expected):
        with pytest.raises(DataError, match=r"in\.csv line \d+ "):
            list(read_rows(tmp_path / "in.csv"))
    else:
        assert [list(row.values()) for _, row in read_rows(tmp_path / "in.csv")] == expected


def files_of_every_kind(folder):
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS * 40)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "a.json").write_text(json.dumps(rows))
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        written(folder / f"a.{suffix}", [row["text"] for row in rows], delimiter=delimiter)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=100)
    with pyarrow.ipc.new_stream(str(folder / "a.arrow"), table.schema) as out:
        out.write_table(table, max_chunksize=70)
    return [folder / f"a{suffix}" for suffix in SUFFIXES]


def test_reading_goes_on_behind_any_record(tmp_path):
    for file in files_of_every_kind(tmp_path):
        opened = open_data_file(file)
        records = list(opened.records())
        assert [record.values["text"] for record in records] == TEXTS * 40
        for index in (0, 1, 99, 100, 255, len(records) - 2, len(records) - 1):
            rest = list(opened.records(records[index].after))
            assert [record.values for record in rest] == [record.values for record in records[index + 1 :]], file
            assert [record.number for record in rest] == [record.number for record in records[index + 1 :]]


def test_what_is_strict_is_only_refused_where_rows_are_written_out_again(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "score": NaN}\n')
    assert [row["text"] for _, row in read_rows(file)] == ["a"]
    (record,) = open_data_file(file, strict=True).records()
    assert (record.values, record.problem) == (None, "is not JSON: it holds NaN")
