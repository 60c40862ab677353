import pytest

from potstill.bench.measuring.results import results
from potstill.bench.measuring.rounds import Round, drop_rounds, kept_rounds, store_round
from potstill.bench.measuring.samples import read_samples
from potstill.bench.report_schema import Load
from tests.bench.fake_worker import LONG, SHORT, TEXTS, World, make_plan

KEYS = ("t/fp32", "t/int8", "s/fp32", "s/int8", "s/fp32@openvino-cpu")


@pytest.fixture
def plan(tmp_path):
    return make_plan(tmp_path, World(), keys=KEYS, loads=[SHORT, TEXTS])


def compute(plan, **changes):
    settings = {"baseline": plan.baseline, "config": plan.config, "seed": plan.seed} | changes
    return results(plan.journal, plan.entries, plan.loads, **settings)


def fill(plan, load, speeds, *, rounds=8, calls=10, **fields):
    """Store rounds in which each row's calls take `speeds[key]` ms: a number, or a function of the round's number."""
    for number in range(rounds):
        calls_ms = {key: [ms(number) if callable(ms) else ms] * calls for key, ms in speeds.items()}
        common = {"cpu_s": dict.fromkeys(speeds, 1.0), "wall_s": dict.fromkeys(speeds, 0.8)} | fields
        store_round(
            plan.journal, load, Round(launch=number % 4, number=number // 4, calls_ms=calls_ms, seconds=2.0, **common)
        )


def test_rows_are_held_against_their_like_and_against_the_baseline(plan):
    fill(plan, SHORT, {"t/fp32": 8, "t/int8": 4, "s/fp32": 4, "s/int8": 1, "s/fp32@openvino-cpu": 2})
    found = [(row.comparison, row.baseline, row.candidate, row.value, row.rounds) for row in compute(plan).ratios]
    assert found == [
        ("to_baseline", "t/fp32", "t/int8", 2, 8),
        ("like_for_like", "t/fp32", "s/fp32", 2, 8),
        ("to_baseline", "t/fp32", "s/fp32", 2, 8),
        ("like_for_like", "t/int8", "s/int8", 4, 8),
        ("to_baseline", "t/fp32", "s/int8", 8, 8),
        ("to_own_fp32", "s/fp32", "s/int8", 4, 8),
        ("to_baseline", "t/fp32", "s/fp32@openvino-cpu", 4, 8),
    ]


def test_the_floor_is_the_furthest_end_of_the_grids_own_noise(plan):
    fill(plan, SHORT, {"t/fp32": 10, "t/fp32#again": lambda n: 10 / (1.02 if n < 4 else 0.97), "s/fp32": 10 / 1.025})
    fill(plan, TEXTS, {"t/fp32": 10, "t/fp32#again": lambda n: 10 / (1.5 if n < 4 else 0.7)})
    found = compute(plan)
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


def test_without_a_twin_there_is_no_floor_and_the_interval_decides(plan):
    fill(plan, SHORT, {"t/fp32": 10, "s/fp32": 10 / 1.025})
    found = compute(plan)
    assert found.noise.floor is None
    assert {row.finding for row in found.ratios} == {"faster"}


def test_a_row_says_what_its_calls_say(plan):
    load = Load(batch_size=8, num_tokens=16)
    object.__setattr__(plan, "loads", [load])
    fill(plan, load, {"t/fp32": lambda n: 10 + n}, calls=20)
    for launch, settled in enumerate((True, False)):
        warm = {"calls": 3, "stationary": settled, "mean_tokens": 16.0, "call_ms": 4.0}
        plan.journal.put(("warm", str(load), launch, "t/fp32"), warm)
    (row,) = compute(plan).latency
    assert (row.samples, row.p50_ms, row.p90_ms, row.missing) == (160, 13.5, 17, {"p99": 502})
    assert row.throughput_per_s == pytest.approx(8 / 0.0135)
    assert row.cpu_share == pytest.approx(1.0 / 0.8 / 2)  # two threads
    assert row.stationary is False
    # The rounds in the order of their launches: 10 and 14, 11 and 15, and so on; thirds are 2 of 8.
    assert row.drift == pytest.approx((13 + 17) / (10 + 14))


def test_fewer_than_two_rounds_have_no_ratio(plan):
    fill(plan, SHORT, {"t/fp32": 10, "t/fp32#again": 10, "s/fp32": 5}, rounds=1)
    found = compute(plan)
    assert (found.ratios, found.noise.floor) == ([], None)
    assert [row.key for row in found.latency] == ["t/fp32", "s/fp32"]
    assert "latency at 1×16: 1 of 5 rounds" in found.missing


def test_only_rounds_that_both_have_are_paired(plan):
    fill(plan, SHORT, {"t/fp32": 10, "s/fp32": 5}, rounds=4)
    fill(plan, SHORT, {"t/fp32": 10}, rounds=8)
    plan.journal.put(
        ("round", "1×16", 3, 9), {"calls_ms": {"s/fp32": [5.0]}, "cpu_s": {"s/fp32": 1}, "wall_s": {"s/fp32": 1}}
    )
    fill(plan, SHORT, {"t/fp32": 10, "s/fp32": 5}, rounds=3)
    row = compute(plan).ratios[0]
    assert (row.rounds, row.value) == (3, 2)


def test_dropped_rounds_count_for_nothing_but_their_number(plan):
    fill(plan, SHORT, {"t/fp32": 10})
    third = [found for found in kept_rounds(plan.journal, SHORT) if found.launch == 2]
    drop_rounds(plan.journal, SHORT, third, reason="others")
    found = compute(plan)
    assert found.latency[0].samples == 60
    assert found.noise.repeated_rounds == 2


def test_the_samples_of_an_old_report_give_the_same_parts(plan):
    fill(plan, SHORT, {"t/fp32": lambda n: 10 + n % 3, "t/fp32#again": 10, "s/fp32": lambda n: 5 + n % 2})
    plan.journal.put(
        ("failure", "s/int8", "load", ""), {"key": "s/int8", "stage": "load", "kind": "error", "reason": "x"}
    )
    plan.journal.put(("load", "t/fp32"), {"device": "cpu"})
    first = compute(plan)
    plan.journal.finish()
    again = results(
        read_samples(plan.journal.file),
        plan.entries,
        plan.loads,
        baseline=plan.baseline,
        config=plan.config,
        seed=plan.seed,
    )
    assert again == first
    assert first.loaded == {"t/fp32": {"device": "cpu"}}
    assert compute(plan, seed=8) != first


def test_another_row_does_not_move_an_interval(plan):
    speeds = {"t/fp32": lambda n: 10 + n % 3, "s/fp32": lambda n: 5 + n % 2, "s/int8": 1.0}
    fill(plan, SHORT, speeds)
    whole = compute(plan)
    object.__setattr__(plan, "entries", [entry for entry in plan.entries if entry.key != "s/int8"])
    part = compute(plan)
    assert [row for row in whole.latency if row.key != "s/int8"] == part.latency
    assert [row for row in whole.ratios if row.candidate != "s/int8"] == part.ratios


def test_an_empty_journal_misses_everything(tmp_path):
    plan = make_plan(
        tmp_path, World(), keys=["t/fp32"], loads=[SHORT, LONG], throughput_batch_sizes=[8], callers=[4], cold_starts=1
    )
    found = compute(plan)
    assert (found.latency, found.energy.source, found.energy.reason) == ([], None, "not measured yet")
    assert found.missing == [
        "latency at 1×16: 0 of 5 rounds",
        "latency at 1×128: 0 of 5 rounds",
        "memory of t/fp32",
        "cold start of t/fp32",
        "throughput at 8×64, 4 callers",
    ]
