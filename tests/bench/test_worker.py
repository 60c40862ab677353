import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from potstill.bench import report_schema, worker, worker_commands
from potstill.bench.measure.memory import MemoryGrowth, OutOfMemory
from potstill.bench.worker_commands import WorkerCommands, call_together, warm_up
from potstill.bundle import read_bundle
from potstill.serve import BundleTokenizer, Encoder
from potstill.timing.workers import CommandFailed, Worker, WorkerDied, python_module, worker_pool

COMMAND = python_module("potstill.bench.worker")
GRID = {"kind": "grid", "batch_size": 2, "num_tokens": 16}


@pytest.fixture
def running():
    worker = Worker(COMMAND)
    yield worker
    worker.close()


def load_command(folder, precision="fp32", **changes):
    return {
        "do": "load",
        "runner": "onnxruntime-cpu",
        "folder": str(folder),
        "precision": precision,
        "threads": 1,
        "seed": 3,
        "spinning": True,
        "task": "text-classification",
        "problem_type": None,
        "max_length": None,
    } | changes


def load(worker, folder, precision="fp32"):
    return worker.ask(load_command(folder, precision))


def scripted(code, **settings):
    return Worker([sys.executable, "-c", code], **settings)


class FakeRunner:
    """Answer zeros, or what `answers` says; write down the lengths of what is run."""

    device, inputs, outputs, files = "cpu", ("input_ids", "attention_mask"), ("logits",), {"model": "5ha"}
    vocab_size, batch_invariant, pooling = 64, True, "mean"

    def __init__(self, tokenizer, answers=None):
        self.tokenizer, self.lengths, self.threads = tokenizer, [], set()
        self.answers = answers or (lambda: np.zeros((1, 2), dtype=np.float32))

    def run(self, feeds):
        self.lengths.append(feeds["input_ids"].shape[1])
        self.threads.add(threading.get_ident())
        return {"logits": self.answers()}

    def prepare(self, feeds):
        return lambda: self.run(feeds)

    def gpu_memory(self):
        return {"gpu_peak_allocated_bytes": 12, "gpu_peak_reserved_bytes": 34}


@pytest.fixture
def runner(teacher_dir):
    return FakeRunner(BundleTokenizer(teacher_dir, read_bundle(teacher_dir, verify=False).manifest))


@pytest.fixture
def at_work(runner, monkeypatch):
    """WorkerCommands whose model is `runner`."""
    monkeypatch.setattr(worker_commands, "find_opener", lambda name: lambda command: runner)
    made = WorkerCommands(MemoryGrowth(interpreter_rss_bytes=1), process_ms=4, import_ms=2)
    made.answer(load_command("anywhere"))
    return made


def words(count):
    return " ".join(["word1"] * count)


# The protocol, in a process of its own


def test_a_worker_loads_and_tells_how_long_that_took(running, teacher_dir):
    reply = load(running, teacher_dir)
    assert 1 < reply["process_ms"] < 60_000
    assert reply["import_ms"] > 10  # numpy, pydantic, onnxruntime
    assert reply["load_ms"] > 0
    assert reply["device"] == "cpu"
    assert reply["sha256"]["onnx/model.onnx"] == read_bundle(teacher_dir).manifest.files["onnx/model.onnx"].sha256


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_worker_does_all_that_is_asked(running, teacher_dir, examples, tmp_path, precision):
    load(running, teacher_dir, precision)
    assert running.ask({"do": "first", "text": examples.texts[0]})["first_answer_ms"] > 0
    assert running.ask({"do": "first", "text": ["word1", "word2"]})["first_answer_ms"] > 0
    mean_tokens = running.ask({"do": "texts", "texts": examples.texts[:20]})["mean_tokens"]
    assert mean_tokens == np.mean([len(text.split()) + 2 for text in examples.texts[:20]])
    for kind in ({"kind": "texts"}, {"kind": "texts_tokenised"}, GRID):
        warm = running.ask({"do": "warm", "load": kind, "max_s": 0.2})
        assert warm["calls"] >= 3
        assert warm["call_ms"] > 0
        assert warm["mean_tokens"] == (16 if kind is GRID else mean_tokens)
        block = running.ask({"do": "block", "load": kind, "seconds": 0.02, "min_calls": 7})
        assert len(block["latencies_ms"]) >= 7
        assert 0 < sum(block["latencies_ms"]) / 1e3 < block["wall_s"]
        assert 0 < block["cpu_s"] < 2 * block["wall_s"]  # one thread, and what the kernel's clock rounds
        together = running.ask({"do": "concurrent", "load": kind, "callers": 3, "seconds": 0.05})
        assert together["texts"] == len(together["latencies_ms"]) * (2 if kind is GRID else 1)
        assert together["seconds"] > 0.01


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_workers_answers_are_the_encoders_own(running, teacher_dir, examples, tmp_path, precision):
    load(running, teacher_dir, precision)
    request = {"do": "answer", "texts": examples.texts, "kind": "single_label_classification"}
    mean_tokens = np.mean([len(text.split()) + 2 for text in examples.texts])
    reply = running.ask(request | {"file": str(tmp_path / "answers.npz")})
    assert reply == {"texts": 200, "mean_tokens": pytest.approx(mean_tokens)}
    with np.load(tmp_path / "answers.npz", allow_pickle=False) as answers:
        found = answers["values"]
    expected = Encoder(teacher_dir, precision=precision, threads=1).logits(examples.texts)
    # Other batches in fp32: their sums round otherwise.
    assert np.allclose(found, expected, atol=1e-6 if precision == "fp32" else 0)


def test_pairs_survive_the_way_to_the_worker(running, teacher_dir, tmp_path):
    load(running, teacher_dir)
    request = {"do": "answer", "texts": [("word1", "word2 word3")], "kind": "single_label_classification"}
    running.ask(request | {"file": str(tmp_path / "answers")})  # the name is taken as it is
    expected = Encoder(teacher_dir, threads=1).logits([("word1", "word2 word3")])
    assert np.allclose(np.load(tmp_path / "answers")["values"], expected, atol=1e-6)


def test_a_worker_tells_its_memory_by_part(running, teacher_dir):
    load(running, teacher_dir)
    before = running.ask({"do": "memory"})
    assert 2**20 < before["interpreter_rss_bytes"] < before["imported_rss_bytes"] - 10 * 2**20
    assert before["imported_rss_bytes"] < before["loaded_rss_bytes"] <= before["loading_peak_bytes"]
    assert 0 < before["after_uss_bytes"] < before["after_rss_bytes"]
    running.ask({"do": "warm", "load": {"kind": "grid", "batch_size": 512, "num_tokens": 32}, "max_s": 0.1})
    after = running.ask({"do": "memory"})
    # 512 x 32 x 192 floats are 12.6 MB, and there are several of them.
    assert after["peak_bytes"] > before["peak_bytes"] + 12 * 2**20
    assert after["loading_peak_bytes"] == before["loading_peak_bytes"]
    report_schema.Memory(key="teacher/fp32", limit_bytes=None, **after)


def test_a_restarted_peak_is_told(running, teacher_dir):
    load(running, teacher_dir)
    assert running.ask({"do": "restart_peak"}) in ({"restarted": True}, {"restarted": False})


def test_the_kernel_ends_a_worker_first_when_memory_runs_out(running, teacher_dir):
    load(running, teacher_dir)
    with open(f"/proc/{running.pid}/oom_score_adj", encoding="ascii") as score:  # noqa: PTH123 (no file of ours)
        assert score.read() == "1000\n"


def test_a_worker_that_runs_out_of_memory_says_so_and_lives_on(teacher_dir):
    code = (
        "import resource; from potstill.bench import worker\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); worker.main()"
    )
    running = scripted(code)
    try:
        load(running, teacher_dir)
        huge = {"kind": "grid", "batch_size": 200_000, "num_tokens": 32}  # 4.6 GiB per layer
        with pytest.raises(CommandFailed, match="OutOfMemory: out of memory: ") as told:
            running.ask({"do": "warm", "load": huge, "max_s": 0.1})
        assert not isinstance(told.value, WorkerDied)
        assert running.ask({"do": "block", "load": GRID, "seconds": 0, "min_calls": 2})["wall_s"] > 0
    finally:
        running.close()


def test_after_an_error_the_worker_goes_on(running, teacher_dir):
    with pytest.raises(CommandFailed, match="UsageError: unknown command 'dance'; a worker knows load, texts"):
        running.ask({"do": "dance"})
    with pytest.raises(CommandFailed, match="UsageError: nothing is loaded"):
        running.ask({"do": "warm", "load": GRID, "max_s": 1})
    with pytest.raises(CommandFailed, match="BundleError"):
        load(running, teacher_dir / "nowhere")
    assert load(running, teacher_dir)["load_ms"] > 0
    with pytest.raises(CommandFailed, match="UsageError: own texts takes texts one by one; got 0 texts"):
        running.ask({"do": "warm", "load": {"kind": "texts"}, "max_s": 1})


def test_stray_prints_do_not_reach_the_answers():
    code = (
        "import os; from potstill.bench import worker, worker_commands\n"
        "def noisy(): print('noise'); os.system('echo noise'); return True\n"
        "worker_commands.restart_peak = noisy; worker.main()"
    )
    running = scripted(code)
    try:
        assert running.ask({"do": "restart_peak"}) == {"restarted": True}
    finally:
        running.close()


# How long a process has been there


def test_the_time_since_the_start_is_the_askers_or_the_kernels():
    assert worker.milliseconds_since_start([repr(time.monotonic() - 2)]) == pytest.approx(2000, abs=500)
    mine = (time.time() - psutil.Process().create_time()) * 1e3
    assert worker.milliseconds_since_start([]) == pytest.approx(mine, abs=1500)  # psutil rounds the boot to a second


# What the commands do, with a made model


def test_a_load_reply_adds_the_engines_import_to_the_workers_own(runner, monkeypatch):
    monkeypatch.setattr(worker_commands, "find_opener", lambda name: time.sleep(0.5) or (lambda command: runner))
    reply = WorkerCommands(MemoryGrowth(interpreter_rss_bytes=1), process_ms=4, import_ms=1000).answer(
        load_command("anywhere")
    )
    assert (reply["process_ms"], reply["device"], reply["sha256"]) == (4, "cpu", {"model": "5ha"})
    assert reply["import_ms"] >= 1500
    assert reply["load_ms"] < 500


def test_blocks_go_round_the_texts_and_on_where_the_last_one_ended(at_work, runner):
    at_work.answer({"do": "texts", "texts": [words(count) for count in range(1, 8)]})
    block = {"do": "block", "load": {"kind": "texts"}, "seconds": 0, "min_calls": 4}
    assert len(at_work.answer(block)["latencies_ms"]) == 4
    at_work.answer({"do": "block", "load": GRID, "seconds": 0, "min_calls": 1})  # another load in between
    at_work.answer(block)
    lengths = [length for length in runner.lengths if length != 16]
    # One uncounted and four counted calls, twice, over seven texts of 3 to 9 tokens.
    assert sorted(lengths[:7]) == list(range(3, 10))
    assert lengths[7:] == lengths[:3]


def test_lists_are_pairs_except_where_words_are_labelled(at_work, runner):
    at_work.answer({"do": "first", "text": ["word1", "word2"]})
    at_work.answer(load_command("anywhere", task="token-classification"))
    at_work.answer({"do": "first", "text": ["word1", "word2"]})
    assert runner.lengths == [5, 4]
    assert at_work.answer({"do": "texts", "texts": [["word1"], ["word1", "word2", "word3"]]}) == {"mean_tokens": 4.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_found_before_anything_is_timed(at_work, runner, bad):
    runner.answers = lambda: np.array([[0, bad, 0, 0]])
    with pytest.raises(worker_commands.NotFinite, match=r"25\.00% of the numbers in logits are NaN or infinite"):
        at_work.answer({"do": "warm", "load": GRID, "max_s": 1})
    assert len(runner.lengths) == 1


def test_finite_answers_are_checked_once_and_not_in_the_block(at_work, runner, monkeypatch):
    checked = []
    monkeypatch.setattr(worker_commands, "_check_finite", lambda outputs: checked.append(outputs))
    at_work.answer({"do": "warm", "load": GRID, "max_s": 0.1})
    at_work.answer({"do": "block", "load": GRID, "seconds": 0, "min_calls": 5})
    assert len(checked) == 1


@pytest.mark.parametrize("error", [MemoryError("nothing left"), RuntimeError("std::bad_alloc")])
def test_whatever_an_engine_calls_it_out_of_memory_is_told_in_these_words(at_work, runner, error):
    def fail():
        raise error

    runner.answers = fail
    with pytest.raises(OutOfMemory, match=f"out of memory: {type(error).__name__}: "):
        at_work.answer({"do": "block", "load": GRID, "seconds": 0, "min_calls": 1})


def test_a_gpus_memory_is_told_where_there_is_one(at_work, runner, monkeypatch):
    reply = at_work.answer({"do": "memory"})
    assert (reply["gpu_peak_allocated_bytes"], reply["gpu_peak_reserved_bytes"]) == (12, 34)
    monkeypatch.setattr(runner, "gpu_memory", dict)
    assert at_work.answer({"do": "memory"})["gpu_peak_allocated_bytes"] is None


# Warming up


class Clock:
    """Calls that take given seconds, one after the other; the last goes on for ever."""

    def __init__(self, *seconds):
        self.now, self.seconds, self.calls = 0.0, list(seconds), 0

    def call(self):
        self.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1

    def read(self):
        return self.now


def test_a_warm_up_ends_when_two_windows_are_alike():
    # The first call compiles; then 4 windows of one call: 0.3, 0.2, 0.1, 0.1.
    clock = Clock(5, 0.3, 0.2, 0.1, 0.102)
    reply = warm_up([clock.call], max_s=3, clock=clock.read)
    assert reply == {"calls": 5, "stationary": True, "call_ms": pytest.approx(102)}


def test_five_percent_are_alike_and_six_are_not():
    alike, unlike = Clock(1, 0.100, 0.1049), Clock(1, 0.100, 0.1061)
    assert warm_up([alike.call], max_s=3, clock=alike.read)["calls"] == 3
    assert warm_up([unlike.call], max_s=3, clock=unlike.read)["calls"] == 4


def test_a_warm_up_that_never_settles_ends_and_says_so():
    clock = Clock(1, *(0.1 * 1.2**number for number in range(40)))
    reply = warm_up([clock.call], max_s=2, clock=clock.read)
    assert not reply["stationary"]
    assert 1 + 2 < clock.now < 1 + 2 * 1.3


def test_even_slow_calls_are_made_three_times():
    clock = Clock(10)
    assert warm_up([clock.call], max_s=3, clock=clock.read) == {
        "calls": 3,
        "stationary": True,
        "call_ms": pytest.approx(10_000),
    }


def test_a_window_is_long_enough_for_fast_calls():
    clock = Clock(1, 0.001)
    # Two windows of 50 calls of 1 ms: 50 ms each.
    assert warm_up([clock.call], max_s=3, clock=clock.read)["calls"] == pytest.approx(101, abs=2)


def test_texts_of_unlike_lengths_are_steady_when_their_turns_are():
    clock = Clock(*([0.04, 0.02, 0.01] * 9))
    assert warm_up([clock.call] * 3, max_s=3, clock=clock.read)["stationary"]


def test_a_turn_that_was_cut_short_is_not_compared():
    # 4 texts of 0.5 s in 3 s: the second turn ends after two of them.
    clock = Clock(0.5)
    reply = warm_up([clock.call] * 4, max_s=3, clock=clock.read)
    assert reply == {"calls": 7, "stationary": False, "call_ms": pytest.approx(500)}


# Several callers at once


def test_callers_call_at_once_and_their_speeds_add_up():
    calls = [lambda: time.sleep(0.01)] * 4
    latencies_ms, seconds = call_together(calls, seconds=0.2)
    assert len(latencies_ms) == 4
    assert all(len(caller) >= 5 and min(caller) >= 10 for caller in latencies_ms)
    total = sum(map(len, latencies_ms))
    # Four of 10 ms each: at most 400 per second, and more than one caller alone makes.
    assert 150 < total / seconds <= 400


def test_each_callers_speed_is_by_its_own_time():
    made = []
    latencies_ms, seconds = call_together(
        [lambda: made.append(time.sleep(0.01)), lambda: time.sleep(0.3)], seconds=0.05
    )
    fast, slow = sorted(latencies_ms, key=len, reverse=True)
    assert len(slow) == 1
    assert len(fast) <= 6  # those that began within 50 ms
    assert seconds == pytest.approx((len(fast) + 1) / (1e3 / np.mean(fast) + 1e3 / slow[0]), rel=0.05)
    assert len(made) > 2 * len(fast)  # and on beside the slow one, which is to have company all the time


def test_a_caller_that_fails_ends_all_of_them():
    def fail():
        raise ValueError("this caller cannot")

    with pytest.raises(ValueError, match="this caller cannot"):
        call_together([lambda: time.sleep(0.001), fail, lambda: time.sleep(0.001)], seconds=60)


def test_callers_have_threads_and_texts_of_their_own(at_work, runner):
    at_work.answer({"do": "texts", "texts": [words(count) for count in (1, 2, 3, 4)]})
    runner.lengths.clear()
    reply = at_work.answer({"do": "concurrent", "load": {"kind": "texts"}, "callers": 4, "seconds": 0.05})
    assert len(runner.threads) == 4
    assert threading.get_ident() not in runner.threads
    assert reply["texts"] == len(reply["latencies_ms"])
    assert set(runner.lengths) == {3, 4, 5, 6}


# The process and its parent


def wait_until_gone(pid):
    for _ in range(200):
        # Nobody reaps an orphan in a container without an init: a zombie is gone too.
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_worker_that_was_killed_is_told_with_its_signal(running):
    running.ask({"do": "memory"})
    os.kill(running.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="killed by signal 9"):
        running.ask({"do": "memory"})


def test_a_worker_that_ends_is_told_with_its_last_words():
    worker = scripted("import sys; sys.exit('out of luck')")
    with pytest.raises(WorkerDied, match="exit code 1: out of luck"):
        worker.ask({"do": "memory"})
    worker.close()


def test_a_worker_that_hangs_is_killed_after_its_time():
    worker = scripted("import time; time.sleep(60)", timeout_s=0.3)
    with pytest.raises(WorkerDied, match=r"no answer within 0\.3 s"):
        worker.ask({"do": "memory"})
    worker.close()
    assert wait_until_gone(worker.pid)


def test_no_worker_outlives_the_block_that_runs_it():
    workers = []

    def launch(name):
        workers.append(Worker(COMMAND))
        return workers[-1]

    def interrupted():
        log = SimpleNamespace(has_failed=lambda *place: False)
        with worker_pool({"a": [], "b": []}, launch=launch, log=log) as pool:
            pool.start(["a", "b"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(workers) == 2
    assert all(wait_until_gone(worker.pid) for worker in workers)


def test_a_parent_that_was_killed_leaves_no_worker_even_in_a_long_block(teacher_dir):
    code = f"""
import json, sys
from potstill.timing.workers import Worker, python_module
worker = Worker(python_module("potstill.bench.worker"))
worker.ask({load_command(teacher_dir)!r})
print(worker.pid, flush=True)
worker.ask({{"do": "block", "load": {GRID!r}, "seconds": 60, "min_calls": 1}})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        worker_pid = int(json.loads(parent.stdout.readline()))
        assert psutil.pid_exists(worker_pid)
        parent.kill()
    assert wait_until_gone(worker_pid)
