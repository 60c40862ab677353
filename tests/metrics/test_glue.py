import pytest

from potstill.bench import claims
from potstill.errors import UsageError
from potstill.metrics import GLUE_METRICS, glue_summary, glue_task

# DistilBERT's table 1 says 79.5 and 77.0 for the averages; the others are worked out from its rows.
BERT, DISTILBERT = claims.GLUE_BERT, claims.GLUE_DISTILBERT
ROUNDED = 0.0005


def test_the_papers_table_by_every_definition():
    found = glue_summary(DISTILBERT, BERT)
    assert found["scores"] == DISTILBERT
    assert found["average_with_wnli"] == pytest.approx(77.0, abs=0.05)
    assert found["average"] == pytest.approx(79.6, abs=0.05)
    assert found["retention_by_definition"] == pytest.approx(
        {"macro_with_wnli": 0.9687, "macro": 0.9618, "mean_of_ratios": 0.9570, "worst_task": 59.9 / 69.3}, abs=ROUNDED
    )
    assert found["worst_task"] == "RTE"
    assert found["retention"]["WNLI"] == pytest.approx(56.3 / 53.5)


@pytest.mark.parametrize("mnli", [82.2, 82.1], ids=["the paper's", "its repository's"])
def test_the_paper_keeps_96_9_percent_with_wnli_and_96_2_without(mnli):
    """Table 1 of arXiv 1910.01108 has 82.2 for MNLI, the README of the code 82.1: both round to the same shares."""
    kept = glue_summary(DISTILBERT | {"MNLI": mnli}, BERT)["retention_by_definition"]
    assert round(100 * kept["macro_with_wnli"], 1) == 96.9
    assert round(100 * kept["macro"], 1) == 96.2


def test_the_papers_cell_for_berts_mnli_is_a_misprint():
    """It prints 86.7, and the README 84.7: only that gives the mean of 79.5 that both print."""
    assert glue_summary(BERT)["average_with_wnli"] == pytest.approx(79.5)
    assert glue_summary(BERT | {"MNLI": 86.7})["average_with_wnli"] == pytest.approx(79.72, abs=0.01)


def test_without_a_reference_there_is_no_retention():
    assert glue_summary({"cola": 0.5, "sst2": 0.9, "wnli": 0.1}) == {
        "scores": {"CoLA": 0.5, "SST-2": 0.9, "WNLI": 0.1},
        "average": pytest.approx(0.7),
        "average_with_wnli": pytest.approx(0.5),
    }


def test_an_average_with_wnli_needs_wnli():
    found = glue_summary({"SST-2": 0.9}, BERT | {"SST-2": 1.0})
    assert (found["average"], found["average_with_wnli"]) == (0.9, None)
    assert found["retention"] == {"SST-2": 0.9}


def test_wnli_alone_is_no_summary():
    found = glue_summary({"WNLI": 0.56}, {"WNLI": 0.8})
    assert (found["average"], found["average_with_wnli"]) == (None, 0.56)
    assert found["retention"] == {"WNLI": pytest.approx(0.7)}
    assert "worst_task" not in found


def test_wnli_is_never_the_worst_task():
    scores = {"SST-2": 0.9, "WNLI": 0.1}
    assert glue_summary(scores, {"SST-2": 1.0, "WNLI": 1.0})["worst_task"] == "SST-2"


@pytest.mark.parametrize(
    ("name", "task"), [("sst2", "SST-2"), ("STSB", "STS-B"), ("sts-b", "STS-B"), ("cola", "CoLA"), ("qqp", "QQP")]
)
def test_a_task_is_known_by_any_spelling(name, task):
    assert glue_task(name) == task
    assert all(glue_task(known) == known for known in GLUE_METRICS)


def test_another_task_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"^'ax' is no task of GLUE; expected CoLA, MNLI, "):
        glue_summary({"ax": 0.5})


def test_a_task_that_is_there_twice_is_refused():
    with pytest.raises(UsageError, match=r"^a task is there twice in sst2, SST-2; give each once$"):
        glue_summary({"sst2": 0.9, "SST-2": 0.8})


@pytest.mark.parametrize(
    ("reference", "told"), [({}, "is missing"), ({"CoLA": 0.0}, "is 0.0"), ({"CoLA": -0.1}, "is -0.1")]
)
def test_nothing_can_be_kept_of_nothing(reference, told):
    with pytest.raises(UsageError, match=rf"^the reference's score of CoLA {told}; retention needs one above 0$"):
        glue_summary({"CoLA": 0.1}, reference)
