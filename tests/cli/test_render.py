"""What is drawn while the work goes on."""

import pytest

from potstill.cli import render
from potstill.cli.render import duration, progress_bars


@pytest.fixture
def clock(monkeypatch):
    """Give a clock that is moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(render, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_a_minute(clock, capsys):
    with progress_bars() as progress:
        for done in range(401):
            progress("distil", done, 400, f"loss {done}")
            clock[0] += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "distil ...",
        "distil: 60 of 400 (loss 60), about 6 min to go",
        "distil: 120 of 400 (loss 120), about 5 min to go",
        "distil: 180 of 400 (loss 180), about 4 min to go",
        "distil: 240 of 400 (loss 240), about 3 min to go",
        "distil: 300 of 400 (loss 300), about 100 s to go",
        "distil: 360 of 400 (loss 360), about 40 s to go",
        "distil: done (loss 400)",
    ]


def test_a_log_says_what_is_known_of_a_stage_and_no_more(clock, capsys):
    with progress_bars() as progress:
        progress("read", 0, 0, "")
        clock[0] += 61
        progress("read", 7000, 0, "")
        progress("train", 500, 1000, "")  # resumed: what was done before says nothing about the pace
        clock[0] += 60
        progress("train", 500, 1000, "")
        clock[0] += 60
        progress("train", 600, 1000, "")
        progress("train", 1000, 1000, "")
        progress("train", 1000, 1000, "")
    assert capsys.readouterr().err.splitlines() == [
        "read ...",
        "read: 7,000",
        "train ...",
        "train: 500 of 1,000",
        "train: 600 of 1,000, about 8 min to go",
        "train: done",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (3600, "60 min")])
def test_a_duration_is_said_as_a_person_would(seconds, text):
    assert duration(seconds) == text
