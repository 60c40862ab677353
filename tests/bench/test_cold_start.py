import sys

import numpy as np
import pytest
from scipy import stats

from potstill.bench.measure.cold_start import median_interval, start_once, summarise_starts
from potstill.timing.workers import CommandFailed, WorkerDied

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
