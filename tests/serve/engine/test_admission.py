from dataclasses import replace

import pytest

from potstill.serve.engine.admission import Admission
from potstill.serve.engine.cost import RunCost
from tests.serve.engine.simulation import DISTILBERT, Machine

# Dynamic int8 of the same student: every text alone.
ALONE = {"cost": RunCost(fixed=0.0002, per_row=0.0, per_token=0.00002, per_pair=5e-8), "budget": 1}


def test_a_burst_may_wait_longer_than_a_standing_queue():
    door = Admission(typical_s=0.010)
    burst = door.limit_s(0.010)
    assert door.refusal(burst, 0.010, now=0.0) is None
    assert door.refusal(burst + 0.001, 0.010, now=0.0) is not None
    standing = door.limit_s(0.010)
    assert standing < burst / 3
    assert door.refusal(burst, 0.010, now=0.1) is not None
    assert door.refusal(standing, 0.010, now=0.1) is None
    door.idle()
    assert door.refusal(burst, 0.010, now=0.2) is None


def test_who_costs_more_may_wait_longer():
    door = Admission(typical_s=0.010)
    assert door.limit_s(0.030) == pytest.approx(3 * door.limit_s(0.001))
    door.is_standing = True
    assert door.limit_s(0.030) == pytest.approx(3 * door.limit_s(0.001))


def test_a_burst_of_long_runs_does_not_wait_for_longer_than_people_do():
    door = Admission(typical_s=0.090, batch_s=0.200)
    assert door.limit_s(0.090) == pytest.approx(0.4)
    slow = Admission(typical_s=0.900)
    assert slow.limit_s(0.900) == pytest.approx(1.35)  # as while a queue stands


def test_a_limit_by_hand_holds():
    door = Admission(typical_s=0.010, fixed_s=0.5)
    assert door.refusal(0.5, 0.010, now=0.0) is None
    assert door.refusal(0.51, 0.010, now=0.0) is not None
    assert door.limit_s(9.0) == 0.5


def test_what_cannot_be_ready_in_time_is_refused_unless_nothing_is_before_it():
    door = Admission(typical_s=0.010)
    assert door.refusal(0.005, 0.010, now=0.0, left_s=0.012) is not None
    assert not door.is_standing
    assert door.refusal(0.0, 0.010, now=0.0, left_s=0.001) is None


def test_the_long_cost_follows_what_comes():
    door = Admission(typical_s=5.0)
    for number in range(320):
        door.took(0.002 if number % 20 else 0.009, drift=1.0)
    assert 0.002 <= door.long_s <= 0.009


def test_a_standing_queue_does_not_grow_with_what_slows_the_machine():
    door = Admission(typical_s=0.010)
    door.is_standing = True
    calm = door.limit_s(0.010)
    door.took(0.010, drift=1.4)
    assert door.limit_s(0.014) == pytest.approx(calm)
    door.took(0.010, drift=5.0)
    assert door.limit_s(0.050) == pytest.approx(0.050)


def test_retry_after_grows_with_what_was_refused_and_is_forgotten():
    door = Admission(typical_s=0.010)
    first = door.refusal(1.0, 0.010, now=0.0)
    for turn in range(500):
        later = door.refusal(1.0, 0.010, now=turn / 1000)
    assert later > 2 * first
    assert door.refusal(1.0, 0.010, now=60.0) < 2 * first
    assert 0 < door.refusal(1e9, 1.0, now=61.0) <= 30.0


@pytest.mark.parametrize(
    "machine",
    [{}, {"runners": 2}, {"slower": 1.7, "noise": 0.3}, ALONE],
    ids=["batches", "two runners", "slower than measured", "alone"],
)
def test_ten_times_the_load_keeps_goodput_and_latency(machine):
    calm = Machine(**machine).load(20, duration=20)
    assert calm.refused == 0
    peak = max(Machine(**machine).load(rate, duration=3).goodput for rate in (800, 1600))
    flood = Machine(**machine).load(10 * peak, duration=6)
    assert flood.goodput >= 0.9 * peak
    # An answer over HTTP takes a millisecond more when nothing else goes on; without it the multiple is the harder.
    assert flood.p(99) <= 5 * (calm.p(99) + 0.001)


def test_bursts_at_a_normal_load_are_absorbed():
    machine = Machine()
    normal = machine.load(350, duration=20)  # of about 550 a second
    assert normal.refused == 0


def test_what_came_before_the_first_refusal_of_a_flood_waits_for_three_batches_at_most():
    batch_s = DISTILBERT.seconds(5, 32)
    flood = Machine(cost=DISTILBERT, budget=190, runners=2, batch_s=batch_s).load(1700, duration=5)
    assert flood.p(99) <= 3 * batch_s


def test_a_file_without_padding_answers_more_and_sooner():
    at_edge = {"cost": DISTILBERT, "budget": 190, "runners": 2, "batch_s": DISTILBERT.seconds(5, 32)}
    lean = {
        "cost": replace(DISTILBERT, unpadded=True), "budget": 128, "padded": 384, "runners": 2,
        "batch_s": DISTILBERT.seconds(4, 32),
    }  # fmt: skip
    padded, unpadded = (Machine(**machine).load(400, duration=10) for machine in (at_edge, lean))
    assert unpadded.goodput >= 1.05 * padded.goodput
    assert unpadded.p(99) <= 0.8 * padded.p(99)


def test_it_recovers_at_once():
    machine = Machine()
    machine.load(5000, duration=2)
    after = machine.load(100, duration=5)
    assert after.refused == 0
    assert after.p(99) <= 3 * Machine().load(100, duration=5).p(99)


def test_limits_are_told_for_a_burst_and_for_a_queue_that_stands():
    door = Admission(typical_s=0.010)
    burst = door.limit_s(0.0) * 1e3
    door.is_standing = True
    standing = door.limit_s(0.0) * 1e3
    assert door.limits_ms() == {"burst": burst, "standing": standing}
    assert burst > standing
