"""Batches: every row once, similar lengths together, the same order again."""

import numpy as np
import pytest

from potstill.distill.batches import LengthGroupedSampler


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(3, 60, size=1003).tolist()


def test_every_row_comes_once_in_an_epoch(lengths):
    assert sorted(LengthGroupedSampler(lengths, batch_size=16, seed=1)) == list(range(1003))


def test_the_order_depends_on_seed_and_epoch_alone(lengths):
    one, two = (LengthGroupedSampler(lengths, batch_size=16, seed=1) for _ in range(2))
    first = list(one)
    np.random.seed(5)  # noqa: NPY002 - the global generator must not matter
    assert list(two) == first
    one.set_epoch(1)
    assert list(one) != first
    assert list(LengthGroupedSampler(lengths, batch_size=16, seed=2)) != first


def test_batches_waste_less_than_a_tenth_of_what_random_ones_waste(lengths):
    def padding(order):
        batches = [[lengths[row] for row in order[start : start + 16]] for start in range(0, len(order), 16)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    grouped = padding(list(LengthGroupedSampler(lengths, batch_size=16, seed=1)))
    assert grouped < 0.1 * padding(np.random.default_rng(0).permutation(1003).tolist())


def test_batches_do_not_come_from_short_to_long(lengths):
    order = list(LengthGroupedSampler(lengths, batch_size=16, seed=1))
    means = [np.mean([lengths[row] for row in order[start : start + 16]]) for start in range(0, 992, 16)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


@pytest.mark.parametrize("rows", [1, 15, 16, 17])
def test_small_data_sets_work(rows):
    assert sorted(LengthGroupedSampler([5] * rows, batch_size=16, seed=1)) == list(range(rows))
