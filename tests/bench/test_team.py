import sys
import time

import pytest

from potstill.bench.measuring.samples import open_samples
from potstill.bench.measuring.team import classify, open_team, start_worker
from potstill.timing.client import CommandFailed, Worker, WorkerConfused, WorkerDied, WorkerHung
from tests.bench.fake_worker import FakeEntry, World

BLOCK = {"do": "block", "min_calls": 1}


@pytest.fixture
def world():
    return World()


@pytest.fixture
def journal(tmp_path):
    return open_samples(tmp_path, head={})


def team_of(world, journal, *keys, texts=False):
    greetings = {key: [FakeEntry(key.partition("#")[0]).load_command(seed=1)] for key in keys}
    if texts:
        greetings = {key: [*first, {"do": "texts", "texts": ["a"]}] for key, first in greetings.items()}
    return open_team(greetings, journal=journal, launch=world.launch, timeout_s=9)


def calls(reply):
    return reply["latencies_ms"]


def ask(team, key, where="1×16", **changes):
    return team.ask(key, BLOCK, read=calls, stage="latency", where=where, **changes)


def failures(journal):
    return [
        (value["key"], value["stage"], value["where"], value["kind"]) for value in journal.parts("failure").values()
    ]


def test_a_process_starts_when_it_is_asked_and_only_once(world, journal):
    with team_of(world, journal, "a/fp32", "b/fp32") as team:
        assert world.processes == []
        assert ask(team, "a/fp32") == ask(team, "a/fp32") == [1.0] * 4
        assert world.asked("load") == [(0, "a/fp32")]
    assert [worker.closed for worker in world.processes] == [True]
    assert world.processes[0].timeout_s == 9
    assert journal.get("load", "a/fp32")["sha256"] == {"model.onnx": "a/fp32"}


def test_all_begin_before_the_first_loads(world, journal):
    with team_of(world, journal, "a/fp32", "b/fp32") as team:
        begun = []
        launch = team._launch
        team._launch = lambda limit: begun.append(len(world.said)) or launch(limit)
        team.start(team.names)
    assert begun == [0, 0]
    assert world.asked("load") == [(0, "a/fp32"), (1, "b/fp32")]


def test_who_began_and_was_never_loaded_is_ended_too(world, journal):
    world.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt), team_of(world, journal, "a/fp32", "b/fp32") as team:
        team.start(team.names)
    assert [worker.closed for worker in world.processes] == [True, True]


def test_a_failure_costs_the_load_and_not_the_process(world, journal):
    world.faults = {("a/fp32", "block", None): [CommandFailed("ValueError: too long")]}
    with team_of(world, journal, "a/fp32") as team:
        assert ask(team, "a/fp32", "1×16") is None
        assert ask(team, "a/fp32", "1×16") is None  # lost: not asked again
        assert len(world.asked("block")) == 1
        assert ask(team, "a/fp32", "1×128") is not None
    assert len(world.processes) == 1
    assert failures(journal) == [("a/fp32", "latency", "1×16", "error")]
    assert journal.get("failure", "a/fp32", "latency", "1×16")["reason"] == "ValueError: too long"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WorkerDied("the process was killed by signal 11"), "crash"),
        (WorkerHung("no answer"), "hang"),
        (WorkerConfused("answered 'hello'"), "error"),
        (CommandFailed("MemoryError: "), "out of memory"),
    ],
)
def test_who_died_or_ran_out_of_memory_starts_anew_at_the_next_load(world, journal, error, kind):
    world.faults = {("a/fp32", "block", None): [error]}
    with team_of(world, journal, "a/fp32", texts=True) as team:
        assert ask(team, "a/fp32", "1×16") is None
        team.done("a/fp32").add("old")
        assert ask(team, "a/fp32", "1×16") is None
        assert len(world.processes) == 1
        assert world.processes[0].closed
        assert ask(team, "a/fp32", "1×128") == [1.0] * 4
        assert len(world.processes) == 2
    assert [key for _, key in world.asked("texts")] == ["a/fp32", "a/fp32"]
    assert failures(journal) == [("a/fp32", "latency", "1×16", kind)]


def test_a_new_process_has_done_nothing_yet(world, journal):
    world.faults = {("a/fp32", "block", None): [None, WorkerDied("gone")]}
    with team_of(world, journal, "a/fp32") as team:
        ask(team, "a/fp32")
        team.done("a/fp32").add("1×16")
        assert team.done("a/fp32") == {"1×16"}
        ask(team, "a/fp32")
        assert team.done("a/fp32") == set()


def test_who_cannot_load_leaves_with_one_failure(world, journal):
    world.faults = {("a/fp32", "load", None): CommandFailed("BundleError: no such file")}
    with team_of(world, journal, "a/fp32", "b/fp32") as team:
        assert ask(team, "a/fp32", "1×16") is None
        assert ask(team, "a/fp32", "1×128") is None
        assert ask(team, "b/fp32") is not None
        assert team.names == ["b/fp32"]
    assert failures(journal) == [("a/fp32", "load", None, "error")]
    with team_of(world, journal, "a/fp32") as team:  # a resumed run knows
        assert team.names == []
        assert ask(team, "a/fp32") is None
    assert len(world.asked("load")) == 2


def test_a_program_that_is_not_there_is_a_failure(journal):
    def nowhere(timeout_s):
        return Worker(["/no/such/program"], timeout_s=timeout_s)

    with open_team({"a": [{"do": "load"}]}, journal=journal, launch=nowhere, timeout_s=1) as team:
        assert ask(team, "a") is None
    assert failures(journal) == [("a", "load", None, "error")]


def test_a_reply_that_lacks_what_is_wanted_is_a_failure_and_no_traceback(world, journal):
    world.faults = {("a/fp32", "block", None): {"latency": 3}}
    with team_of(world, journal, "a/fp32") as team:
        assert ask(team, "a/fp32") is None
    (failure,) = journal.parts("failure").values()
    assert failure["kind"] == "error"
    assert "{'latency': 3} to 'block' (KeyError: 'latencies_ms')" in failure["reason"]


def test_a_limit_of_its_own_reaches_the_process(journal):
    seen = []

    class Recorder:
        def ask(self, command, *, timeout_s=None):
            seen.append((command["do"], timeout_s))
            return {"latencies_ms": [1]}

        def pause(self): ...
        def resume(self): ...
        def close(self): ...

    with open_team({"a": [{"do": "load"}]}, journal=journal, launch=lambda _: Recorder(), timeout_s=9) as team:
        ask(team, "a", timeout_s=70.0)
    assert seen == [("load", None), ("block", 70.0)]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CommandFailed("NotFinite: 3 % of the numbers are NaN"), "not finite"),
        (CommandFailed("OutOfMemory: out of memory: std::bad_alloc"), "out of memory"),
        (CommandFailed("RuntimeException: Failed to allocate memory for requested buffer"), "out of memory"),
        (CommandFailed("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (CommandFailed("Fail: std::bad_alloc"), "out of memory"),
        (WorkerDied("the process was killed by signal 9"), "out of memory"),
        (WorkerDied("the process was killed by signal 99"), "crash"),
        (WorkerDied("the process ended with exit code 1: MemoryError"), "out of memory"),
        (WorkerDied("the process ended with exit code 7"), "crash"),
        (WorkerHung("no answer within 120 s, killed"), "hang"),
        (WorkerConfused("answered 'x', which is no answer, and was killed"), "error"),
        (CommandFailed("ValueError: NotFinite is only mentioned"), "error"),
    ],
)
def test_faults_are_told_apart(error, kind):
    assert classify(error) == kind


# A process that loads, and does what the test wants when it is asked for a block.
FAULTY = """
import json, os, sys, time
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "block":
        {fault}
    print(json.dumps({{"ok": True, "latencies_ms": [1.0]}}), flush=True)
"""


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("os._exit(3)", "crash", "exit code 3"),
        ("os.kill(os.getpid(), 11)", "crash", "signal 11"),
        ("os.kill(os.getpid(), 9)", "out of memory", "signal 9"),
        ("time.sleep(600)", "hang", "no answer within 1 s"),
        ("print('hello', flush=True); continue", "error", "answered 'hello', which is no answer"),
        ("print('[1]', flush=True); continue", "error", "no answer"),
        ('print(\'{"ok": true, "latencies_ms": [NaN]}\', flush=True); continue', "error", "no answer"),
        ("print('{}', flush=True); continue", "error", "no answer"),
        ("print('{\"ok\": false}', flush=True); continue", "error", "no reason given"),
        ("os.write(1, b'\\xff\\xfe\\n'); continue", "error", "no answer"),
        ("os.close(1); time.sleep(600)", "crash", "closed its output"),
    ],
)
def test_real_processes_that_fail_cost_one_load_and_are_gone(journal, fault, kind, reason):
    started = []

    def launch(timeout_s):
        source = FAULTY.replace("{fault}", fault if not started else "pass").replace("{{", "{").replace("}}", "}")
        started.append(Worker([sys.executable, "-c", source], timeout_s=timeout_s if started else 20))
        return started[-1]

    begin = time.monotonic()
    with open_team({"a": [{"do": "load"}]}, journal=journal, launch=launch, timeout_s=20) as team:
        assert ask(team, "a", "1×16", timeout_s=1.0 if kind == "hang" else None) is None
        assert ask(team, "a", "1×128") == (None if reason == "no reason given" and len(started) == 1 else [1.0])
    failure = journal.get("failure", "a", "latency", "1×16")
    assert failure["kind"] == kind
    assert reason in failure["reason"]
    assert time.monotonic() - begin < 15
    assert all(worker._process.returncode is not None for worker in started)


def test_the_usual_process_is_the_bench_worker():
    worker = start_worker(60)
    try:
        with pytest.raises(CommandFailed, match="unknown command 'sing'"):
            worker.ask({"do": "sing"})
    finally:
        worker.close()
