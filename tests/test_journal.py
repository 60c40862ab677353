"""A journal loses no entry that was appended, whatever happens to the process or the disk."""

import errno
import os

import pytest

from potstill.errors import OutputError
from potstill.files import open_journal, read_journal

HEADER = {"seed": 3, "config": {"rounds": 5}}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "work.jsonl"


def begin(file, *entries):
    journal = open_journal(file, header=HEADER)
    for entry in entries:
        journal.append(entry)
    return journal


def test_the_header_and_every_entry_are_a_line_each_and_there_at_once(file):
    begin(file, {"x": 1}, {"y": [2.5, None]})
    assert file.read_text() == '{"seed":3,"config":{"rounds":5}}\n{"x":1}\n{"y":[2.5,null]}\n'


def test_what_append_returns_is_what_a_later_run_reads(file):
    journal = begin(file)
    assert journal.append({"pair": (1, 2), "word": "naïve"}, flush=True) == {"pair": [1, 2], "word": "naïve"}
    journal.close()
    assert open_journal(file, header=HEADER).entries == [{"pair": [1, 2], "word": "naïve"}]


def test_without_resume_a_journal_begins_anew(file):
    begin(file, {"x": 1}).close()
    assert open_journal(file, header={"other": 1}, resume=False).entries == []
    assert file.read_text() == '{"other":1}\n'


@pytest.mark.parametrize("torn", [b'{"x": 2, "val', b'{"x": 2}', b"\0\0\0\n", "€".encode()[:1], b"[1]\n"])
def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(file, torn):
    begin(file, {"x": 1}).close()
    with file.open("ab") as stream:
        stream.write(torn)
    assert read_journal(file).entries == [{"x": 1}]
    journal = open_journal(file, header=HEADER)
    assert journal.entries == [{"x": 1}]
    journal.append({"x": 3})
    journal.close()
    assert read_journal(file).entries == [{"x": 1}, {"x": 3}]
    assert len(file.read_text().splitlines()) == 3


def test_a_torn_header_begins_anew(file):
    file.write_text('{"seed"')
    begin(file, {"x": 1})
    assert read_journal(file).entries == [{"x": 1}]


def test_a_damaged_line_in_the_middle_is_refused_with_its_number(file):
    begin(file).close()
    with file.open("a") as stream:
        stream.write('nonsense\n{"x": 1}\n')
    with pytest.raises(OutputError, match="line 2 is damaged; measure anew"):
        open_journal(file, header=HEADER, remedy="measure anew")
    with pytest.raises(OutputError, match="line 2 is damaged"):
        read_journal(file)


def test_a_journal_of_another_run_is_refused_by_what_differs_and_left_alone(file):
    begin(file, {"x": 1}).close()
    before = file.read_bytes()
    with pytest.raises(OutputError, match=r"work was begun with another config, more; take the same"):
        open_journal(file, header={"seed": 3, "config": 1, "more": 1}, name="work", remedy="take the same")
    assert file.read_bytes() == before


def test_two_runs_cannot_write_one_journal(file):
    first = begin(file)
    with pytest.raises(OutputError, match="being written by another process"):
        open_journal(file, header=HEADER)
    first.close()
    open_journal(file, header=HEADER).close()


def test_entries_behind_the_first_few_can_be_dropped(file):
    journal = begin(file, {"x": 1}, {"x": 2}, {"x": 3})
    journal.keep_first(3)
    journal.keep_first(1)
    assert (journal.entries, read_journal(file).entries) == ([{"x": 1}], [{"x": 1}])
    journal.append({"x": 4})
    journal.keep_first(1)
    journal.append({"x": 5})
    assert read_journal(file).entries == [{"x": 1}, {"x": 5}]
    journal.keep_first(0)
    assert read_journal(file).entries == []


def test_nothing_is_written_after_the_end_and_entries_can_still_be_read(file):
    journal = begin(file, {"x": 1})
    journal.close()
    journal.close()
    assert journal.entries == [{"x": 1}]
    for change in (lambda: journal.append({"x": 2}), lambda: journal.keep_first(0)):
        with pytest.raises(OutputError, match="is closed"):
            change()


def test_reading_refuses_what_is_missing_or_empty(file):
    with pytest.raises(OutputError, match="does not exist"):
        read_journal(file)
    file.touch()
    with pytest.raises(OutputError, match="is empty"):
        read_journal(file)


def test_nan_is_refused_before_anything_is_written(file):
    journal = begin(file)
    with pytest.raises(ValueError, match="JSON"):
        journal.append({"x": float("nan")})
    assert len(file.read_text().splitlines()) == 1


def test_a_line_of_which_the_system_takes_a_part_at_a_time_is_whole(file, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, bytes(content)[:7]))
    begin(file, {"x": "a value of more than seven bytes"}, {"x": 2})
    assert read_journal(file).entries == [{"x": "a value of more than seven bytes"}, {"x": 2}]


def test_a_line_that_a_full_disk_tears_leaves_the_lines_before_it(file, monkeypatch):
    journal = begin(file, {"x": 1})
    write, taken = os.write, []

    def fill(descriptor, content):
        if taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(write(descriptor, bytes(content)[:7]))
        return taken[0]

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fill)
        with pytest.raises(OSError, match="No space"):
            journal.append({"x": 2})
    journal.append({"x": 3})
    journal.close()
    assert read_journal(file).entries == [{"x": 1}, {"x": 3}]
