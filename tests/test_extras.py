import json
import sys

import pytest

from potstill.errors import MissingExtraError
from potstill.extras import require


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Give a function that puts a module on the import path, and forget the modules afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name, text: (tmp_path / name).write_text(text, encoding="utf-8")
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_present_module_is_returned():
    assert require("json", extra="serve") is json


def test_a_dotted_name_gives_the_inner_module():
    assert require("json.decoder", extra="serve") is json.decoder


def test_a_missing_module_is_answered_with_the_pip_line_and_exit_code_3():
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_library_here", extra="distill")
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "no_such_library_here is not installed and this needs it: pip install 'potstill[distill]'"
    )


def test_a_missing_package_is_missing_by_its_dotted_name_too():
    with pytest.raises(MissingExtraError, match=r"^no_such_library_here\.inner is not installed.*potstill\[bench\]"):
        require("no_such_library_here.inner", extra="bench")


def test_a_missing_import_inside_a_present_module_passes_through(library):
    library("present_but_poor.py", "import no_such_dependency_here\n")
    with pytest.raises(ModuleNotFoundError) as caught:
        require("present_but_poor", extra="serve")
    assert caught.value.name == "no_such_dependency_here"


def test_an_import_error_inside_a_present_module_passes_through(library):
    library("present_but_broken.py", "raise ImportError('libsomething.so: cannot open shared object')\n")
    with pytest.raises(ImportError, match="libsomething") as caught:
        require("present_but_broken", extra="serve")
    assert type(caught.value) is ImportError


def test_any_other_failure_inside_a_present_module_passes_through(library):
    library("present_but_failing.py", "1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        require("present_but_failing", extra="serve")
