""""""

from dataclasses import dataclass
from math import inf
from types import SimpleNamespace

import pytest

from potstill import machine
from potstill.bench import budget
from potstill.bench.budget import IMPORTANCE, describe_costs, estimate, fit, main_load
from potstill.bench.config import ResolvedBench
from potstill.bench.report_schema import Load, Model
from potstill.config import BenchConfig
from potstill.errors import UsageError
from tests.bench.fake_worker import configuration


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


LOADS = (Load(num_tokens=16), Load(num_tokens=128), Load(batch_size=8, num_tokens=128), Load(kind="texts"))
KEYS = ("t/fp32", "t/int8", "s/fp32", "s/int8")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 2)


@dataclass(frozen=True)
class File:
    """A file of weights, of which only the size is asked."""

    size: float

    def stat(self):
        return SimpleNamespace(st_size=self.size)


def bench_of(*, texts=500, million_bytes=100, **config):
    """Return a bench of two models in two precisions."""
    configurations = tuple(configuration(key) for key in KEYS)
    facts = Model(task="text-classification", parameters=23_000_000, encoder_parameters=11_000_000, max_length=512)
    model = SimpleNamespace(facts=facts, weight_files=lambda each: [File(million_bytes * 1e6)])
    dataset = SimpleNamespace(configurations=configurations, examples=SimpleNamespace(texts=["a text"] * texts))
    return ResolvedBench(
        configurations=configurations,
        baseline=configurations[0],
        loads=LOADS,
        config=BenchConfig(**config),
        seed=1,
        threads=2,
        models={"t": model, "s": model},
        datasets=(dataset,) if texts else (),
    )


def test_the_estimate_names_every_part_that_was_asked_for():
    found = estimate(bench_of())
    assert list(found) == [
        "starting the processes",
        "latency",
        "own texts",
        "quality",
        "throughput",
        "cold starts",
        "thread scaling",
        "compressed sizes",
        "the report",
    ]
    assert "cold starts" not in estimate(bench_of(cold_starts=0))
    assert "quality" not in estimate(bench_of(texts=0))
    # Six launches of five processes that hash and load 100 MB; 12 rounds of at least a quarter of a second each.
    assert 20 < found["starting the processes"] < 60
    assert 12 * 5 * 3 * 0.25 < found["latency"] < 600
    assert (
        describe_costs({"latency": 200.0, "quality": 40.0, "the report": 0.5})
        == "about 4 min: latency 3 min, quality 40 s"
    )


def test_what_is_impossible_is_refused_with_the_least_budget_which_is_then_enough():
    with pytest.raises(UsageError, match=r"--budget 3s is too short: .* pass --budget (\d+)s or more") as caught:
        fit(bench_of(), 3.0, elapsed_s=0.5)
    least = float(str(caught.value).split("pass --budget ")[1].split("s")[0])
    found = fit(bench_of(), least, elapsed_s=0.5)
    assert found.loads == ["1×128"]
    assert (found.with_data, found.config["launches"]) == (False, 1)
    assert [part.partition(" (")[0] for part in found.left_out] == list(IMPORTANCE)


def test_larger_models_need_a_larger_budget():
    with pytest.raises(UsageError, match="too short"):
        fit(bench_of(million_bytes=1500), 40.0, elapsed_s=0.0)


def test_what_does_not_fit_is_left_out_the_least_important_first():
    kept = {}
    for budget_s in (30, 60, 120, 240, 600, 3000):
        found = fit(bench_of(), budget_s, elapsed_s=0.0)
        gone = {part.partition(" (")[0] for part in found.left_out}
        kept[budget_s] = [part for part in IMPORTANCE if part not in gone]
        used = sum(found.reserved_s.values())
        assert used < budget_s
    assert kept[3000] == list(IMPORTANCE)
    for parts in kept.values():
        assert parts == list(IMPORTANCE[: len(parts)])
    assert len({len(parts) for parts in kept.values()}) > 3
    assert fit(bench_of(), 3000, elapsed_s=0.0).config["launches"] == 6
    assert fit(bench_of(), 3000, elapsed_s=0.0).config["block_s"] == 0.25


def test_what_was_not_asked_for_is_not_left_out():
    found = fit(bench_of(texts=0, cold_starts=0, thread_scaling=False, compressed=False), 30.0, elapsed_s=0.0)
    assert not {"quality", "cold starts", "thread scaling"} & {part.partition(" (")[0] for part in found.left_out}


def test_the_load_that_claims_are_about_comes_first():
    assert str(main_load(LOADS)) == "1×128"
    assert str(main_load((Load(batch_size=8, num_tokens=16), Load(batch_size=8, num_tokens=64)))) == "8×64"
