import io

import pytest
from rich.console import Console

from potstill.bench.claims import decide, load_claims
from potstill.cli.report import render_report
from tests.bench import made


def drawn(report, width, **settings):
    console = Console(width=width, file=io.StringIO(), **settings)
    render_report(report, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("make", [lambda: made.made_report(third=True), made.incomplete, made.minimal])
def test_it_fits_the_terminal_and_never_takes_more_than_100_columns(make, width):
    report = make()
    text = drawn(report.model_copy(update={"claims": decide(report, load_claims(None))}), width)
    assert max(map(len, text.splitlines())) <= min(width, 100)
    assert "…" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_every_number_is_whole_at_both_widths(width):
    text = drawn(made.made_report(), width)
    for row in made.made_report().contestants:
        assert any(line.startswith(f"{row.model} {row.precision}") for line in text.splitlines())
    line = next(line for line in text.splitlines() if line.startswith("student int8 "))
    times = ["4.29", "(4.23", "to", "4.36)"] if width == 100 else ["4.29"]
    # The worst label is left out where there is no room.
    worst = ["90.2%"] if width == 100 else []
    assert line.split() == ["student", "int8", "67.9", "9.85", "2.64", *times, "0.9071", "97.7%", *worst, "243"]


def test_verdicts_come_first_each_with_its_sentence():
    lines = drawn(made.made_report(), 100).splitlines()
    assert lines[0].split()[0] == "FAIL"
    assert "39.4% fewer" in lines[0]
    text = " ".join(" ".join(lines).split())
    assert "PASS 60% faster: The student answers 2.00 times as many texts per second" in text
    assert "failed student int8-static, latency, 8×128 (out of memory): the process was killed by signal 9" in text
    assert "Times as fast and kept against teacher fp32" in text


def test_an_incomplete_or_disturbed_run_is_told_before_the_verdicts():
    text = drawn(made.incomplete(), 100)
    assert text.startswith(
        "INCOMPLETE  The bench was interrupted. Not measured: latency of student/int8-static at 8×128;"
    )
    assert text.index("NOISE") < text.index("PASS")
    assert "The container's quota held the bench back for 12% of the time." in text


def test_colours_repeat_what_the_words_say():
    coloured = drawn(made.made_report(), 100, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;32mPASS" in coloured
    # What rich does when NO_COLOR is set.
    plain = drawn(made.made_report(), 100, force_terminal=True, color_system="standard", no_color=True)
    assert "\x1b[1;32m" not in plain
    assert "PASS" in plain


def test_names_cannot_steer_the_terminal():
    base = made.minimal()
    rows = [row.model_copy(update={"model": f"[red]{row.model}\x1b[2J:smile:"}) for row in base.contestants]
    text = drawn(base.model_copy(update={"contestants": rows}), 100)
    assert "\x1b" not in text
    assert "[red]student [2J:smile: fp32" in text


def test_a_long_name_breaks_and_its_numbers_stay():
    base = made.made_report()
    rows = [row.model_copy(update={"model": "m" * 70}) for row in base.contestants]
    text = drawn(base.model_copy(update={"contestants": rows}), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "0.9289" in text


def test_a_student_that_is_no_better_than_a_constant_answer_is_told_before_the_verdicts():
    from potstill.bench.report.markdown import to_markdown
    from potstill.bench.report.page import to_html
    from tests.bench.test_claims import with_worthless_student

    report = with_worthless_student(made.made_report())
    quality = report.quality[0]
    row = next(row for row in quality.scores if row.key == "student/fp32")
    update = {"trivial": row.value, "trivial_answer": "always positive"}
    report = report.model_copy(update={"quality": [quality.model_copy(update=update)]})
    told = "no better than an answer that ignores the text"
    text = " ".join(drawn(report, 100).split())
    assert text.startswith("QUALITY")
    assert text.index(told) < text.index("FAIL")
    for page in (to_markdown(report), to_html(report)):
        assert f"On SST-2 student fp32 is {told}" in page
        assert "always positive scores" in page


def test_what_was_disturbed_is_a_word_and_no_number():
    report = made.disturbed()
    text = drawn(report.model_copy(update={"claims": decide(report, load_claims(None))}), 100)
    # What is counted passes, and no time does.
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("PASS")] == [
        "PASS          40% smaller file"
    ]
    line = next(line for line in text.splitlines() if line.startswith("student int8 "))
    assert line.split() == ["student", "int8", "67.9", *["disturbed"] * 3, "0.9071", "97.7%", "90.2%", "243"]
    assert "the machine was disturbed: other processes" in " ".join(text.split())


def test_what_the_budget_left_out_is_said_first():
    text = drawn(made.made_report(left_out=["cold starts (about 30 s)", "thread scaling (about 20 s)"]), 100)
    assert "LEFT OUT  The budget had no time for: cold starts (about 30 s); thread scaling" in text.splitlines()[0]
