import os
import subprocess
import sys
import time

import pytest

from potstill.timing import disturbance
from potstill.timing.disturbance import Counters, Shares, Watch

STAT = """cpu  900 0 0 900 0 0 0 0 0 0
cpu0 100 20 30 400 50 6 4 40 7 8
cpu1 1 1 1 1 1 1 1 1 1 1
cpu10 200 0 0 300 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.fixture
def proc(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 10}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    (tmp_path / "stat").write_text(STAT)
    return tmp_path


def test_the_cores_of_this_process_are_counted_and_no_others(proc):
    found = disturbance.read_counters(proc=proc, cgroup=proc)
    # Of core 0: all 650 ticks, 160 of them work; core 10: 500 and 200. Guests are in user and nice already.
    assert found.total == pytest.approx(11.5)
    assert found.busy == pytest.approx(3.6)
    assert found.stolen == pytest.approx(0.4)
    assert found.throttled == 0


@pytest.mark.parametrize(
    ("name", "text", "seconds"),
    [("cpu.stat", "usage_usec 5\nthrottled_usec 2500000\n", 2.5), ("cpu/cpu.stat", "throttled_time 1500000000", 1.5)],
)
def test_throttling_is_read_from_both_versions_of_cgroups(proc, name, text, seconds):
    (proc / name).parent.mkdir(exist_ok=True)
    (proc / name).write_text(text)
    assert disturbance.read_counters(proc=proc, cgroup=proc).throttled == seconds


def test_shares_are_of_the_rounds_together():
    rounds = [
        {"total": 10.0, "busy": 6.0, "stolen": 0.5, "own": 4.0, "throttled": 0.5, "wall": 5.0},
        {"total": 10.0, "busy": 4.0, "stolen": 0.0, "own": 4.0, "throttled": 0.0, "wall": 5.0},
    ]
    assert disturbance.shares(rounds) == Shares(steal=0.025, throttled=0.05, others=0.1)


def test_shares_are_none_where_nothing_is_counted():
    assert disturbance.shares([]) == Shares(None, None, None)
    still = {"total": 0.0, "busy": 0.0, "stolen": 0.0, "own": 1.0, "throttled": 0.0, "wall": 1.0}
    assert disturbance.shares([still]) == Shares(None, None, None)


def test_more_of_our_own_than_there_is_work_is_no_negative_share():
    found = disturbance.shares([{"total": 10.0, "busy": 4.0, "stolen": 0, "own": 4.1, "throttled": 0, "wall": 1.0}])
    assert found.others == 0


def test_what_is_over_its_limit_is_said():
    assert Shares(0.02, 0.02, 0.05).over_limit() == []
    assert Shares(None, None, None).over_limit() == []
    steal, throttled, others = Shares(0.03, 0.04, 0.06).over_limit()
    assert "3% of the time of the cores to other guests" in steal
    assert "quota held the models back for 4% of the time" in throttled
    assert "other processes took 6%" in others


def test_work_of_children_is_our_own_and_that_of_others_is_not():
    burn = "import time; e = time.process_time() + {}; print('go', flush=True)\nwhile time.process_time() < e: pass\n"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn.format(0.4)!r}]); input()"
    before = disturbance.read_counters()
    child = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    ended = subprocess.run([sys.executable, "-c", burn.format(0.3)], stdout=subprocess.DEVNULL, check=True)
    assert ended.returncode == 0
    deadline = time.monotonic() + 30
    try:
        while disturbance.read_counters().since(before)["own"] < 0.65 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        child.communicate(b"\n")
    grown = disturbance.read_counters().since(before)
    assert 0.65 <= grown["own"] < 5
    assert grown["wall"] > 0
    assert grown["busy"] >= 0.5 * grown["own"]


def test_counters_grow():
    early = Counters(1, 2, 3, 4, 5, 6)
    assert Counters(2, 4, 6, 8, 10, 12).since(early) == {
        "total": 1,
        "busy": 2,
        "stolen": 3,
        "own": 4,
        "throttled": 5,
        "wall": 6,
    }


BURN = "import time\nprint('go', flush=True)\nwhile time.time() < {}: pass\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_work_of_a_stranger_is_a_reason_not_to_believe_the_times():
    # A process of init's, not of ours: its parent has ended.
    burner = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN.format(time.time() + 4)!r}])"
    with subprocess.Popen([sys.executable, "-c", burner], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"go\n"
        parent.wait()
        with Watch() as watch:
            time.sleep(1.0)
    assert any("other processes took" in reason for reason in watch.reasons())


def test_too_short_a_time_tells_nothing():
    # One tick of a daemon within two of the core would be half of the time.
    short = {"total": 0.02, "busy": 0.01, "stolen": 0.0, "own": 0.0, "throttled": 0.0, "wall": 0.01}
    assert disturbance.shares([short]) == Shares(None, None, None)
    assert disturbance.shares([short] * 50).others == 0.5


def test_what_was_disturbed_is_made_again_so_often_as_is_allowed(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(
        disturbance,
        "read_counters",
        lambda: disturbance.Counters(total=(tick := next(ticks)), busy=tick, stolen=0, own=0, throttled=0, wall=tick),
    )
    made = iter("abc")
    found, machine = disturbance.watched(lambda: next(made), repeats=2)
    assert found == "c"
    assert disturbance.shares([machine]).others == 1
    calm = disturbance.Counters(total=0, busy=0, stolen=0, own=0, throttled=0, wall=0)
    monkeypatch.setattr(disturbance, "read_counters", lambda: calm)
    assert disturbance.watched(lambda: "first", repeats=2)[0] == "first"
