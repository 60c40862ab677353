from dataclasses import replace

import pytest

from potstill.bench.measure.results import summarise_measurements
from potstill.bench.measure.samples import Round, drop_rounds, kept_rounds, read_samples, store_round
from potstill.bench.report_schema import Load
from tests.bench.fake_worker import LONG, SHORT, TEXTS, World, make_run

KEYS = ("t/fp32", "t/int8", "s/fp32", "s/int8", "s/fp32@openvino-cpu")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, World(), keys=KEYS, loads=[SHORT, TEXTS])


def compute(run, **changes):
    return summarise_measurements(replace(run.bench, **changes), run.journal)


def fill(run, load, speeds, *, rounds=8, calls=10, **fields):
    """Store rounds in which each row's calls take `speeds[key]` ms: a number, or a function of the round's number."""
    for number in range(rounds):
        calls_ms = {key: [ms(number) if callable(ms) else ms] * calls for key, ms in speeds.items()}
        common = {"cpu_s": dict.fromkeys(speeds, 1.0), "wall_s": dict.fromkeys(speeds, 0.8)} | fields
        store_round(
            run.journal, load, Round(launch=number % 4, number=number // 4, calls_ms=calls_ms, seconds=2.0, **common)
        )


def test_rows_are_held_against_their_like_and_against_the_baseline(run):
    fill(run, SHORT, {"t/fp32": 8, "t/int8": 4, "s/fp32": 4, "s/int8": 1, "s/fp32@openvino-cpu": 2})
    found = [(row.comparison, row.baseline, row.candidate, row.value, row.rounds) for row in compute(run).ratios]
    assert found == [
        ("to_baseline", "t/fp32", "t/int8", 2, 8),
        ("like_for_like", "t/fp32", "s/fp32", 2, 8),
        ("to_baseline", "t/fp32", "s/fp32", 2, 8),
        ("like_for_like", "t/int8", "s/int8", 4, 8),
        ("to_baseline", "t/fp32", "s/int8", 8, 8),
        ("to_own_fp32", "s/fp32", "s/int8", 4, 8),
        ("to_baseline", "t/fp32", "s/fp32@openvino-cpu", 4, 8),
    ]


def test_the_floor_is_the_furthest_end_of_the_grids_own_noise(run):
    fill(run, SHORT, {"t/fp32": 10, "t/fp32#again": lambda n: 10 / (1.02 if n < 4 else 0.97), "s/fp32": 10 / 1.025})
    fill(run, TEXTS, {"t/fp32": 10, "t/fp32#again": lambda n: 10 / (1.5 if n < 4 else 0.7)})
    found = compute(run)
    assert found.noise.floor == pytest.approx(0.03, abs=1e-6)
    again = [row for row in found.ratios if row.comparison == "again"]
    assert [(row.candidate, str(row.load)) for row in again] == [
        ("t/fp32#again", "1×16"),
        ("t/fp32#again", "own texts"),
    ]
    # Its interval is a point at 1.025, but a machine that differs from itself by 3 % shows nothing with that.
    student = next(row for row in found.ratios if row.candidate == "s/fp32" and row.comparison == "to_baseline")
    assert student.value == pytest.approx(1.025)
    assert student.interval[0] > 1
    assert student.finding == "no difference shown"


def test_without_a_twin_there_is_no_floor_and_the_interval_decides(run):
    fill(run, SHORT, {"t/fp32": 10, "s/fp32": 10 / 1.025})
    found = compute(run)
    assert found.noise.floor is None
    assert {row.finding for row in found.ratios} == {"faster"}


def test_a_row_says_what_its_calls_say(run):
    load = Load(batch_size=8, num_tokens=16)
    fill(run, load, {"t/fp32": lambda n: 10 + n}, calls=20)
    for launch, settled in enumerate((True, False)):
        warm = {"calls": 3, "stationary": settled, "mean_tokens": 16.0, "call_ms": 4.0}
        run.journal.put(("warm", str(load), launch, "t/fp32"), warm)
    (row,) = compute(run, loads=(load,)).latency
    assert (row.samples, row.p50_ms, row.p90_ms, row.missing) == (160, 13.5, 17, {"p99": 502})
    assert row.throughput_per_s == pytest.approx(8 / 0.0135)
    assert row.cpu_share == pytest.approx(1.0 / 0.8 / 2)  # two threads
    assert row.stationary is False
    # The rounds in the order of their launches: 10 and 14, 11 and 15, and so on; thirds are 2 of 8.
    assert row.drift == pytest.approx((13 + 17) / (10 + 14))


def test_fewer_than_two_rounds_have_no_ratio(run):
    fill(run, SHORT, {"t/fp32": 10, "t/fp32#again": 10, "s/fp32": 5}, rounds=1)
    found = compute(run)
    assert (found.ratios, found.noise.floor) == ([], None)
    assert [row.key for row in found.latency] == ["t/fp32", "s/fp32"]
    assert "latency at 1×16: 1 of 5 rounds" in found.missing


def test_only_rounds_that_both_have_are_paired(run):
    fill(run, SHORT, {"t/fp32": 10, "s/fp32": 5}, rounds=4)
    fill(run, SHORT, {"t/fp32": 10}, rounds=8)
    run.journal.put(
        ("round", "1×16", 3, 9), {"calls_ms": {"s/fp32": [5.0]}, "cpu_s": {"s/fp32": 1}, "wall_s": {"s/fp32": 1}}
    )
    fill(run, SHORT, {"t/fp32": 10, "s/fp32": 5}, rounds=3)
    row = compute(run).ratios[0]
    assert (row.rounds, row.value) == (3, 2)


def test_dropped_rounds_count_for_nothing_but_their_number(run):
    fill(run, SHORT, {"t/fp32": 10})
    third = [found for found in kept_rounds(run.journal, SHORT) if found.launch == 2]
    drop_rounds(run.journal, SHORT, third, reason="others")
    found = compute(run)
    assert found.latency[0].samples == 60
    assert found.noise.repeated_rounds == 2


def test_the_samples_of_an_old_report_give_the_same_parts(run):
    fill(run, SHORT, {"t/fp32": lambda n: 10 + n % 3, "t/fp32#again": 10, "s/fp32": lambda n: 5 + n % 2})
    run.journal.put(
        ("failure", "s/int8", "load", ""), {"key": "s/int8", "stage": "load", "kind": "error", "reason": "x"}
    )
    first = compute(run)
    run.journal.finish()
    assert summarise_measurements(run.bench, read_samples(run.journal.file)) == first
    assert compute(run, seed=8) != first


def test_another_row_does_not_move_an_interval(run):
    speeds = {"t/fp32": lambda n: 10 + n % 3, "s/fp32": lambda n: 5 + n % 2, "s/int8": 1.0}
    fill(run, SHORT, speeds)
    whole = compute(run)
    kept = tuple(each for each in run.bench.configurations if each.key != "s/int8")
    part = compute(run, configurations=kept)
    assert [row for row in whole.latency if row.key != "s/int8"] == part.latency
    assert [row for row in whole.ratios if row.candidate != "s/int8"] == part.ratios


def test_an_empty_journal_misses_everything(tmp_path):
    run = make_run(
        tmp_path, World(), keys=["t/fp32"], loads=[SHORT, LONG], throughput_batch_sizes=[8], callers=[4], cold_starts=1
    )
    found = compute(run)
    assert (found.latency, found.energy.source, found.energy.reason) == ([], None, "not measured yet")
    assert found.missing == [
        "latency at 1×16: 0 of 5 rounds",
        "latency at 1×128: 0 of 5 rounds",
        "memory of t/fp32",
        "cold start of t/fp32",
        "throughput at 8×64, 4 callers",
    ]
