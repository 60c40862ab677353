import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from potstill.serve import Encoder
from potstill.timing import client
from potstill.timing.client import CommandFailed, Worker, WorkerDied, python_module

COMMAND = python_module("potstill.bench.worker")


@pytest.fixture
def worker():
    worker = Worker(COMMAND)
    yield worker
    worker.close()


def load(worker, bundle_dir, precision="fp32"):
    return worker.ask({"do": "load", "bundle": str(bundle_dir), "precision": precision, "threads": 1, "seed": 3})


def scripted(code, **settings):
    return Worker([sys.executable, "-c", code], **settings)


def wait_until_gone(pid):
    for _ in range(200):
        # Nobody reaps an orphan in a container without an init: a zombie is gone too.
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_worker_loads_times_scores_and_tells_its_memory(worker, teacher_dir, examples):
    assert load(worker, teacher_dir)["load_ms"] > 0
    block = {"do": "block", "batch_size": 2, "num_tokens": 16, "seconds": 0.01, "min_calls": 7}
    latencies_ms = worker.ask(block)["latencies_ms"]
    assert len(latencies_ms) >= 7
    assert min(latencies_ms) > 0
    memory = worker.ask({"do": "memory"})
    assert memory["interpreter_rss_bytes"] < memory["imported_rss_bytes"] <= memory["loaded_rss_bytes"]
    assert memory["loaded_rss_bytes"] <= memory["peak_bytes"]
    assert 0 < memory["uss_bytes"] < memory["rss_bytes"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_workers_logits_are_the_encoders_own(worker, teacher_dir, examples, precision):
    load(worker, teacher_dir, precision)
    logits = np.asarray(worker.ask({"do": "score", "texts": examples.texts})["logits"])
    expected = Encoder(teacher_dir, precision=precision, threads=1).logits(examples.texts)
    assert np.array_equal(logits.astype(np.float32), expected)


def test_pairs_survive_the_way_to_the_worker(worker, teacher_dir):
    load(worker, teacher_dir)
    logits = worker.ask({"do": "score", "texts": [("word1", "word2 word3")]})["logits"]
    expected = Encoder(teacher_dir, threads=1).logits([("word1", "word2 word3")])
    assert np.array_equal(np.float32(logits), expected)


def test_after_an_error_the_worker_goes_on(worker, teacher_dir):
    with pytest.raises(CommandFailed, match="unknown command 'dance'"):
        worker.ask({"do": "dance"})
    with pytest.raises(CommandFailed, match="BundleError"):
        load(worker, teacher_dir / "nowhere")
    assert load(worker, teacher_dir)["load_ms"] > 0


def test_stray_prints_do_not_reach_the_answers(teacher_dir):
    code = (
        "import os; from potstill.bench import memory, worker; from potstill.timing.process import answer_commands\n"
        "def noisy(): print('noise'); os.system('echo noise'); return 1\n"
        "memory.peak = noisy; answer_commands(worker.Model().answer)"
    )
    worker = Worker([sys.executable, "-c", code])
    try:
        assert worker.ask({"do": "memory"})["peak_bytes"] == 1
    finally:
        worker.close()


def test_a_worker_that_was_killed_is_told_with_its_signal(worker):
    worker.ask({"do": "memory"})
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="killed by signal 9"):
        worker.ask({"do": "memory"})


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
    pids = []

    def interrupted():
        with client.running({"a": COMMAND, "b": COMMAND}) as workers:
            pids.extend(worker.pid for worker in workers.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(pids) == 2
    assert all(wait_until_gone(pid) for pid in pids)


def test_a_parent_that_was_killed_leaves_no_worker_even_in_a_long_block(teacher_dir):
    code = f"""
import json, sys
from potstill.timing.client import Worker, python_module
worker = Worker(python_module("potstill.bench.worker"))
worker.ask({{"do": "load", "bundle": {str(teacher_dir)!r}, "precision": "fp32", "threads": 1, "seed": 0}})
print(worker.pid, flush=True)
worker.ask({{"do": "block", "batch_size": 1, "num_tokens": 8, "seconds": 60, "min_calls": 1}})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        worker_pid = int(json.loads(parent.stdout.readline()))
        assert psutil.pid_exists(worker_pid)
        parent.kill()
    assert wait_until_gone(worker_pid)
