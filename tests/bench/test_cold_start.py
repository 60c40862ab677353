import sys
from types import SimpleNamespace

import pytest

from potstill.bench.measuring.cold_start import cold_start, median_interval
from potstill.timing.client import CommandFailed, WorkerDied

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


def entry(key="teacher/fp32", **changes):
    command = {
        "do": "load", "runner": "onnxruntime-cpu", "precision": "fp32", "threads": 1, "task": "text-classification",
        "problem_type": None, "max_length": None,
    } | changes  # fmt: skip
    return SimpleNamespace(
        key=key, load_command=lambda *, seed, spinning: command | {"seed": seed, "spinning": spinning}
    )


def test_a_cold_start_is_the_median_of_each_part_over_fresh_processes(tmp_path):
    script, told = [sys.executable, "-c", SCRIPT.format(folder=str(tmp_path))], []
    found = cold_start(
        entry(folder="x"), text=("word1", "word2"), starts=3, seed=5, spinning=False, command=script,
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    assert (found.key, found.starts) == ("teacher/fp32", 3)
    assert (found.process_ms, found.import_ms, found.load_ms, found.first_answer_ms) == (11, 100, 500, 7.5)
    # 417.5, 1018.5 and 619.5 in all.
    assert (found.total_ms, found.interval) == (619.5, (417.5, 1018.5))
    started, load, first = (tmp_path / "0").read_text().splitlines()
    assert float(started) > 0
    assert '"seed": 5' in load
    assert '"spinning": false' in load
    assert first == '{"do": "first", "text": ["word1", "word2"]}'
    assert [step[1:3] for step in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_real_start_has_four_parts_that_all_take_time(teacher_dir):
    found = cold_start(entry(folder=str(teacher_dir)), text="word1 word2", starts=1)
    assert min(found.process_ms, found.import_ms, found.load_ms, found.first_answer_ms) > 0
    assert found.total_ms == found.process_ms + found.import_ms + found.load_ms + found.first_answer_ms
    assert found.process_ms < 10_000
    assert found.interval == (found.total_ms, found.total_ms)


def test_what_cannot_load_is_told(tmp_path):
    with pytest.raises(CommandFailed, match="BundleError"):
        cold_start(entry(folder=str(tmp_path / "nowhere")), text="word1", starts=1)


def test_what_does_not_answer_in_time_is_ended():
    with pytest.raises(WorkerDied, match=r"no answer within 0\.2 s"):
        cold_start(
            entry(folder="x"), text="word1", starts=1, timeout_s=0.2,
            command=[sys.executable, "-c", "import time; time.sleep(60)"],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "lower"),
    # The sign test's table for 5 %, two-sided (Conover 1999, Practical Nonparametric Statistics, table A3).
    [(1, 0), (3, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (15, 3), (20, 5), (25, 7)],
)
def test_the_interval_of_a_median_is_between_two_of_the_values(count, lower):
    values = [float(number) for number in range(count)]
    assert median_interval(values[::-1]) == (lower, count - 1 - lower)
