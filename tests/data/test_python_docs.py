import warnings
from collections import Counter
from pathlib import Path

import pytest

from potstill.data import python_docs
from potstill.data.python_docs import CHAPTERS, read_python_docs
from potstill.errors import DataError


@pytest.fixture(scope="module")
def splits():
    return {split: read_python_docs(split) for split in ("train", "validation")}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Put a small library in the place of Python's own."""
    monkeypatch.setattr(python_docs.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    python_docs.paragraphs.cache_clear()
    yield tmp_path
    python_docs.paragraphs.cache_clear()


def words(marker):
    return f"This paragraph is long enough to be kept and it speaks of {marker}."


def test_there_are_nine_chapters_in_alphabetical_order(splits):
    assert len(CHAPTERS) == 9
    assert list(CHAPTERS) == sorted(CHAPTERS)
    for rows in splits.values():
        assert {chapter for _, chapter in rows} == set(CHAPTERS)


def test_no_module_stands_in_two_chapters():
    listed = [module for modules in python_docs.MODULES.values() for module in modules.split()]
    assert len(listed) == len(set(listed)) == len(python_docs.CHAPTER_OF)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_answer_for_everything_gets_less_than_40_per_cent(splits, split):
    counts = Counter(chapter for _, chapter in splits[split])
    assert max(counts.values()) / counts.total() < 0.4


def test_both_splits_are_large_enough_to_train_and_to_judge(splits):
    assert len(splits["train"]) > 4000
    assert len(splits["validation"]) > 1000


def test_no_document_is_in_both_splits(splits):
    sides = {}
    chapters = {split: dict(rows) for split, rows in splits.items()}
    for document, text, chapter in python_docs.paragraphs():
        (side,) = [split for split in chapters if text in chapters[split]]
        assert chapters[side][text] == chapter
        sides.setdefault(document, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert len(sides) > 300


def test_no_paragraph_stands_twice_in_any_case_or_split(splits):
    texts = [text.lower() for rows in splits.values() for text, _ in rows]
    assert len(texts) == len(set(texts))


def test_a_paragraph_is_one_line_of_at_least_40_characters_of_words(splits):
    for rows in splits.values():
        for text, _ in rows:
            assert len(text) >= 40
            assert text == " ".join(text.split())
            assert sum(map(str.isalpha, text)) > 0.6 * len(text)


def test_the_order_is_that_of_names_and_not_of_the_disk(library, monkeypatch):
    topics = {name: words(name) for name in ("zebra", "apple", "mango")}
    monkeypatch.setattr("pydoc_data.topics.topics", topics)
    monkeypatch.setattr(python_docs, "is_held_out", lambda _document: False)
    for name in ("json/zoo.py", "json/__init__.py", "json/a.py", "email/b.py", "heapq.py"):
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).write_text(f'"""{words(name)}"""')
    rglob = Path.rglob
    for turn in (1, -1):
        monkeypatch.setattr(Path, "rglob", lambda self, pattern, turn=turn: list(rglob(self, pattern))[::turn])
        python_docs.paragraphs.cache_clear()
        found = [text for text, _ in read_python_docs("train")]
        modules = ["email/b.py", "heapq.py", "json/__init__.py", "json/a.py", "json/zoo.py"]
        assert found == [words(name) for name in ["apple", "mango", "zebra", *modules]]


@pytest.mark.parametrize("split", ["test", "", "Train"])
def test_an_unknown_split_is_refused_with_the_known_ones(split):
    with pytest.raises(DataError, match=rf"^python-docs has no split '{split}'; it has train and validation$"):
        read_python_docs(split)


def test_a_small_library_by_hand(library, monkeypatch):
    monkeypatch.setattr(python_docs, "is_held_out", lambda document: document == "json.decoder")
    monkeypatch.setattr("pydoc_data.topics.topics", {"if": words("conditions"), "else": words("conditions").upper()})
    (library / "json" / "tests").mkdir(parents=True)
    (library / "json" / "tests" / "test_a.py").write_text(f'"""{words("tests")}"""')
    (library / "json" / "__init__.py").write_text(f'"""Short.\n\n{words("JSON")}\n\n{"= " * 40}\n"""\n')
    (library / "json" / "decoder.py").write_text(
        f'def decode():\n    """{words("decoding")}"""\n\n\nclass D:\n    """{words("JSON")}"""\n'
    )
    (library / "heapq.py").write_text(f'async def push():\n    """{words("heaps").replace(" ", chr(10), 2)}"""\n')
    (library / "queue.py").write_text("this is not Python\n")
    (library / "unlisted.py").write_text(f'"""{words("nothing")}"""')
    # In the order of documents: topics, then modules by name; what is repeated stays with the first.
    assert read_python_docs("train") == [
        (words("conditions").upper(), "language"),
        (words("heaps"), "numbers"),
        (words("JSON"), "formats"),
    ]
    assert read_python_docs("validation") == [(words("decoding"), "formats")]


def test_old_escapes_in_the_librarys_sources_warn_nobody(library):
    (library / "heapq.py").write_text(f'"""{words("heaps")}"""\nx = "\\d"\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (words("heaps"), "numbers") in read_python_docs("train") + read_python_docs("validation")


def test_no_module_of_the_library_is_run(library):
    (library / "heapq.py").write_text(f'"""{words("heaps")}"""\nraise SystemExit("it ran")\n')
    assert (words("heaps"), "numbers") in read_python_docs("train") + read_python_docs("validation")


def test_a_python_without_documentation_says_so(library, monkeypatch):
    monkeypatch.setattr("pydoc_data.topics.topics", {})
    with pytest.raises(DataError, match="carries no documentation"):
        read_python_docs("train")


def test_a_fifth_of_all_documents_is_held_out():
    held_out = sum(python_docs.is_held_out(f"document {number}") for number in range(5000))
    assert held_out == pytest.approx(1000, abs=100)  # the standard deviation of chance is 28
