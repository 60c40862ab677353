"""What is drawn while the work goes on."""

import io
import re

import pytest
from rich.console import Console

from potstill.cli import render
from potstill.cli.render import duration, print_table, progress_bars


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


@pytest.fixture
def terminal(monkeypatch):
    """Put a terminal of 100 columns in the place of stderr; give what was written to it."""
    written = io.StringIO()
    monkeypatch.setattr(render, "err", Console(file=written, force_terminal=True, width=100))
    return written


def test_a_terminal_has_one_bar_with_the_time_left(clock, terminal):
    with progress_bars() as progress:
        progress("train", 0, 400, "")
        clock[0] += 43
        progress("train", 100, 400, "loss 1")
        progress("score", 3, 8, "")
        progress("score", 8, 8, "")
        progress("train", 101, 400, "loss 0.9")
        progress("score", 1, 8, "")
        progress("score", 8, 8, "")  # again: the line is not
        clock[0] += 100
        progress("train", 400, 400, "accuracy 0.8")
        progress("export", 3, 9, "int8")
    # Whatever is drawn anew begins at the start of the line.
    assert max(drawn.count(" left ") for drawn in terminal.getvalue().split("\r")) == 1
    shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"export [━╺]+ 3/9 -:--:-- left int8", shown)
    assert re.findall(r"\S+: done.*", shown) == ["score: done in 0 s", "train: done in 2 min (accuracy 0.8)"]


def test_the_steps_of_an_earlier_run_say_nothing_about_the_time_left(terminal):
    with progress_bars() as progress:
        progress("train", 5000, 10000, "")
        progress("train", 5000, 10000, "")
    assert "5000/10000 -:--:-- left" in re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", terminal.getvalue())


def test_texts_of_a_table_are_left_aligned_and_numbers_right(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(render, "out", Console(file=written, width=100))
    rows = [["fp32", "1.5x", "4 of 4", "kept", "0.71 to 0.93", "-"], ["int8", "12.25x", "12 of 12", "none", "-", "3"]]
    print_table("Files", ["file", "speed", "fused", "why this one", "95 % interval", "flips"], rows)
    assert [line.rstrip() for line in written.getvalue().splitlines()] == [
        "Files",
        "file   speed     fused  why this one  95 % interval  flips",
        "fp32    1.5x    4 of 4  kept           0.71 to 0.93      -",
        "int8  12.25x  12 of 12  none                      -      3",
    ]
