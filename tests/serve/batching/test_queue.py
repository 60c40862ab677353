from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.serve.batching.cost import RunCost
from potstill.serve.batching.queue import SHORT_CHARACTERS
from tests.serve.batching.queues import put, queue_of, request_of


def drain(queue, now=0.0):
    """Run everything, each run as long as predicted; return (request, row) in the order of their runs, by batches."""
    batches = []
    while (batch := queue.next_batch(now)) is not None:
        batches.append([(row.request, row.index) for row in batch.rows])
        now += batch.predicted_s
        queue.finish(batch, now=now)
    return batches


def test_single_texts_run_in_the_order_they_came():
    queue = queue_of()
    requests = [put(queue, [3], at=at / 100) for at in range(5)]
    assert [batch[0][0] for batch in drain(queue, now=1.0)] == requests


def test_a_single_text_passes_what_is_left_of_a_long_request():
    queue = queue_of()
    long = put(queue, [9] * 64)  # 640 ms
    for turn in range(3):  # 10 ms each
        batch = queue.next_batch(turn * 0.010)
        assert batch.rows[0].request is long
        queue.finish(batch, now=(turn + 1) * 0.010)
    single = put(queue, [9], at=0.025)
    order = [batch[0][0] for batch in drain(queue, now=0.030)]
    assert order[0] is single
    assert order.count(long) == 61


def test_a_long_request_gets_half_of_the_machine_however_many_single_texts_come():
    queue = queue_of()
    long = put(queue, [9] * 64)
    now, ran = 0.0, Counter()
    for _ in range(100):  # singles that alone would fill the machine, and wait in ever greater numbers
        put(queue, [9], at=now)
        put(queue, [9], at=now)
        batch = queue.next_batch(now)
        now += batch.predicted_s
        queue.finish(batch, now=now)
        ran[batch.rows[0].request is long] += 1
    assert ran == {True: 50, False: 50}


def test_sizes_share_by_what_they_cost_and_not_by_their_number():
    queue = queue_of()
    requests = {texts: [put(queue, [63] * texts) for _ in range(8)] for texts in (1, 2, 16)}
    for _ in range(2):
        put(queue, [255] * 40)  # 10 s each: rows of 256 ms
    now, seconds = 0.0, Counter()
    for _ in range(36):
        batch = queue.next_batch(now)
        owner = batch.rows[0].request
        size = next((texts for texts, own in requests.items() if owner in own), 40)
        seconds[size] += batch.predicted_s
        now += batch.predicted_s
        queue.finish(batch, now=now)
    # The eight singles are all through after half a second; the others go on with equal shares, to a run's length.
    assert seconds.pop(1) == pytest.approx(8 * 0.064)
    assert max(seconds.values()) - min(seconds.values()) <= 0.256 + 1e-9


def test_an_empty_lane_saves_nothing_up():
    queue = queue_of()
    put(queue, [9] * 200)
    now = 0.0
    for _ in range(100):
        batch = queue.next_batch(now)
        now += batch.predicted_s
        queue.finish(batch, now=now)
    singles = [put(queue, [9], at=now) for _ in range(40)]
    # For a second nobody sent a single text, and now they get every other run, not all of them.
    order = [batch[0][0] in singles for batch in drain(queue, now=now)]
    assert 19 <= sum(order[:40]) <= 21


def test_clients_that_are_told_apart_share_what_is_of_one_size():
    queue = queue_of()
    greedy = [put(queue, [9], client="greedy") for _ in range(50)]
    modest = [put(queue, [9], client="modest") for _ in range(3)]
    order = [batch[0][0] for batch in drain(queue)]
    assert [order.index(request) for request in modest] == [1, 3, 5]
    assert [request for request in order if request in greedy] == greedy


def test_requests_of_one_size_run_one_after_the_other():
    queue = queue_of()
    first, second = put(queue, [9] * 20), put(queue, [9] * 20)
    assert [batch[0][0] for batch in drain(queue)] == [first] * 20 + [second] * 20


def test_an_idle_machine_runs_all_rows():
    queue = queue_of()
    put(queue, [9] * 4)
    assert len(drain(queue)) == 4


def test_rows_of_similar_length_share_a_run_within_the_budget():
    queue = queue_of(budget=40, cost=RunCost(fixed=0.010, per_row=0.0, per_token=0.001, per_pair=0.0))
    requests = [put(queue, [length], at=index / 1000) for index, length in enumerate((10, 30, 11, 29, 9, 10))]
    batches = drain(queue, now=1.0)
    together = [sorted(requests.index(request) for request, _ in batch) for batch in batches]
    # 4 x 11 tokens are over 40, so three rows of about 10 run with the first; 30 and 29 fit with nothing.
    assert together[0] in ([0, 4, 5], [0, 2, 5])
    assert sorted(index for batch in together for index in batch) == [0, 1, 2, 3, 4, 5]
    assert all(len(batch) * max((10, 30, 11, 29, 9, 10)[index] for index in batch) <= 40 for batch in together)


UNPADDED = RunCost(fixed=0.010, per_row=0.0, per_token=0.001, per_pair=0.0, unpadded=True)


def test_where_padding_costs_nothing_rows_run_in_the_order_they_came():
    queue = queue_of(budget=80, padded=200, cost=UNPADDED)
    lengths = (10, 30, 11, 29, 9, 10)
    requests = [put(queue, [length], at=index / 1000) for index, length in enumerate(lengths)]
    batch = queue.next_batch(1.0)
    # 10 + 30 + 11 + 29 are the 80 tokens; with padding they are 120.
    assert [requests.index(row.request) for row in batch.rows] == [0, 1, 2, 3]
    assert batch.predicted_s == pytest.approx(0.010 + 0.080)
    assert [requests.index(row.request) for row in queue.next_batch(1.0).rows] == [4, 5]


def test_padding_that_only_attention_sees_is_bounded_too():
    queue = queue_of(budget=100, padded=120, cost=UNPADDED)
    for length in (50, 10, 10, 10):
        put(queue, [length])
    assert [len(batch) for batch in drain(queue)] == [2, 2]  # three rows of 50 are more than 120


def test_a_short_row_does_not_join_a_long_one_where_attention_costs_more_than_a_run():
    cost = RunCost(fixed=0.010, per_row=0.0, per_token=0.001, per_pair=1e-6, unpadded=True)
    queue = queue_of(budget=1000, padded=3000, cost=cost)
    for length in (200, 10, 10):
        put(queue, [length])
    assert sorted(len(batch) for batch in drain(queue)) == [1, 2]


def test_a_row_over_the_budget_runs_alone():
    queue = queue_of(budget=16)
    put(queue, [100])
    put(queue, [4])
    assert [len(batch) for batch in drain(queue)] == [1, 1]


def test_nothing_shares_a_run_where_it_does_not_pay():
    queue = queue_of(budget=1000, cost=RunCost(fixed=0.0, per_row=0.0, per_token=0.001, per_pair=0.0))
    put(queue, [5] * 6)
    assert [len(batch) for batch in drain(queue)] == [1] * 6


def test_budget_of_one_runs_every_row_alone():
    queue = queue_of(budget=1)
    put(queue, [1] * 5)
    assert [len(batch) for batch in drain(queue)] == [1] * 5


def test_models_do_not_mix():
    queue = queue_of(budget=1000, models=("a", "b"))
    for turn in range(6):
        put(queue, [5], model="ab"[turn % 2])
    batches = drain(queue)
    assert [{request.model for request, _ in batch} for batch in batches] == [{"a"}, {"b"}]


def test_free_runners_share_what_waits():
    queue = queue_of(budget=1000)
    put(queue, [5] * 8)
    assert len(queue.next_batch(1.0, idle=1).rows) == 4
    assert len(queue.next_batch(1.0).rows) == 4


def test_dropped_and_expired_requests_do_not_run():
    queue = queue_of()
    gone, late, good = put(queue, [3] * 4), put(queue, [3], deadline=5.0), put(queue, [3])
    assert queue.drop(gone) == []
    assert [request for batch in drain(queue, now=5.0) for request, _ in batch] == [good]
    assert late.is_dropped
    assert queue.rows == {"m": 0}
    assert queue.tokens == {"m": 0}
    assert queue.wait_s("m", 0.01, now=9.0) == pytest.approx(0.0, abs=1e-12)


def test_a_run_that_nobody_waits_for_is_told():
    queue = queue_of(budget=1000)
    one, two = put(queue, [5]), put(queue, [5])
    batch = queue.next_batch(0.0)
    assert len(batch.rows) == 2
    assert queue.drop(one) == []
    assert queue.drop(two) == [batch]
    assert queue.drop(two) == []


def test_a_request_waits_until_a_runner_is_free_for_it():
    queue = queue_of()
    put(queue, [9])  # 10 ms
    put(queue, [19])  # 20 ms
    assert queue.wait_s("m", 0.01, now=0.0) == pytest.approx(0.030)
    queue.next_batch(0.0)
    assert queue.wait_s("m", 0.01, now=0.004) == pytest.approx(0.026)
    two = queue_of(runners=2)
    put(two, [39])
    put(two, [59])
    two.next_batch(0.0)
    # One runner is idle, and 60 ms of work are there for it; the other ends after 40.
    assert two.wait_s("m", 0.01, now=0.0) == pytest.approx(0.050)
    two.next_batch(0.0)
    assert two.wait_s("m", 0.01, now=0.010) == pytest.approx(0.030)


def test_nobody_waits_while_a_runner_is_idle():
    queue = queue_of(runners=2)
    put(queue, [4999])
    assert queue.next_batch(0.0).predicted_s == pytest.approx(5.0)
    assert queue.wait_s("m", 0.01, now=0.0) == 0.0
    assert queue.wait_s("m", 5.0, now=0.0) == 0.0


def test_wait_behind_a_long_request_is_a_share_of_it():
    queue = queue_of()
    put(queue, [9] * 64)  # 640 ms
    # While a text of 10 ms is here, the other lane gets no more than it.
    assert queue.wait_s("m", 0.010, now=0.0) == pytest.approx(0.010)
    # A request as long as this one waits for all of it.
    assert queue.wait_s("m", 0.640, now=0.0) == pytest.approx(0.640)
    # But one of another client waits for a share: as much of each as the largest of this size, 16 x 65 ms.
    for _ in range(3):
        put(queue, [9] * 64, client="other")
    assert queue.wait_s("m", 0.640, now=0.0, client="third") == pytest.approx(0.640 + 1.040)
    assert queue.wait_s("m", 0.640, now=0.0, client="other") == pytest.approx(0.640 + 3 * 0.640)


def test_a_request_is_counted_as_guessed_then_as_its_tokens_say():
    queue = queue_of()
    queue.add(request_of(), cost_s=0.05)
    assert queue.wait_s("m", 0.01, now=0.0) == pytest.approx(0.05)
    queue.add_rows(queue.next_to_tokenise(long=True), [9])
    assert queue.wait_s("m", 0.01, now=0.0) == pytest.approx(0.010)


def test_short_texts_are_tokenised_first_and_long_ones_only_by_who_may():
    queue = queue_of()
    long, short = request_of(characters=SHORT_CHARACTERS + 1), request_of(at=0.001)
    queue.add(long, cost_s=0.0)
    queue.add(short, cost_s=0.0)
    assert queue.next_to_tokenise(long=False) is short
    assert queue.next_to_tokenise(long=False) is None
    assert queue.next_to_tokenise(long=True) is long


def test_a_long_text_is_passed_by_shorter_ones_for_a_time_that_its_length_bounds():
    queue = queue_of()
    long = request_of(characters=1_000_000)
    queue.add(long, cost_s=0.0)
    for at in range(1, 20):
        queue.add(request_of(at=float(at)), cost_s=0.0)
        queue.add(request_of(at=float(at), characters=10_000), cost_s=0.0)
    order = [queue.next_to_tokenise(long=True) for _ in range(39)]
    assert 15 <= order.index(long) <= 25  # ten seconds


def test_only_much_shorter_requests_pass_in_the_middle_of_one():
    queue = queue_of()
    long = request_of(characters=100_000)
    queue.add(long, cost_s=0.0)
    assert queue.next_to_tokenise(long=True) is long
    queue.add(request_of(at=0.1, characters=60_000), cost_s=0.0)
    assert queue.next_to_tokenise(long=True, before=long) is None
    half, short = request_of(at=0.1, characters=50_000), request_of(at=0.1)
    queue.add(half, cost_s=0.0)
    queue.add(short, cost_s=0.0)
    assert queue.next_to_tokenise(long=False, before=long) is short
    assert queue.next_to_tokenise(long=True, before=long) is half
    queue.add(request_of(at=2.0), cost_s=0.0)
    assert queue.next_to_tokenise(long=True, before=long) is None  # it has been passed for a second


def test_drift_is_learnt_from_runs():
    queue = queue_of()
    for turn in range(300):
        put(queue, [9], at=float(turn))
        batch = queue.next_batch(float(turn))
        queue.finish(batch, now=turn + 0.030)  # predicted 10 ms
    assert queue.expected_s("m", 9) == pytest.approx(0.030, rel=1e-3)


def test_what_slows_the_machine_while_rows_wait_does_not_change_the_shares():
    queue = queue_of()
    long = put(queue, [9] * 64)
    now, ran = 0.0, Counter()
    for turn in range(
        40
    ):  # runs take ever longer, which later texts are expected to cost and the waiting rows were not
        put(queue, [9], at=now)
        batch = queue.next_batch(now)
        now += batch.predicted_s * 1.5
        queue.finish(batch, now=now)
        ran[batch.rows[0].request is long] += turn >= 20
    assert ran == {True: 10, False: 10}
    assert queue.wait_s("m", queue.expected_s("m", 9) * 1000, now=now) == pytest.approx(
        queue.drift("m") * 0.010 * (queue.rows["m"])
    )


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 200), min_size=1, max_size=20),
        st.floats(0, 0.05),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["", "one", "two"]),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.sampled_from([1, 64, 300]))
def test_every_row_of_a_living_request_runs_once_and_nothing_is_left(requests, budget):
    queue = queue_of(budget=budget)
    now, ran, requests = 0.0, Counter(), []

    def one():
        nonlocal now
        batch = queue.next_batch(now)
        if batch is None:
            return False
        assert len({row.request.model for row in batch.rows}) == 1
        assert batch.longest == max(row.tokens for row in batch.rows)
        assert len(batch.rows) == 1 or batch.longest * len(batch.rows) <= budget
        assert not any(row.request.is_dropped for row in batch.rows)
        ran.update((row.request, row.index) for row in batch.rows)
        now += batch.predicted_s
        queue.finish(batch, now=now)
        return True

    for lengths, pause, is_dropped, runs_between, client in requests:
        now += pause
        request = put(queue, lengths, at=now, client=client)
        requests.append((request, lengths))
        if runs_between:
            one()
        if is_dropped:
            queue.drop(request)
    while one():
        pass
    for request, lengths in requests:
        if not request.is_dropped:
            assert all(ran[request, index] == 1 for index in range(len(lengths)))
    assert max(ran.values(), default=0) <= 1
    assert queue.rows == {"m": 0}
    assert queue.tokens == {"m": 0}
    assert queue.wait_s("m", 1.0, now=now) == pytest.approx(0.0, abs=1e-9)
    assert not any(lane.rows or lane.waiting_s or lane.finish_tags or lane.all_s for lane in queue.lanes)
