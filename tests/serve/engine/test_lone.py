"""Runs on the session with more threads, and what waits for them."""

import pytest

from potstill.serve.engine.queue import SHORT_CHARACTERS
from tests.serve.engine.queues import job_of, put, queue_of


def test_a_run_is_lone_while_nothing_else_runs_and_few_wait():
    queue = queue_of(lone=0.5)
    put(queue, [9])
    first = queue.next_batch(0.0)
    assert (first.is_lone, first.predicted_s) == (True, pytest.approx(0.005))
    put(queue, [9])
    second = queue.next_batch(0.001)  # the first still runs
    assert (second.is_lone, second.predicted_s) == (False, pytest.approx(0.010))
    queue.done(first, now=0.002)
    queue.done(second, now=0.003)
    put(queue, [9, 9, 9, 9])
    third = queue.next_batch(0.004)
    assert not third.is_lone  # three wait
    queue.done(third, now=0.005)
    for left in (2, 1, 0):
        batch = queue.next_batch(0.005)
        assert batch.is_lone, left
        queue.done(batch, now=0.005)
    put(queue, [9])
    queue.add(job_of(), cost_s=0.0)
    fourth = queue.next_batch(0.006)  # somebody's text is not tokenised yet
    assert not fourth.is_lone
    queue.done(fourth, now=0.007)
    queue.next_raw(long=True)
    put(queue, [9])
    assert queue.next_batch(0.008).is_lone


def test_no_run_is_lone_without_a_session_for_it():
    queue = queue_of()
    put(queue, [9])
    assert not queue.next_batch(0.0).is_lone


def lone_running(tokens, *, runners=2, **about):
    queue = queue_of(lone=0.5, runners=runners, **about)
    put(queue, [tokens])
    assert queue.next_batch(0.0).is_lone
    return queue


@pytest.mark.parametrize(
    ("runners", "running", "tokens", "waits"),
    [
        # Its 10 ms would be 20 beside the other run, and are 5 after it, which has to end within 15.
        (2, 9, 9, True),
        (2, 30, 9, True),  # it ends after 14.5 ms
        (2, 32, 9, False),  # after 15.5
        (2, 32, 10, True),
        # With more cores the two are less in each other's way: 13.3 ms, so within 8.3.
        (4, 17, 9, True),  # 8 ms
        (4, 18, 9, False),  # 8.5
    ],
)
def test_a_row_waits_for_a_lone_run_if_it_is_through_sooner(runners, running, tokens, waits):
    queue = lone_running(running, runners=runners)
    put(queue, [tokens], at=0.001)
    until = (running + 1) * 0.0005 + (tokens + 1) * 0.001
    assert queue.held_until(0.001) == (pytest.approx(until) if waits else None)


@pytest.mark.parametrize(("running", "tokens", "until"), [(9, 9, 0.015), (499, 9, 0.260), (9, 499, 0.505)])
def test_a_row_waits_for_a_late_run_no_longer_than_it_takes_itself(running, tokens, until):
    queue = lone_running(running)
    put(queue, [tokens], at=0.001)
    assert queue.held_until(until - 0.0001) == pytest.approx(until)
    assert queue.held_until(until + 0.0001) is None


def test_what_a_row_waits_for_follows_the_drift():
    queue = queue_of(lone=0.5, runners=2)
    for _ in range(200):
        queue._policies["m"].drift.saw(actual_s=3.0, predicted_s=1.0)
    put(queue, [9])
    assert queue.next_batch(0.0).is_lone
    put(queue, [9], at=0.001)
    assert queue.held_until(0.001) == pytest.approx(3 * 0.015, rel=1e-3)


@pytest.mark.parametrize(
    "beside",
    [
        lambda queue: queue.add(job_of(), cost_s=0.0),
        lambda queue: queue.add(job_of(characters=SHORT_CHARACTERS + 1), cost_s=0.0),
        lambda queue: [queue.next_batch(0.001) for _ in range(3)],
        lambda queue: queue.done(next(iter(queue.running)), now=0.001),
        lambda queue: queue.drop(queue._due[0].job),
    ],
    ids=["a text", "a long text", "nothing waits", "nothing runs", "given up"],
)
def test_nothing_waits_where_there_is_other_work_or_none(beside):
    queue = lone_running(9)
    for _ in range(3):
        put(queue, [9], at=0.001)
    assert queue.held_until(0.001) is not None
    beside(queue)
    assert queue.held_until(0.001) is None


@pytest.mark.parametrize(
    ("running", "rows", "waits"),
    [
        # Up to three have the session for lone runs after it: 5 ms each, and it has to end within 15.
        (30, 3, True),
        (32, 3, False),
        # More run side by side after it, for 10 ms instead of 20 beside it, which has to end within 10.
        (20, 4, True),
        (22, 4, False),
        (20, 40, True),
        (22, 40, False),
    ],
)
@pytest.mark.parametrize("is_due", [True, False])
def test_many_rows_wait_less_long_than_few(running, rows, waits, is_due):
    queue = lone_running(running)
    put(queue, [9], at=0.001)
    for _ in range(rows - 1):
        put(queue, [9], at=0.001 if is_due else 1.0, now=0.001)
    assert (queue.held_until(0.001) is not None) is waits


def test_a_row_that_is_not_due_yet_waits_as_well():
    queue = lone_running(9)
    put(queue, [9], at=0.002, now=0.001)
    assert queue.held_until(0.001) == pytest.approx(0.015)


def test_nothing_waits_for_runs_that_are_not_lone():
    queue = queue_of(runners=2)
    put(queue, [9])
    assert not queue.next_batch(0.0).is_lone
    put(queue, [9], at=0.001)
    assert queue.held_until(0.001) is None
    queue = queue_of(lone=0.1, runners=2)
    put(queue, [9] * 4)
    assert not queue.next_batch(0.0).is_lone
    assert queue.held_until(0.0) is None


@pytest.mark.parametrize(
    ("lone", "runners", "in_turn"),
    [
        (0.5, 2, {1, 2, 3}),
        (0.62, 2, {1, 2, 3}),
        (0.63, 2, {1, 3}),  # two end at 1.26 instead of 1, three at 1.89 instead of 2
        (0.89, 2, {1}),
        (0.3, 16, {1, 2, 3}),
        (0.5, 16, {1, 2}),
        (0.7, 16, {1}),
        (0.89, 1, {1, 2, 3}),
    ],
)
def test_rows_run_one_after_the_other_if_the_last_is_not_much_later(lone, runners, in_turn):
    found = set()
    for rows in range(1, 6):
        queue = queue_of(lone=lone, runners=runners)
        put(queue, [9] * rows)
        if queue.next_batch(0.0).is_lone:
            found.add(rows)
    assert found == in_turn


def test_a_model_without_lone_runs_does_not_wait_for_anothers():
    queue = queue_of(lone=0.5, runners=2, models=("m", "n"))
    queue._policies["n"].lone = None
    put(queue, [9], model="m")
    assert queue.next_batch(0.0).is_lone
    put(queue, [9], model="n", at=0.001)
    assert queue.held_until(0.001) is None


def test_with_one_runner_nobody_else_could_begin():
    queue = lone_running(9, runners=1)
    put(queue, [9], at=0.001)
    assert queue.held_until(0.001) is None


def test_lone_runs_teach_nothing_of_those_that_share_the_cores():
    queue = queue_of(lone=0.5)
    put(queue, [9])
    queue.done(queue.next_batch(0.0), now=0.030)
    assert queue.expected_s("m", 9) == pytest.approx(0.010)
