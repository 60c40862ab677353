import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

from potstill.data import load_examples, python_docs, python_functions
from potstill.data.python_functions import PART_NAMES, read_python_functions
from potstill.errors import DataError
from potstill.tasks import TEXT_CLASSIFICATION


@pytest.fixture(scope="module")
def splits():
    return {split: read_python_functions(split) for split in ("train", "validation")}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Put a small library in the place of Python's own."""
    monkeypatch.setattr(python_docs.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    python_functions.functions.cache_clear()
    yield tmp_path
    python_functions.functions.cache_clear()


def function(name, word="nothing"):
    said = f"Return the argument, as all of these functions do, and {word}."
    return f'def {name}(argument):\n    """{said}"""\n    return 1\n'


def one_line(name, word="nothing"):
    return " ".join(re.sub("[^a-zA-Z0-9]", " ", function(name, word)).split())


def test_there_are_eight_parts_in_alphabetical_order(splits):
    assert len(PART_NAMES) == 8
    assert list(PART_NAMES) == sorted(PART_NAMES)
    for rows in splits.values():
        assert {part for _, part in rows} == set(PART_NAMES)


def test_no_module_stands_in_two_parts():
    listed = [module for modules in python_functions.PARTS.values() for module in modules.split()]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_answer_for_everything_gets_less_than_a_fifth(splits, split):
    counts = Counter(part for _, part in splits[split])
    assert max(counts.values()) / counts.total() < 0.2


def test_both_splits_are_large_enough_to_train_and_to_judge(splits):
    assert len(splits["train"]) > 3500
    assert len(splits["validation"]) > 800


def test_a_text_is_80_to_300_characters_of_words_and_stands_once(splits):
    texts = [text for rows in splits.values() for text, _ in rows]
    assert len({text.lower() for text in texts}) == len(texts)
    assert all(80 <= len(text) <= 300 and re.fullmatch(r"[^\W_]+( [^\W_]+)*", text) for text in texts)
    assert all(text.startswith(("def ", "async def ")) for text in texts)


def test_a_class_goes_whole_to_one_split(splits):
    sides = {split: {text for text, _ in rows} for split, rows in splits.items()}
    found = {}
    for owner, text, _ in python_functions.functions():
        found.setdefault(owner, set()).update(split for split, texts in sides.items() if text in texts)
    assert all(len(split) <= 1 for split in found.values())
    assert len(found) > 1000


def test_no_text_to_score_on_has_nearly_the_words_of_one_that_was_learned(splits):
    learned = [set(text.split()) for text, _ in splits["train"]]
    for text, _ in splits["validation"]:
        words = set(text.split())
        nearest = max(learned, key=lambda other: len(words & other) - 0.5 * len(other))
        assert len(words & nearest) <= 0.9 * len(words | nearest), text


def test_the_data_set_is_found_by_its_name():
    found = load_examples("python-functions", split="validation", task=TEXT_CLASSIFICATION)
    assert found.label_names == PART_NAMES
    assert found.problem_type == "single_label_classification"


@pytest.mark.parametrize("split", ["test", "", "Train"])
def test_an_unknown_split_is_refused_with_the_known_ones(split):
    with pytest.raises(DataError, match=rf"^python-functions has no split '{split}'; it has train and validation$"):
        read_python_functions(split)


def test_a_small_library_by_hand(library, monkeypatch):
    monkeypatch.setattr(python_functions, "is_held_out", lambda owner: owner in {"email.Held", "datetime.late"})
    (library / "email" / "tests").mkdir(parents=True)
    (library / "email" / "tests" / "test_a.py").write_text(function("test"))
    inside = function("method", "a word that no other text has").replace("\n", "\n    ")
    (library / "email" / "a.py").write_text(
        f"import nothing_that_exists\n{function('first')}\nif True:\n    class Held:\n        "
        + function("second", "five new words of its own").replace("\n", "\n        ")
        + f"\n\nclass Other:\n    {inside}\n\n\ndef short():\n    pass\n"
    )
    nested = function("outer").replace(
        "    return 1\n", f"    {function('inner').replace(chr(10), chr(10) + '    ')}\n"
    )
    (library / "glob.py").write_text(f"@decorated\nasync {nested}")
    (library / "_pydatetime.py").write_text(function("late", "what no training text has in it") + function("first"))
    (library / "queue.py").write_text("this is not Python\n")
    (library / "unlisted.py").write_text(function("unlisted"))
    train, validation = read_python_functions("train"), read_python_functions("validation")
    # By name of the module; a text that occurred before is left out, tests and other modules are not read.
    assert [(text.partition(" argument")[0], part) for text, part in train] == [
        ("def first", "numbers"),
        ("def method", "email"),
        ("async def outer", "files"),
    ]
    assert train[0] == (one_line("first"), "numbers")
    assert "def inner" in train[2][0]
    assert validation == [
        (one_line("late", "what no training text has in it"), "numbers"),
        (one_line("second", "five new words of its own"), "email"),
    ]


def test_a_text_with_most_of_its_runs_of_five_words_in_train_is_not_scored(library, monkeypatch):
    monkeypatch.setattr(python_functions, "is_held_out", lambda owner: owner.startswith("queue"))
    (library / "glob.py").write_text(function("first", "one two three four five six seven eight nine ten"))
    (library / "queue.py").write_text(
        # 20 words make 16 runs: the first differs in one word of 22, the second in most.
        function("second", "one two three four five six seven eight nine ten")
        + function("third", "none of those words which the text in the other module has")
    )
    assert [text.partition(" argument")[0] for text, _ in read_python_functions("validation")] == ["def third"]


def test_only_whole_words_are_kept_up_to_300_characters(library):
    body = "".join(f"    number_{number} = '{number:038}'\n" for number in range(20))
    (library / "glob.py").write_text(f"def long(argument):\n{body}")
    ((text, _),) = read_python_functions("train") + read_python_functions("validation")
    # 17 characters, then 48 each: " number 0 " and 38 digits.
    assert text == "def long argument" + "".join(f" number {number} {number:038}" for number in range(5)) + " number 5"


def test_old_escapes_in_the_librarys_sources_warn_nobody(library):
    (library / "glob.py").write_text(function("first") + '\nx = "\\d"\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_python_functions("train") + read_python_functions("validation") == [(one_line("first"), "files")]


def test_no_module_of_the_library_is_run(library):
    (library / "glob.py").write_text(function("first") + '\nraise SystemExit("it ran")\n')
    assert len(read_python_functions("train") + read_python_functions("validation")) == 1


def test_the_order_is_that_of_names_and_not_of_the_disk(library, monkeypatch):
    monkeypatch.setattr(python_functions, "is_held_out", lambda owner: False)
    for name in ("email/zoo.py", "email/__init__.py", "email/a.py", "glob.py"):
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).write_text(function(f"in_{Path(name).stem}"))
    rglob = Path.rglob
    for turn in (1, -1):
        monkeypatch.setattr(Path, "rglob", lambda self, pattern, turn=turn: list(rglob(self, pattern))[::turn])
        python_functions.functions.cache_clear()
        found = [text.partition(" argument")[0] for text, _ in read_python_functions("train")]
        assert found == ["def in init", "def in a", "def in zoo", "def in glob"]


def test_a_python_without_source_files_says_so(library):
    with pytest.raises(DataError, match="carries no source files"):
        read_python_functions("train")
