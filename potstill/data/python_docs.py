"""The embedded data set `python-docs`: paragraphs of the documentation that every Python carries.

The task is to classify one paragraph by the chapter of the library reference that it belongs to. Texts are read from
`pydoc_data.topics` (the language reference) and from the docstrings of the standard library's source files, which are
parsed and never imported. Whole documents (a module or a topic) go to one split or the other: the paragraphs of a
module share names that would give the answer away.
"""

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from potstill.errors import DataError

# Top-level modules by chapter, after the table of contents of the Python Library Reference.
MODULES = {
    "concurrency": "asyncio threading _threading_local multiprocessing concurrent queue subprocess sched selectors",
    "development": (
        "unittest doctest pdb bdb trace traceback profile cProfile pstats pydoc timeit tracemalloc inspect ast dis "
        "symtable tokenize pyclbr py_compile compileall code codeop tabnanny warnings opcode rlcompleter"
    ),
    "files": (
        "os pathlib shutil tempfile tarfile zipfile gzip bz2 lzma glob fnmatch fileinput filecmp stat posixpath "
        "ntpath genericpath linecache _pyio"
    ),
    "formats": (
        "email mailbox json mimetypes xml html base64 plistlib csv configparser quopri tomllib encodings codecs "
        "pickle pickletools shelve dbm sqlite3 copyreg"
    ),
    "interface": "tkinter turtle curses argparse optparse getopt cmd getpass logging gettext locale",
    "internet": (
        "http urllib socket ssl smtplib ftplib imaplib poplib xmlrpc socketserver wsgiref ipaddress webbrowser netrc"
    ),
    "language": "",  # the topics
    "numbers": (
        "_pydecimal fractions statistics random numbers heapq bisect datetime _pydatetime calendar _strptime "
        "zoneinfo graphlib colorsys collections _collections_abc enum types copy"
    ),
    "packages": "importlib pkgutil zipimport runpy venv sysconfig site modulefinder platform ensurepip",
}
CHAPTERS = tuple(sorted(MODULES))
CHAPTER_OF = {module: chapter for chapter, modules in MODULES.items() for module in modules.split()}

_SHORTEST = 40  # characters; less is a heading or a signature
_HELD_OUT = 5  # one in five documents, by a hash of its name, is in `validation`


def read_python_docs(split: str) -> list[tuple[str, str]]:
    """Return (paragraph, chapter) pairs of one split, `train` or `validation`, in a fixed order.

    Raises:
        DataError: for another split, or if this Python carries no source files.
    """
    if split not in {"train", "validation"}:
        raise DataError(f"python-docs has no split {split!r}; it has train and validation")
    held_out = split == "validation"
    return [(text, chapter) for document, text, chapter in paragraphs() if is_held_out(document) == held_out]


def is_held_out(document: str) -> bool:
    """Return whether a document belongs to `validation`, by a hash of its name."""
    return int(hashlib.sha256(document.encode()).hexdigest(), 16) % _HELD_OUT == 0


@cache
def paragraphs() -> tuple[tuple[str, str, str], ...]:
    """Return (document, paragraph, chapter) in a fixed order; a paragraph in several documents counts for the first."""
    found: dict[str, tuple[str, str, str]] = {}
    for document, chapter, text in _documents():
        for block in re.split(r"\n\s*\n", text):
            paragraph = " ".join(block.split())
            letters = sum(character.isalpha() for character in paragraph)
            # Mostly letters: tables and code examples are not prose.
            if len(paragraph) >= _SHORTEST and letters > 0.6 * len(paragraph):
                # Each paragraph once: a second document with it could be in the other split.
                found.setdefault(paragraph.lower(), (document, paragraph, chapter))
    if not found:
        raise DataError("this Python carries no documentation (no source files of its library); use another data set")
    return tuple(found.values())


def _documents() -> Iterator[tuple[str, str, str]]:
    """Yield (document, chapter, text), sorted by name: the order of a directory differs between disks."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield f"topic {topic}", "language", topics[topic]
    for module, file in library_files(CHAPTER_OF):
        name = ".".join(file.relative_to(_library()).with_suffix("").parts)
        yield name, CHAPTER_OF[module], "\n\n".join(_docstrings(file))


def library_files(modules: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield (module, file) of top-level modules and packages of Python's library, tests left out, sorted by name."""
    for module in sorted(modules):
        package = _library() / module
        files = sorted(package.rglob("*.py")) if package.is_dir() else [package.with_suffix(".py")]
        for file in files:
            if file.is_file() and not {"test", "tests"}.intersection(
                file.relative_to(_library()).with_suffix("").parts
            ):
                yield module, file


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _docstrings(file: Path) -> Iterator[str]:
    """Yield the docstrings of a source file by its syntax tree, so that none of its code runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library's own sources
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # a file that another Python left there
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
