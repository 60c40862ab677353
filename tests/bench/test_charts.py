import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from potstill.bench import report_schema
from potstill.bench.report import style
from potstill.bench.report.charts import charts, ratios, trade_off
from tests.bench import made


@pytest.fixture(scope="module")
def whole():
    return made.made_report(third=True)


@pytest.fixture(scope="module")
def drawn(whole):
    return {picture.name: picture for part in charts(whole).values() for picture in part}


def draw(chart, report):
    """Draw one chart of a report; all of them take seconds."""
    with style.plot_style():
        return chart(report, style.looks_of(report))


def test_there_is_a_picture_of_everything_that_was_measured(drawn):
    latency = [f"latency-{place}" for place in range(6)]
    assert list(drawn) == [
        "trade-off",
        "ratios",
        *latency,
        "throughput-1",
        "throughput-4",
        "scaling",
        "memory",
        "cold-start",
        "peak",
        "quality-0",
        "quality-1",
        "quality-2",
        "quality-3",
    ]


def test_what_was_not_measured_has_no_picture():
    found = charts(made.minimal(latency=[], ratios=[]))
    assert not any(found.values())


def test_pictures_are_well_formed_and_take_their_colours_from_the_page(drawn):
    for picture in drawn.values():
        root = ElementTree.fromstring(picture.svg)
        assert root.get("role") == "img"
        assert root.get("width") is root.get("height") is None
        assert root.get("viewBox").startswith("0 0 302.4 ")
        assert "currentColor" in picture.svg
        # No stand-in is left, and no colour that the page could not change but for light's own as a fallback.
        assert not re.search(r"#010[23]\d\d", picture.svg)
        rest = re.sub(r"var\(--[a-z0-9-]+, #[0-9a-f]+\)", "", picture.svg)
        assert set(re.findall(r"#[0-9a-f]{6}\b", rest)) <= {"#000000"}


def test_the_same_report_is_drawn_byte_for_byte_the_same(whole, drawn):
    again = [picture for part in charts(whole).values() for picture in part]
    assert again == list(drawn.values())


def test_a_logarithmic_axis_has_round_numbers_also_where_it_is_narrow():
    def numbers(report):
        texts = [element.text for element in ElementTree.fromstring(draw(ratios, report).svg).iter() if element.text]
        return [float(text) for text in texts if re.fullmatch(r"[\d.]+", text)]

    # Only the baseline's 1 is left of them.
    narrow = numbers(made.disturbed())
    assert 2 <= len(narrow) <= 6
    assert all(0.85 < number < 1.15 for number in narrow)
    assert numbers(made.made_report()) == [1, 2, 5]


def test_ids_of_two_pictures_never_meet(drawn):
    ids = [name for picture in drawn.values() for name in re.findall(r'\bid="([^"]+)"', picture.svg)]
    assert len(ids) == len(set(ids))
    for name, picture in drawn.items():
        uses = re.findall(r'(?:url\(#|href="#)([^")]+)', picture.svg)
        assert all(use.startswith(f"{name}-") and use in ids for use in uses)


def test_axes_have_labels_with_units(drawn):
    for name, words in {
        "trade-off": ["median latency, ms (1 text of 128 tokens)", "accuracy on SST-2"],
        "ratios": ["times as fast as teacher fp32 (logarithmic)"],
        "latency-0": ["ms per call (logarithmic)"],
        "throughput-1": ["batch size", "texts per second (logarithmic)"],
        "scaling": ["threads", "times as fast as 1 thread"],
        "memory": ["MB", "interpreter", "imports", "model", "peak over it"],
        "cold-start": ["ms", "process", "load", "first answer"],
        "peak": ["% of the machine's measured peak"],
        "quality-2": ["pearson"],
    }.items():
        text = "".join(ElementTree.fromstring(drawn[name].svg).itertext())
        assert all(word in text for word in words), name


def test_a_contestant_looks_the_same_everywhere_and_unlike_every_other(whole):
    looks = style.looks_of(whole)
    teacher, torch = looks["teacher/fp32"], looks["teacher/fp32@torch-cpu"]
    assert (teacher.colour, teacher.marker) == (torch.colour, torch.marker)
    assert (teacher.hollow, teacher.line_style, torch.hollow, torch.line_style) == (False, "-", True, "--")
    assert len({(look.colour, look.marker, look.hollow) for look in looks.values()}) == len(looks)


def test_seventh_models_and_unknown_precisions_are_drawn_too():
    base = made.minimal()
    first = base.contestants[0]
    rows = [first.model_copy(update={"key": f"m{n}/int4", "model": f"m{n}", "precision": "int4"}) for n in range(8)]
    report = base.model_copy(update={"contestants": rows, "baseline": "m0/int4"})
    looks = list(style.looks_of(report).values())
    assert looks[6].colour == looks[0].colour
    assert {look.marker for look in looks} == {"X"}


def test_the_colours_of_both_schemes_have_the_contrast_that_graphics_need():
    def luminance(colour):
        parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    # WCAG 2.2, 1.4.11.
    assert min(contrast(colour, "#ffffff") for colour in style.LIGHT) >= 3
    assert min(contrast(colour, "#13171b") for colour in style.DARK) >= 3


def test_letters_that_matplotlib_has_not_and_dollars_do_no_harm():
    text = made.minimal().model_dump_json(by_alias=True).replace("student", r"学生 😀 $\\frac{$")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = draw(trade_off, report_schema.Report.model_validate_json(text))
    assert r"学生 😀 $\frac{$ fp32" in picture.svg


def test_without_quality_speed_stands_against_size():
    picture = draw(trade_off, made.minimal())
    assert picture.title == "Speed against size"
    assert "size of the files, MB" in picture.svg
    assert "Quality was not measured" in picture.caption


def test_where_low_is_good_the_axis_is_turned_so_that_up_is_better():
    base = made.made_report()

    def heights(quality):
        svg = draw(trade_off, base.model_copy(update={"quality": [quality]})).svg
        ticks = re.findall(r'y="([\d.]+)"[^>]*>(0\.\d+)<', svg) or re.findall(
            r'translate\([\d.]+ ([\d.]+)\)">(0\.\d+)<', svg
        )
        return sorted((float(value), float(where)) for where, value in ticks if value in {"0.88", "0.94"})

    (_, low), (_, high) = heights(base.quality[0])
    assert low > high
    (_, low), (_, high) = heights(base.quality[0].model_copy(update={"lower_is_better": True}))
    assert low < high


def test_no_picture_shows_a_number_that_was_disturbed():
    drawn = {picture.name: picture for group in charts(made.disturbed()).values() for picture in group}
    assert not [name for name in drawn if name.startswith(("trade-off", "throughput", "scaling"))]
    assert "disturbed" in drawn["ratios"].svg
    assert not re.search(r"\d\.\d\d×", drawn["ratios"].svg)
    assert "disturbed" in drawn["latency-0"].svg
    assert {"memory", "cold-start"} <= set(drawn)
