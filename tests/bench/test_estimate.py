"""What a bench will take, and what of it a budget has room for."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from potstill import machine
from potstill.bench.budget import IMPORTANCE, describe_costs, estimate, fit, main_load
from potstill.bench.config import ResolvedBench
from potstill.bench.report_schema import Load, Model
from potstill.config import BenchConfig
from potstill.errors import UsageError
from tests.bench.fake_worker import configuration

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
