"""The embedded data set `python-functions`: functions of Python's library, and the part of it that each belongs to.

The task is to tell from the first words of a function (its name, its documentation, its code) which of eight parts of
the library it is from: `asyncio`, `email`, `files` and so on. What stands between words is left out: it would fill a
short text and says little. Source files are parsed and never imported.

No text of `validation` has a near copy in `train`. A class goes whole to one split or the other, as the methods of a
class speak alike, and so does a function with those inside it. A function that repeats others, as the variants of a
protocol do, is left out of `validation` if more than half of its runs of five words are in `train`.
"""

import ast
import hashlib
import re
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from potstill.data.python_docs import library_files
from potstill.errors import DataError

# Modules and packages that every installation has: some leave out tkinter, idlelib, ensurepip and test.
PARTS = {
    "asyncio": "asyncio",
    "email": "email imaplib mailbox poplib smtplib",
    "files": "_pyio bz2 filecmp fileinput fnmatch glob gzip lzma os pathlib shutil tarfile tempfile zipfile",
    "imports": "importlib modulefinder pkgutil runpy site sysconfig zipimport",
    "markup": "html plistlib xml",
    "numbers": "_pydatetime _pydecimal calendar datetime fractions numbers random statistics zoneinfo",
    "processes": "_threading_local concurrent multiprocessing queue subprocess threading",
    "testing": "doctest unittest",
}
PART_NAMES = tuple(PARTS)

_WORD = re.compile(r"[^\W_]+")
_SHORTEST, _LONGEST = 80, 300  # characters of a text
_HELD_OUT = 5  # one in five classes and functions, by a hash of its name, is in `validation`
_RUN = 5  # words
_MOST_KNOWN = 0.5  # the share of a validation text's runs that may be in `train`


def read_python_functions(split: str) -> list[tuple[str, str]]:
    """Return (first words of a function, part) pairs of one split, in a fixed order.

    Args:
        split: `train` or `validation`.

    Raises:
        DataError: for another split, or if this Python carries no source files.
    """
    if split not in {"train", "validation"}:
        raise DataError(f"python-functions has no split {split!r}; it has train and validation")
    rows = functions()
    train = [(text, part) for owner, text, part in rows if not is_held_out(owner)]
    if split == "train":
        return train
    known = {run for text, _ in train for run in runs_of_words(text)}
    held_out = [(text, part) for owner, text, part in rows if is_held_out(owner)]
    return [
        (text, part) for text, part in held_out if len((runs := runs_of_words(text)) & known) <= _MOST_KNOWN * len(runs)
    ]


def is_held_out(owner: str) -> bool:
    """Return whether a class or function, such as `email.Message`, belongs to `validation`, by a hash of its name."""
    return int(hashlib.blake2b(owner.encode(), digest_size=8).hexdigest(), 16) % _HELD_OUT == 0


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """Return the different runs of five words of a text; all of its words if they are fewer."""
    words = text.lower().split()
    return {tuple(words[start : start + _RUN]) for start in range(max(1, len(words) - _RUN + 1))}


@cache
def functions() -> tuple[tuple[str, str, str], ...]:
    """Return (owner, text, part) in a fixed order: the owner is the outermost class or function; each text once."""
    found: dict[str, tuple[str, str, str]] = {}
    part_of = {module: part for part, modules in PARTS.items() for module in modules.split()}
    for module, file in library_files(part_of):
        for name, text in _functions_of(file):
            if len(text) >= _SHORTEST:
                # By package, not by file: releases of Python move classes between a package's files. They also moved
                # the Python code of datetime to _pydatetime.
                owner = f"{module.removeprefix('_py')}.{name}"
                found.setdefault(text.lower(), (owner, text, part_of[module]))
    if not found:
        raise DataError("this Python carries no source files of its library; use another data set")
    return tuple(found.values())


def _functions_of(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the outermost class or function, and the first words, of each function outside of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library's own sources
        try:
            with tokenize.open(file) as opened:
                source = opened.read()
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # a file that another Python left there
            return
    lines = source.split("\n")
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        owner, node = waiting.pop()
        if isinstance(node, ast.ClassDef):
            owner = owner or node.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            words = _WORD.findall("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            yield owner or node.name, textwrap.shorten(" ".join(words), _LONGEST, placeholder="")
            continue  # what is inside is part of its text
        waiting.extend((owner, child) for child in reversed(list(ast.iter_child_nodes(node))))
