import json

import pytest

from potstill.bench.measure.samples import FILE_NAME, open_samples, read_samples
from potstill.errors import OutputError

HEAD = {"seed": 3, "config": {"rounds": 5}, "hashes": {"a": "0" * 64}}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "work"


def lines(folder):
    return (folder / FILE_NAME).read_text(encoding="utf-8").splitlines()


def never():
    raise AssertionError("measured twice")


def test_what_was_made_once_is_never_made_again_not_even_by_another_run(folder):
    journal = open_samples(folder, head=HEAD)
    assert journal.once(("round", "1×16", 0), lambda: {"a": [1.5]}) == {"a": [1.5]}
    assert journal.once(("round", "1×16", 0), never) == {"a": [1.5]}
    journal.finish()
    again = open_samples(folder, head=HEAD)
    assert again.once(("round", "1×16", 0), never) == {"a": [1.5]}
    assert again.once(("round", "1×16", 1), lambda: None) is None
    assert again.once(("round", "1×16", 1), never) is None


def test_the_file_is_a_head_and_one_line_per_value_and_is_there_at_once(folder):
    journal = open_samples(folder, head=HEAD)
    journal.put(("warm", "a/fp32"), 1)
    assert list(map(json.loads, lines(folder))) == [
        {"schema": "potstill-samples/1"} | HEAD,
        {"name": ["warm", "a/fp32"], "value": 1},
    ]


def test_what_is_returned_is_what_a_later_run_will_read(folder):
    journal = open_samples(folder, head=HEAD)
    assert journal.once(("x",), lambda: {"pair": (1, 2)}) == {"pair": [1, 2]}


def test_parts_are_those_below_a_name_by_the_rest_of_it(folder):
    journal = open_samples(folder, head=HEAD)
    for name in (("round", "a", 1), ("round", "b", 0), ("warm", "a"), ("round", "a", 0), ("round", "ab", 0)):
        journal.put(name, "/".join(map(str, name)))
    assert journal.parts("round", "a") == {(1,): "round/a/1", (0,): "round/a/0"}
    assert list(journal.parts("round")) == [("a", 1), ("b", 0), ("a", 0), ("ab", 0)]
    assert (journal.get("warm", "a"), journal.get("warm", "b")) == ("warm/a", None)


def test_a_value_put_again_replaces_the_first(folder):
    journal = open_samples(folder, head=HEAD)
    journal.put(("x",), 1)
    journal.put(("x",), 2)
    journal.finish()
    assert read_samples(folder / FILE_NAME).get("x") == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "begun with another seed"),
        ({"hashes": {}}, "begun with another hashes"),
        ({"config": 1, "seed": 4}, "config, seed"),
    ],
)
def test_a_journal_of_another_run_is_refused_and_left_alone(folder, change, named):
    open_samples(folder, head=HEAD).finish()
    before = lines(folder)
    with pytest.raises(OutputError, match=named):
        open_samples(folder, head=HEAD | change)
    assert lines(folder) == before


def test_nothing_is_written_after_the_end_and_all_can_still_be_read(folder):
    journal = open_samples(folder, head=HEAD)
    journal.put(("x",), 1)
    journal.finish()
    journal.finish()
    assert journal.once(("x",), never) == 1
    with pytest.raises(OutputError, match="closed"):
        journal.put(("y",), 1)
    assert journal.get("y") is None


def test_reading_refuses_what_is_no_journal(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        read_samples(tmp_path / "samples.jsonl")
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(OutputError, match="is empty"):
        read_samples(tmp_path / "samples.jsonl")
    for text in ("{}\n", '{"schema": "potstill-samples/1"}\n{"nom": 1}\n{"nom": 1}\n'):
        (tmp_path / "samples.jsonl").write_text(text)
        with pytest.raises(OutputError, match="not a file of samples"):
            read_samples(tmp_path / "samples.jsonl")


def test_nan_is_refused_before_anything_is_written(folder):
    journal = open_samples(folder, head=HEAD)
    with pytest.raises(ValueError, match="JSON"):
        journal.put(("x",), float("nan"))
    assert len(lines(folder)) == 1


def test_an_interrupt_while_measuring_leaves_the_journal_as_it_was(folder):
    journal = open_samples(folder, head=HEAD)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.once(("x",), interrupted)
    assert journal.get("x") is None
    assert journal.once(("x",), lambda: 1) == 1
