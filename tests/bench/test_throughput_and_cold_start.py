""""""

import sys

import numpy as np
import pytest
from scipy import stats

from potstill import machine
from potstill.bench.measure import throughput
from potstill.bench.measure.cold_start import median_interval, start_once, summarise_starts
from potstill.bench.measure.results import summarise_measurements
from potstill.bench.report_schema import Load
from potstill.timing import disturbance
from potstill.timing.workers import CommandFailed, WorkerDied
from tests.bench.fake_worker import World, configuration, make_run

# A worker whose numbers are known: each start's file says which it is.
SCRIPT = """
import json, pathlib, sys, time
folder = pathlib.Path({folder!r})
number = len(list(folder.iterdir()))
(folder / str(number)).write_text(sys.argv[1])
for line in sys.stdin:
    command = json.loads(line)
    with (folder / str(number)).open("a") as notes:
        notes.write("\\n" + line.strip())
    if command["do"] == "load":
        reply = {{"process_ms": 10 + number, "import_ms": 100, "load_ms": [300, 900, 500][number], "device": "cpu"}}
    else:
        reply = {{"first_answer_ms": 7.5}}
    print(json.dumps({{"ok": True}} | reply), flush=True)
"""


def load(**changes):
    return {
        "do": "load",
        "runner": "onnxruntime-cpu",
        "precision": "fp32",
        "threads": 1,
        "task": "text-classification",
        "problem_type": None,
        "max_length": None,
        "seed": 5,
        "spinning": True,
    } | changes


def test_a_cold_start_is_the_median_of_each_part_over_fresh_processes(tmp_path):
    script = [sys.executable, "-c", SCRIPT.format(folder=str(tmp_path))]
    starts = [start_once(load(folder="x", spinning=False), text=("word1", "word2"), command=script) for _ in range(3)]
    found = summarise_starts("teacher/fp32", starts, disturbed="others were at work")
    assert (found.key, found.starts, found.disturbed) == ("teacher/fp32", 3, "others were at work")
    assert (found.process_ms, found.import_ms, found.load_ms, found.first_answer_ms) == (11, 100, 500, 7.5)
    # 417.5, 1018.5 and 619.5 in all.
    assert found.total_ms == 619.5
    assert found.interval == median_interval([417.5, 1018.5, 619.5])
    started, told, first = (tmp_path / "0").read_text().splitlines()
    assert float(started) > 0
    assert '"seed": 5' in told
    assert '"spinning": false' in told
    assert first == '{"do": "first", "text": ["word1", "word2"]}'


def test_a_real_start_has_four_parts_that_all_take_time(teacher_dir):
    found = summarise_starts("t", [start_once(load(folder=str(teacher_dir)), text="word1 word2")])
    assert min(found.process_ms, found.import_ms, found.load_ms, found.first_answer_ms) > 0
    assert found.total_ms == found.process_ms + found.import_ms + found.load_ms + found.first_answer_ms
    assert found.process_ms < 10_000
    assert found.interval == pytest.approx((found.total_ms, found.total_ms))


def test_what_cannot_load_is_told(tmp_path):
    with pytest.raises(CommandFailed, match="BundleError"):
        start_once(load(folder=str(tmp_path / "nowhere")), text="word1")


def test_what_does_not_answer_in_time_is_ended():
    with pytest.raises(WorkerDied, match=r"no answer within 0\.2 s"):
        start_once(
            load(folder="x"),
            text="word1",
            timeout_s=0.2,
            command=[sys.executable, "-c", "import time; time.sleep(60)"],
        )


@pytest.mark.parametrize(
    ("count", "lower"),
    # The sign test's table for 5 %, two-sided (Conover 1999, Practical Nonparametric Statistics, table A3).
    [(6, 0), (8, 0), (9, 1), (12, 2), (15, 3), (20, 5), (25, 7)],
)
def test_the_interval_of_a_median_is_between_two_of_the_values(count, lower):
    values = [float(number) for number in range(count)]
    assert median_interval(values[::-1]) == (lower, count - 1 - lower)


def test_a_few_starts_have_students_interval():
    logs = np.log([400.0, 440.0, 500.0])
    expected = np.exp(stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs)))
    assert median_interval([500.0, 400.0, 440.0]) == pytest.approx(tuple(expected), rel=1e-3)
    low, high = median_interval([400.0, 404.0])
    assert low < 380
    assert high > 425


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 4)


@pytest.fixture
def world():
    return World(latency_ms={"t/fp32": 4.0, "s/fp32": 2.0})


def run_of(folder, world, **settings):
    return make_run(
        folder, world, loads=[], throughput_batch_sizes=[1, 8], throughput_tokens=64, **({"again": False} | settings)
    )


def compute(run):
    return summarise_measurements(run.bench, run.journal)


def take_turns(run, launches=1):
    for launch in range(launches):
        with run.pool(run.measured_processes()) as team:
            throughput.measure_throughput(run, team, launch=launch, launches=launches)


def test_everybody_has_six_turns_at_every_batch_size_and_number_of_callers(world, tmp_path):
    run = run_of(tmp_path, world, callers=[1, 4])
    take_turns(run)
    asked = [(key, c["load"]["batch_size"], c["callers"]) for _, key, c in world.said if c["do"] == "concurrent"]
    assert sorted(asked) == sorted(
        (key, size, callers) for key in ("t/fp32", "s/fp32") for size in (1, 8) for callers in (1, 4) for _ in range(6)
    )
    assert [{key for key, *_ in asked[start : start + 2]} for start in range(0, 48, 2)] == [{"t/fp32", "s/fp32"}] * 24
    assert len({key for key, *_ in asked[0:48:2]}) == 2  # not always the same one first
    assert {c["load"]["num_tokens"] for _, _, c in world.said if "load" in c} == {64}
    assert len(world.processes) == 2
    assert len(world.asked("warm")) == 4  # once per row and load
    rows = compute(run).throughput
    assert len(rows) == 8
    # 10 texts of 4 ms each: 250 in a second.
    assert (rows[0].key, str(rows[0].load), rows[0].callers) == ("t/fp32", "1×64", 1)
    assert (rows[0].texts_per_s, rows[0].interval, rows[0].p50_ms) == (250, (250, 250), 4)
    assert {row.texts_per_s for row in rows if row.key == "s/fp32"} == {500}


def test_a_failure_costs_its_number_of_callers_only(world, tmp_path):
    world.faults = {("s/fp32", "concurrent", "8×64"): [None, WorkerDied("the process was killed by signal 9")]}
    run = run_of(tmp_path, world, callers=[1, 4])
    take_turns(run)
    found = compute(run)
    assert [(row.stage, row.where, row.kind) for row in found.failures] == [
        ("throughput", "8×64, 1 caller", "out of memory")
    ]
    own = [(str(row.load), row.callers) for row in found.throughput if row.key == "s/fp32"]
    assert own == [("1×64", 1), ("1×64", 4), ("8×64", 4)]
    assert len(world.processes) == 3
    assert not [entry for entry in found.missing if "throughput" in entry]


def test_turns_that_take_long_are_three(world, tmp_path):
    world.latency_ms = {"t/fp32": 150.0, "s/fp32": 60.0}  # 1.5 and 0.6 s a turn: 6.3 s after three
    run = run_of(tmp_path, world, callers=[1])
    take_turns(run)
    assert len(world.asked("concurrent")) == 3 * 2 * 2
    assert not [entry for entry in compute(run).missing if "throughput" in entry]
    take_turns(run)
    assert len(world.asked("concurrent")) == 12


def test_too_few_calls_have_no_median(world, tmp_path):
    reply = {"texts": 1, "seconds": 1.0, "latencies_ms": [300.0]}
    world.faults = {("t/fp32", "concurrent", "1×64"): reply}
    run = run_of(tmp_path, world, callers=[1], keys=["t/fp32"])
    take_turns(run)
    first = compute(run).throughput[0]
    assert (first.texts_per_s, first.p50_ms) == (1, None)  # 9 calls in all


@pytest.mark.parametrize(
    "reply",
    [
        {"texts": 0, "seconds": 1.0, "latencies_ms": [1.0]},
        {"texts": 1, "seconds": 0.0, "latencies_ms": [1.0]},
        {"texts": 1, "seconds": 1.0, "latencies_ms": []},
        {"texts": 1, "seconds": 1.0, "latencies_ms": [-1.0]},
        {},
    ],
)
def test_a_reply_that_cannot_be_is_a_failure(world, tmp_path, reply):
    world.faults = {("t/fp32", "concurrent", "1×64"): reply or {"texts": "many"}}
    run = run_of(tmp_path, world, callers=[1])
    take_turns(run)
    (failure,) = compute(run).failures
    assert (failure.key, failure.kind) == ("t/fp32", "error")


def test_each_number_of_threads_has_a_process_of_its_own_and_turns_are_paired(world, tmp_path):
    run = make_run(tmp_path, world, loads=[], thread_scaling=True, num_tokens=[16, 128])
    throughput.measure_scaling(run)
    loads = [command for _, _, command in world.said if command["do"] == "load"]
    assert [(c["key"], c["threads"]) for c in loads] == [(key, n) for key in ("t/fp32", "s/fp32") for n in (1, 2, 4)]
    blocks = [command["load"] for _, _, command in world.said if command["do"] == "block"]
    assert len(blocks) == 2 * 3 * 5
    assert {(load["batch_size"], load["num_tokens"]) for load in blocks} == {(1, 128)}
    turns = [process for process, _ in world.asked("block")]
    assert all(sorted(turns[start : start + 3]) == [0, 1, 2] for start in range(0, 15, 3))
    assert all(worker.closed for worker in world.processes)


def test_speedups_are_against_one_thread(tmp_path):
    run = make_run(tmp_path, World(), loads=[], thread_scaling=True, keys=["t/fp32"])
    for turn, factor in enumerate((1.0, 2.0, 3.0)):
        run.journal.put(("scaling", "t/fp32", turn), {"1": [8 * factor] * 3, "2": [5 * factor], "4": [4 * factor]})
    rows = compute(run).scaling
    assert [(row.threads, row.p50_ms, row.speedup) for row in rows] == [(1, 16, 1), (2, 10, 1.6), (4, 8, 2)]
    assert rows[1].interval == (5, 15)
    assert rows[0].load == Load(batch_size=1, num_tokens=128)


def test_threads_that_fail_are_a_failure_of_their_row(world, tmp_path):
    world.faults = {("t/fp32", "warm", "1×128"): [None, CommandFailed("ValueError: no such number of threads")]}
    run = make_run(tmp_path, world, loads=[], thread_scaling=True, keys=["t/fp32"])
    throughput.measure_scaling(run)
    (failure,) = compute(run).failures
    assert (failure.key, failure.stage, failure.kind) == ("t/fp32", "scaling", "error")
    assert failure.where in {"threads: 1", "threads: 2", "threads: 4"}
    assert compute(run).missing == ["memory of t/fp32"]


def test_a_gpu_has_no_threads_to_compare(world, tmp_path):
    run = make_run(tmp_path, world, loads=[], thread_scaling=True, keys=["t/fp32@torch-cuda-compiled"])
    throughput.measure_scaling(run)
    assert world.said == []
    assert configuration("t/fp32", runner="torch-cpu-compiled").on_processor
    assert not configuration("t/fp32", runner="onnxruntime-tensorrt").on_processor


def test_turns_are_spread_over_the_launches_so_that_several_processes_are_seen(world, tmp_path):
    run = run_of(tmp_path, world, callers=[1])
    take_turns(run, launches=4)
    processes = [process for process, key in world.asked("concurrent") if key == "t/fp32"]
    assert len(set(processes)) == 4
    assert len(processes) == 6 * 2


def test_what_others_did_meanwhile_marks_the_row(world, tmp_path, monkeypatch):
    now = iter(range(10_000))

    def busy():
        tick = next(now)
        return disturbance.Counters(total=tick, busy=tick, stolen=0, own=tick * 0.6, throttled=0, wall=tick)

    monkeypatch.setattr(disturbance, "read_counters", busy)
    run = run_of(tmp_path, world, callers=[1], max_repeats=1)
    take_turns(run)
    found = compute(run)
    assert {row.disturbed for row in found.throughput} == {"other processes took 40% of the time of the cores"}
    assert found.noise.flags == ["While throughput was measured, other processes took 40% of the time of the cores."]
    assert len(world.asked("concurrent")) == 2 * 2 * 6 * 2  # every turn once again
