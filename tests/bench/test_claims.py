import json

import pytest
import yaml

from potstill.bench import claims, report_schema
from potstill.bench.claims.claim_file import parse_claims
from potstill.bench.claims.metrics import METRICS
from potstill.errors import UsageError
from potstill.metrics import retention_by_definition
from tests.bench.made import made_report, minimal

BERT_BASE, DISTILBERT = 109_482_240, 66_362_880
LOAD = report_schema.Load(num_tokens=128)


def claim(**fields):
    """Return one claim as a user's file gives it."""
    facts = {"id": "mine", "claim": "as I want it"} | fields
    return parse_claims(yaml.safe_dump({"claims": [facts]}), origin="mine.yaml")[0]


def decide(report, **fields):
    return claims.decide(report, [claim(**fields)])


def paper(report, name):
    """Return the decision of one of the package's claims on the student."""
    found = [row for row in claims.decide(report, claims.load_claims(None)) if row.id == name]
    assert len(found) == 1
    return found[0]


def sized(teacher, student):
    """Return a report whose encoders have so many parameters."""
    facts = {"task": "text-classification", "max_length": 512}
    counts = {"teacher": teacher, "student": student}
    return minimal(
        models={
            # A head of 7 parameters must not count.
            name: report_schema.Model(parameters=count + 7, encoder_parameters=count, **facts)
            for name, count in counts.items()
        }
    )


def sped(value, interval, *, floor=None, load=LOAD):
    """Return a report with this one ratio."""
    row = report_schema.Ratio(
        comparison="like_for_like",
        baseline="teacher/fp32",
        candidate="student/fp32",
        load=load,
        rounds=12,
        value=value,
        interval=interval,
        finding="faster",
    )
    return minimal(ratios=[row], noise=report_schema.Noise(floor=floor))


# The package's own.


def test_the_package_claims_what_the_paper_claims():
    found = {row.id: (row.measure, row.direction, row.target) for row in claims.load_claims(None)}
    assert found == {
        "size": ("encoder_parameters_saved", "at_least", 0.40),
        "file": ("file_bytes_saved", "at_least", 0.40),
        "speed": ("speed_ratio", "at_least", 1.6),
        "quality": ("score_kept", "at_least", 0.97),
    }


def test_distilberts_own_count_is_not_40_per_cent_smaller():
    row = paper(sized(BERT_BASE, DISTILBERT), "size")
    assert row.value == pytest.approx(0.39385, abs=5e-6)
    assert row.interval == (row.value, row.value)
    assert (row.verdict, row.subject, row.against) == ("FAIL", "student", "teacher")
    assert "39.4\u00a0% fewer parameters than that of teacher (66,362,880 against 109,482,240)" in row.summary
    assert "interval" not in row.summary


def test_the_file_to_serve_is_held_against_the_teachers_fp32_and_its_own_fp32_is_told_beside_it():
    report = made_report()
    sizes = {row.key: row.file_bytes for row in report.contestants}
    row = paper(report, "file")
    assert (row.subject, row.against, row.verdict) == ("student/int8", "teacher/fp32", "PASS")
    assert row.value == pytest.approx(1 - sizes["student/int8"] / sizes["teacher/fp32"], rel=1e-12)
    assert row.interval == (row.value, row.value)
    assert row.summary == (
        "The files of student int8 have 84.5\u00a0% fewer bytes than those of teacher fp32 (67.9 against 438\u00a0MB; "
        "in fp32 268\u00a0MB, 38.8\u00a0% fewer). Asked for: at least 40\u00a0%."
    )


def test_without_int8_the_next_precision_is_served_and_counts():
    report = made_report()
    static = [row for row in report.contestants if row.key != "student/int8"]
    assert paper(made_report(contestants=static), "file").subject == "student/int8-static"
    plain = paper(minimal(), "file")
    assert (plain.subject, plain.verdict) == ("student/fp32", "FAIL")
    assert "in fp32" not in plain.summary
    gone = [row for row in report.contestants if row.model != "student"]
    lost = paper(made_report(contestants=gone), "file")
    assert (lost.subject, lost.reason) == ("student", "student was not measured; measured are none of its rows")


def labelled(**recalls):
    """Return a report with so many texts found of the labels of two rows: name=(of, teacher's, student's)."""
    sides = {}
    for place, key in enumerate(("teacher/fp32", "student/fp32"), start=1):
        sides[key] = [
            report_schema.LabelRecall(label=name, support=row[0], recall=row[place] / row[0], interval=(0.5, 0.9))
            for name, row in recalls.items()
        ]
    report = made_report()
    quality = report.quality[0]
    scores = [
        row.model_copy(
            update={
                "labels": sides[row.key],
                "worst_label": min(sides[row.key], key=lambda label: label.recall).model_copy(
                    update={"interval": (0.4, 0.95)}
                ),
                "tokens_per_text": 20.0 if row.key.startswith("teacher") else 25.0,
            }
        )
        if row.key in sides
        else row
        for row in quality.scores
    ]
    lost = [
        report_schema.LabelDifference(label=name, difference=(mine - theirs) / of, interval=(-0.3, -0.01))
        for name, (of, theirs, mine) in recalls.items()
    ]
    retention = [
        row.model_copy(update={"labels": lost})
        if (row.candidate, row.baseline) == ("student/fp32", "teacher/fp32")
        else row
        for row in quality.retention
    ]
    changed = quality.model_copy(update={"scores": scores, "retention": retention})
    return report.model_copy(update={"quality": [changed]})


def test_a_claim_is_about_the_worst_label_or_one_by_name():
    report = labelled(harmless=(500, 480, 470), jailbreak=(40, 36, 30))
    fp32 = {"model": "student", "precision": "fp32"}
    (worst,) = decide(report, measure="worst_label_recall", at_least=0.96, where=fp32)
    assert (worst.value, worst.interval, worst.where, worst.verdict) == (0.75, (0.4, 0.95), "SST-2", "FAIL")
    assert "The student fp32 finds 75.0\u00a0% of its worst label, jailbreak (40 on SST-2)" in worst.summary
    (one,) = decide(report, measure="label_recall", at_least=0.3, where=fp32 | {"label": "harmless"})
    assert (one.value, one.interval, one.where, one.verdict) == (0.94, (0.5, 0.9), "SST-2, harmless", "PASS")
    lost = decide(report, measure="label_points_lost", at_most=0.5, where=fp32 | {"against": "baseline"})
    assert [(row.where, row.verdict) for row in lost] == [("SST-2, harmless", "FAIL"), ("SST-2, jailbreak", "FAIL")]
    assert [row.value for row in lost] == pytest.approx([2.0, 15.0])
    assert lost[1].interval == pytest.approx((1.0, 30.0))
    (tokens,) = decide(report, measure="tokens_ratio", at_most=1.3, where=fp32)
    assert (tokens.value, tokens.verdict) == (1.25, "PASS")
    assert (
        "The student fp32 reads 1.25\u00a0times as many tokens of SST-2 as teacher fp32 (25.0 against" in tokens.summary
    )


def test_a_label_that_does_not_occur_is_told_with_those_that_do():
    report = labelled(harmless=(500, 480, 470), jailbreak=(40, 36, 30))
    where = {"model": "student", "precision": "fp32", "label": "jailbrake"}
    for measure in ("label_recall", "label_points_lost"):
        (row,) = decide(report, measure=measure, at_least=0.5, where=where)
        assert row.verdict == "INCONCLUSIVE"
        assert row.reason == "'jailbrake' is no label that occurs in SST-2; there are harmless, jailbreak"
    (row,) = decide(
        made_report(quality=made_report().quality[2:3]),
        measure="worst_label_recall",
        at_least=0.5,
        where={"model": "student", "precision": "fp32"},
    )
    assert row.reason == "answers on STS-B have no labels"


@pytest.mark.parametrize(("teacher", "student"), [(1000, 600), (110, 66), (25, 15), (70, 42)])
def test_exactly_40_per_cent_passes_and_one_parameter_more_fails(teacher, student):
    assert paper(sized(teacher, student), "size").verdict == "PASS"
    assert paper(sized(teacher, student + 1), "size").verdict == "FAIL"


def test_a_student_that_grew_is_said_to_have_more():
    assert "50.0\u00a0% more parameters" in paper(sized(100, 150), "size").summary


def test_the_papers_seconds_pass_as_throughput_and_are_39_per_cent_less_time():
    row = paper(sped(668 / 410, (1.61, 1.65)), "speed")
    assert row.value == pytest.approx(1.629, abs=5e-4)
    assert (row.verdict, row.where, row.unit) == ("PASS", "1×128", "×")
    assert "The student fp32 answers 1.63\u00a0times as many texts per second as teacher fp32" in row.summary
    assert "(95\u00a0% interval 1.61 to 1.65\u00a0times), which is 39\u00a0% less time per text" in row.summary
    assert row.summary.endswith("Asked for: at least 1.6 times.")


def test_speed_is_decided_at_batch_1_and_the_longest_length_and_nowhere_else():
    assert paper(made_report(), "speed").where == "1×128"
    report = made_report()
    wide = {
        "latency": [row for row in report.latency if row.load.batch_size == 8],
        "ratios": [row for row in report.ratios if row.load.batch_size == 8],
    }
    row = paper(made_report(config={"batch_sizes": [8], "num_tokens": [16, 128]}, **wide), "speed")
    assert (row.verdict, row.where) == ("INCONCLUSIVE", "1×longest")
    assert row.reason.endswith("at 1×longest was not measured; measured are 8×16, 8×128")


def test_an_interrupted_bench_is_not_decided_at_the_longest_length_it_got_to():
    report = made_report()
    short = [row for row in report.latency if row.load.num_tokens == 16]
    ratios = [row for row in report.ratios if row.load.num_tokens == 16]
    row = paper(made_report(complete=False, latency=short, ratios=ratios), "speed")
    assert (row.verdict, row.where) == ("INCONCLUSIVE", "1×128")
    assert "interrupted" in row.reason


@pytest.mark.parametrize(
    ("interval", "floor", "verdict"),
    [
        ((1.61, 1.65), None, "PASS"),
        ((1.61, 1.65), 0.018, "PASS"),  # 1.63 is 1.875 % above 1.6
        ((1.61, 1.65), 0.019, "INCONCLUSIVE"),
        ((1.55, 1.59), None, "FAIL"),
        ((1.55, 1.59), 0.018, "FAIL"),
        ((1.55, 1.59), 0.019, "INCONCLUSIVE"),
        ((1.58, 1.66), None, "INCONCLUSIVE"),
    ],
)
def test_a_ratio_of_times_must_clear_the_noise_floor_too(interval, floor, verdict):
    row = paper(sped(sum(interval) / 2, interval, floor=floor), "speed")
    assert row.verdict == verdict
    assert (row.reason is None) == (verdict != "INCONCLUSIVE")


def test_the_reason_tells_noise_from_too_few_samples():
    assert "noise (2.0\u00a0%)" in paper(sped(1.63, (1.61, 1.65), floor=0.02), "speed").reason
    crossing = paper(sped(1.6, (1.5, 1.7), floor=0.02), "speed")
    assert crossing.reason == "the target is within the interval"
    assert crossing.summary.endswith("Not decided: the target is within the interval.")


def test_quality_on_one_data_set_is_its_retention():
    report = made_report(quality=made_report().quality[:1])
    kept = next(
        row for row in report.quality[0].retention if (row.baseline, row.candidate) == ("teacher/fp32", "student/fp32")
    )
    row = paper(report, "quality")
    assert (row.value, row.interval, row.where) == (kept.kept, kept.kept_interval, "SST-2")
    assert "of teacher fp32's accuracy on SST-2" in row.summary


def test_quality_on_several_data_sets_names_every_definition():
    kept = retention_by_definition(claims.GLUE_BERT, claims.GLUE_DISTILBERT)
    row = report_schema.GlueRow(
        baseline="teacher/fp32",
        candidate="student/fp32",
        scores=claims.GLUE_DISTILBERT,
        baseline_scores=claims.GLUE_BERT,
        worst_task_name="RTE",
        macro_interval=(0.955, 0.968),
        **kept,
    )
    found = paper(made_report(glue=[row]), "quality")
    assert found.value == pytest.approx(636.8 / 662.0)  # of sums without WNLI
    assert (found.verdict, found.where) == ("FAIL", "all data sets")
    for words in (
        "96.9\u00a0% with WNLI",
        "96.2\u00a0% without",
        "95.7\u00a0% as the mean of the ratios",
        "86.4\u00a0% on the worst task (RTE)",
    ):
        assert words in found.summary


def test_data_sets_without_a_mean_are_decided_one_by_one():
    found = claims.decide(made_report(glue=[]), claims.load_claims(None))
    assert [row.where for row in found if row.id == "quality"] == ["SST-2", "MRPC", "STS-B", "WNLI"]


def test_without_data_quality_is_inconclusive_with_a_reason():
    row = paper(minimal(), "quality")
    assert (row.verdict, row.value, row.interval) == ("INCONCLUSIVE", None, None)
    assert row.reason == "no data was given (--data)"
    assert row.summary == "Not decided for student fp32: no data was given (--data)."


def test_every_candidate_is_decided():
    found = claims.decide(made_report(third=True), claims.load_claims(None))
    assert [row.subject for row in found] == [
        "student",
        "tiny",
        "student/int8",
        "tiny/int8",
        "student/fp32",
        "tiny/fp32",
        "student/fp32",
        "tiny/fp32",
    ]


def test_a_model_alone_has_nothing_to_be_held_against_but_its_own_times_are_decided():
    alone = minimal(candidates=[])
    row = paper(alone, "speed")
    assert (row.verdict, row.subject) == ("INCONCLUSIVE", "teacher")
    assert "only model" in row.reason
    assert [row.subject for row in decide(alone, measure="latency_p50_ms", at_most=1e6)] == ["teacher/fp32"]


# Verdicts.


@pytest.mark.parametrize(
    ("interval", "direction", "floor", "verdict"),
    [
        ((10.0, 12.0), "at_least", 0.0, "PASS"),
        ((9.9, 12.0), "at_least", 0.0, "INCONCLUSIVE"),
        ((8.0, 9.9), "at_least", 0.0, "FAIL"),
        ((8.0, 10.0), "at_least", 0.0, "INCONCLUSIVE"),
        ((8.0, 10.0), "at_most", 0.0, "PASS"),
        ((8.0, 10.1), "at_most", 0.0, "INCONCLUSIVE"),
        ((10.1, 12.0), "at_most", 0.0, "FAIL"),
        ((10.0, 12.0), "at_most", 0.0, "INCONCLUSIVE"),
        ((8.0, 9.9), "at_most", 0.1, "PASS"),
        ((8.2, 9.9), "at_most", 0.1, "INCONCLUSIVE"),
        ((10.1, 11.8), "at_most", 0.1, "INCONCLUSIVE"),
        ((10.1, 12.0), "at_most", 0.1, "FAIL"),
        ((10.1, 11.8), "at_least", 0.1, "INCONCLUSIVE"),
        ((10.0, 10.0), "at_least", 0.0, "PASS"),
        ((10.0, 10.0), "at_most", 0.0, "PASS"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side_of_10(interval, direction, floor, verdict):
    assert claims.verdict(sum(interval) / 2, interval, target=10.0, direction=direction, floor=floor) == verdict


# A user's claims.


def test_a_users_claim_without_a_precision_is_decided_for_every_one_of_the_baselines_engine():
    found = decide(made_report(), measure="latency_p95_ms", at_most=30, where={"load": "1x128"})
    assert [row.subject for row in found] == ["student/fp32", "student/int8", "student/int8-static"]
    assert {row.where for row in found} == {"1×128"}


def test_a_named_engine_is_taken_instead():
    found = decide(made_report(), measure="resident_mb", at_most=1, where={"runner": "torch-cpu"})
    assert [row.subject for row in found] == ["student/fp32@torch-cpu"]


def test_a_model_that_the_baselines_engine_never_ran_is_decided_for_its_own():
    report = made_report(
        contestants=[row for row in made_report().contestants if row.key in ("teacher/fp32", "student/fp32@torch-cpu")]
    )
    assert [row.subject for row in decide(report, measure="resident_mb", at_most=1)] == ["student/fp32@torch-cpu"]


def test_p95_at_most_10_ms_at_1x64_was_not_measured_and_says_what_was():
    (row,) = decide(made_report(), measure="latency_p95_ms", at_most=10, where={"load": "1x64", "precision": "fp32"})
    assert row.verdict == "INCONCLUSIVE"
    assert row.reason == (
        "latency of student/fp32 at 1×64 was not measured; measured are 1×16, 1×128, 8×16, 8×128, own texts, "
        "own texts, tokenised"
    )


def test_the_own_texts_are_a_load():
    report = made_report()
    (row,) = decide(
        report, measure="latency_p50_ms", at_most=1, where={"load": "own texts, tokenised", "precision": "int8"}
    )
    wanted = [each for each in report.latency if (each.key, each.load.kind) == ("student/int8", "texts_tokenised")]
    assert row.value == wanted[0].p50_ms


def test_int8_loses_at_most_half_a_point_against_the_same_models_fp32():
    report = made_report()
    found = decide(
        report, measure="points_lost", at_most=0.5, where={"precision": "int8", "against": "fp32", "data": "sst2"}
    )
    scores = {row.key: row.value for row in report.quality[0].scores}
    assert [(row.subject, row.against, row.where) for row in found] == [("student/int8", "student/fp32", "SST-2")]
    assert found[0].value == pytest.approx(100 * (scores["student/fp32"] - scores["student/int8"]))


def test_fp32_is_not_held_against_itself():
    found = decide(made_report(), measure="file_bytes_share", at_most=0.3, where={"against": "fp32"})
    assert [row.subject for row in found] == ["student/int8", "student/int8-static"]
    assert {row.verdict for row in found} == {"PASS"}
    alone = decide(minimal(), measure="file_bytes_share", at_most=0.3, where={"against": "fp32"})
    assert [(row.subject, row.verdict) for row in alone] == [("student", "INCONCLUSIVE")]


def test_the_baseline_itself_can_be_named_but_not_held_against_itself():
    assert decide(made_report(), measure="file_mb", at_most=1, where={"model": "teacher", "precision": "fp32"})
    (row,) = decide(made_report(), measure="parameters_saved", at_least=0, where={"model": "teacher"})
    assert (row.verdict, row.reason) == ("INCONCLUSIVE", "teacher is the baseline itself")


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"model": "studnet"}, "no model is called studnet; there are teacher, student"),
        ({"precision": "fp16"}, "student was not measured in fp16; measured are student/fp32, student/int8"),
        ({"precision": "int8", "runner": "torch-cuda"}, "student was not measured in int8 by torch-cuda; measured"),
        ({"data": "CoLA"}, "quality on CoLA was not measured; measured are SST-2, MRPC, STS-B, WNLI"),
    ],
)
def test_what_was_not_measured_is_inconclusive_and_says_what_was(where, reason):
    found = decide(made_report(), measure="score", at_least=0.9, where=where)
    assert {row.verdict for row in found} == {"INCONCLUSIVE"}
    assert found[0].reason.startswith(reason)


def test_a_failure_is_the_reason():
    report = made_report()
    gone = [row for row in report.contestants if row.key != "student/int8"]
    crash = report_schema.Failure(key="student/int8", stage="load", kind="crash", reason="killed by signal 9")
    (row,) = decide(
        made_report(contestants=gone, failures=[crash]), measure="file_mb", at_most=1, where={"precision": "int8"}
    )
    assert row.reason == "student/int8 failed (load): killed by signal 9"
    (lost,) = decide(report, measure="latency_p50_ms", at_most=1, where={"load": "8x128", "precision": "int8-static"})
    assert lost.reason.startswith("student/int8-static failed (latency): the process was killed by signal 9 at 8×128")


def test_a_baseline_that_failed_is_told_as_well():
    report = made_report()
    crash = report_schema.Failure(key="teacher/fp32", stage="latency", kind="hang", where="1×128", reason="no answer")
    changed = made_report(
        ratios=[], latency=[row for row in report.latency if row.key != "teacher/fp32"], failures=[crash]
    )
    assert paper(changed, "speed").reason == "teacher/fp32 failed (latency): no answer"


def test_a_claim_without_a_definition_takes_the_measures_own_words():
    (row,) = decide(made_report(), measure="peak_mb", at_most=10, where={"precision": "fp32"})
    assert row.definition == "Highest resident memory of its process while it answers."
    assert (row.unit, row.verdict, row.direction, row.target) == ("MB", "FAIL", "at_most", 10)
    assert "Asked for: at most 10\u00a0MB." in row.summary


def test_decisions_fit_into_a_report_and_survive_json():
    report = made_report()
    found = claims.decide(report, claims.load_claims(None))
    again = made_report(claims=found).model_dump_json(by_alias=True)
    assert report_schema.Report.model_validate(json.loads(again)).claims == found


@pytest.mark.parametrize("measure", METRICS)
def test_every_measure_can_be_claimed_and_gives_a_whole_sentence(measure):
    for row in decide(made_report(third=True), measure=measure, at_least=0.5):
        assert row.measure == measure
        assert "{" not in row.summary
        assert row.summary.endswith(".")
        assert (row.verdict == "INCONCLUSIVE") == (row.reason is not None)


# Disturbance.


def disturbed(reason="other processes took 81% of the time of the cores", *, speed=26.32):
    report = sped(speed, (speed * 0.99, speed * 1.01))
    rows = [row.model_copy(update={"disturbed": reason, "finding": "disturbed"}) for row in report.ratios]
    latency = [row.model_copy(update={"disturbed": reason}) for row in report.latency]
    return report.model_copy(update={"ratios": rows, "latency": latency})


def test_a_disturbed_ratio_neither_passes_nor_fails_and_is_not_shown():
    for speed in (26.32, 1.1):
        found = paper(disturbed(speed=speed), "speed")
        assert (found.verdict, found.value, found.interval) == ("INCONCLUSIVE", None, None)
        assert "other processes took 81% of the time of the cores" in found.reason
        assert "26.32" not in found.summary
        assert claims.require([found], ["speed"]) == [found]
    assert paper(disturbed(), "size").verdict != "INCONCLUSIVE"  # what is counted is counted


@pytest.mark.parametrize(
    ("measure", "limit"),
    [
        ("latency_p50_ms", 1e9),
        ("latency_p95_ms", 1e9),
        ("concurrent_texts_per_s", 1e-9),
        ("cold_start_ms", 1e9),
        ("texts_per_s", 1e-9),
        ("speed_ratio", 1e-9),
    ],
)
def test_every_time_of_a_disturbed_row_is_left_undecided(measure, limit):
    direction = "at_most" if limit > 1 else "at_least"
    wanted = {"measure": measure, direction: limit, "where": {"precision": "fp32"}}
    report = made_report()
    (calm,) = decide(report, **wanted)
    assert calm.verdict == "PASS"
    parts = ("latency", "ratios", "throughput", "cold_start")
    spoilt = {
        part: [row.model_copy(update={"disturbed": "the host took 9%"}) for row in getattr(report, part)]
        for part in parts
    }
    (found,) = decide(report.model_copy(update=spoilt), **wanted)
    assert (found.verdict, found.value) == ("INCONCLUSIVE", None)
    assert "the host took 9%" in found.reason
    # A report of before, whose flags name no row, is about all of them.
    flagged = report.model_copy(update={"noise": report_schema.Noise(floor=0.0, flags=["The host took 9%."])})
    (found,) = decide(flagged, **wanted)
    assert found.verdict == "INCONCLUSIVE"
    assert "The host took 9%" in found.reason


def test_a_row_that_nothing_disturbed_is_decided_beside_one_that_was():
    report = made_report()
    latency = [
        row.model_copy(update={"disturbed": "others"}) if str(row.load) == "1×16" else row for row in report.latency
    ]
    report = report.model_copy(
        update={"latency": latency, "noise": report_schema.Noise(floor=0.0, flags=["While 1×16 was timed, others."])}
    )
    wanted = {"measure": "latency_p50_ms", "at_most": 1e9}
    verdicts = {
        load: decide(report, where={"precision": "fp32", "load": load}, **wanted)[0].verdict
        for load in ("1x16", "1x128")
    }
    assert verdicts == {"1x16": "INCONCLUSIVE", "1x128": "PASS"}


def test_memory_is_decided_by_its_processes_and_beyond_its_own_noise():
    def held(low, high, floor):
        span = {"peak_bytes": (low * 1e6, high * 1e6)}
        report = made_report()
        rows = [
            row.model_copy(update={"peak_bytes": int((low + high) / 2 * 1e6), "launches": 6, "intervals": span})
            for row in report.memory
        ]
        return report.model_copy(
            update={"memory": rows, "noise": report_schema.Noise(floor=0.0, floors={"memory": floor})}
        )

    wanted = {"measure": "peak_mb", "at_most": 200, "where": {"precision": "fp32", "runner": "onnxruntime-cpu"}}
    verdicts = [decide(held(*seen), **wanted)[0].verdict for seen in ((180, 190, 0), (180, 210, 0), (205, 210, 0))]
    assert verdicts == ["PASS", "INCONCLUSIVE", "FAIL"]
    assert decide(held(190, 194, 0.06), **wanted)[0].verdict == "INCONCLUSIVE"


# Requiring.


def test_required_are_those_that_do_not_pass():
    found = [paper(sized(1000, 600), "size"), paper(sped(1.5, (1.4, 1.7)), "speed"), paper(minimal(), "quality")]
    assert [row.id for row in claims.require(found, "all")] == ["speed", "quality"]
    assert claims.require(found, ["size"]) == []
    assert [row.id for row in claims.require(found, ["size", "quality"])] == ["quality"]
    with pytest.raises(UsageError, match=r"no claim is called 'spede'; did you mean 'speed'\?"):
        claims.require(found, ["spede"])


def test_one_candidate_that_fails_is_enough():
    found = decide(made_report(third=True), measure="encoder_parameters_saved", at_least=0.40)
    assert [row.verdict for row in found] == ["FAIL", "PASS"]
    assert [row.subject for row in claims.require(found, ["mine"])] == ["student"]


# The paper.


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


def with_worthless_student(report):
    """Return the report with a student that is not shown to be better than an answer that ignores the text."""
    quality = report.quality[0]
    scores = [
        row.model_copy(update={"better_than_trivial": not row.key.startswith("student/")}) for row in quality.scores
    ]
    return report.model_copy(update={"quality": [quality.model_copy(update={"scores": scores})], "glue": []})


@pytest.mark.parametrize(("measure", "target"), [("score_kept", {"at_least": 0.1}), ("points_lost", {"at_most": 90})])
def test_a_student_that_is_no_better_than_a_constant_answer_passes_nothing(measure, target):
    report = made_report()
    name = report.quality[0].name
    asked = {"id": "q", "claim": "good", "measure": measure, "where": {"precision": "fp32", "data": name}, **target}
    sound = decide(report.model_copy(update={"glue": []}), **asked)[0]
    assert sound.verdict == "PASS"
    found = decide(with_worthless_student(report), **asked)[0]
    assert (found.verdict, found.value) == ("INCONCLUSIVE", sound.value)
    assert found.reason == f"student/fp32 is not shown to be better on {name} than an answer that ignores the text"
