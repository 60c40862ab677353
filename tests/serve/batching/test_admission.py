from dataclasses import replace

import pytest

from potstill.serve.batching.admission import Admission
from potstill.serve.batching.cost import RunCost
from potstill.serve.batching.queue import Lane
from tests.serve.batching.queues import put, queue_of
from tests.serve.batching.simulation import DISTILBERT, Machine

# Dynamic int8 of the same student: every text alone.
ALONE = {"cost": RunCost(fixed=0.0002, per_row=0.0, per_token=0.00002, per_pair=5e-8), "budget": 1}


def admission_of(**about):
    """Return an admission, and a lane in front of it."""
    return Admission(**{"typical_s": 0.010} | about), Lane("m", 0)


def test_a_burst_may_wait_longer_than_a_standing_queue():
    admission, lane = admission_of()
    burst, standing = (admission.limit_s(0.010, is_standing=is_standing) for is_standing in (False, True))
    assert standing < burst / 3
    assert admission.refusal(lane, burst, 0.010, now=0.0) is None
    assert admission.refusal(lane, burst + 0.001, 0.010, now=0.0) is not None
    assert admission.refusal(lane, burst, 0.010, now=0.1) is not None
    assert admission.refusal(lane, standing, 0.010, now=0.1) is None
    assert admission.refusal(Lane("m", 3), burst, 0.010, now=0.1) is None  # what is of another size was not refused
    lane.is_standing = False
    assert admission.refusal(lane, burst, 0.010, now=0.2) is None


def test_a_lane_stands_no_longer_once_a_runner_is_free_and_finds_it_empty():
    queue = queue_of()
    lane, other = queue.lane("m", 0.010), queue.lane("m", 1.0)
    lane.is_standing = other.is_standing = True
    put(queue, [9])
    queue.next_batch(0.0)
    assert (lane.is_standing, other.is_standing) == (True, False)
    queue.next_batch(0.1)
    assert not lane.is_standing


def test_who_costs_more_may_wait_longer():
    admission, _ = admission_of()
    for is_standing in (False, True):
        dear, cheap = (admission.limit_s(cost, is_standing=is_standing) for cost in (0.030, 0.001))
        assert dear == pytest.approx(3 * cheap)


def test_all_may_wait_longer_while_a_longer_text_than_usual_runs():
    admission, lane = admission_of(batch_s=0.050)
    limit = admission.limit_s(0.010, is_standing=True)
    lane.is_standing = True
    assert admission.limit_s(0.010, is_standing=True, longest_row_s=0.040) == limit
    assert admission.refusal(lane, limit + 0.29, 0.010, now=0.0, longest_row_s=0.300) is None
    assert admission.refusal(lane, limit + 0.31, 0.010, now=0.0, longest_row_s=0.300) is not None


def test_a_burst_of_long_runs_does_not_wait_for_longer_than_people_do():
    admission, _ = admission_of(typical_s=0.090, batch_s=0.200)
    assert admission.limit_s(0.090, is_standing=False) == pytest.approx(0.4)
    slow, _ = admission_of(typical_s=0.900)
    assert slow.limit_s(0.900, is_standing=False) == pytest.approx(1.35)  # as while a queue stands


def test_a_limit_by_hand_holds():
    admission, lane = admission_of(fixed_s=0.5)
    assert admission.refusal(lane, 0.5, 0.010, now=0.0) is None
    assert admission.refusal(lane, 0.51, 0.010, now=0.0, longest_row_s=9.0) is not None
    assert admission.limit_s(9.0, is_standing=False) == 0.5


def test_what_cannot_be_ready_in_time_is_refused_unless_nothing_is_before_it():
    admission, lane = admission_of()
    assert admission.refusal(lane, 0.005, 0.010, now=0.0, left_s=0.012) is not None
    assert not lane.is_standing
    assert admission.refusal(lane, 0.0, 0.010, now=0.0, left_s=0.001) is None
    # Its texts run on two runners at a time.
    assert admission.refusal(lane, 0.005, 0.010, runs_s=0.005, now=0.0, left_s=0.012) is None


def test_the_long_cost_follows_what_comes():
    admission, _ = admission_of(typical_s=5.0)
    for number in range(320):
        admission.took(0.002 if number % 20 else 0.009, drift=1.0)
        admission.took(2.0, drift=1.0, is_lowest=False)  # which has its own lane
    assert 0.002 <= admission.long_s <= 0.009


def test_a_standing_queue_does_not_grow_with_what_slows_the_machine():
    admission, _ = admission_of()
    calm = admission.limit_s(0.010, is_standing=True)
    admission.took(0.010, drift=1.4)
    assert admission.limit_s(0.014, is_standing=True) == pytest.approx(calm)
    admission.took(0.010, drift=5.0)
    assert admission.limit_s(0.050, is_standing=True) == pytest.approx(0.050)


def test_retry_after_grows_with_what_was_refused_and_is_forgotten():
    admission, lane = admission_of()
    first = admission.refusal(lane, 1.0, 0.010, now=0.0)
    for turn in range(500):
        later = admission.refusal(lane, 1.0, 0.010, now=turn / 1000)
    assert later > 2 * first
    assert admission.refusal(lane, 1.0, 0.010, now=60.0) < 2 * first
    assert 0 < admission.refusal(lane, 1e9, 1.0, now=61.0) <= 30.0


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


def test_what_came_before_the_first_refusal_of_a_flood_waits_for_little_more_than_three_batches():
    batch_s = DISTILBERT.seconds(4, 32)
    flood = Machine(cost=DISTILBERT, budget=128, runners=2, batch_s=batch_s).load(1700, duration=20)
    assert flood.p(99) <= 3.25 * batch_s


def test_a_file_without_padding_answers_more_and_sooner():
    at_edge = {"cost": DISTILBERT, "budget": 190, "runners": 2, "batch_s": DISTILBERT.seconds(5, 32)}
    lean = {
        "cost": replace(DISTILBERT, unpadded=True),
        "budget": 128,
        "padded": 384,
        "runners": 2,
        "batch_s": DISTILBERT.seconds(4, 32),
    }
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
    admission, _ = admission_of()
    burst, standing = (admission.limit_s(0.0, is_standing=is_standing) * 1e3 for is_standing in (False, True))
    assert admission.limits_ms() == {"burst": burst, "standing": standing}
    assert burst > standing
