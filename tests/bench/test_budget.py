from math import inf

import pytest

from potstill.bench.contract import Load
from potstill.bench.measuring import budget
from potstill.sections import BenchConfig


@pytest.mark.parametrize(
    ("rounds", "launches", "expected"),
    [(12, 4, [3, 3, 3, 3]), (5, 4, [2, 1, 1, 1]), (7, 3, [3, 2, 2]), (2, 4, [1, 1]), (12, 1, [12])],
)
def test_rounds_are_divided_evenly(rounds, launches, expected):
    assert budget.split_rounds(rounds, launches) == expected


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [(10, "wide"), (5, "wide"), (4.9, "middle"), (1, "narrow"), (0.9, None), (-1, None)],
)
def test_a_round_goes_where_the_interval_is_widest_among_those_that_fit(left_s, expected):
    widths = {"narrow": 0.01, "wide": 0.1, "middle": 0.05, "certain": 0.0}
    costs_s = {"narrow": 1, "wide": 5, "middle": 2, "certain": 0.1}
    assert budget.next_load(widths, costs_s, left_s=left_s) == expected


def test_no_interval_yet_comes_before_a_wide_one_and_an_unknown_cost_fits_nowhere():
    assert budget.next_load({"wide": 0.9, "none": inf}, {"wide": 1, "none": 1}, left_s=9) == "none"
    assert budget.next_load({"wide": 0.9, "none": inf}, {"wide": 1}, left_s=9) == "wide"
    assert budget.next_load({}, {}, left_s=9) is None


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_threads_double_up_to_all_cores(cores, expected):
    assert budget.thread_counts(cores) == expected


def call_ms(unit_ms, speeds):
    """Return call times of the default loads, of rows whose 1×128 takes `unit_ms` / speed."""
    loads = [Load(batch_size=batch, num_tokens=length) for batch in (1, 8) for length in (16, 128)]
    loads += [Load(kind="texts"), Load(kind="texts_tokenised")]
    return {
        key: {load: unit_ms / 128 * load.batch_size * (load.num_tokens or 25) / speed for load in loads}
        for key, speed in speeds.items()
    }


SPEEDS = {"t/fp32": 1, "t/fp32#again": 1, "t/int8": 2.5, "s/fp32": 2, "s/int8": 5}


def test_a_default_bench_of_two_models_in_two_precisions_stays_within_four_minutes():
    """25 ms at 1×128 are those of MiniLM-L6 on two busy cores; 872 texts are SST-2's."""
    found = budget.estimate_seconds(call_ms(25, SPEEDS), BenchConfig(), cores=2, scored_texts=872)
    assert sum(found.values()) <= 240
    faster = budget.estimate_seconds(call_ms(12, SPEEDS), BenchConfig(), cores=2, scored_texts=872)
    assert sum(faster.values()) <= 210


def test_an_estimate_is_the_sum_of_what_will_be_done():
    rows = {"a": {Load(num_tokens=100): 100.0}}
    config = BenchConfig(
        rounds=10, block_s=0.5, num_tokens=[100], throughput_batch_sizes=[2], throughput_tokens=50, callers=[1, 2],
        cold_starts=2, launches=2,
    )  # fmt: skip
    found = budget.estimate_seconds(rows, config, cores=2, scored_texts=100)
    # 10 rounds of 5 calls and the one before; twice: 0.7 s to load, 0.12 s and 3 calls to warm up.
    assert found["measure latency"] == pytest.approx(10 * 0.6 + 2 * (0.7 + 0.12 + 0.3))
    # 1 ms per token: a call of 2×50 takes 0.1 s. Loading, 3 calls of warm-up, 3 turns each with 1 and 2 callers.
    assert found["measure throughput"] == pytest.approx(1.0 + 0.3 + 3 * (0.2 + 0.3) + 3 * (0.4 + 0.3))
    # One and two threads: loading, and 5 turns of 3 calls and the one before.
    assert found["scale threads"] == pytest.approx(2 * (1.0 + 5 * 0.4))
    assert found["score quality"] == pytest.approx(1.0 + 100 * 32 * 0.001)
    assert found["cold start"] == pytest.approx(2.0)


def test_a_budget_and_what_is_switched_off_cost_what_they_say():
    rows = {"a": {Load(num_tokens=100): 1.0}, "lost": {}}
    config = BenchConfig(budget_s=50, throughput_batch_sizes=[], thread_scaling=False, cold_starts=0, launches=1)
    found = budget.estimate_seconds(rows, config, cores=8)
    assert found == {
        "measure latency": pytest.approx(50 + 0.7 + 0.12 + 0.003), "measure throughput": 0, "scale threads": 0,
        "score quality": 0, "cold start": 0,
    }  # fmt: skip
