import pytest

from potstill.bench import report_schema
from potstill.bench.report import formatting
from potstill.bench.report.formatting import (
    bounds,
    clean,
    load_words,
    name_of,
    number,
    percentile,
    quantity,
    with_interval,
)
from tests.bench import made

S = "\u00a0"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (99.96, "100"),
        (9.996, "10.0"),
        (0.9996, "1.00"),
        (0.12345, "0.123"),
        (1.236, "1.24"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (-3.21, "-3.21"),
    ],
)
def test_numbers_have_three_digits_and_what_is_not_measured_is_a_dash(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (formatting.percent(0.3938), f"39.4{S}%"),
        (formatting.percent(None), "–"),
        (formatting.mb(268_130_000), "268"),
        (formatting.millions(66_362_880), f"66.4{S}M"),
        (formatting.score(0.90482), "0.9048"),
        (formatting.seconds(2384.0), f"2.38{S}s"),
        (formatting.seconds(743.4), f"743{S}ms"),
        (formatting.rate(6.5e11), f"650{S}G"),
        (formatting.rate(2.2e12), f"2.20{S}T"),
        (formatting.rate(12.0), f"12.0{S}".rstrip()),
        (formatting.rate(0.0), "0"),
        (formatting.p_value(0.0004), "< 0.001"),
        (formatting.p_value(0.0421), "0.042"),
        (formatting.count(1234), "1,234"),
        (formatting.listed(["a", "b", "c"]), "a, b and c"),
        (formatting.listed(["a"]), "a"),
        (formatting.listed([]), ""),
    ],
)
def test_how_things_are_written(found, text):
    assert found == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.974, "share", f"97.4{S}%"),
        (467.0, "MB", f"467{S}MB"),
        (467e6, "bytes", f"467{S}MB"),
        (2.004, "×", "2.00×"),
        (0.9048, "", "0.9048"),
        (9.876, "ms", f"9.88{S}ms"),
        (-0.5, "points", f"-0.500{S}points"),
        (None, "ms", "–"),
    ],
)
def test_a_quantity_has_its_unit(value, unit, text):
    assert quantity(value, unit) == text


def test_an_interval_stands_behind_its_value_unless_there_is_none():
    assert with_interval(2.0, (1.9, 2.1), unit="×") == "2.00× (1.90 to 2.10)"
    assert with_interval(0.974, (0.961, 0.986), unit="share") == f"97.4{S}% (96.1 to 98.6)"
    # Counted: the interval is the value itself.
    assert with_interval(0.394, (0.394, 0.394), unit="share") == f"39.4{S}%"
    assert with_interval(None, None) == "–"
    assert bounds((1.972, 2.034)) == "1.97 to 2.03"
    assert bounds((0.5, 0.75), as_share=True) == f"50.0 to 75.0{S}%"


def test_a_withheld_percentile_says_how_many_calls_are_missing():
    rows = {row.key: row for row in made.made_report().latency if str(row.load) == "1×16"}
    assert percentile(rows["student/fp32"], "p99") == "needs 42 more"
    assert percentile(rows["student/fp32"], "p50") == number(rows["student/fp32"].p50_ms)
    assert percentile(None, "p50") == "–"


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (report_schema.Load(num_tokens=128), "1 text of 128 tokens"),
        (report_schema.Load(batch_size=8, num_tokens=16), "8 texts of 16 tokens"),
        (report_schema.Load(kind="texts"), "texts of the data, tokenised before"),
        (report_schema.Load(kind="texts_tokenised", batch_size=4), "texts of the data, 4 at a time, with tokenisation"),
    ],
)
def test_loads_in_words(load, words):
    assert load_words(load) == words


def test_names_are_one_line_of_letters_and_shortened_in_the_middle():
    assert clean(" a\n\tb\x1b[31m\x00c\u202e ") == "a b [31m c"
    assert clean("abcdefghij", longest=7) == "abc…hij"
    assert clean("abc", longest=3) == "abc"
    assert clean(f"at{S}most 95 %") == f"at{S}most 95{S}%"


def test_a_contestant_is_named_with_its_engine_only_where_that_is_not_the_usual_one():
    report = made.made_report()
    assert name_of(report.contestant("student/int8")) == "student int8"
    assert name_of(report.contestant("student/fp32@torch-cpu")) == "student fp32 torch-cpu"
