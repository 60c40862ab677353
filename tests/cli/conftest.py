"""What the tests of the command line share."""

import sys

import pytest

from potstill.cli import main


@pytest.fixture
def potstill(capsys, monkeypatch):
    """Run the command line in this process; return exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["potstill", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return stopped.value.code or 0, output.out, output.err

    return run
