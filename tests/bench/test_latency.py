import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from potstill.bench.budget import Deadline
from potstill.bench.config import LoadedDataset, split_journal_key
from potstill.bench.measure import cold_start, latency
from potstill.bench.measure.energy import Meter
from potstill.bench.measure.quality import collect_answers
from potstill.bench.measure.results import summarise_measurements
from potstill.bench.measure.samples import FILE_NAME, all_rounds, kept_rounds
from potstill.bench.measure.stages import measure
from potstill.bench.report_schema import Load
from potstill.timing import disturbance
from potstill.timing.workers import CommandFailed, WorkerDied
from tests.bench.fake_worker import MEMORY, SHORT, TEXTS, World, make_run

CALM = disturbance.Counters(total=0, busy=0, stolen=0, own=0, throttled=0, wall=0)


@pytest.fixture(autouse=True)
def calm_machine(monkeypatch):
    monkeypatch.setattr(disturbance, "read_counters", lambda: CALM)


@pytest.fixture
def world():
    return World()


def compute(run):
    return summarise_measurements(run.bench, run.journal)


def turns(world, do="block"):
    return [(key, command["load"]["num_tokens"]) for _, key, command in world.said if command["do"] == do]


def structure(run):
    """Return what a report is made of but the times themselves."""
    found = compute(run)
    return (
        [(row.key, str(row.load), row.samples) for row in found.latency],
        [(row.comparison, row.candidate, str(row.load), row.rounds) for row in found.ratios],
        [(row.key, str(row.load), row.callers) for row in found.throughput],
        [row.key for row in found.memory],
        [(row.key, row.stage, row.where) for row in found.failures],
        found.missing,
    )


def test_everybody_has_one_turn_per_round_beside_the_baselines_twin(world, tmp_path):
    run = make_run(tmp_path, world)
    measure(run, answers=tmp_path / "answers")
    for load in run.bench.loads:
        rounds = kept_rounds(run.journal, load)
        assert [(found.launch, found.number) for found in rounds] == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]
        assert all(set(found.calls_ms) == {"t/fp32", "t/fp32#again", "s/fp32"} for found in rounds)
    assert all(worker.closed for worker in world.processes)
    assert len(world.processes) == 4 * 3  # four launches


def test_turns_are_in_random_order_but_the_same_for_the_same_seed(tmp_path):
    def order(folder, seed=7):
        world = World()
        keys = ("t/fp32", "s/fp32", "s/int8", "m/fp32")
        run = make_run(folder, world, keys=keys, loads=[SHORT], rounds=12, seed=seed)
        measure(run, answers=tmp_path / "answers")
        keys = [key for key, _ in turns(world)]
        return ["".join(key[0] + key[-1] for key in keys[start : start + 5]) for start in range(0, len(keys), 5)]

    first = order(tmp_path / "a")
    assert len(first) == 12
    assert len(set(first)) > 6
    assert order(tmp_path / "b") == first
    assert order(tmp_path / "c", seed=8) != first


def test_a_load_is_warmed_up_once_per_process_and_texts_are_sent_once(world, tmp_path):
    run = make_run(tmp_path, world, loads=[SHORT, TEXTS], rounds=12, texts=["a", "b"], again=False)
    measure(run, answers=tmp_path / "answers")
    assert len(world.asked("warm")) == 2 * 2 * 4  # rows, loads, launches
    assert len(world.asked("texts")) == 2 * 4
    warm = next(command for _, _, command in world.said if command["do"] == "warm")
    assert (warm["max_s"], warm["load"]["num_tokens"]) == (3.0, 16)
    block = next(command for _, _, command in world.said if command["do"] == "block")
    assert (block["seconds"], block["min_calls"]) == (0.25, 3)


def test_a_crash_in_one_cell_costs_that_cell_only(world, tmp_path):
    world.faults = {("s/fp32", "block", "1×16"): [None, None, WorkerDied("the process was killed by signal 11")]}
    run = make_run(tmp_path, world, keys=("t/fp32", "s/fp32", "m/fp32"))
    measure(run, answers=tmp_path / "answers")
    found = compute(run)
    assert {(row.key, str(row.load)) for row in found.latency} == {
        ("t/fp32", "1×16"),
        ("t/fp32", "1×128"),
        ("s/fp32", "1×128"),
        ("m/fp32", "1×16"),
        ("m/fp32", "1×128"),
    }
    (failure,) = found.failures
    assert (failure.key, failure.stage, failure.where, failure.kind) == ("s/fp32", "latency", "1×16", "crash")
    assert {row.rounds for row in found.ratios} == {5}
    assert ("s/fp32", "1×16") not in {(row.candidate, str(row.load)) for row in found.ratios}
    # Restarted once, at the next load; in the launches that follow it never runs the lost cell again.
    starts = [process for process, key in world.asked("load") if key == "s/fp32"]
    assert len(starts) == 4 + 1
    assert found.missing == []
    assert {row.key for row in found.memory} == {"t/fp32", "s/fp32", "m/fp32"}


def test_nan_found_in_the_warm_up_costs_the_cell_before_any_round(world, tmp_path):
    world.faults = {("s/fp32", "warm", "1×128"): CommandFailed("NotFinite: all numbers in logits are NaN")}
    run = make_run(tmp_path, world)
    measure(run, answers=tmp_path / "answers")
    (failure,) = compute(run).failures
    assert (failure.stage, failure.where, failure.kind) == ("warm-up", "1×128", "not finite")
    assert ("s/fp32", 128) not in turns(world)
    assert turns(world).count(("s/fp32", 16)) == 5


def test_who_cannot_load_is_missed_by_nobody(world, tmp_path):
    world.faults = {("s/fp32", "load", None): CommandFailed("MissingError: no CUDA device")}
    run = make_run(tmp_path, world)
    measure(run, answers=tmp_path / "answers")
    found = compute(run)
    assert [(row.key, row.stage, row.where) for row in found.failures] == [("s/fp32", "load", None)]
    assert {row.key for row in found.latency} == {"t/fp32"}
    assert {row.comparison for row in found.ratios} == {"again"}
    assert found.missing == []
    assert len(world.asked("load")) == 2 * 4 + 1


def test_a_baseline_that_cannot_load_leaves_the_others(world, tmp_path):
    world.faults = {("t/fp32", "load", None): CommandFailed("BundleError: broken")}
    run = make_run(tmp_path, world)
    measure(run, answers=tmp_path / "answers")
    found = compute(run)
    assert {row.key for row in found.latency} == {"s/fp32"}
    assert (found.ratios, found.noise.floor) == ([], None)


def test_nobody_can_run_and_it_still_ends(world, tmp_path):
    world.faults = {(key, "warm", "1×16"): CommandFailed("ValueError: no") for key in ("t/fp32", "s/fp32")}
    run = make_run(tmp_path, world, loads=[SHORT], budget_s=50.0)
    measure(run, answers=tmp_path / "answers")
    found = compute(run)
    assert (found.latency, found.missing) == ([], [])
    assert len(found.failures) == 3  # the twin too


@pytest.mark.parametrize("settings", [{}, {"budget_s": 40.0}])
def test_an_interrupted_run_goes_on_and_ends_like_a_straight_one(tmp_path, settings):
    common = {"throughput_batch_sizes": [1, 8], "callers": [1, 4], "head": {"seed": 7}} | settings
    straight = make_run(tmp_path / "straight", World(), **common)
    measure(straight, answers=tmp_path / "answers")
    expected = structure(straight)
    assert expected[-1] == []
    folder, runs = tmp_path / "resumed", 0
    while True:
        world = World(interrupt_at=23)
        run = make_run(folder, world, **common)
        runs += 1
        try:
            measure(run, answers=tmp_path / "answers")
        except KeyboardInterrupt:
            assert all(worker.closed for worker in world.processes)
            if runs == 1:
                assert compute(run).missing[1] == "latency at 1×128: 2 of 5 rounds"
            run.journal.finish()
            with (folder / FILE_NAME).open("a") as stream:
                stream.write('{"name": ["round", "1×1')  # the line that it was writing
            continue
        break
    assert runs > 5
    if settings:  # what its budget was spent on is another matter, since starting again takes of it
        assert structure(run)[2:] == expected[2:]
    else:
        assert structure(run) == expected
    names = [tuple(json.loads(line)["name"][:3]) for line in (folder / FILE_NAME).read_text().splitlines()[1:]]
    assert len([name for name in names if name == ("memory", "t/fp32", 0)]) == 1


def test_a_finished_run_is_not_touched_again(world, tmp_path):
    run = make_run(tmp_path, world, throughput_batch_sizes=[1])
    measure(run, answers=tmp_path / "answers")
    before = (tmp_path / FILE_NAME).read_bytes()
    said = len(world.said)
    measure(run, answers=tmp_path / "answers")
    assert len(world.said) == said
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_round_that_was_cut_off_leaves_no_trace(tmp_path):
    world = World(interrupt_at=6 + 2)  # three loaded and warm, one turn done, the next one is cut off
    run = make_run(tmp_path, world)
    with pytest.raises(KeyboardInterrupt):
        measure(run, answers=tmp_path / "answers")
    assert turns(world) != []
    assert all_rounds(run.journal) == []
    assert run.journal.parts("failure") == {}


def test_a_disturbed_load_is_measured_anew_up_to_the_limit(world, tmp_path, monkeypatch):
    # Others take half of the time in the first two groups of rounds, and nothing later.
    seen = []

    def busy():
        seen.append(1)
        rounds_done = len(seen) // 2
        others = 5.0 * min(rounds_done, 4)
        return disturbance.Counters(total=10.0 * rounds_done, busy=others, stolen=0, own=0, throttled=0, wall=len(seen))

    monkeypatch.setattr(disturbance, "read_counters", busy)
    run = make_run(tmp_path, world, loads=[SHORT], max_repeats=2)
    measure(run, answers=tmp_path / "answers")
    dropped = run.journal.parts("dropped")
    assert [value["rounds"] for value in dropped.values()] == [[0, 1], [2, 3]]
    assert "other processes took 50% of the time" in next(iter(dropped.values()))["reason"]
    assert [(found.launch, found.number) for found in kept_rounds(run.journal, SHORT)][:3] == [(0, 4), (0, 5), (1, 0)]
    found = compute(run)
    assert found.noise.repeated_rounds == 4
    assert found.noise.others_share == 0
    assert found.noise.flags == []


def test_what_stays_disturbed_is_flagged(world, tmp_path, monkeypatch):
    ticks = iter(range(10_000))

    def busy():
        now = next(ticks)
        return disturbance.Counters(total=now, busy=now, stolen=now * 0.1, own=now * 0.5, throttled=0, wall=now)

    monkeypatch.setattr(disturbance, "read_counters", busy)
    run = make_run(tmp_path, world, loads=[SHORT], max_repeats=1)
    measure(run, answers=tmp_path / "answers")
    found = compute(run).noise
    assert found.repeated_rounds == 2
    assert (found.steal_share, found.others_share) == (pytest.approx(0.1), pytest.approx(0.5))
    (flag,) = found.flags
    assert "the host gave 10% of the time" in flag
    assert "other processes took 50%" in flag
    for row in (*compute(run).latency, *compute(run).ratios):
        assert "other processes took 50%" in row.disturbed
    assert {row.finding for row in compute(run).ratios} == {"disturbed"}


def test_launches_that_stay_disturbed_are_left_out_where_the_others_are_enough(world, tmp_path, monkeypatch):
    # Others take half of the time in the first of four launches, and nothing later.
    counted = {"busy": 0.0, "total": 0.0}

    def busy():
        counted["total"] += 5.0
        counted["busy"] += 2.5 if len(world.processes) <= 3 else 0.0
        return disturbance.Counters(**counted, stolen=0, own=0, throttled=0, wall=counted["total"])

    monkeypatch.setattr(disturbance, "read_counters", busy)
    run = make_run(tmp_path, world, loads=[SHORT], rounds=12, max_repeats=0, extra_launches=0)
    measure(run, answers=tmp_path / "answers")
    assert len(kept_rounds(run.journal, SHORT)) == 12
    found = compute(run)
    assert {row.rounds for row in found.ratios} == {9}
    assert {row.disturbed for row in found.latency} == {None}
    assert found.noise.flags == []


def test_a_budget_is_kept_within_one_round_and_goes_where_it_is_uncertain(world, tmp_path):
    run = make_run(tmp_path, world, again=False, budget_s=60.0)
    # At 128 tokens the student's speed changes from round to round; at 16 nothing does.
    world.faults = {
        ("s/fp32", "block", "1×128"): [
            {"latencies_ms": [1.0 + number % 3] * 4, "cpu_s": 0.1, "wall_s": 0.1} for number in range(100)
        ]
    }
    measure(run, answers=tmp_path / "answers")
    short, long = (kept_rounds(run.journal, load) for load in run.bench.loads)
    assert len(short) == 5  # the least, and its intervals are points
    seconds = sum(found.seconds for found in short + long)
    cost = long[-1].seconds
    assert 60 - 2 * cost - 4 < seconds <= 60
    assert len(long) > 20
    assert {found.launch for found in long} == {0, 1, 2, 3}


def test_a_deadline_leaves_the_time_that_is_kept_for_the_rest(world, tmp_path):
    world.faults = unsteady(100)
    run = make_run(tmp_path, world, budget_s=90.0, launches=2, throughput_batch_sizes=[1])
    deadline = Deadline(90.0, lambda: world.clock, {"quality": 20.0, "the report": 10.0})
    latency.measure_latency(replace(run, deadline=deadline))
    assert 50 < world.clock <= 60
    assert {len(kept_rounds(run.journal, load)) >= 5 for load in run.bench.loads} == {True}


def test_what_there_is_no_time_for_is_not_begun(world, tmp_path):
    run = make_run(tmp_path, world, budget_s=20.0, launches=2, cold_starts=3, throughput_batch_sizes=[1])
    # The first load may take all but the report's time, and there is none for the second: 5 rounds of 3 turns each.
    deadline = Deadline(20.0, lambda: world.clock, {"quality": 10.0, "the report": 2.0})
    measure(replace(run, deadline=deadline), answers=tmp_path / "answers")
    assert len(kept_rounds(run.journal, SHORT)) == 5
    assert kept_rounds(run.journal, run.bench.loads[1]) == []
    assert world.clock <= 18
    # Its memory is that of what ran.
    assert {row.key for row in compute(run).memory} == {"t/fp32", "s/fp32"}
    assert turns(world).count(("t/fp32", 128)) == 0


def unsteady(turns):
    """Return a student whose speed at 1×128 changes in so many turns, and then no more."""
    calls = [1.0 + 0.2 * (number % 3) if number < turns else 1.0 for number in range(100)]
    return {("s/fp32", "block", "1×128"): [{"latencies_ms": [ms] * 4, "cpu_s": 0.1, "wall_s": 0.1} for ms in calls]}


@pytest.mark.parametrize(("most", "launches"), [(3, {4, 5, 6}), (1, {4}), (0, set())])
def test_a_wide_interval_is_launched_again_so_often_as_is_allowed(world, tmp_path, most, launches):
    world.faults = unsteady(100)
    run = make_run(tmp_path, world, rounds=8, extra_launches=most)
    measure(run, answers=tmp_path / "answers")
    short, long = (kept_rounds(run.journal, load) for load in run.bench.loads)
    assert len(short) == 8  # its intervals are points
    assert {found.launch for found in long} - {0, 1, 2, 3} == launches
    assert len(long) == 8 + 2 * len(launches)
    assert compute(run).missing == []
    assert len({process for process, _ in world.asked("load")}) == 3 * (4 + len(launches))


def test_no_launch_is_added_once_the_interval_is_narrow(world, tmp_path):
    world.faults = unsteady(3)
    run = make_run(tmp_path, world, rounds=8, extra_launches=9)
    measure(run, answers=tmp_path / "answers")
    assert 8 < len(kept_rounds(run.journal, run.bench.loads[1])) < 8 + 2 * 9
    asked = run.journal.parts("more")
    assert [bool(value["loads"]) for value in asked.values()] == [True] * (len(asked) - 1) + [False]


def test_at_most_the_three_widest_loads_are_launched_again(world, tmp_path):
    loads = [Load(num_tokens=tokens) for tokens in (16, 32, 64, 128)]
    for load, step in zip(loads, (0.3, 0.1, 0.4, 0.2), strict=True):
        calls = [1.0 + step * (number % 3) for number in range(100)]
        world.faults["s/fp32", "block", str(load)] = [
            {"latencies_ms": [ms] * 4, "cpu_s": 0.1, "wall_s": 0.1} for ms in calls
        ]
    run = make_run(tmp_path, world, loads=loads, rounds=8, extra_launches=1)
    measure(run, answers=tmp_path / "answers")
    assert run.journal.get("more", 4) == {"rounds": 2, "loads": ["1×64", "1×16", "1×128"]}
    assert [len(kept_rounds(run.journal, load)) for load in loads] == [10, 8, 10, 10]


def test_rounds_that_were_to_be_added_are_missed(tmp_path):
    # 4 launches: 12 loaded, 24 warm, 48 turns, 12 asked for memory; the fifth: 3 loaded, 3 warm, 3 turns and one more.
    world = World(interrupt_at=12 + 24 + 48 + 12 + 3 + 3 + 3 + 1, faults=unsteady(100))
    run = make_run(tmp_path, world, rounds=8, head={"seed": 7})
    with pytest.raises(KeyboardInterrupt):
        measure(run, answers=tmp_path / "answers")
    assert compute(run).missing == ["latency at 1×128: 9 of 10 rounds"]
    run.journal.finish()
    run = make_run(tmp_path, World(), rounds=8, head={"seed": 7})
    measure(run, answers=tmp_path / "answers")
    assert compute(run).missing == []


def test_a_row_that_cannot_load_makes_no_interval_wide(world, tmp_path):
    world.faults = {("s/fp32", "load", None): CommandFailed("MissingError: no CUDA device")}
    run = make_run(tmp_path, world)
    measure(run, answers=tmp_path / "answers")
    assert list(run.journal.parts("more").values()) == [{"rounds": 1, "loads": []}]


def test_memory_is_that_of_every_launch_after_the_whole_grid(world, tmp_path):
    run = make_run(tmp_path, world, launches=4)
    measure(run, answers=tmp_path / "answers")
    said = world.said
    for process in {number for number, _, command in said if command["do"] == "memory"}:
        own = [command for number, _, command in said if number == process]
        asked = next(at for at, command in enumerate(own) if command["do"] == "memory")
        assert {command["load"]["num_tokens"] for command in own[:asked] if "load" in command} == {16, 128}
    assert len(world.asked("memory")) == 3 * 4
    # A run that was interrupted before the memory warms the loads up that its new processes have not run.
    resumed = World()
    again = make_run(tmp_path / "b", resumed, again=False)
    for name, value in run.journal.parts().items():
        if name[0] != "memory" or name[-1] != 3:
            again.journal.put(name, value)
    measure(again, answers=tmp_path / "answers")
    assert [(key, command["do"]) for _, key, command in resumed.said if command["do"] != "load"] == [
        ("t/fp32", "warm"),
        ("t/fp32", "warm"),
        ("t/fp32", "memory"),
        ("s/fp32", "warm"),
        ("s/fp32", "warm"),
        ("s/fp32", "memory"),
    ]


def test_memory_is_the_median_of_the_launches_and_the_twin_tells_its_noise(world, tmp_path):
    run = make_run(tmp_path, world, loads=[SHORT])
    sizes = {"t/fp32": [100, 104, 102], "t/fp32#again": [110, 108, 112], "s/fp32": [50, 51, 49]}
    for key, seen in sizes.items():
        for launch, size in enumerate(seen):
            parts = dict.fromkeys(MEMORY, size)
            run.journal.put(("memory", key, launch), {"key": key, "limit_bytes": None, **parts})
    found = compute(run)
    assert [(row.key, row.peak_bytes, row.launches) for row in found.memory] == [("t/fp32", 102, 3), ("s/fp32", 50, 3)]
    assert found.memory[0].intervals["peak_bytes"] == (100, 104)
    # Its second process holds 110 against 102, which is farther apart than any two processes of one row.
    assert found.noise.floors["memory"] == pytest.approx(110 / 102 - 1)
    for launch, size in enumerate((50, 60, 49)):
        parts = dict.fromkeys(MEMORY, size)
        run.journal.put(("memory", "s/fp32", launch), {"key": "s/fp32", "limit_bytes": None, **parts})
    assert compute(run).noise.floors["memory"] == pytest.approx(60 / 49 - 1)


def test_joules_are_read_around_every_turn(world, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "open_meter", lambda *, on_gpu: Meter("rapl", lambda: world.clock * 10))
    run = make_run(tmp_path, world, loads=[SHORT], again=False)
    measure(run, answers=tmp_path / "answers")
    found = compute(run).energy
    # A turn takes 1 s of the fake clock, so 10 J, for 4 calls and the one before them; its wall says 0.1 s.
    assert (found.source, len(found.rows)) == ("rapl", 2)
    assert found.rows[0]["joules_per_text"] == pytest.approx(10 / 5)
    assert found.rows[0]["watts"] == pytest.approx(100)


def test_without_a_meter_the_reason_is_told(world, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "open_meter", lambda *, on_gpu: f"none here, gpu {on_gpu}")
    run = make_run(tmp_path, world, loads=[SHORT])
    measure(run, answers=tmp_path / "answers")
    found = compute(run).energy
    assert (found.source, found.reason, found.rows) == (None, "none here, gpu False", [])


def test_progress_never_goes_back_and_ends_at_its_total(world, tmp_path):
    told = []
    run = make_run(tmp_path, world, throughput_batch_sizes=[1], progress=lambda *step: told.append(step))
    measure(run, answers=tmp_path / "answers")
    steps = [(done, total) for stage, done, total, _ in told if stage == "measure latency"]
    assert steps == [(done, 10) for done in range(10)] + [(1, 1)]
    assert [stage for stage, _, _, _ in told][-1] == "measure latency"
    assert {note for stage, _, _, note in told if stage == "measure latency"} >= {"1×16, round 1", "1×128, round 5"}


def test_cold_starts_take_turns_and_a_failure_is_told(world, tmp_path, monkeypatch):
    asked = []

    def start(load, *, text, timeout_s):
        asked.append((load["key"], text))
        if load["key"] == "s/fp32":
            raise WorkerDied("the process ended with exit code 1")
        return {"process_ms": 1.0, "import_ms": 2.0, "load_ms": 3.0, "first_answer_ms": 4.0 + len(asked)}

    monkeypatch.setattr(cold_start, "start_once", start)
    run = make_run(tmp_path, world, cold_starts=3, texts=["one", "two"])
    measure(run, answers=tmp_path / "answers")
    measure(run, answers=tmp_path / "answers")
    assert {text for _, text in asked} == {"one"}
    # The baseline and its second process in each of three turns; who fails is not asked again.
    assert [key for key, _ in asked].count("t/fp32") == 6
    assert [key for key, _ in asked].count("s/fp32") == 1
    found = compute(run)
    assert [(row.key, row.starts) for row in found.cold_start] == [("t/fp32", 3)]
    assert found.noise.floors["cold start"] > 0
    assert [(row.key, row.stage, row.kind) for row in found.failures] == [("s/fp32", "cold start", "crash")]
    assert found.missing == []


def dataset(name, texts, kind, configurations):
    examples = SimpleNamespace(texts=texts)
    return LoadedDataset(
        name=name,
        examples=examples,
        kind=kind,
        metric="accuracy",
        configurations=configurations,
        has_own_models=name == "own",
    )


def test_every_configuration_answers_every_data_set_in_a_file_of_its_own(world, tmp_path):
    world.faults = {("s/fp32", "answer", None): [WorkerDied("killed by signal 9"), None]}
    run = make_run(tmp_path / "work", world)
    rows = run.bench.configurations
    data = [dataset("SST-2", ["a"] * 200, "single label", rows), dataset("a/b", ["c"], "regression", rows)]
    answers = tmp_path / "answers"
    collect_answers(run, data, answers)
    files = {key: answers / value["file"] for key, value in run.journal.parts("answers").items()}
    assert set(files) == {("t/fp32", "SST-2"), ("t/fp32", "a/b"), ("s/fp32", "a/b")}
    assert set(answers.iterdir()) == set(files.values())
    assert files["s/fp32", "a/b"].read_text() == "s/fp32"
    (failure,) = run.journal.parts("failure").values()
    assert (failure["stage"], failure["where"], failure["kind"]) == ("quality", "SST-2", "out of memory")
    asked = len(world.asked("answer"))
    collect_answers(run, data, answers)
    assert len(world.asked("answer")) == asked
    files["t/fp32", "a/b"].unlink()  # lost with the work folder: asked again
    collect_answers(run, data, answers)
    assert files["t/fp32", "a/b"].exists()
    assert world.asked("answer")[-1][1] == "t/fp32"


def test_models_of_a_data_sets_own_have_names_of_their_own_in_the_journal(world, tmp_path):
    run = make_run(tmp_path / "work", world)
    collect_answers(run, [dataset("own", ["a"], "single label", run.bench.configurations[:1])], tmp_path / "answers")
    assert list(run.journal.parts("answers")) == [("t/fp32#own", "own")]
    assert split_journal_key("t/fp32#own") == ("t/fp32", "own")
