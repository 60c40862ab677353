from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.serve.engine.cost import RunCost
from potstill.serve.engine.queue import SHORT_CHARACTERS
from tests.serve.engine.queues import job_of, put, queue_of


def drain(queue, now=0.0):
    """Run everything, each run as long as predicted; return (job, row) in the order of their runs, by batches."""
    batches = []
    while (batch := queue.next_batch(now)) is not None:
        batches.append([(item.job, item.index) for item in batch.items])
        now += batch.predicted_s
        queue.done(batch, now=now)
    return batches


def test_single_texts_run_in_the_order_they_came():
    queue = queue_of()
    jobs = [put(queue, [3], at=at / 100) for at in range(5)]
    assert [batch[0][0] for batch in drain(queue, now=1.0)] == jobs


def test_a_single_text_passes_most_of_a_long_request():
    queue = queue_of()
    long = put(queue, [9] * 64)
    for turn in range(3):  # 10 ms each
        batch = queue.next_batch(turn * 0.010)
        assert batch.items[0].job is long
        queue.done(batch, now=(turn + 1) * 0.010)
    single = put(queue, [9], at=0.025)
    order = [batch[0][0] for batch in drain(queue, now=0.030)]
    # Due before it were the rows at 0, 10 and 20 ms, which have run.
    assert order[0] is single
    assert order.count(long) == 61


def test_a_long_request_is_not_starved_by_single_texts():
    queue = queue_of()
    long = put(queue, [9] * 10)
    now, ended = 0.0, None
    for turn in range(200):  # singles that alone would fill the machine
        put(queue, [9], at=now)
        batch = queue.next_batch(now)
        now += batch.predicted_s
        queue.done(batch, now=now)
        if batch.items[0].job is long and batch.items[0].index == 9:
            ended = turn
    # Its last row was due after 90 ms; until then 10 singles came, and nobody later passes it.
    assert ended is not None
    assert ended <= 22


def test_an_idle_machine_runs_rows_before_they_are_due():
    queue = queue_of()
    put(queue, [9] * 4)
    assert len(drain(queue)) == 4


def test_rows_of_similar_length_share_a_run_within_the_budget():
    queue = queue_of(budget=40, cost=RunCost(fixed=0.010, per_row=0.0, per_token=0.001, per_pair=0.0))
    jobs = [put(queue, [length], at=index / 1000) for index, length in enumerate((10, 30, 11, 29, 9, 10))]
    batches = drain(queue, now=1.0)
    together = [sorted(jobs.index(job) for job, _ in batch) for batch in batches]
    # 4 x 11 tokens are over 40, so three rows of about 10 run with the first; 30 and 29 fit with nothing.
    assert together[0] in ([0, 4, 5], [0, 2, 5])
    assert sorted(index for batch in together for index in batch) == [0, 1, 2, 3, 4, 5]
    assert all(len(batch) * max((10, 30, 11, 29, 9, 10)[index] for index in batch) <= 40 for batch in together)


UNPADDED = RunCost(fixed=0.010, per_row=0.0, per_token=0.001, per_pair=0.0, unpadded=True)


def test_where_padding_costs_nothing_rows_run_in_the_order_they_came():
    queue = queue_of(budget=80, padded=200, cost=UNPADDED)
    lengths = (10, 30, 11, 29, 9, 10)
    jobs = [put(queue, [length], at=index / 1000) for index, length in enumerate(lengths)]
    batch = queue.next_batch(1.0)
    # 10 + 30 + 11 + 29 are the 80 tokens; with padding they are 120.
    assert [jobs.index(item.job) for item in batch.items] == [0, 1, 2, 3]
    assert batch.predicted_s == pytest.approx(0.010 + 0.080)
    assert [jobs.index(item.job) for item in queue.next_batch(1.0).items] == [4, 5]


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
    assert [{job.model for job, _ in batch} for batch in batches] == [{"a"}, {"b"}]


def test_free_runners_share_what_waits():
    queue = queue_of(budget=1000)
    put(queue, [5] * 8)
    assert len(queue.next_batch(1.0, idle=1).items) == 4
    assert len(queue.next_batch(1.0).items) == 4


def test_dropped_and_expired_requests_do_not_run():
    queue = queue_of()
    gone, late, good = put(queue, [3] * 4), put(queue, [3], deadline=5.0), put(queue, [3])
    assert queue.drop(gone) == []
    assert [job for batch in drain(queue, now=5.0) for job, _ in batch] == [good]
    assert late.dead
    assert queue.rows == {"m": 0}
    assert queue.tokens == {"m": 0}
    assert queue.wait_s(0.01, now=9.0) == pytest.approx(0.0, abs=1e-12)


def test_a_run_that_nobody_waits_for_is_told():
    queue = queue_of(budget=1000)
    one, two = put(queue, [5]), put(queue, [5])
    batch = queue.next_batch(0.0)
    assert len(batch.items) == 2
    assert queue.drop(one) == []
    assert queue.drop(two) == [batch]
    assert queue.drop(two) == []


def test_wait_counts_what_runs_and_what_is_due():
    queue = queue_of()
    put(queue, [9])  # 10 ms
    put(queue, [19])  # 20 ms
    assert queue.wait_s(0.01, now=0.0) == pytest.approx(0.030)
    queue.next_batch(0.0)
    assert queue.wait_s(0.01, now=0.004) == pytest.approx(0.026)
    two = queue_of(runners=2)
    put(two, [9])
    assert two.wait_s(0.01, now=0.0) == pytest.approx(0.005)


def test_wait_behind_a_long_request_is_a_share_of_it():
    queue = queue_of()
    put(queue, [9] * 64)  # 640 ms, of which 10 are due
    # A text of 10 ms waits for the row that is due and, at most, for one more that becomes due meanwhile.
    assert queue.wait_s(0.010, now=0.0) == pytest.approx(0.020)
    # A request as long as this one waits for all of it.
    assert queue.wait_s(0.640, now=0.0) == pytest.approx(0.640)


def test_a_request_waits_for_its_tokens_as_guessed_then_as_counted():
    queue = queue_of()
    job = job_of()
    queue.add(job, cost_s=0.5)
    assert queue.wait_s(0.01, now=0.0) == pytest.approx(0.5)
    queue.put(queue.next_raw(long=True), [9], now=0.0)
    assert queue.wait_s(0.01, now=0.0) == pytest.approx(0.010)


def test_short_texts_are_tokenised_first_and_long_ones_only_by_who_may():
    queue = queue_of()
    long, short = job_of(characters=SHORT_CHARACTERS + 1), job_of()
    queue.add(long, cost_s=0.0)
    queue.add(short, cost_s=0.0)
    assert queue.next_raw(long=False) is short
    assert queue.next_raw(long=False) is None
    assert not queue.has_raw(long=False)
    assert queue.next_raw(long=True) is long


def test_drift_is_learnt_from_runs():
    queue = queue_of()
    for turn in range(300):
        put(queue, [9], at=float(turn))
        batch = queue.next_batch(float(turn))
        queue.done(batch, now=turn + 0.030)  # predicted 10 ms
    assert queue.expected_s("m", 9) == pytest.approx(0.030, rel=1e-3)


REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.floats(0, 0.05), st.booleans(), st.booleans()),
    min_size=1,
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.sampled_from([1, 64, 300]))
def test_every_row_of_a_living_request_runs_once_and_nothing_is_left(requests, budget):
    queue = queue_of(budget=budget)
    now, ran, jobs = 0.0, Counter(), []

    def one():
        nonlocal now
        batch = queue.next_batch(now)
        if batch is None:
            return False
        assert len({item.job.model for item in batch.items}) == 1
        assert batch.longest == max(item.tokens for item in batch.items)
        assert len(batch.items) == 1 or batch.longest * len(batch.items) <= budget
        assert not any(item.job.dead for item in batch.items)
        ran.update((item.job, item.index) for item in batch.items)
        now += batch.predicted_s
        queue.done(batch, now=now)
        return True

    for lengths, pause, is_dropped, runs_between in requests:
        now += pause
        job = put(queue, lengths, at=now)
        jobs.append((job, lengths))
        if runs_between:
            one()
        if is_dropped:
            queue.drop(job)
    while one():
        pass
    for job, lengths in jobs:
        if not job.dead:
            assert all(ran[job, index] == 1 for index in range(len(lengths)))
    assert max(ran.values(), default=0) <= 1
    assert queue.rows == {"m": 0}
    assert queue.tokens == {"m": 0}
    assert queue.due_s == pytest.approx(0.0, abs=1e-9)
    assert queue.later_s == pytest.approx(0.0, abs=1e-9)
    assert queue.wait_s(1.0, now=now) == pytest.approx(0.0, abs=1e-9)
