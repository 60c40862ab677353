import pytest

from potstill.bench import report_schema
from potstill.bench.claims.metrics import METRICS, MetricValue, Selection
from potstill.evaluation.intervals import wilson
from tests.bench.made import made_report

LOAD = report_schema.Load(num_tokens=128)
KEY, BASE = "student/int8", "teacher/int8"
PICK = Selection(model="student", key=KEY, against=BASE, load="1×128", callers=4, data="SST-2")
OF_MODELS = Selection(model="student", against="teacher", load="1×128")


def read(name, report=None, pick=PICK):
    return METRICS[name].read(report or made_report(), pick)


def only(rows, **fields):
    """Return the one row with these fields."""
    (row,) = [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]
    return row


def replaced(rows, key, **changes):
    """Return the rows with fields of one row changed."""
    return [row.model_copy(update=changes) if row.key == key else row for row in rows]


def test_the_measures_are_those_that_are_promised():
    assert set(METRICS) == {
        "encoder_parameters_saved",
        "parameters_saved",
        "flops_saved",
        "file_bytes_saved",
        "file_bytes_share",
        "file_mb",
        "compressed_mb",
        "speed_ratio",
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "texts_per_s",
        "concurrent_texts_per_s",
        "score",
        "score_kept",
        "points_lost",
        "worst_label_recall",
        "label_recall",
        "label_points_lost",
        "tokens_ratio",
        "agreement",
        "calibration_error",
        "resident_mb",
        "peak_mb",
        "private_mb",
        "gpu_mb",
        "cold_start_ms",
        "joules_per_text",
    }
    assert [name for name, measure in METRICS.items() if measure.floor == "load"] == ["speed_ratio"]
    # Whatever else the machine did goes into these and into no others.
    assert {name for name, measure in METRICS.items() if measure.timed} == {
        "speed_ratio",
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "texts_per_s",
        "concurrent_texts_per_s",
        "cold_start_ms",
        "joules_per_text",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_parameters_saved", (109_482_240 - 66_362_880) / 109_482_240),
        ("parameters_saved", (109_483_778 - 66_955_010) / 109_483_778),
        # 2 per weight outside the embeddings, and 4 x layers x hidden x tokens of attention.
        ("flops_saved", 1 - (2 * 42_525_696 + 4 * 6 * 768 * 128) / (2 * 85_645_056 + 4 * 12 * 768 * 128)),
    ],
)
def test_what_is_counted_is_its_own_interval(name, value):
    found = read(name, pick=OF_MODELS)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.interval == (found.value, found.value)


def test_the_share_of_saved_parameters_is_rounded_once():
    facts = {"task": "text-classification", "max_length": 9}
    models = {
        "teacher": report_schema.Model(parameters=10, encoder_parameters=10, **facts),
        "student": report_schema.Model(parameters=9, encoder_parameters=9, **facts),
    }
    assert 1 - 9 / 10 < 0.1
    assert read("encoder_parameters_saved", made_report(models=models), OF_MODELS).value == 0.1


def test_flops_of_another_length_or_architecture_are_not_known():
    assert "lengths of 16, 128 tokens" in read(
        "flops_saved", pick=Selection(model="student", against="teacher", load="1×64")
    )
    models = made_report().models
    unknown = {"student": models["student"].model_copy(update={"flops_per_token": None})}
    assert "student's architecture" in read("flops_saved", made_report(models=models | unknown), OF_MODELS)


def test_files_are_held_against_each_other_and_told_in_mb():
    contestants = replaced(made_report().contestants, KEY, file_bytes=30_000_000, compressed_bytes=20_000_000)
    report = made_report(contestants=replaced(contestants, BASE, file_bytes=120_000_000))
    assert read("file_bytes_share", report) == MetricValue(value=0.25, interval=(0.25, 0.25))
    assert read("file_mb", report) == MetricValue(value=30.0, interval=(30.0, 30.0))
    assert read("compressed_mb", report) == MetricValue(value=20.0, interval=(20.0, 20.0))
    assert isinstance(read("file_bytes_share", made_report(contestants=[])), str)
    assert isinstance(read("file_mb", made_report(contestants=replaced(contestants, KEY, file_bytes=None))), str)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("resident_mb", "loaded_rss_bytes"),
        ("peak_mb", "peak_bytes"),
        ("private_mb", "after_uss_bytes"),
        ("gpu_mb", "gpu_peak_reserved_bytes"),
        ("gpu_mb", "gpu_peak_allocated_bytes"),
    ],
)
def test_memory_is_read_from_its_own_field(name, field):
    report = made_report(memory=replaced(made_report().memory, KEY, **{field: 123_000_000}))
    assert read(name, report) == MetricValue(value=123.0, interval=(123.0, 123.0))


def test_reserved_gpu_memory_goes_before_allocated():
    both = {"gpu_peak_reserved_bytes": 2_000_000, "gpu_peak_allocated_bytes": 1_000_000}
    assert read("gpu_mb", made_report(memory=replaced(made_report().memory, KEY, **both))).value == 2.0


def test_the_ratio_is_that_of_the_paired_rounds():
    row = only(made_report().ratios, baseline=BASE, candidate=KEY, load=LOAD)
    found = read("speed_ratio")
    assert (found.value, found.interval) == (row.value, row.interval)
    assert found.note == ", which is 50\u00a0% less time per text"


def test_the_noise_run_is_no_ratio():
    again = only(made_report().ratios, comparison="again", load=LOAD)
    report = made_report(ratios=[again.model_copy(update={"baseline": BASE, "candidate": KEY, "value": 7.0})])
    assert read("speed_ratio", report).value == pytest.approx(2.0, rel=0.05)


def test_without_paired_rounds_the_ratio_comes_from_both_medians():
    latency = replaced(made_report().latency, KEY, p50_ms=10.0, intervals={"p50": (9.0, 11.0)})
    report = made_report(ratios=[], latency=replaced(latency, BASE, p50_ms=15.0, intervals={"p50": (15.0, 15.0)}))
    found = read("speed_ratio", report)
    assert found.value == pytest.approx(1.5)
    assert found.interval == pytest.approx((15 / 11, 15 / 9))
    assert found.note.endswith("unpaired")
    slower = Selection(model="student", key=BASE, against=KEY, load="1×128")
    assert "50\u00a0% more time" in read("speed_ratio", report, slower).note


@pytest.mark.parametrize("name", ["p50", "p90", "p95"])
def test_percentiles_come_with_their_interval(name):
    row = only(made_report().latency, key=KEY, load=LOAD)
    found = read(f"latency_{name}_ms")
    assert (found.value, found.interval) == (getattr(row, f"{name}_ms"), row.intervals[name])


def test_a_withheld_percentile_says_how_many_calls_lack():
    row = only(made_report().latency, key=KEY, load=LOAD)
    assert row.missing["p99"] == 662 - row.samples
    assert read("latency_p99_ms") == (
        f"p99 at 1×128 needs {662 - row.samples} more calls than the {row.samples} of student/int8"
    )


def test_texts_per_second_are_batch_size_by_time():
    batched = report_schema.Load(batch_size=8, num_tokens=128)
    latency = replaced(made_report().latency, KEY, p50_ms=40.0, intervals={"p50": (32.0, 50.0)})
    found = read("texts_per_s", made_report(latency=latency), Selection(model="student", key=KEY, load=str(batched)))
    assert found == MetricValue(value=200.0, interval=(160.0, 250.0))


def test_concurrent_texts_are_of_the_load_and_the_callers():
    report = made_report()
    for load, callers in (("1×64", 4), ("32×64", 1)):
        pick = Selection(model="student", key=KEY, load=load, callers=callers)
        (row,) = [row for row in report.throughput if (row.key, str(row.load), row.callers) == (KEY, load, callers)]
        found = read("concurrent_texts_per_s", report, pick)
        assert (found.value, found.interval) == (row.texts_per_s, row.interval)
    lost = read("concurrent_texts_per_s", report, Selection(model="student", key=KEY, load="1×64", callers=9))
    assert lost.startswith("throughput with 9 callers of student/int8 at 1×64 was not measured; measured are 1×64 with")


def test_scores_are_those_of_the_data_set():
    quality = only(made_report().quality, name="MRPC")
    score, paired = only(quality.scores, key=KEY), only(quality.retention, candidate=KEY, baseline=BASE)
    pick = Selection(model="student", key=KEY, against=BASE, data="MRPC")
    assert read("score", pick=pick) == MetricValue(value=score.value, interval=score.interval, what="f1 on MRPC")
    assert read("score_kept", pick=pick).interval == paired.kept_interval
    lost = read("points_lost", pick=pick)
    assert lost.value == pytest.approx(-100 * paired.difference)
    assert lost.interval == pytest.approx((-100 * paired.difference_interval[1], -100 * paired.difference_interval[0]))
    assert lost.interval[0] <= lost.value <= lost.interval[1]


def test_without_a_paired_row_both_scores_own_intervals_are_combined():
    quality = made_report().quality[0]
    scores = [
        report_schema.Score(key=KEY, value=0.8, interval=(0.77, 0.83), scores={}),
        report_schema.Score(key=BASE, value=0.9, interval=(0.86, 0.94), scores={}),
    ]
    report = made_report(quality=[quality.model_copy(update={"scores": scores, "retention": []})])
    lost = read("points_lost", report)
    assert lost.value == pytest.approx(10.0)
    assert lost.interval == pytest.approx((5.0, 15.0))  # 3 and 4 in squares are 5
    assert "unpaired" in lost.note
    kept = read("score_kept", report)
    assert kept.value == pytest.approx(8 / 9)
    assert kept.interval[0] < 8 / 9 < kept.interval[1] < 1


def test_a_gain_is_said_to_be_one():
    quality = made_report().quality[0]
    row = only(quality.retention, candidate=KEY, baseline=BASE)
    better = row.model_copy(update={"difference": 0.01, "difference_interval": (0.005, 0.015)})
    found = read("points_lost", made_report(quality=[quality.model_copy(update={"retention": [better]})]))
    assert (found.value, found.note) == (-1.0, ", so it gains")
    same = row.model_copy(update={"difference": 0.0, "difference_interval": (0.0, 0.0)})
    found = read("points_lost", made_report(quality=[quality.model_copy(update={"retention": [same]})]))
    assert str(found.value) == "0.0"


def test_a_score_that_may_be_0_has_no_share_and_one_that_shall_be_low_neither():
    quality = made_report().quality[0]
    scores = [report_schema.Score(key=key, value=0.1, interval=(-0.1, 0.3), scores={}) for key in (KEY, BASE)]
    weak = quality.model_copy(update={"scores": scores, "retention": []})
    assert "not surely above 0" in read("score_kept", made_report(quality=[weak]))
    perplexing = quality.model_copy(update={"metric": "perplexity", "lower_is_better": True})
    for name in ("score_kept", "points_lost"):
        assert "perplexity" in read(name, made_report(quality=[perplexing]))


def test_a_row_that_was_not_scored_says_so():
    quality = made_report().quality[0]
    less = quality.model_copy(update={"scores": [row for row in quality.scores if row.key != BASE], "retention": []})
    for name in ("score_kept", "points_lost"):
        assert read(name, made_report(quality=[less])) == "score of teacher/int8 at SST-2 was not measured"


def test_the_mean_over_data_sets_needs_its_row():
    pick = Selection(model="student", key="student/fp32", against="teacher/fp32")
    row = only(made_report().glue, candidate="student/fp32")
    found = read("score_kept", pick=pick)
    assert (found.value, found.interval) == (row.macro, row.macro_interval)
    assert "WNLI" not in found.what
    for glue in ([], [row.model_copy(update={"macro": None})]):
        assert "no row of several data sets" in read("score_kept", made_report(glue=glue), pick)


def test_agreement_has_wilsons_interval():
    quality = made_report().quality[0]
    score = only(quality.scores, key=KEY)
    found = read("agreement")
    assert found.value == score.agreement
    assert found.interval == wilson(round(score.agreement * 872), 872)
    assert "amounts" in read("agreement", pick=Selection(model="student", key=KEY, data="STS-B"))


def test_a_calibration_error_without_an_interval_is_a_value_that_decides_nothing():
    quality = made_report().quality[0]
    changes = {"calibration_error": 0.03, "calibration_interval": None}
    report = made_report(quality=[quality.model_copy(update={"scores": replaced(quality.scores, KEY, **changes)})])
    assert read("calibration_error", report) == MetricValue(value=0.03, interval=None, what="SST-2")
    changes["calibration_interval"] = (0.02, 0.05)
    report = made_report(quality=[quality.model_copy(update={"scores": replaced(quality.scores, KEY, **changes)})])
    assert read("calibration_error", report).interval == (0.02, 0.05)
    assert "no probabilities" in read("calibration_error", pick=Selection(model="student", key=KEY, data="STS-B"))


def test_the_cold_start_is_the_whole_of_it():
    row = only(made_report().cold_start, key=KEY)
    assert read("cold_start_ms") == MetricValue(value=row.total_ms, interval=row.interval)
    assert read("cold_start_ms", made_report(cold_start=[])) == "cold start of student/int8 was not measured"


@pytest.mark.parametrize("load", ["1×128", LOAD.model_dump()])
def test_joules_are_of_the_load(load):
    rows = [{"key": KEY, "load": load, "joules_per_text": 0.5, "watts": 20.0, "interval": [0.4, 0.7]}]
    report = made_report(energy=report_schema.Energy(source="rapl", rows=rows))
    assert read("joules_per_text", report) == MetricValue(value=0.5, interval=(0.4, 0.7))
    elsewhere = Selection(model="student", key=KEY, load="8×16")
    assert "measured are 1×128" in read("joules_per_text", report, elsewhere)
    del rows[0]["interval"]
    report = made_report(energy=report_schema.Energy(source="rapl", rows=rows))
    assert read("joules_per_text", report).interval is None


def test_joules_that_the_machine_does_not_tell_have_its_reason():
    assert read("joules_per_text").startswith("energy was not measured: this machine has no readable RAPL")


@pytest.mark.parametrize(
    ("name", "interval", "words"),
    [
        ("encoder_parameters_saved", (0.5, 0.5), "50.0\u00a0% fewer"),
        ("encoder_parameters_saved", (-0.5, -0.5), "50.0\u00a0% more"),
        ("speed_ratio", (1.5, 1.75), "1.50 to 1.75\u00a0times"),
        ("latency_p95_ms", (9.5, 10.5), "9.50 to 10.5\u00a0ms"),
        ("score_kept", (0.95, 0.975), "95.0 to 97.5\u00a0%"),
        ("score", (0.9, 0.92), "0.9000 to 0.9200"),
        ("points_lost", (-0.25, 1.5), "-0.250 to 1.50\u00a0points"),
    ],
)
def test_numbers_are_written_with_their_unit_once(name, interval, words):
    measure = METRICS[name]
    if interval[0] == interval[1]:
        assert measure.write(interval[0]) == words
    else:
        assert measure.write_interval(interval) == words
