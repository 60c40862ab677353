import inspect

import pytest

from potstill import errors

CODES = {
    "PotstillError": 1,
    "CheckError": 1,
    "ParityError": 1,
    "TamperedError": 1,
    "TrainingError": 1,
    "UsageError": 2,
    "RecipeError": 2,
    "DataError": 2,
    "AbsentError": 2,
    "CheckpointError": 2,
    "BundleError": 2,
    "OutputError": 2,
    "MissingError": 3,
    "DiskError": 3,
    "MissingExtraError": 3,
}


def test_every_error_has_the_exit_code_of_its_branch():
    kinds = inspect.getmembers(errors, inspect.isclass)
    found = {name: kind.exit_code for name, kind in kinds if issubclass(kind, errors.PotstillError)}
    assert found == CODES


@pytest.mark.parametrize("name", CODES)
def test_one_root_catches_every_error_and_none_is_a_builtin_in_disguise(name):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.PotstillError)
    assert not issubclass(kind, (ValueError, OSError, ImportError))
    assert str(kind("what was wrong")) == "what was wrong"


def test_the_docstring_draws_every_error_with_its_code():
    drawn = {line.split("── ")[1].split()[0]: line for line in errors.__doc__.splitlines() if "──" in line}
    assert set(drawn) == set(CODES) - {"PotstillError"}
    for name in ("CheckError", "UsageError", "MissingError"):
        assert f"exit {CODES[name]}" in drawn[name]
