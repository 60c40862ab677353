import pytest

from potstill.bench import claims
from potstill.metrics import retention_by_definition
from potstill.timing.ratio import Estimate

BERT_BASE, DISTILBERT = 109_482_240, 66_362_880


def models(teacher, student, sizes=(438, 67)):
    return {
        name: {"parameters": count, "precisions": {"fp32": {"size_bytes": size}}}
        for name, count, size in zip(("teacher", "student"), (teacher, student), sizes, strict=True)
    }


def test_task_heads_do_not_count():
    counted = models(109_483_778, 66_955_010)
    counted["teacher"]["architecture"] = {"encoder_parameters": BERT_BASE}
    counted["student"]["architecture"] = {"encoder_parameters": DISTILBERT}
    assert claims.decide_size(counted)["value"] == pytest.approx(0.394, abs=5e-4)


def test_distilberts_own_count_is_not_40_per_cent_smaller():
    row = claims.decide_size(models(BERT_BASE, DISTILBERT))
    assert row["value"] == pytest.approx(0.39385, abs=5e-6)
    assert row["interval"] == [row["value"], row["value"]]
    assert row["verdict"] == "FAIL"
    assert "39.4\u00a0% fewer" in row["summary"]


def test_exactly_40_per_cent_passes_and_one_parameter_more_fails():
    assert claims.decide_size(models(1000, 600))["verdict"] == "PASS"
    assert claims.decide_size(models(1000, 601))["verdict"] == "FAIL"


def test_a_student_that_grew_is_said_to_have_more():
    assert "50.0\u00a0% more parameters" in claims.decide_size(models(100, 150))["summary"]


def test_file_bytes_stand_beside_the_parameters():
    assert claims.decide_size(models(2, 1, sizes=(400, 100)))["file_size_ratio"] == {"fp32": 0.25}


def test_the_papers_seconds_pass_as_throughput_and_are_39_per_cent_less_time():
    row = claims.decide_speed(Estimate(668 / 410, 1.61, 1.65), cell="1×128")
    assert row["value"] == pytest.approx(1.629, abs=5e-4)
    assert row["verdict"] == "PASS"
    assert "39\u00a0% less time" in row["summary"]


def test_a_speed_up_whose_interval_crosses_the_line_is_inconclusive():
    assert claims.decide_speed(Estimate(1.62, 1.58, 1.66), cell="1×128")["verdict"] == "INCONCLUSIVE"


def test_what_was_not_measured_is_inconclusive_with_a_reason():
    row = claims.decide_quality(None, reason="no data was given (--data)")
    assert (row["verdict"], row["value"], row["interval"]) == ("INCONCLUSIVE", None, None)
    assert row["reason"] == "no data was given (--data)"


def test_the_papers_table_gives_its_97_per_cent_by_one_definition_of_four():
    kept = retention_by_definition(claims.GLUE_BERT, claims.GLUE_DISTILBERT)
    assert {name: round(100 * value, 1) for name, value in kept.items()} == {
        "macro_with_wnli": 96.9,
        "macro": 96.2,
        "mean_of_ratios": 95.7,
        "worst_task": 86.4,
    }


def test_the_papers_means_are_79_5_and_77_0():
    means = [sum(table.values()) / 9 for table in (claims.GLUE_BERT, claims.GLUE_DISTILBERT)]
    assert [round(mean, 1) for mean in means] == [79.5, 77.0]
