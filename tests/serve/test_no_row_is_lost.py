"""As many rows come out of `predict` as go in, or an error names the line; what a file says is told by Python's csv."""

import csv
import io
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from potstill.data import read
from potstill.data.read import read_rows
from potstill.errors import DataError
from potstill.serve import predict_file as predicting
from potstill.serve.predict_file import PredictSettings, predict_file

HUGE = 17 * 2**20
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def write(file, texts):
    """Write rows of an id and a text in the format that a file's name says."""
    ids = [str(number) for number in range(len(texts))]
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"id": ids, "text": texts}), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in zip(ids, texts, strict=True)))
    else:
        delimiter = "," if file.suffix == ".csv" else "\t"
        file.write_text(
            f"id{delimiter}text\n" + "".join(f"{i}{delimiter}{t}\n" for i, t in zip(ids, texts, strict=True))
        )
    return file


def predict(encoder, source, out, *, on_error="fail", **more):
    return predict_file(
        encoder, source, out, settings=PredictSettings(on_error=on_error, workers=1), overwrite=True, **more
    )


def ids(out):
    return [json.loads(line).get("id") for line in out.read_bytes().splitlines()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_of_17_mb_is_named_or_kept_with_its_reason(encoder, tmp_path, suffix):
    source, out = write(tmp_path / f"in{suffix}", ["good", "x" * HUGE, "bad"]), tmp_path / "out.jsonl"
    line = 3 if suffix in {".csv", ".tsv"} else 2
    with pytest.raises(DataError, match=rf"in\{suffix} (line|row) {line} (is over|column 'text' has \d+ characters)"):
        predict(encoder, source, out)
    assert not out.exists()
    report = predict(encoder, source, out, on_error="skip")
    assert (report.rows, report.failed) == (3, 1)
    given = [json.loads(row) for row in out.read_bytes().splitlines()]
    assert [row["answer"] is None for row in given] == [False, True, False]
    assert f" {line} " in given[1]["answer_error"]


def file_of(tmp_path, content, name="in.csv"):
    source = tmp_path / name
    source.write_bytes(content)
    return source


UNCERTAIN = {
    "a long line with an open quotation mark": (b'0,good\n1,"' + b"x" * HUGE + b'\nrest"\n2,bad\n', 3),
    "a long line within a quotation": (b'0,good\n1,"a\n' + b"x" * HUGE + b'"\n2,bad\n', 3),
    "a quotation mark that is never closed": (b'0,good\n1,"open\n2,bad\n3,warm\n', 3),
    "a quotation mark that a later row closes": (b'0,good\n1,"open\n2,bad\n3,"warm"\n', 3),
    "several rows in one quotation, and too many columns": (b'0,good\n1,"open\n2,"\n3,bad,"x\ny",1\n4,up\n', 5),
    "a stray mark behind a quotation of two lines": (b'0,good\n1,"two\nlines"x\n2,bad\n', 3),
}


@pytest.mark.parametrize("content", UNCERTAIN.values(), ids=UNCERTAIN)
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_where_it_is_not_certain_where_a_row_ends_the_run_ends(encoder, tmp_path, content, on_error):
    written, line = content
    source = file_of(tmp_path, b"id,text\n" + written)
    with pytest.raises(DataError, match=rf"in\.csv line {line} .*not certain where this row ends"):
        predict(encoder, source, tmp_path / "out.jsonl", on_error=on_error)
    assert not (tmp_path / "out.jsonl").exists()


KEPT = {
    "a line break in a quotation": (b'0,"two\nlines"\n1,bad\n', ["0", "1"], 0),
    "a long line with quotation marks in pairs": (b'0,"' + b"x" * HUGE + b'"\n1,bad\n', [None, "1"], 1),
    "a blank line": (b"0,good\n\n\r\n1,bad\n", ["0", "1"], 0),
    "no line end at the end": (b"0,good\n1,bad", ["0", "1"], 0),
    "a NUL byte": (b"0,go\0od\n1,bad\n", ["0", "1"], 0),
    "bytes that are not UTF-8": (b"0,go\xffod\n1,bad\n", [None, "1"], 1),
    "too few and too many columns": (b"0\n1,bad,x\n2,warm\n", [None, None, "2"], 2),
    "a stray quotation mark": (b'0,"go"od"\n'.replace(b'"od"', b'"od') + b"1,bad\n", [None, "1"], 1),
    "an inch mark": (b'0,a 5" nail\n1,bad\n', ["0", "1"], 0),
    "the last row cut within a quotation": (b'0,good\n1,"ba', ["0", None], 1),
    "line ends of Windows": (b"0,good\r\n1,bad\r\n", ["0", "1"], 0),
    "a carriage return in a row": (b"0,go\rod\n1,bad\n", [None, "1"], 1),
    "separators of Unicode": ("0,a\u2028b\u0085c\n1,bad\n".encode(), ["0", "1"], 0),
}


@pytest.mark.parametrize("content", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_every_other_row_is_answered_or_says_why_not(encoder, tmp_path, content, mark):
    written, wanted, failed = content
    source, out = file_of(tmp_path, mark + b"id,text\n" + written), tmp_path / "out.jsonl"
    report = predict(encoder, source, out, on_error="skip")
    assert (ids(out), report.rows, report.failed) == (wanted, len(wanted), failed)


def test_only_what_json_calls_white_space_is_a_blank_line(encoder, tmp_path):
    source = file_of(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n \t\r\n\x0c\n\0\n{"text": "b"}', "in.jsonl")
    report = predict(encoder, source, tmp_path / "out.jsonl", on_error="skip")
    assert (report.rows, report.failed) == (4, 2)
    assert [problem.split()[1] for problem in report.problems] == ["3", "4"]


def test_two_columns_of_one_name_are_refused(encoder, tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(DataError, match="two columns of one name"):
        predict(encoder, tmp_path / "in.parquet", tmp_path / "out.jsonl")


NASTY = ("a", "good film", 'say "x"', "two\nlines", "a,b", "", " ", "\r\n", "é🙂", '""', "x" * 90)
DAMAGE = (b'"', b'""', b"\n", b"\r", b",", b"\0", b"\xff", b"y" * 300, b'"' + b"y" * 300, b'"\n"', b"\\", b";", b"\t")


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_put_into_a_csv_no_other_row_is_lost(encoder, tmp_path, monkeypatch, seed):
    """What Python's own strict reader can read is read so; of other files every undamaged row is there, or an error."""
    monkeypatch.setattr(read, "LONGEST_LINE", 200)
    monkeypatch.setattr(predicting, "WINDOW_ROWS", 4)
    draw = random.Random(seed)
    texts = [draw.choice(NASTY) for _ in range(12)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)), lineterminator="\n")
    writer.writerow(["id", "text"])
    ends = []
    for number, one in enumerate(texts):
        writer.writerow([f"row{number}", one])
        ends.append(len(text.getvalue().encode()))
    content = text.getvalue().encode()
    place = draw.randrange(ends[0], len(content))
    damaged = content[:place] + draw.choice(DAMAGE) + content[place:]
    hit = next(number for number, end in enumerate(ends) if place < end)
    source, out = file_of(tmp_path, damaged), tmp_path / "out.jsonl"
    try:
        predict(encoder, source, out, on_error="skip")
    except DataError as error:
        refusal = str(error)
    else:
        refusal = None
    expected = strictly(damaged)
    if refusal is not None:
        assert "in.csv line " in refusal
        assert expected is None, "a file without a fault is refused"
    elif expected is not None:
        assert ids(out) == [row[0] for row in expected]
    else:
        undamaged = {f"row{number}" for number in range(12) if number != hit}
        assert undamaged <= set(ids(out))


def strictly(content):
    """Return the rows of a whole csv file by Python's reader; None if it has any fault."""
    try:
        lines = io.StringIO(content.decode(), newline="\n")
        if max(map(len, content.split(b"\n"))) > 200:
            return None
        read = [row for row in csv.reader(lines, strict=True) if row][1:]
    except (csv.Error, UnicodeDecodeError):
        return None
    return read if all(len(row) == 2 for row in read) else None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_that_is_stopped_behind_a_huge_row_goes_on_with_the_next(encoder, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(predicting, "WINDOW_ROWS", 2)
    monkeypatch.setattr(read, "LONGEST_LINE", 9000)
    texts = ["good", "bad", "x" * 10_000, "warm", "y" * 10_000, "up", "very good"]
    source, out, straight = write(tmp_path / f"in{suffix}", texts), tmp_path / "out.jsonl", tmp_path / "straight.jsonl"
    predict(encoder, source, straight, on_error="skip")
    assert len(ids(straight)) == len(texts)

    class Killed(Exception):
        pass

    def stop(stage, done, total, note):
        if done >= 4:
            raise Killed

    settings = PredictSettings(on_error="skip", workers=1)
    with pytest.raises(Killed):
        predict_file(encoder, source, out, settings=settings, progress=stop)
    report = predict_file(encoder, source, out, settings=settings, resume=True)
    assert (report.rows, report.resumed_rows > 0) == (len(texts), True)
    assert out.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize(
    ("suffix", "delimiter"), [(".csv", ";"), (".csv", "|"), (".csv", "\t"), (".tsv", ","), (".tsv", "\t")]
)
def test_delimiters_and_quotation_marks_are_those_that_evaluate_reads(encoder, tmp_path, suffix, delimiter):
    texts = ["good, very", 'a "good" one; really', "bad\tone", "two\nlines"]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["id", "text"], *enumerate(texts)])
    source = file_of(tmp_path, stream.getvalue().encode(), name=f"in{suffix}")
    predict(encoder, source, tmp_path / "out.jsonl")
    given = [json.loads(row) for row in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [row["text"] for row in given] == texts == [row["text"] for _, row in read_rows(source)]


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_file_in_utf16_is_refused_with_the_way_out(encoder, tmp_path, name):
    source = file_of(tmp_path, "id,text\n0,good\n".encode("utf-16"), name=name)
    with pytest.raises(DataError, match=r"is UTF-16, .*\(iconv -f utf-16 -t utf-8\)"):
        predict(encoder, source, tmp_path / "out.jsonl")
