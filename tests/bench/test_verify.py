from pathlib import Path

import numpy as np
import pytest

from potstill.bench import report_schema
from potstill.bench.verify import check, draw_sample, sample_cells
from potstill.errors import UsageError
from tests.bench.made import made_report

LOAD = report_schema.Load(num_tokens=128)
KEY = "student/fp32"
NOISE = report_schema.Noise(floor=0.0)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def report(tmp_path):
    """A report whose models' folders are there."""
    models = {}
    for name, model in made_report().models.items():
        places = {"bundle": tmp_path / name, "checkpoint": tmp_path / f"{name}-checkpoint"}
        for place in places.values():
            place.mkdir()
        models[name] = model.model_copy(update={kind: str(place) for kind, place in places.items()})
    return made_report(models=models)


def timed(factor, *, width=0.01, load=LOAD, **changes):
    """Return a report in which a row's p50 is so many times 10 ms."""
    p50_ms = 10.0 * factor
    interval = (p50_ms * (1 - width), p50_ms * (1 + width))
    latency = [
        row.model_copy(update={"p50_ms": p50_ms, "intervals": {"p50": interval}})
        for row in made_report().latency
        if (row.key, row.load) == (KEY, load)
    ]
    return made_report(**({"latency": latency, "ratios": [], "quality": [], "noise": NOISE} | changes))


def scored(value, *, key=KEY, **changes):
    quality = made_report().quality[0]
    scores = [report_schema.Score(key=key, value=value, interval=(0.8, 0.95), scores={})]
    sets = [quality.model_copy(update={"scores": scores} | changes.pop("data", {}))]
    return made_report(**({"latency": [], "ratios": [], "quality": sets, "glue": [], "noise": NOISE} | changes))


def environment(**changes):
    return made_report().environment.model_copy(update=changes)


# Drawing.


def test_cells_are_drawn_without_repeats_and_of_both_kinds(report):
    for seed in range(20):
        cells = sample_cells(report, rng(seed), 5)
        assert len(set(cells)) == 5
        assert {cell.kind for cell in cells} == {"latency", "quality"}
    assert sample_cells(report, rng(3), 5) == sample_cells(report, rng(3), 5)
    assert sample_cells(report, rng(3), 5) != sample_cells(report, rng(4), 5)


def test_no_more_cells_are_drawn_than_there_are_and_each_may_be(report):
    cells = sample_cells(report, rng(), 10_000)
    assert len(cells) == len(report.latency) + sum(len(each.scores) for each in report.quality)
    assert len(set(cells)) == len(cells)
    seen = {cell for seed in range(400) for cell in sample_cells(report, rng(seed), 4)}
    assert seen == set(cells)


def test_nothing_to_draw_is_a_usage_error(report):
    with pytest.raises(UsageError, match="0 cells"):
        sample_cells(report, rng(), 0)
    with pytest.raises(UsageError, match="neither a latency nor a score"):
        sample_cells(made_report(latency=[], quality=[]), rng(), 3)
    assert {cell.kind for cell in sample_cells(made_report(quality=[]), rng(), 3)} == {"latency"}


def test_a_sample_brings_the_baseline_and_the_row_that_a_sampled_one_is_held_against(report):
    latency = [row for row in report.latency if (row.key, row.load) == ("student/int8", LOAD)]
    found = draw_sample(report.model_copy(update={"latency": latency, "quality": []}), rng(), 1)
    assert found.keys == ("teacher/fp32", "teacher/int8", "student/int8")
    assert (found.loads, found.data) == ((LOAD,), ())
    assert dict(found.places) == {name: report.models[name].bundle for name in ("teacher", "student")}


def test_a_sample_of_a_score_names_its_data_set_and_no_load(report):
    quality = report.quality[1]
    scores = [row for row in quality.scores if row.key == "student/fp32@torch-cpu"]
    found = draw_sample(
        report.model_copy(update={"latency": [], "quality": [quality.model_copy(update={"scores": scores})]}), rng(), 1
    )
    assert (found.loads, found.data) == ((), ("MRPC",))
    assert ("student", report.models["student"].checkpoint) in found.places


def test_a_folder_that_is_gone_is_named(report):
    gone = report.models["student"].bundle
    Path(gone).rmdir()
    latency = [row for row in report.latency if row.key == KEY]
    with pytest.raises(UsageError, match=f"student/fp32 was measured from {gone}, which is not here"):
        draw_sample(report.model_copy(update={"latency": latency, "quality": []}), rng(), 1)


def test_a_checkpoint_may_be_a_hub_id(report):
    hub = {name: model.model_copy(update={"checkpoint": f"org/{name}"}) for name, model in report.models.items()}
    latency = [row for row in report.latency if row.key == "student/fp32@torch-cpu"]
    found = draw_sample(report.model_copy(update={"models": hub, "latency": latency, "quality": []}), rng(), 1)
    assert ("student", "org/student") in found.places


# Holding.


def test_a_report_holds_against_itself():
    findings = check(made_report(), made_report())
    assert {row.outcome for row in findings} == {"holds"}
    assert any("p50" in row.what for row in findings)
    assert any("times as fast" in row.what for row in findings)
    assert any("accuracy on SST-2" in row.what for row in findings)
    assert all(isinstance(value, str | bool) for row in findings for value in vars(row).values())


def test_what_was_disturbed_is_not_compared():
    def disturbed(report):
        reason = {"disturbed": "other processes took 40%"}
        return report.model_copy(
            update={
                part: [row.model_copy(update=reason) for row in getattr(report, part)] for part in ("latency", "ratios")
            }
        )

    for pair in ((timed(1.0), disturbed(timed(2.0))), (disturbed(timed(1.0)), timed(2.0))):
        (row,) = check(*pair)
        assert (row.outcome, row.holds) == ("not compared", True)
        assert "other processes took 40%" in row.note
    outcomes = {row.outcome for row in check(made_report(), disturbed(made_report())) if "times as fast" in row.what}
    assert outcomes == {"not compared"}


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.01, True), (1.03, False), (0.99, True), (0.97, False)])
def test_p50_holds_within_both_intervals(factor, holds):
    (row,) = check(timed(1.0), timed(factor))  # two intervals of 1 % are 1.4 % together
    assert (row.holds, row.what) == (holds, "student/fp32 p50 at 1×128")
    assert (row.old, row.new) == ("10.0 ms", f"{10 * factor:.1f} ms" if factor >= 1 else f"{10 * factor:.2f} ms")


def test_p50_may_differ_by_the_noise_of_both_runs():
    for old, new, holds in ((0.0, 0.0, False), (0.03, 0.0, True), (0.0, 0.03, True), (None, 0.01, False)):
        noise = [report_schema.Noise(floor=floor) for floor in (old, new)]
        (row,) = check(timed(1.0, noise=noise[0]), timed(1.04, noise=noise[1]))
        assert row.holds is holds


def test_many_cells_are_judged_together():
    # 1.4 % is the interval of one; of 20, each has 3.02 / 1.96 times that: 2.2 %.
    loads = [report_schema.Load(num_tokens=tokens) for tokens in range(8, 28)]

    def many(factor):
        row = timed(factor).latency[0]
        return timed(factor, latency=[row.model_copy(update={"load": load}) for load in loads])

    assert all(row.holds for row in check(many(1.0), many(1.02)))
    assert not check(timed(1.0), timed(1.02))[0].holds
    assert not any(row.holds for row in check(many(1.0), many(1.03)))


def test_another_machine_leaves_times_uncompared_and_other_software_does_not():
    (row,) = check(timed(1.0), timed(3.0, environment=environment(cpu="another")))
    assert (row.holds, row.outcome) == (True, "not compared")
    assert "cpu: AMD" in row.note
    (row,) = check(timed(1.0), timed(3.0, environment=environment(packages={"onnxruntime": "2.0"})))
    assert (row.holds, row.outcome) == (False, "DOES NOT HOLD")
    assert "onnxruntime 1.31.1, now 2.0" in row.note


def ratio(value, interval, **changes):
    row = report_schema.Ratio(
        comparison="like_for_like",
        baseline="teacher/fp32",
        candidate=KEY,
        load=LOAD,
        rounds=12,
        value=value,
        interval=interval,
        finding="faster",
    )
    return timed(1.0, ratios=[row], **changes)


@pytest.mark.parametrize(
    ("interval", "floor", "holds"),
    [
        ((1.95, 2.05), 0.0, True),
        ((2.1, 2.3), 0.0, True),
        ((2.11, 2.3), 0.0, False),
        ((2.11, 2.3), 0.01, True),
        ((1.7, 1.89), 0.0, False),
        ((1.7, 1.89), 0.01, True),
        ((1.5, 1.7), 0.01, False),
    ],
)
def test_a_ratio_holds_where_the_intervals_overlap(interval, floor, holds):
    noise = report_schema.Noise(floor=floor)
    findings = check(ratio(2.0, (1.9, 2.1), noise=noise), ratio(sum(interval) / 2, interval, noise=noise))
    (row,) = [row for row in findings if "times as fast" in row.what]
    assert row.holds is holds
    assert row.old == "2.00 (1.90 to 2.10)"


def test_the_noise_run_is_no_ratio_to_hold():
    again = [row for row in made_report().ratios if row.comparison == "again"]
    assert not [row for row in check(timed(1.0, ratios=again), timed(1.0, ratios=again)) if "fast" in row.what]


@pytest.mark.parametrize(
    ("key", "new", "changes", "holds"),
    [
        (KEY, 0.9, {}, True),
        (KEY, 0.9 + 1 / 872, {}, False),
        ("student/int8", 0.899, {}, False),
        # Another machine: one of 872 examples in fp32, a hundredth of the score in int8.
        (KEY, 0.9 + 0.9 / 872, {"cpu": "another"}, True),
        (KEY, 0.9 + 1.1 / 872, {"cpu": "another"}, False),
        ("student/int8", 0.892, {"cpu": "another"}, True),
        ("student/int8", 0.890, {"cpu": "another"}, False),
        (KEY, 0.9 + 0.9 / 872, {"packages": {}}, True),
    ],
)
def test_a_score_holds_if_it_is_the_same_or_within_the_tolerance_of_another_machine(key, new, changes, holds):
    (row,) = check(scored(0.9, key=key), scored(new, key=key, environment=environment(**changes)))
    assert row.holds is holds
    assert row.what == f"{key} accuracy on SST-2"
    assert row.note


def test_engines_that_time_their_kernels_have_the_tolerance_at_home_too():
    rows = [
        row.model_copy(update={"runner": "onnxruntime-tensorrt", "precision": "fp16"}) if row.key == KEY else row
        for row in made_report().contestants
    ]
    (row,) = check(scored(0.9, contestants=rows), scored(0.895, contestants=rows))
    assert row.holds


def test_another_file_is_named_and_nothing_measured_with_it_is_compared():
    rows = [
        row.model_copy(update={"sha256": {"onnx/model.onnx": "0" * 64}}) if row.key == KEY else row
        for row in made_report().contestants
    ]
    broken = [row for row in check(made_report(), made_report(contestants=rows)) if not row.holds]
    (row,) = broken
    old = made_report().contestant(KEY).sha256["onnx/model.onnx"]
    assert (row.what, row.old, row.new) == ("student/fp32: onnx/model.onnx", old[:12], "0" * 12)
    others = check(made_report(), made_report(contestants=rows))
    assert not [row for row in others if row.what.startswith(f"{KEY} ")]
    assert [row for row in others if row.what.startswith("student/int8 ")]


def test_other_data_is_named_and_its_scores_are_not_compared():
    (row,) = check(scored(0.9), scored(0.5, data={"data_sha256": "f" * 64}))
    assert (row.holds, row.what, row.new) == (False, "SST-2: nyu-mll/glue:sst2", "f" * 12)


def test_what_was_sampled_and_is_lacking_does_not_hold(report):
    latency = [row for row in report.latency if (row.key, row.load) == (KEY, LOAD)]
    small = report.model_copy(update={"latency": latency, "quality": [], "ratios": []})
    sample = draw_sample(small, rng(), 1)
    crash = report_schema.Failure(key=KEY, stage="latency", where="1×128", kind="crash", reason="killed by signal 9")
    (row,) = check(small, small.model_copy(update={"latency": [], "failures": [crash]}), sample=sample)
    assert (row.holds, row.new, row.note) == (False, "–", "killed by signal 9")
    (row,) = check(small, small.model_copy(update={"latency": [], "failures": []}), sample=sample)
    assert row.note == "it was not measured again"


def test_only_what_was_measured_again_is_checked():
    fresh = timed(1.0)
    rows = [row for row in made_report().contestants if row.key == KEY]
    findings = check(
        timed(1.0, ratios=made_report().ratios, quality=made_report().quality),
        fresh.model_copy(update={"contestants": rows}),
    )
    assert [row.what for row in findings] == ["student/fp32 p50 at 1×128"]


def test_no_cell_is_listed_twice():
    report = made_report()
    found = [finding.what for finding in check(report, report)]
    assert any("times as fast" in what for what in found)
    assert len(found) == len(set(found))
