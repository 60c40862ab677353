from math import exp, log, sqrt

import numpy as np
import pytest
from scipy.stats import norm

from potstill.bench import report_schema, statistics
from potstill.bench.compare import compare
from tests.bench.made import made_report

LOAD = report_schema.Load(num_tokens=128)
KEY = "student/fp32"
NOISE = report_schema.Noise(floor=0.0)


def quiet(**changes):
    """Return a report without noise."""
    return made_report(**({"noise": NOISE} | changes))


def timed(p50_ms, interval, **changes):
    """Return a report with this p50 of one row at one load."""
    latency = [
        row.model_copy(update={"p50_ms": p50_ms, "intervals": {"p50": interval}})
        if (row.key, row.load) == (KEY, LOAD)
        else row
        for row in made_report().latency
    ]
    return quiet(latency=latency, **changes)


def scored(value, interval, **changes):
    """Return a report with this score of one row on its only data set."""
    quality = made_report().quality[0]
    scores = [report_schema.Score(key=KEY, value=value, interval=interval, scores={})]
    return quiet(quality=[quality.model_copy(update={"scores": scores} | changes)], glue=[])


def found(comparison, kind, *, subject=KEY, where="1×128"):
    (change,) = [row for row in comparison.changes if (row.kind, row.subject, row.where) == (kind, subject, where)]
    return change


def widened(comparison):
    """Return by how much intervals are stretched: all rows that were sampled are judged together (Bonferroni)."""
    sampled = sum(row.interval is not None for row in comparison.changes)
    return norm.isf(0.025 / sampled) / norm.isf(0.025)


def environment(**changes):
    return made_report().environment.model_copy(update=changes)


# The arithmetic.


def test_intervals_of_a_difference_add_in_squares_on_each_side():
    value, interval = statistics.difference((10.0, (7.0, 15.0)), (4.0, (0.0, 8.0)))
    assert value == 6.0
    assert interval == pytest.approx((6 - 5, 6 + sqrt(25 + 16)))
    assert statistics.difference((10.0, (7.0, 13.0)), (4.0, (0.0, 8.0)), widened=2.0)[1] == pytest.approx((-4.0, 16.0))


def test_a_ratio_is_a_difference_of_logarithms():
    first, second = (6.0, (5.0, 8.0)), (3.0, (2.5, 3.2))
    value, (low, high) = statistics.ratio(first, second)
    assert value == 2.0
    assert log(low) == pytest.approx(log(2) - sqrt(log(6 / 5) ** 2 + log(3.2 / 3) ** 2))
    assert log(high) == pytest.approx(log(2) + sqrt(log(8 / 6) ** 2 + log(3 / 2.5) ** 2))
    _, (back_low, back_high) = statistics.ratio(second, first)
    assert (1 / back_high, 1 / back_low) == pytest.approx((low, high))


def test_a_value_outside_its_own_interval_does_not_turn_it_round():
    _, (low, high) = statistics.difference((10.0, (11.0, 12.0)), (0.0, (0.0, 0.0)))
    assert (low, high) == (10.0, 12.0)


def test_a_ratio_of_what_may_be_0_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        statistics.ratio((1.0, (0.0, 2.0)), (1.0, (1.0, 1.0)))


def test_floors_widen_a_ratio_on_both_sides():
    assert statistics.with_floors((0.9, 1.1), 0.1, None, 0.0) == pytest.approx((0.9 / 1.1, 1.21))


# Rows.


def test_a_report_is_like_itself():
    comparison = compare(made_report(), made_report())
    assert {row.outcome for row in comparison.changes} == {"no difference shown"}
    assert comparison.verdicts == []
    assert not [row for row in comparison.changes if "#again" in row.subject]
    assert {row.kind for row in comparison.changes} == {
        "Latency p50, ms",
        "Times as fast as the baseline",
        "Throughput, texts/s",
        "Cold start, ms",
        "Score",
        "Memory loaded, MB",
        "Memory peak, MB",
        "Memory private, MB",
        "File size, MB",
    }


@pytest.mark.parametrize(
    ("p50_ms", "interval", "outcome"),
    [
        (9.0, (8.8, 9.2), "better"),
        (11.0, (10.8, 11.2), "worse"),
        (10.1, (9.9, 10.3), "no difference shown"),
        (9.0, (8.0, 10.5), "no difference shown"),
    ],
)
def test_a_time_is_better_or_worse_where_the_combined_interval_leaves_out_1(p50_ms, interval, outcome):
    comparison = compare(timed(10.0, (9.8, 10.2)), timed(p50_ms, interval))
    change = found(comparison, "Latency p50, ms")
    assert (change.old, change.new, change.outcome) == (10.0, p50_ms, outcome)
    assert change.change == pytest.approx(p50_ms / 10)
    below = exp(log(p50_ms / 10) - widened(comparison) * sqrt(log(p50_ms / interval[0]) ** 2 + log(10.2 / 10) ** 2))
    assert change.interval[0] == pytest.approx(below)


def test_the_noise_floors_of_both_runs_must_be_exceeded():
    old, new = timed(10.0, (9.9, 10.1)), timed(9.5, (9.4, 9.6))
    assert found(compare(old, new), "Latency p50, ms").outcome == "better"
    for noisy in ({"old": 0.06, "new": 0.0}, {"old": 0.0, "new": 0.06}, {"old": 0.025, "new": 0.025}):
        pair = [
            report.model_copy(update={"noise": report_schema.Noise(floor=noisy[name])})
            for name, report in (("old", old), ("new", new))
        ]
        assert found(compare(*pair), "Latency p50, ms").outcome == "no difference shown"


def test_more_throughput_is_better():
    rows = [
        row.model_copy(update={"texts_per_s": 2 * row.texts_per_s, "interval": [2 * end for end in row.interval]})
        for row in made_report().throughput
    ]
    comparison = compare(quiet(), quiet(throughput=rows))
    assert found(comparison, "Throughput, texts/s", where="1×64, 4 callers").outcome == "better"
    assert found(compare(quiet(throughput=rows), quiet()), "Throughput, texts/s", where="1×64, 4 callers").change == 0.5


def test_a_higher_ratio_to_the_baseline_is_better():
    rows = [
        row.model_copy(update={"value": 1.2 * row.value, "interval": [1.2 * end for end in row.interval]})
        for row in made_report().ratios
    ]
    comparison = compare(quiet(), quiet(ratios=rows))
    subject = "student/fp32 to teacher/fp32"
    assert found(comparison, "Times as fast as the baseline", subject=subject).outcome == "better"


@pytest.mark.parametrize(
    ("value", "interval", "outcome"),
    [
        (0.9, (0.86, 0.94), "no difference shown"),
        (0.99, (0.97, 1.0), "better"),
        (0.75, (0.72, 0.78), "worse"),
        # Beyond its own interval, but one of a hundred rows may be.
        (0.8, (0.77, 0.83), "no difference shown"),
    ],
)
def test_scores_are_compared_by_their_difference(value, interval, outcome):
    comparison = compare(scored(0.88, (0.84, 0.90)), scored(value, interval))
    change = found(comparison, "Score", where="SST-2, accuracy")
    assert (change.outcome, change.change) == (outcome, pytest.approx(value - 0.88))
    low = value - 0.88 - widened(comparison) * sqrt((value - interval[0]) ** 2 + 0.02**2)
    assert change.interval[0] == pytest.approx(low)


def test_a_metric_that_shall_be_low_gets_worse_upwards():
    comparison = compare(
        scored(5.0, (4.9, 5.1), lower_is_better=True, metric="mse"),
        scored(6.0, (5.9, 6.1), lower_is_better=True, metric="mse"),
    )
    assert found(comparison, "Score", where="SST-2, mse").outcome == "worse"


def test_the_same_examples_are_told_from_others():
    same = compare(scored(0.9, (0.88, 0.92)), scored(0.9, (0.88, 0.92))).notes
    assert (
        "Scores on the same examples are compared by each one's own interval; a paired one would be narrower." in same
    )
    other = compare(scored(0.9, (0.88, 0.92)), scored(0.9, (0.88, 0.92), data_sha256="f" * 64)).notes
    assert other == ["Scored on other examples: SST-2; those scores are of two samples."]


def memory(share):
    rows = made_report().memory
    return quiet(memory=[row.model_copy(update={"peak_bytes": round(share * row.peak_bytes)}) for row in rows])


@pytest.mark.parametrize(
    ("share", "outcome"),
    [(1.015, "no difference shown"), (1.03, "worse"), (0.97, "better"), (0.985, "no difference shown")],
)
def test_memory_changes_from_2_per_cent_on(share, outcome):
    change = found(compare(quiet(), memory(share)), "Memory peak, MB", where="")
    assert (change.outcome, change.interval) == (outcome, None)
    assert found(compare(quiet(), memory(share)), "Memory loaded, MB", where="").outcome == "no difference shown"


def test_every_byte_of_a_file_counts():
    rows = [row.model_copy(update={"file_bytes": row.file_bytes + 1}) for row in made_report().contestants]
    assert found(compare(quiet(), quiet(contestants=rows)), "File size, MB", where="").outcome == "worse"
    assert found(compare(quiet(contestants=rows), quiet()), "File size, MB", where="").outcome == "better"


def test_what_only_one_has_is_said():
    comparison = compare(made_report(), made_report(third=True))
    assert found(comparison, "Latency p50, ms", subject="tiny/fp32").outcome == "only in the new report"
    back = compare(made_report(third=True), made_report())
    change = found(back, "Score", subject="tiny/fp32", where="SST-2, accuracy")
    assert (change.outcome, change.new, change.change) == ("only in the old report", None, None)


# What to know first.


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu": "another"},
        {"threads": 2},
        {"cores": 8},
        {"spinning": True},
        {"governor": "powersave"},
        {"cpu_features": ["avx2"]},
    ],
)
def test_times_of_another_machine_are_not_comparable_and_all_else_is(changes):
    comparison = compare(quiet(), timed(1.0, (0.9, 1.1), environment=environment(**changes)))
    assert comparison.notes[0].startswith("Measured on different machines, so times are not comparable: ")
    assert next(iter(changes)) in comparison.notes[0]
    by_kind = {}
    for row in comparison.changes:
        by_kind.setdefault(row.kind, set()).add(row.outcome)
    timed_kinds = ("Latency p50, ms", "Throughput, texts/s", "Cold start, ms")
    assert all(by_kind.pop(kind) == {"not comparable"} for kind in timed_kinds)
    assert set().union(*by_kind.values()) == {"no difference shown"}


def test_what_a_system_does_not_tell_makes_no_other_machine():
    comparison = compare(quiet(), quiet(environment=environment(governor=None, turbo=None)))
    assert not any("different machines" in note for note in comparison.notes)


def test_another_gpu_makes_only_its_own_rows_incomparable():
    def on(device):
        rows = made_report().contestants
        return quiet(contestants=[row.model_copy(update={"device": device}) if row.key == KEY else row for row in rows])

    comparison = compare(on("cuda:0 (A)"), on("cuda:0 (B)"))
    assert found(comparison, "Latency p50, ms").outcome == "not comparable"
    assert found(comparison, "Latency p50, ms", subject="student/int8").outcome == "no difference shown"
    assert found(compare(on("cuda:0 (A)"), on("cuda:0 (A)")), "Latency p50, ms").outcome == "no difference shown"


def test_other_software_and_files_are_told_and_times_stay_comparable():
    packages = {"potstill": "0.4.0", "onnxruntime": "1.32.0", "numpy": "2.4.6"}
    rows = [
        row.model_copy(update={"sha256": dict.fromkeys(row.sha256, "0" * 64)}) if row.key == KEY else row
        for row in made_report().contestants
    ]
    comparison = compare(quiet(), quiet(environment=environment(packages=packages), contestants=rows))
    assert comparison.notes[:2] == [
        "Measured with different software: onnxruntime 1.31.1, now 1.32.0; torch 2.13.0, now not installed.",
        "Other files under the same name: student/fp32 (onnx/model.onnx).",
    ]
    assert {row.outcome for row in comparison.changes} == {"no difference shown"}


def test_a_run_that_was_cut_off_disturbed_or_without_a_floor_is_told():
    noise = report_schema.Noise(floor=None, flags=["Others used the machine."])
    notes = compare(quiet(), quiet(complete=False, noise=noise)).notes
    assert "The new report is incomplete." in notes
    assert "The new report has no noise floor; only its intervals keep noise from being called a change." in notes
    assert "The new run was disturbed: Others used the machine." in notes


def test_verdicts_that_changed_are_told_and_others_not():
    old = made_report()
    flipped = [
        row.model_copy(update={"verdict": "FAIL" if row.verdict == "PASS" else "PASS"}) if row.id == "speed" else row
        for row in old.claims
    ]
    flipped[2] = flipped[2].model_copy(update={"value": 0.5, "summary": "another number, the same verdict"})
    comparison = compare(old, made_report(claims=flipped[1:]))
    speed = next(row for row in old.claims if row.id == "speed")
    assert [(row.id, row.old, row.new) for row in comparison.verdicts] == [
        ("size", next(row.verdict for row in old.claims if row.id == "size"), "not there"),
        ("speed", speed.verdict, "FAIL" if speed.verdict == "PASS" else "PASS"),
    ]
    assert comparison.verdicts[1].where == "1×128"


# As tables.


def test_tables_hold_every_change_as_text():
    comparison = compare(timed(10.0, (9.8, 10.2)), timed(9.0, (8.8, 9.2), third=True))
    tables = comparison.tables()
    assert sum(len(rows) for _, rows in tables.values()) == len(comparison.changes)
    head, rows = tables["Latency p50, ms"]
    assert head == ("row", "at", "old", "new", "new / old", "95 % interval", "")
    row = next(row for row in rows if row[:2] == [KEY, "1×128"])
    assert row[2:5] == ["10.0", "9.00", "0.900"]
    assert row[6] == "better"
    assert tables["Score"][0][4] == "new - old"
    assert all(isinstance(cell, str) for _, rows in tables.values() for row in rows for cell in row)


def test_markdown_has_the_notes_first():
    text = compare(quiet(), quiet(environment=environment(cpu="a|b"), claims=[])).to_markdown()
    lines = text.splitlines()
    assert lines[2].startswith("- Measured on different machines")
    assert "| row | at | old | new | new / old | 95 % interval |  |" in lines
    assert "## Verdicts that changed" in lines


# The same models again: nothing may be called changed by noise.


def measured_again(seed):
    """Return the made report with everything that is measured drawn anew around its value, as its intervals say."""
    draw = np.random.default_rng(seed)
    report = made_report()

    def near(value, interval):
        moved = value * float(np.exp(draw.normal(0, np.log(interval[1] / interval[0]) / 2 / 1.96)))
        return moved, (moved * interval[0] / value, moved * interval[1] / value)

    def timed_again(row, value, interval):
        new, around = near(getattr(row, value), interval)
        return row.model_copy(update={value: new, "interval": around})

    latency = []
    for row in report.latency:
        new, around = near(row.p50_ms, row.intervals["p50"])
        latency.append(row.model_copy(update={"p50_ms": new, "intervals": {"p50": around}}))
    memory = []
    for row in report.memory:
        # Processes of one file hold 3 % more or less, by what the allocator kept.
        parts = ("loaded_rss_bytes", "peak_bytes", "after_uss_bytes")
        looks = {part: np.sort(getattr(row, part) * np.exp(draw.normal(0, 0.03, 6))) for part in parts}
        sizes = {part: int(np.median(seen)) for part, seen in looks.items()}
        spans = {part: (float(seen[0]), float(seen[-1])) for part, seen in looks.items()}
        memory.append(row.model_copy(update=sizes | {"launches": 6, "intervals": spans}))
    return report.model_copy(
        update={
            "noise": report_schema.Noise(floor=0.0),
            "latency": latency,
            "memory": memory,
            "ratios": [timed_again(row, "value", row.interval) for row in report.ratios],
            "throughput": [timed_again(row, "texts_per_s", row.interval) for row in report.throughput],
            "cold_start": [
                timed_again(row, "total_ms", (row.total_ms * 0.96, row.total_ms * 1.04)) for row in report.cold_start
            ],
        }
    )


def test_the_same_models_measured_twice_differ_in_no_row():
    called = [
        (seed, row.kind, row.subject)
        for seed in range(0, 40, 2)
        for row in compare(measured_again(seed), measured_again(seed + 1)).changes
        if row.outcome != "no difference shown"
    ]
    # 20 comparisons of some 130 rows, all together at 95 %: one of the comparisons may be wrong.
    assert len({seed for seed, *_ in called}) <= 1, called


def test_memory_is_compared_by_the_span_of_its_processes():
    def held(low, high):
        span = {"peak_bytes": (low * 1e6, high * 1e6)}
        rows = [
            row.model_copy(update={"peak_bytes": int((low + high) / 2 * 1e6), "launches": 6, "intervals": span})
            for row in made_report().memory
        ]
        return quiet(memory=rows)

    assert found(compare(held(200, 220), held(215, 235)), "Memory peak, MB", where="").outcome == "no difference shown"
    assert found(compare(held(200, 202), held(240, 242)), "Memory peak, MB", where="").outcome == "worse"


def test_what_was_started_once_shows_no_difference():
    def started(total_ms):
        rows = [
            row.model_copy(update={"starts": 1, "total_ms": total_ms, "interval": (total_ms, total_ms)})
            for row in made_report().cold_start
        ]
        return quiet(cold_start=rows)

    assert found(compare(started(400), started(500)), "Cold start, ms", where="").outcome == "no difference shown"


def test_what_was_disturbed_is_neither_better_nor_worse():
    def disturbed(report):
        rows = [row.model_copy(update={"disturbed": "other processes took 40%"}) for row in report.latency]
        return report.model_copy(update={"latency": rows})

    old, new = timed(10.0, (9.9, 10.1)), timed(20.0, (19.9, 20.1))
    for pair in ((disturbed(old), new), (old, disturbed(new))):
        change = found(compare(*pair), "Latency p50, ms")
        assert (change.old, change.new, change.outcome) == (10.0, 20.0, "disturbed")
        memory = found(compare(*pair), "Memory peak, MB", where="")
        assert memory.outcome == "no difference shown"


def test_a_flag_that_names_no_row_is_about_every_time():
    flagged = report_schema.Noise(floor=0.0, flags=["While the rounds ran, other processes took 60% of the cores."])
    old, new = timed(10.0, (9.9, 10.1)), timed(20.0, (19.9, 20.1))
    new = new.model_copy(update={"noise": flagged})
    outcomes = {row.kind: row.outcome for row in compare(old, new).changes}
    assert outcomes["Latency p50, ms"] == outcomes["Cold start, ms"] == outcomes["Throughput, texts/s"] == "disturbed"
    assert outcomes["Score"] == outcomes["File size, MB"] == "no difference shown"


def test_energy_is_compared_by_its_interval():
    def used(joules, *, half=0.02):
        row = {
            "key": KEY,
            "load": LOAD.model_dump(),
            "joules_per_text": joules,
            "interval": [joules * (1 - half), joules * (1 + half)],
        }
        return quiet(energy=report_schema.Energy(source="rapl", rows=[row]))

    assert found(compare(used(1.0), used(1.02)), "Energy, J/text").outcome == "no difference shown"
    assert found(compare(used(1.0), used(0.7)), "Energy, J/text").outcome == "better"


def test_spans_of_memory_are_stretched_for_all_rows_as_other_intervals_are():
    def held(low, high):
        span = {"peak_bytes": (low * 1e6, high * 1e6)}
        rows = [
            row.model_copy(update={"peak_bytes": int((low + high) / 2 * 1e6), "launches": 6, "intervals": span})
            for row in made_report().memory
        ]
        return quiet(memory=rows)

    comparison = compare(held(200, 206), held(210, 216))
    change = found(comparison, "Memory peak, MB", where="")
    alone = sqrt(log(213 / 210) ** 2 + log(206 / 203) ** 2)
    # 2 % of floor: six loads of one file differ by less.
    assert change.interval[0] == pytest.approx(exp(log(213 / 203) - widened(comparison) * alone) / 1.02)
    assert exp(log(213 / 203) - alone) / 1.02 > 1
    assert change.outcome == "no difference shown"
