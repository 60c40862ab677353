import numpy as np
import pytest

from potstill.bench import runner
from potstill.bench.workload import Cell
from potstill.timing.client import CommandFailed, WorkerDied

PLAN = runner.Plan(rounds=6, block_s=0.1, min_calls=3)
CELLS = [Cell(1, 16), Cell(1, 32)]


class FakeWorker:
    """Write down every turn; answer with a constant latency, or fail at one block."""

    def __init__(self, name, diary, *, latency_ms=1.0, fails_at=None, error=None):
        self.name, self.diary, self.latency_ms = name, diary, latency_ms
        self.fails_at, self.error, self.blocks = fails_at, error, 0

    def ask(self, command):
        if command["do"] == "block":
            self.blocks += 1
            if self.blocks == self.fails_at:
                raise self.error
            self.diary.append((self.name, command["num_tokens"], command["min_calls"]))
            return {"latencies_ms": [self.latency_ms] * command["min_calls"]}
        return {"rss_bytes": 5}


def run(team, seed=0):
    return runner.measure(team, CELLS, plan=PLAN, rng=np.random.default_rng(seed))


def test_every_model_has_one_turn_per_round_and_the_order_is_random():
    diary = []
    run(runner.Team({name: FakeWorker(name, diary) for name in "abc"}))
    warm_up, turns = diary[:3], diary[3 : 3 + 18]
    assert [name for name, _, _ in warm_up] == ["a", "b", "c"]
    rounds = ["".join(name for name, _, _ in turns[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1
    assert {(tokens, calls) for _, tokens, calls in turns} == {(16, 3)}


def test_the_seed_decides_the_order():
    def diary_of(seed):
        diary = []
        run(runner.Team({name: FakeWorker(name, diary) for name in "abc"}), seed)
        return diary

    assert diary_of(1) == diary_of(1) != diary_of(2)


def test_a_model_that_dies_costs_its_cells_and_nobody_elses():
    # Block 1 warms up, 2 to 7 are the first cell; the second cell's third round kills it.
    workers = {
        "good": FakeWorker("good", []),
        "bad": FakeWorker("bad", [], fails_at=11, error=WorkerDied("killed by signal 9")),
    }
    team = runner.Team(workers)
    timings = run(team)
    assert set(timings) == {("good", CELLS[0]), ("good", CELLS[1]), ("bad", CELLS[0])}
    assert [len(rounds) for rounds in timings.values()] == [6, 6, 6]
    assert team.failures == [
        {"model": "bad", "stage": "latency", "cells": ["1×32"], "died": True, "reason": "killed by signal 9"}
    ]
    assert set(team.workers) == {"good"}


def test_a_model_that_dies_in_its_first_cell_loses_the_rest_too():
    team = runner.Team({"bad": FakeWorker("bad", [], fails_at=1, error=WorkerDied("gone"))})
    assert run(team) == {}
    assert team.failures[0]["cells"] == ["1×16", "1×32"]
    assert team.failures[0]["stage"] == "warm-up"


def test_an_error_in_one_cell_costs_that_cell_only():
    team = runner.Team({"odd": FakeWorker("odd", [], fails_at=2, error=CommandFailed("no positions"))})
    timings = run(team)
    assert set(timings) == {("odd", CELLS[1])}
    assert team.failures[0]["cells"] == ["1×16"]


def test_progress_ends_at_its_total():
    calls = []
    runner.measure(
        runner.Team({"a": FakeWorker("a", [])}), CELLS, plan=PLAN, rng=np.random.default_rng(0),
        progress=lambda stage, done, total, note: calls.append((stage, done, total)),
    )  # fmt: skip
    assert {stage for stage, _, _ in calls} == {"measure latency"}
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[-1][1:] == (14, 14)


def test_ctrl_c_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        run(runner.Team({"a": FakeWorker("a", [], fails_at=2, error=KeyboardInterrupt())}))
