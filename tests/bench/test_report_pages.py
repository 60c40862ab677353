import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from potstill.bench import report, report_schema
from potstill.bench.claims.metrics import METRICS
from potstill.bench.report import tables
from potstill.bench.report.headline import answers
from potstill.bench.report.markdown import escape, to_markdown
from potstill.bench.report.page import gauge, to_html
from potstill.errors import UsageError
from tests.bench import made
from tests.bench.made_claims import decision

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source"}
HOSTILE = "<script>alert('x')</script>"
SCHEMA_FILE = Path(report.__file__).with_name("report.schema.json")


class Tree(HTMLParser):
    """Fail at a tag that is not closed in its turn; gather what a reader, a link or the network meets."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.headings = [], [], "", []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.tags.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and re.fullmatch(r"h\d", self.open[-1]):
            self.headings.append(data)

    def values(self, *names):
        return [attributes[name] for _, attributes in self.tags for name in names if name in attributes]


def parse(page):
    tree = Tree()
    tree.feed(page)
    assert tree.open == []
    return tree


@pytest.fixture(scope="module")
def whole():
    return made.made_report(third=True)


@pytest.fixture(scope="module")
def page(whole):
    return to_html(whole)


@pytest.fixture(scope="module")
def tree(page):
    return parse(page)


@pytest.fixture(scope="module")
def markdown(whole):
    return to_markdown(whole)


def test_a_report_is_written_and_read_back_whole(whole, tmp_path):
    report.write_report(whole, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    assert report.read_report(tmp_path) == report.read_report(tmp_path / "report.json") == whole
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "schema": "potstill-report/2",\n')
    assert "1×128" not in text or "\\u" not in text


def test_a_number_that_json_does_not_have_is_refused_before_anything_is_written(tmp_path):
    bad = made.minimal(noise=report_schema.Noise(floor=float("nan")))
    with pytest.raises(ValueError, match="Out of range float"):
        report.write_report(bad, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_report_of_this_kind_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "report.json"
    with pytest.raises(UsageError, match="does not exist; `potstill bench` writes one"):
        report.read_report(tmp_path)
    for text, message in {
        "{": "is not JSON",
        "[1]": "schema None",
        '{"schema": "other/9"}': "'other/9'; this potstill reads 'potstill-report/2'",
        '{"schema": "potstill-report/1", "models": {}}': "'potstill-report/1', which .* bench again",
        '{"schema": "potstill-report/2"}': "created: is missing; bench again",
    }.items():
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            report.read_report(file)


def test_the_schema_in_the_package_is_the_models_own_and_made_reports_hold_to_it(whole):
    # Write it anew with: python -c "from potstill.bench.report import to_schema; print(to_schema(), end='')"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == report.to_schema()
    schema = json.loads(report.to_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for found in (whole, made.minimal(), made.incomplete()):
        validator.validate(json.loads(report.to_json(found)))
    for broken in ({"schema": "potstill-report/1"}, {"seed": "x"}, {"more": 1}, {"latency": [{"key": "a"}]}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(json.loads(report.to_json(whole)) | broken)


def test_the_page_is_well_formed_and_reaches_no_network(page, tree):
    links = tree.values("src", "href", "xlink:href", "action")
    ids = tree.values("id")
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(ids)
    assert len(set(ids)) == len(ids)
    assert set(tree.values("aria-labelledby")) <= set(ids)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe|http-equiv", page)
    # A report for many data sets shall still go by mail.
    assert len(page.encode()) < 1_500_000


def test_the_page_opens_with_the_answer_and_the_verdicts_and_ends_with_what_reproduces_it(page, tree, whole):
    assert tree.headings[:2] == ["Text classification on 4 data sets: student and tiny against teacher", "At a glance"]
    order = [
        "</h1>",
        '<p class="answer">int8 student: ',
        '<h2 id="choice">',
        "1 claim holds, 2 do not and 1 cannot be decided.",
        "60\u00a0% faster",
        "<figure",
        "Every percentile",
        '<h2 id="quality">',
        '<h2 id="words">',
        "SHA-256 of every",
    ]
    assert [page.index(word) for word in order] == sorted(page.index(word) for word in order)
    assert whole.command in tree.text
    for row in whole.contestants:
        assert all(digest in tree.text for digest in row.sha256.values())
    assert all(quality.data_sha256 in tree.text for quality in whole.quality)


def test_every_section_of_the_report_is_on_the_page(page, tree, whole):
    for words in (
        "Speed against quality",
        "Times as fast, 1 text of 128 tokens",
        "8 texts of 16 tokens",
        "Throughput, 4 callers",
        "Thread scaling",
        "Memory at the peak, by part",
        "From nothing to the first answer",
        "STS-B",
        "mean of ratios",
        "calibration error",
        "Label by label",
        "worst label",
        "Share of the machine's peak",
        "Like for like",
        "no readable RAPL counters",
        "killed by signal 9",
        "avx512_vnni",
        "Noise floor",
        "McNemar, exact",
        "nyu-mll/glue:mrpc (validation)",
    ):
        assert words in tree.text, words
    assert all(quality.power.sentence in tree.text for quality in whole.quality)
    assert whole.quality[0].differences[0].text in tree.text
    for row in whole.quality[0].confusion[0].counts:
        assert all(f">{count}<" in page for count in row)


def test_a_percentile_that_the_calls_cannot_carry_says_how_many_are_missing(page):
    assert '<td class="soft">needs 42 more</td>' in page


def test_tables_name_their_columns_and_rows(tree):
    scopes = [attributes.get("scope") for tag, attributes in tree.tags if tag == "th"]
    assert set(scopes) == {"col", "row", "rowgroup"}
    tags = [tag for tag, _ in tree.tags]
    assert scopes.count("row") == tags.count("tr") - tags.count("thead") - scopes.count("rowgroup")
    scrolled = [attributes for tag, attributes in tree.tags if attributes.get("class") == "table"]
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolled)


def test_every_picture_says_in_words_what_it_shows(tree):
    pictures = [attributes for tag, attributes in tree.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(pictures) == 2 + 6 + 1 + 3 + 2 + 4
    assert all(len(attributes["aria-label"]) > 60 for attributes in pictures)
    assert "student fp32: 21.1 ms, 0.905, file of 268 MB" in pictures[0]["aria-label"]


def test_an_incomplete_or_disturbed_run_is_told_before_anything_else():
    text = parse(to_html(made.incomplete())).text
    told = text.index("This report is not complete")
    assert told < text.index("quality on WNLI") < text.index("The machine was disturbed")
    assert text.index("The machine was disturbed") < text.index("1 claim holds")
    lines = to_markdown(made.incomplete()).splitlines()
    assert lines[2].startswith("> **This report is not complete.** Not measured: latency of student/int8-static")
    assert "not complete" not in parse(to_html(made.made_report())).text


def test_what_was_not_measured_has_no_section_and_no_empty_column():
    tree = parse(to_html(made.minimal()))
    assert "Speed against size" in tree.text
    assert not {"Quality", "Memory and start", "Throughput and threads", "What failed"} & set(tree.headings)
    assert "peak memory" not in tree.text
    assert "no data was given" in tree.text


def test_names_and_texts_are_shown_and_never_run():
    text = made.made_report().model_dump_json(by_alias=True).replace("student", HOSTILE).replace("journey", "</q>&<b>")
    hostile = report_schema.Report.model_validate_json(text)
    page = to_html(hostile)
    tree = parse(page)
    assert "<script" not in page.lower()
    assert f"{HOSTILE} fp32" in tree.text
    assert "affecting </q>&<b>" in tree.text
    markdown = to_markdown(hostile)
    assert "<script" not in markdown
    assert "&#60;script&#62;alert('x')&#60;/script&#62; fp32" in markdown


def test_a_dollar_or_brace_in_a_name_is_no_formula_and_no_template():
    text = made.minimal().model_dump_json(by_alias=True).replace("student", r"$\\frac{a}{b}$ {{ 7 * 7 }}")
    page = to_html(report_schema.Report.model_validate_json(text))
    assert r"$\frac{a}{b}$ {{ 7 * 7 }}" in page
    assert "49" not in parse(page).headings[0]


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"value": 2.0, "interval": (1.9, 2.1), "target": 1.6}, (55.6, 78.0, 66.8, 22.0, True)),
        ({"value": 5.0, "interval": None, "target": 5.0, "direction": "at_most"}, (22.0, 22.0, 22.0, 22.0, False)),
    ],
)
def test_the_gauge_puts_value_interval_and_target_on_one_scale(changes, places):
    found = gauge(decision("x", "x", "PASS", measure="m", definition="", summary="", **changes))
    assert [found[name] for name in ("low", "high", "value", "target", "at_least")] == pytest.approx(places)


def test_a_claim_without_a_value_has_no_gauge():
    assert gauge(made.minimal().claims[-1]) is None


def test_markdown_tables_are_whole_and_the_verdicts_come_first(markdown, whole):
    lines = markdown.splitlines()
    assert lines[0] == "# Text classification on 4 data sets: student and tiny against teacher"
    assert [line.partition(":")[0] for line in lines[2:4]] == ["**int8 student", "**int8 tiny"]
    assert lines[5] == "| claim | verdict | about | measured | asked for |"
    assert (
        "| 60 % faster | ✓ PASS | student fp32 against teacher fp32, 1×128 | 2.00× (1.97 to 2.03) | at least 1.60× |"
        in (markdown.replace("\u00a0", " "))
    )
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    # Verdicts; failures, overview; four data sets; GLUE; labels of three; six of times and memory; models, files.
    assert len(blocks) == 1 + 2 + 4 + 1 + 3 + 6 + 2
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert markdown.count("<details>") == markdown.count("</details>") == 3 + 6 + 2 + 2


def test_markdown_shows_text_as_it_is():
    assert escape("a|b <i>*c* #1 @you &lt;") == ("a&#124;b &#60;i&#62;&#42;c&#42; &#35;1 &#64;you &amp;lt;")


def test_disturbed_rows_are_marked_in_every_form():
    found = made.disturbed()
    page, text = to_html(found), to_markdown(found)
    for form in (page, text):
        assert "student int8 †" in form
        assert "†: disturbed, so not to be believed" in form
        assert "other processes took 81" in form
    overview = next(line for line in text.splitlines() if line.startswith("| student int8 |"))
    assert overview.count("disturbed") == 3


def test_what_the_budget_left_out_stands_at_the_top():
    found = made.made_report(left_out=["cold starts (about 30 s)"])
    assert "The budget had no time for" in to_html(found)
    assert "cold starts (about 30 s)" in to_markdown(found).split("|")[0]


def test_every_label_stands_with_its_recall_and_what_it_loses(whole, tree, markdown):
    quality = whole.quality[0]
    table = tables.labels(whole, quality)
    baseline = next(row for row in quality.scores if row.key == whole.baseline)
    # The baseline's lowest first.
    lowest, highest = sorted(baseline.labels, key=lambda label: label.recall)
    assert [title for title, _ in table.groups] == [f"{label.label} ({label.support})" for label in (lowest, highest)]
    rows = {row[0]: row[1:] for row in table.groups[0][1]}
    student = next(row for row in quality.scores if row.key == "student/int8")
    label = next(label for label in student.labels if label.label == lowest.label)
    low, high = (f"{100 * end:.1f}" for end in label.interval)
    assert rows["student int8"][0] == f"{100 * label.recall:.1f} ({low} to {high})".replace(" (", "\u00a0% (")
    change = 100 * (label.recall - lowest.recall)
    assert rows["student int8"][1].startswith(f"{change:+.1f} (")
    assert rows["teacher fp32"][1] == "–"
    assert f"| {lowest.label} ({lowest.support}) | student int8 |" in markdown
    assert "Label by label" in tree.headings
    assert not tables.labels(whole, whole.quality[2])  # amounts


def test_more_tokens_for_the_same_texts_are_told_where_a_model_needs_them(whole, page):
    overview = tables.overview(whole)
    at = list(overview.head).index("tokens per text")
    cells = {row[0]: row[at] for row in overview.groups[0][1]}
    assert (cells["teacher fp32"], cells["student int8"], cells["tiny int8"]) == ("25.2", "25.2", "30.1 (1.19×)")
    assert "30.1 (1.19×)" in page
    # Of one tokenizer there is nothing to tell.
    assert "tokens per text" not in tables.overview(made.made_report()).head


def test_the_answer_tells_size_speed_and_score_of_the_precision_to_serve(whole):
    size = {row.key: row.file_bytes for row in whole.contestants}
    p50 = {row.key: row.p50_ms for row in whole.latency if str(row.load) == "1×128"}
    score = {row.key: row.value for row in whole.quality[0].scores}
    base, row = "teacher/fp32", "student/int8"
    assert answers(whole)[0].replace("\u00a0", " ") == (
        f"int8 student: {100 * (1 - size[row] / size[base]):.0f} % smaller, {p50[base] / p50[row]:.1f} times as fast, "
        f"accuracy {score[base]:.2f} to {score[row]:.2f} on SST-2"
    )
    # A row that something disturbed has no speed, and a report without data no score.
    assert "times as fast" not in answers(made.disturbed())[0]
    minimal = made.minimal()
    assert answers(minimal) == ["fp32 student: 39\u00a0% smaller, 2.0 times as fast"]
    lone = [row for row in whole.contestants if row.model == "teacher"]
    assert answers(whole.model_copy(update={"candidates": [], "contestants": lone}))[0].startswith("int8 teacher: 75")
    lone = [row for row in lone if row.key == base]
    assert answers(whole.model_copy(update={"candidates": [], "contestants": lone})) == [
        f"fp32 teacher: 438\u00a0MB, {p50[base]:.1f}\u00a0ms a call, accuracy {score[base]:.2f} on SST-2"
    ]


def test_scores_have_as_many_digits_as_tell_them_apart(whole):
    def told(teacher, student):
        quality = whole.quality[0]
        values = {"teacher/fp32": teacher, "student/int8": student}
        scores = [row.model_copy(update={"value": values.get(row.key, 0.5)}) for row in quality.scores]
        only = whole.model_copy(update={"quality": [quality.model_copy(update={"scores": scores})]})
        return answers(only)[0].rpartition(", accuracy ")[2]

    assert told(0.9011, 0.8912) == "0.90 to 0.89"
    assert told(0.8944, 0.8904) == "0.894 to 0.890"
    assert told(0.89441, 0.89439) == "0.8944 to 0.8944"
    assert told(0.89, 0.89) == "the same, 0.89"
    assert told(12.31, 14.0) == "12.3 to 14.0"


def test_every_card_has_one_large_number_and_every_sentence_a_capital(page, tree, whole):
    cards = re.findall(r'<article class="claim \w+">(.*?)</article>', page, re.DOTALL)
    numbers = [re.findall(r'<p class="number">(.*?)</p>', card) for card in cards]
    assert [len(found) for found in numbers] == [1] * len(whole.claims)
    speed = next(place for place, claim in enumerate(whole.claims) if claim.id == "speed")
    assert numbers[speed] == ["2.00×"]
    disturbed = parse(to_html(made.disturbed(reason="other processes took 81% of the time of the cores")))
    assert "While 1×128 was timed, other processes took 81\u00a0% of the time" in disturbed.text
    assert "Not measured. This machine has no readable RAPL" in tree.text
    assert "The process was killed by signal 9" in tree.text


def test_95_per_cent_is_written_one_way(page, tree):
    for text in (tree.text, *tree.values("aria-label")):
        assert not re.search(r"95(?: |&nbsp;)?%", text)
    assert tree.text.count("95\u00a0%") > 10


def test_hashes_settings_and_glossary_are_folded(page):
    folded = re.findall(r"<summary>(.*?)</summary>", page)
    assert {"Settings", "SHA-256 of every model and data file"} <= set(folded)
    assert any(title.endswith("words of this report") for title in folded)


def test_the_sentences_of_all_measures_begin_with_a_capital_and_not_with_a_name():
    for metric in METRICS.values():
        assert re.match(r"[A-Z0-9]", metric.sentence), metric.name
