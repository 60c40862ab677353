from math import inf

import pytest

from potstill.bench import budget


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


def test_a_part_leaves_the_time_of_those_after_it():
    reserved = {budget.THROUGHPUT: 3.0, budget.QUALITY: 4.0, budget.REPORT: 5.0}
    deadline = budget.Deadline(end=100.0, clock=lambda: 60.0, reserved_s=reserved)
    assert deadline.left_s(budget.LATENCY) == 40 - 12
    assert deadline.left_s(budget.THROUGHPUT) == 40 - 9
    assert deadline.left_s(budget.COLD_STARTS) == 40 - 5
    assert deadline.left_s(budget.REPORT) == 40


def test_a_machine_that_starts_slowly_leaves_more_for_the_rest():
    deadline = budget.Deadline(end=100.0, clock=lambda: 60.0, reserved_s={budget.REPORT: 5.0}, starts_s=4.0)
    assert deadline.on_a_slow_machine(12.0).left_s(budget.LATENCY) == 40 - 15
    assert deadline.on_a_slow_machine(120.0).left_s(budget.LATENCY) == 40 - 15
    assert deadline.on_a_slow_machine(3.0).left_s(budget.LATENCY) == 40 - 5
    assert budget.Deadline(end=100.0, clock=lambda: 60.0).on_a_slow_machine(12.0).left_s(budget.LATENCY) == 40
