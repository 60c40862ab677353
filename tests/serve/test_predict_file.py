"""A file in, a file out: the same rows in the same order, whatever the format, and after any kill."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from potstill.data import read
from potstill.errors import DataError, DiskError, MissingExtraError, OutputError, UsageError
from potstill.files import open_journal
from potstill.serve import predict_file as predicting
from potstill.serve.predict_file import PredictSettings, journal_file, predict_file

TEXTS = ["a good film", "", "not very good , it was", "a", 'x "quoted", and\ntwo lines', "🙂 שלום", "the book is bad"]
# Texts of a window share batches, so sums are added in another order than alone.
NEIGHBOURS = 1e-6


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(predicting, "WINDOW_ROWS", 5)
    monkeypatch.setattr(predicting, "GROUP_TEXTS", 2)


def write_jsonl(file, content):
    file.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return file


def read_jsonl(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def settings(**changes):
    return PredictSettings(**{"workers": 2} | changes)


def close(got, want):
    """Compare answers: numbers nearly, all else exactly."""
    if isinstance(want, float):
        return got == pytest.approx(want, abs=NEIGHBOURS)
    if isinstance(want, list):
        return len(got) == len(want) and all(map(close, got, want))
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(close(got[name], want[name]) for name in want)
    return got == want


def test_rows_keep_their_order_their_columns_and_their_bytes(encoder, tmp_path, small_windows):
    lines = [f'{{"id":{number}, "text": {json.dumps(text)}, "n": 1.10 }}' for number, text in enumerate(TEXTS * 3)]
    source = tmp_path / "in.jsonl"
    source.write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    report = predict_file(encoder, source, tmp_path / "out.jsonl", settings=settings())
    assert (report.rows, report.failed, report.resumed_rows) == (21, 0, 0)
    out = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    for line, before, text in zip(out, lines, TEXTS * 3, strict=True):
        assert line.startswith(before[:-2] + ', "answer": [')
        assert close(json.loads(line)["answer"], encoder.predict(text))


def test_the_same_answers_from_and_to_every_format(encoder, tmp_path, small_windows):
    content = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    sources = [write_jsonl(tmp_path / "in.jsonl", content), tmp_path / "in.csv", tmp_path / "in.parquet"]
    with sources[1].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["id", "text"])
        writer.writeheader()
        writer.writerows(content)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), sources[2], row_group_size=3)
    want = encoder.predict(TEXTS)
    for source in sources:
        for suffix in (".jsonl", ".csv", ".parquet"):
            out = tmp_path / f"from{source.suffix}{suffix}"
            predict_file(encoder, source, out, settings=settings(on_error="skip"))
            given = read_any(out)
            assert [row["text"] for row in given] == TEXTS
            assert [int(row["id"]) for row in given] == list(range(len(TEXTS)))
            assert close([row["answer"] for row in given], want)
            assert not any(row.get("answer_error") for row in given)


def read_any(file):
    if file.suffix == ".jsonl":
        return read_jsonl(file)
    if file.suffix == ".parquet":
        return pyarrow.parquet.read_table(file).to_pylist()
    with file.open(newline="", encoding="utf-8") as stream:
        given = list(csv.DictReader(stream))
    for row in given:
        row["answer"] = json.loads(row["answer"])
        assert row["answer_label"] == row["answer"][0]["label"]
        assert float(row["answer_score"]) == row["answer"][0]["score"]
    return given


def test_parquet_keeps_types_and_types_the_answers(encoder, tmp_path, small_windows):
    from datetime import date

    table = pyarrow.table(
        {
            "text": TEXTS,
            "day": [date(2026, 11, number + 1) for number in range(len(TEXTS))],
            "raw": [b"\xff"] * len(TEXTS),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet", row_group_size=4)
    predict_file(encoder, tmp_path / "in.parquet", tmp_path / "out.parquet", settings=settings())
    made = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert made.select(["text", "day", "raw"]).equals(table)
    assert str(made.schema.field("answer").type).replace("element", "item") == (
        "list<item: struct<label: string, score: double>>"
    )
    predict_file(encoder, tmp_path / "in.parquet", tmp_path / "out.jsonl", settings=settings())
    first = read_jsonl(tmp_path / "out.jsonl")[0]
    assert (first["day"], first["raw"]) == ("2026-11-01", "/w==")


ITEMS = {
    "ner": ({"text": "a good film"}, "a good film", {"aggregation_strategy": "none"}),
    "qa": (
        {"question": "was it good", "context": "it was a good film, a warm book"},
        ("was it good", "it was a good film, a warm book"),
        {"top_k": 2},
    ),
    "mask": ({"text": "a [MASK] film"}, "a [MASK] film", {"top_k": 2}),
    "vector": ({"sentence": "a good film"}, "a good film", {}),
}


@pytest.mark.parametrize("name", ITEMS)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_all_tasks(task_encoder, tmp_path, name, suffix):
    row, item, parameters = ITEMS[name]
    source, encoder = write_jsonl(tmp_path / "in.jsonl", [row] * 3), task_encoder(name)
    predict_file(encoder, source, tmp_path / f"out{suffix}", settings=settings(parameters=parameters))
    want = encoder.predict(item, parameters=parameters)
    if suffix == ".csv":
        with (tmp_path / "out.csv").open(newline="") as stream:
            given = [json.loads(row["answer"]) for row in csv.DictReader(stream)]
    else:
        given = [row["answer"] for row in read_any(tmp_path / f"out{suffix}")]
    if suffix == ".parquet" and name == "mask":
        want = [want]
    if suffix == ".parquet" and name == "ner":
        want = [{"entity_group": None, "entity": None, "index": None} | entity for entity in want]
    assert all(close(answer, want) for answer in given)
    assert len(given) == 3


def test_pairs_by_their_usual_names_or_by_name(encoder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"premise": "a film", "hypothesis": "a book", "other": "x"}])
    predict_file(encoder, source, tmp_path / "pair.jsonl", settings=settings())
    assert close(read_jsonl(tmp_path / "pair.jsonl")[0]["answer"], encoder.predict([("a film", "a book")])[0])
    predict_file(encoder, source, tmp_path / "one.jsonl", settings=settings(columns=["other"]))
    assert close(read_jsonl(tmp_path / "one.jsonl")[0]["answer"], encoder.predict("x"))
    for columns, said in (
        (["nothing"], "has no column 'nothing'; it has premise"),
        (list("abc"), "one column"),
    ):
        with pytest.raises(UsageError, match=said):
            predict_file(encoder, source, tmp_path / "no.jsonl", settings=settings(columns=columns))
    with pytest.raises(UsageError, match="top_k does not fit text-classification"):
        predict_file(encoder, source, tmp_path / "no.jsonl", settings=settings(parameters={"top_k": 0}))
    assert not (tmp_path / "no.jsonl").exists()


def test_int8_answers_do_not_depend_on_the_window(int8_encoder, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS * 20])
    predict_file(int8_encoder, source, tmp_path / "out.jsonl", settings=settings())
    alone = {text: int8_encoder.predict(text) for text in TEXTS}
    assert all(row["answer"] == alone[row["text"]] for row in read_jsonl(tmp_path / "out.jsonl"))


LONG = "x" * 8001  # 32 tokens, 250 characters each
BAD = [
    (b'{"text": "a"', "line 2 is not JSON: Expecting ',' delimiter at character 13"),
    (b'{"text": NaN}', "line 2 is not JSON: it holds NaN"),
    (b"[" * 200_000, "line 2 is not JSON: nested too deep"),
    (b'{"text": "\xff"}', "line 2 is not UTF-8"),
    (b"[1]", "line 2 is not an object with columns"),
    (b'{"txt": "a"}', "line 2 has no column 'text'"),
    (b'{"text": 3}', "line 2 column 'text' holds a number, not a text"),
    (b'{"text": null}', "line 2 column 'text' holds nothing, not a text"),
    (b'{"text": "%s"}' % LONG.encode(), "line 2 column 'text' has 8001 characters; at most 8000 are read"),
    (b'{"text": "a", "answer": 1}', "line 2 has a column 'answer', which is the output's"),
    (b'{"text": "' + b"a" * read.LONGEST_LINE, f"line 2 is over {read.LONGEST_LINE} bytes"),
]


@pytest.mark.parametrize(("line", "said"), BAD, ids=[said for _, said in BAD])
def test_a_bad_row_is_named_or_skipped(encoder, tmp_path, line, said):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "bad"}\n')
    with pytest.raises(DataError) as refused:
        predict_file(encoder, source, tmp_path / "out.jsonl", settings=settings())
    assert said in str(refused.value)
    assert sorted(tmp_path.iterdir()) == [source]
    report = predict_file(encoder, source, tmp_path / "out.jsonl", settings=settings(on_error="skip"))
    assert (report.rows, report.failed) == (3, 1)
    assert said in report.problems[0]
    first, skipped, last = read_jsonl(tmp_path / "out.jsonl")
    assert close([first["answer"], last["answer"]], encoder.predict(["good", "bad"]))
    assert "answer_error" not in first
    assert said in skipped["answer_error"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,2,3", "line 3 has 3 columns, the head has 2"),
        ('1,"a"b', "line 3 is not csv: "),
        ('1,"\ufffe', "line 3 is not csv: unexpected end of data"),
    ],
)
def test_a_bad_line_of_csv_is_named(encoder, tmp_path, line, said):
    source = tmp_path / "in.csv"
    source.write_text(f"id,text\n0,good\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=said):
        predict_file(encoder, source, tmp_path / "out.csv", settings=settings())
    predict_file(encoder, source, tmp_path / "out.csv", settings=settings(on_error="skip"))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        given = list(csv.DictReader(stream))
    assert given[0]["answer_error"] == ""
    assert said in given[1]["answer_error"]


def test_csv_line_numbers_and_long_cells(encoder, tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes(b'\xef\xbb\xbftext,more\r\n"two\nlines",' + b"m" * 200_000 + b"\r\n\r\n\xff,x\r\n")
    with pytest.raises(DataError, match="line 5 is not UTF-8"):
        predict_file(encoder, source, tmp_path / "out.csv", settings=settings())
    assert csv.field_size_limit() == 131_072


def test_quotation_marks_in_tsv_are_text(encoder, tmp_path):
    source = tmp_path / "in.tsv"
    source.write_text('sentence\tlabel\n"a good\t1\n', encoding="utf-8")
    predict_file(encoder, source, tmp_path / "out.jsonl", settings=settings())
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert (row["sentence"], row["label"]) == ('"a good', "1")
    assert close(row["answer"], encoder.predict('"a good'))


def test_what_only_the_model_refuses_costs_one_row(task_encoder, tmp_path):
    content = [{"text": "a [MASK] film"}, {"text": "no mask here"}, {"text": "the [MASK]"}]
    source = write_jsonl(tmp_path / "in.jsonl", content)
    report = predict_file(task_encoder("mask"), source, tmp_path / "out.jsonl", settings=settings(on_error="skip"))
    given = read_jsonl(tmp_path / "out.jsonl")
    assert (report.failed, [row["answer"] is None for row in given]) == (1, [False, True, False])
    assert given[1]["answer_error"].startswith("line 2 has no answer: ")
    assert "no mask here" not in given[1]["answer_error"]


def test_empty_inputs_make_empty_outputs(encoder, tmp_path):
    (tmp_path / "in.jsonl").touch()
    (tmp_path / "in.csv").write_text("text,id\n")
    for source, suffix, want in (
        ("in.jsonl", ".jsonl", b""),
        ("in.csv", ".csv", b"text,id,answer,answer_label,answer_score\n"),
    ):
        out = tmp_path / f"out{suffix}"
        assert predict_file(encoder, tmp_path / source, out, settings=settings()).rows == 0
        assert out.read_bytes() == want
    predict_file(encoder, tmp_path / "in.jsonl", tmp_path / "out.parquet", settings=settings())
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 0
    (tmp_path / "none.csv").touch()
    with pytest.raises(DataError, match="is empty; it needs a head"):
        predict_file(encoder, tmp_path / "none.csv", tmp_path / "x.csv", settings=settings())


def test_columns_of_parquet_have_one_kind(encoder, tmp_path, small_windows):
    content = [{"text": "a", "n": None}] * 6 + [{"text": "a", "n": 1}] * 6 + [{"text": "a", "n": 1.5, "more": "x"}]
    source = write_jsonl(tmp_path / "in.jsonl", content)
    predict_file(encoder, source, tmp_path / "out.parquet", settings=settings())
    made = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["n"] for row in made] == [None] * 6 + [1.0] * 6 + [1.5]
    assert [row["more"] for row in made] == [None] * 12 + ["x"]
    write_jsonl(source, [*content, {"text": "a", "n": "one"}, *content])
    with pytest.raises(DataError, match=r"of parquet has one"):
        predict_file(encoder, source, tmp_path / "bad.parquet", settings=settings())


def test_a_lone_surrogate_comes_back_as_it_was(encoder, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "\\ud800 good"}\n')
    predict_file(encoder, source, tmp_path / "out.jsonl", settings=settings())
    assert read_jsonl(tmp_path / "out.jsonl")[0]["text"] == "\ud800 good"
    for suffix in (".csv", ".parquet"):
        predict_file(encoder, source, tmp_path / f"out{suffix}", settings=settings())
        assert read_any(tmp_path / f"out{suffix}")[0]["text"] == "\ufffd good"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_killed_at_every_touch_of_the_disk_it_goes_on(tmp_path, suffix):
    script = Path(__file__).with_name("crashing.py")
    command = [sys.executable, str(script), str(tmp_path), suffix]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 30


SLOW = """
import sys, time
from pathlib import Path
from potstill.serve import Encoder
from potstill.serve import predict_file as predicting
from potstill.serve.predict_file import PredictSettings, predict_file
predicting.WINDOW_ROWS = 20
class Slow(Encoder):
    def predict(self, *given, **more):
        time.sleep(0.005)
        return super().predict(*given, **more)
bundle, source, out, resume = sys.argv[1:]
settings = PredictSettings(workers=2)
predict_file(Slow(Path(bundle), threads=1), source, out, settings=settings, resume=resume == "resume")
"""


def test_kill_minus_nine(bundle_dir, encoder, tmp_path):
    content = [{"id": number, "text": TEXTS[number % 7] + " it" * (number % 5)} for number in range(1000)]
    source, out = write_jsonl(tmp_path / "in.jsonl", content), tmp_path / "out.jsonl"
    command = [sys.executable, "-c", SLOW, str(bundle_dir), str(source), str(out)]
    partial, how, kills = tmp_path / ".out.jsonl.partial", "begin", 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        process = subprocess.Popen([*command, how], env=os.environ | {"PYTHONPATH": str(Path.cwd())})
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until and kills < 3:
            if partial.exists() and partial.stat().st_size > before + 5_000:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        if process.wait(60) == 0:
            break
        assert not out.exists()
        how = "resume"
    assert kills == 3
    given = read_jsonl(out)
    assert [row["id"] for row in given] == list(range(1000))
    assert close([row["answer"] for row in given], encoder.predict([row["text"] for row in content]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def interrupted(encoder, source, out, **changes):
    """Begin a run that ends behind its second window."""

    def stop(stage, done, total, note):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(encoder, source, out, settings=settings(**changes), progress=stop)


def test_what_was_begun_is_neither_lost_nor_mixed(encoder, int8_encoder, tmp_path, small_windows):
    source, out = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS * 3]), tmp_path / "out.jsonl"
    interrupted(encoder, source, out)
    with pytest.raises(OutputError, match="was begun and not finished; go on with --resume"):
        predict_file(encoder, source, out, settings=settings())
    with pytest.raises(OutputError, match="begun with another precision"):
        predict_file(int8_encoder, source, out, settings=settings(), resume=True)
    with pytest.raises(OutputError, match="begun with another parameters"):
        predict_file(encoder, source, out, settings=settings(parameters={"top_k": 1}), resume=True)
    report = predict_file(encoder, source, out, settings=settings(), resume=True)
    assert (report.rows, report.resumed_rows) == (21, 10)
    predict_file(encoder, source, tmp_path / "straight.jsonl", settings=settings())
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    with pytest.raises(OutputError, match="is there already; pass --overwrite"):
        predict_file(encoder, source, out, settings=settings(), resume=True)
    interrupted_input = out.read_bytes()
    predict_file(encoder, source, out, settings=settings(parameters={"top_k": 1}), overwrite=True)
    assert out.read_bytes() != interrupted_input


def test_an_input_that_changed_is_not_gone_on_with(encoder, tmp_path, small_windows):
    source, out = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS * 3]), tmp_path / "out.jsonl"
    interrupted(encoder, source, out)
    source.write_text(source.read_text().replace("good", "warm"))
    os.utime(source, ns=(1, 1))
    with pytest.raises(OutputError, match="begun with another input"):
        predict_file(encoder, source, out, settings=settings(), resume=True)
    assert (tmp_path / ".out.jsonl.partial").stat().st_size > 0


def test_only_one_process_writes(encoder, tmp_path):
    source, out = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out.jsonl"
    first = open_journal(journal_file(out), header={})
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match="is being written by another process"):
            predict_file(encoder, source, out, settings=settings(), **options)
    assert journal_file(out).is_file()
    first.close()
    journal_file(out).unlink()
    assert predict_file(encoder, source, out, settings=settings()).rows == 1


def test_a_full_disk_loses_nothing(encoder, tmp_path, monkeypatch, small_windows):
    source, out = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS * 3]), tmp_path / "out.jsonl"
    count, usual = iter(range(9)), os.write

    def write(descriptor, content):
        if next(count, None) is None:
            usual(descriptor, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return usual(descriptor, content)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(DiskError, match=r"out\.jsonl cannot be written: the end of the disk is reached; make room"):
            predict_file(encoder, source, out, settings=settings())
    assert predict_file(encoder, source, out, settings=settings(), resume=True).resumed_rows == 20
    predict_file(encoder, source, tmp_path / "straight.jsonl", settings=settings())
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_ends_that_cannot_be_are_refused(encoder, tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a", "answer_label": 1}])
    (tmp_path / "in.parquet").write_bytes(b"no parquet")
    for error, given, out, said in (
        (UsageError, source, tmp_path / "out.txt", "must end in"),
        (UsageError, source, tmp_path / "out.jsonl", "has a column 'answer_label' already"),
        (DataError, tmp_path / "no.jsonl", tmp_path / "out.jsonl", "there is no file"),
        (DataError, Path(__file__), tmp_path / "out.jsonl", "must end in .jsonl, .csv, .tsv"),
        (DataError, tmp_path / "in.parquet", tmp_path / "out.jsonl", "not a parquet file"),
    ):
        with pytest.raises(error, match=said):
            predict_file(encoder, given, out, settings=settings())
    (tmp_path / "folder.jsonl").mkdir()
    for out, said in ((tmp_path / "none" / "out.jsonl", "no folder"), (tmp_path / "folder.jsonl", "no ordinary file")):
        with pytest.raises(OutputError, match=said):
            predict_file(encoder, source, out, settings=settings(answer_column="mine"))
    with pytest.raises(UsageError, match="cannot be resumed"):
        predict_file(encoder, "-", tmp_path / "out.jsonl", settings=settings(), resume=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'potstill\[parquet\]', or convert the file to .jsonl"):
        predict_file(encoder, source, tmp_path / "x.parquet", settings=settings(answer_column="mine"))


def test_memory_is_that_of_a_few_windows(encoder, tmp_path, monkeypatch):
    """Rows wait for at most three windows and one that is being read, however long the file is."""
    monkeypatch.setattr(predicting, "WINDOW_ROWS", 10)
    read_rows, most = 0, 0

    class Counting(read.JsonLinesFile):
        def records(self, *given, **more):
            nonlocal read_rows
            for record in super().records(*given, **more):
                read_rows += 1
                yield record

    def tell(stage, done, total, note):
        nonlocal most
        most = max(most, read_rows - done)

    monkeypatch.setattr(read, "JsonLinesFile", Counting)
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS * 40])
    predict_file(encoder, source, tmp_path / "out.jsonl", settings=settings(), progress=tell)
    assert 20 <= most <= 31


def test_progress_ends_with_all_rows(encoder, tmp_path, small_windows):
    told = []
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS * 3])
    predict_file(
        encoder, source, tmp_path / "out.jsonl", settings=settings(), progress=lambda *given: told.append(given)
    )
    assert [given[1] for given in told] == [5, 10, 15, 20, 21, 21]
    assert all(done < total for _, done, total, _ in told[:-1])
    assert told[-1][1:3] == (21, 21)


def test_standard_input_and_output(encoder, monkeypatch, capsysbinary):
    lines = b'{"text": "good"}\n\n{"text": "bad"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    report = predict_file(encoder, "-", "-", settings=settings())
    out = capsysbinary.readouterr().out
    assert report.rows == 2
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["good", "bad"]
